//! The command worker on a real broker.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod clocks;
mod deciders;
mod deployments;
mod handover;
mod later;
mod malformed;
mod plugins;
mod remade;
mod repeats;
mod replies;
mod seals;
mod shares;
mod unstored;
mod versions;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::{HeaderMap, Message, Subscriber};
use deciders::{Accepts, Panics, Refuses, slow};
use flexcore_cluster::{LEASE, LEASE_MIN, Member, Owners, look};
use flexcore_definition::Catalog;
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, Command, CommandHash, CommandId,
    CommandName, Commit, Event, EventName, Outcome, Provenance, Tenant, command::header,
};
use flexcore_eventstore::{EventStore, Expected, Profile, topology};
use flexcore_servers::{Options, Servers, Sync, Want};
use flexcore_workers::{COMMANDS, command};
use futures::{StreamExt, TryStreamExt};
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The epochs of all slots, when the member has them.
async fn everything(member: &Member) -> BTreeMap<u16, u64> {
    let mut assigned = member.assigned();
    let all = assigned.wait_for(|now| now.of(COMMANDS).len() == 64);
    tokio::time::timeout(PATIENCE, all).await.unwrap().unwrap().of(COMMANDS)
}

/// Its answer, once it has one.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(said) = ask().await {
            return said;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct Rig {
    servers: Servers,
    store: EventStore,
    key: AggregateKey,
}

impl Rig {
    async fn start() -> Self {
        let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
        let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache) };
        let servers = Servers::start(&options).await.unwrap();
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let settings = flexcore_eventstore::Settings {
            profile: Profile::Relaxed,
            replicas: 1,
            monitor_urls: vec![servers.nats_monitor_url()],
        };
        let store = EventStore::open(client, settings).await.unwrap();
        let key = AggregateKey::new(
            Tenant::parse("acme").unwrap(),
            AggregateName::parse("counter").unwrap(),
            AggregateId::parse("c1").unwrap(),
        );
        Self { servers, store, key }
    }

    /// A worker with this decider, which owns every slot.
    async fn work(
        &self,
        native: command::NativeDeciders,
    ) -> JoinHandle<Result<(), flexcore_eventstore::Error>> {
        self.work_as(self.member(LEASE).await, native, CancellationToken::new())
    }

    async fn member(&self, lease: Duration) -> Member {
        let membership = flexcore_cluster::Settings::new("test", "worker", [COMMANDS]);
        let membership = flexcore_cluster::Settings { lease, ..membership };
        Member::join(self.store.client(), membership).await.unwrap()
    }

    fn work_as(
        &self,
        member: Member,
        native: command::NativeDeciders,
        stop: CancellationToken,
    ) -> JoinHandle<Result<(), flexcore_eventstore::Error>> {
        self.work_with(member, command::Settings { native, ..command::Settings::default() }, stop)
    }

    /// A worker that owns every slot. Returns their epochs, and how to stop it.
    async fn work_alone(
        &self,
        catalog: Catalog,
        settings: command::Settings,
    ) -> (BTreeMap<u16, u64>, CancellationToken) {
        let (member, stop) = (self.member(LEASE).await, CancellationToken::new());
        self.work_by(catalog, member.clone(), settings, stop.clone());
        (everything(&member).await, stop)
    }

    fn work_with(
        &self,
        member: Member,
        settings: command::Settings,
        stop: CancellationToken,
    ) -> JoinHandle<Result<(), flexcore_eventstore::Error>> {
        self.work_by(Catalog::default(), member, settings, stop)
    }

    fn work_by(
        &self,
        catalog: Catalog,
        member: Member,
        settings: command::Settings,
        stop: CancellationToken,
    ) -> JoinHandle<Result<(), flexcore_eventstore::Error>> {
        let (deployed, catalog) = watch::channel(Arc::new(catalog));
        let running = command::run(self.store.clone(), catalog, member, settings, stop);
        tokio::spawn(async move {
            let _deployed = deployed;
            running.await
        })
    }

    fn signal_broker(&self, name: &str) {
        let pid = self.servers.nats_pid().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Asks the slot's owner of this epoch until it has heard; the answers come here.
    async fn ask(&self, epoch: u64, heard: &Notify) -> Subscriber {
        let client = async_nats::connect(self.servers.nats_url()).await.unwrap();
        let (inbox, name) = (client.new_inbox(), CommandName::parse("add").unwrap());
        let mut answers = client.subscribe(inbox.clone()).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, "c-1");
        loop {
            let subject = Command::request_subject(epoch, &self.key, &name);
            let (inbox, headers) = (inbox.clone(), headers.clone());
            let sent = client.publish_with_reply_and_headers(subject, inbox, headers, "{}".into());
            sent.await.unwrap();
            tokio::select! {
                () = heard.notified() => return answers,
                // Nobody has subscribed yet.
                early = answers.next() => assert!(early.unwrap().status.is_some()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The outcome of a command: one event of this version.
    fn commit(&self, id: &str, version: u64) -> Commit {
        let event = Event {
            event: EventName::parse("added").unwrap(),
            version,
            schema_version: 1,
            data: RawValue::from_string("{}".to_owned()).unwrap(),
        };
        Commit {
            key: self.key.clone(),
            command_id: CommandId::parse(id).unwrap(),
            command_hash: CommandHash::of("add", "{}"),
            provenance: Provenance::of(ActorName::parse("test").unwrap()),
            time_ms: 0,
            events: vec![event],
        }
    }

    async fn put(&self, id: &str) {
        let name = CommandName::parse("add").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::ACTOR, "test");
        let id = CommandId::parse(id).unwrap();
        let publisher = self.store.command_publisher();
        publisher.publish(&self.key, &name, &id, headers, "{}".to_owned()).await.unwrap();
    }

    async fn settled(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.store.queue_depth().await.unwrap() > 0 {
            assert!(tokio::time::Instant::now() < deadline, "commands are left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A command that an owner has begun with and not passed, so many times.
    async fn begun(&self, times: u64) {
        for epoch in 1..=times {
            let queue = self.store.command_queue();
            let claim = queue.claim(self.key.slot().number(), epoch).await.unwrap();
            claim.begin().await.unwrap();
        }
    }

    /// Owners that are taken to have died of the first command.
    async fn begun_by_the_dead(&self) -> u64 {
        let bucket = self.store.jetstream().get_stream(topology::PROGRESS).await.unwrap();
        let subject = format!("$KV.flex_queue.{}", self.key.slot());
        let Ok(last) = bucket.get_last_raw_message_by_subject(&subject).await else { return 0 };
        let progress: serde_json::Value = serde_json::from_slice(&last.payload).unwrap();
        progress["begun"].as_u64().unwrap()
    }

    /// Waits until so many owners are taken to have died of the first command.
    async fn until_begun(&self, times: u64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.begun_by_the_dead().await != times {
            assert!(tokio::time::Instant::now() < deadline, "not {times} in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes one of the slot's next messages away from who reads them.
    async fn steal(&self) -> Message {
        let queue = self.store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
        let prefix = format!("slot_{}_", self.key.slot());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let name = loop {
            let names: Vec<String> = queue.consumer_names().try_collect().await.unwrap();
            if let Some(name) = names.into_iter().find(|name| name.starts_with(&prefix)) {
                break name;
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody reads the slot");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let client = self.store.client();
        let reply = client.new_inbox();
        let mut stolen = client.subscribe(reply.clone()).await.unwrap();
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{name}", topology::COMMANDS);
        client.publish_with_reply(next, reply, "".into()).await.unwrap();
        client.flush().await.unwrap();
        for id in ["a", "b", "c"] {
            self.put(id).await;
        }
        tokio::time::timeout(PATIENCE, stolen.next()).await.unwrap().unwrap()
    }

    async fn dead(&self) -> u64 {
        let dead = self.store.jetstream().get_stream(topology::DEAD).await.unwrap();
        dead.cached_info().state.messages
    }

    /// Ids of the commands in the log.
    async fn recorded(&self) -> Vec<String> {
        let commits = self.store.load(&self.key, 0).await.unwrap();
        commits.iter().map(|recorded| recorded.commit.command_id.to_string()).collect()
    }

    async fn outcome(&self, id: &str) -> Option<Outcome> {
        self.store.outcome(&self.key, &CommandId::parse(id).unwrap()).await.unwrap()
    }
}

/// The one before had told the client, and died before it could record that the command is settled.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_owner_has_refused_stays_refused() {
    let rig = Rig::start().await;
    rig.put("refused").await;
    rig.put("new").await;
    rig.put("again").await;
    let told = Outcome::Rejected { code: "closed".to_owned(), message: "not today".to_owned() };
    let id = |id| CommandId::parse(id).unwrap();
    rig.store.save_outcome(&rig.key, &id("refused"), repeats::stamp(1), &told).await.unwrap();
    // This one is the outcome of an earlier command of the same id.
    rig.store.save_outcome(&rig.key, &id("again"), repeats::stamp(2), &told).await.unwrap();
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["new", "again"]);
    assert!(matches!(rig.outcome("refused").await, Some(Outcome::Rejected { .. })));
    worker.abort();
    rig.servers.stop().await;
}

/// Without an end it would kill one worker after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_kills_its_workers_is_put_aside() {
    let rig = Rig::start().await;
    rig.put("deadly").await;
    rig.put("harmless").await;
    rig.begun(10).await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["harmless"]);
    let Some(Outcome::Dead { reason }) = rig.outcome("deadly").await else { panic!("not dead") };
    assert!(reason.starts_with("10 workers began with it"), "{reason}");
    assert_eq!(rig.dead().await, 1);
    worker.abort();
    rig.servers.stop().await;
}

/// Its owners died before they could record that it is settled.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_the_log_has_is_never_put_aside() {
    let rig = Rig::start().await;
    rig.put("recorded").await;
    rig.store.append(&rig.commit("recorded", 1), Expected::default()).await.unwrap();
    rig.begun(10).await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    assert_eq!((rig.recorded().await.len(), rig.dead().await), (1, 0));
    worker.abort();
    rig.servers.stop().await;
}

/// It waits for nobody to mend the log: the commands of other aggregates stand behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_kills_its_workers_is_put_aside_on_a_damaged_log_too() {
    let rig = Rig::start().await;
    rig.put("deadly").await;
    let subject = flexcore_eventstore::subject(&rig.key);
    let damage = rig.store.jetstream().publish(subject, "no commit".into()).await.unwrap();
    damage.await.unwrap();
    rig.begun(10).await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    assert_eq!(rig.dead().await, 1);
    worker.abort();
    rig.servers.stop().await;
}

/// Otherwise ten workers that end in good order while a decider is slow would put its command aside.
#[tokio::test(flavor = "multi_thread")]
async fn who_lives_on_with_a_command_has_not_died_of_it() {
    let rig = Rig::start().await;
    rig.put("slow").await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(slow(Duration::from_secs(9)))))).await;
    rig.until_begun(1).await;
    rig.until_begun(0).await;
    assert!(rig.recorded().await.is_empty(), "written when it was settled, and not before");
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["slow"]);
    worker.abort();
    rig.servers.stop().await;
}

/// As when a connection was cut with messages in it.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_lost_on_their_way_to_a_worker_are_read_again_in_order() {
    let rig = Rig::start().await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    let stolen = rig.steal().await;
    assert!(stolen.subject.starts_with("cmdq."), "{stolen:?}");
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["a", "b", "c"]);
    worker.abort();
    rig.servers.stop().await;
}

/// Nothing in the log says so: a next owner would decide it again, after the commands behind it.
#[tokio::test(flavor = "multi_thread")]
async fn that_a_command_was_accepted_without_events_is_kept() {
    let rig = Rig::start().await;
    rig.put("idle").await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(0))))).await;
    rig.settled().await;
    assert!(rig.recorded().await.is_empty());
    assert!(matches!(rig.outcome("idle").await, Some(Outcome::Accepted { position: None, .. })));
    worker.abort();
    rig.servers.stop().await;
}

/// The slot's next owner may have accepted what makes the refusal wrong.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_lease_has_ended_refuses_nothing() {
    let rig = Rig::start().await;
    let (begun, takes) = (Arc::new(Notify::new()), LEASE_MIN + Duration::from_secs(1));
    let member = rig.member(LEASE_MIN).await;
    let guard = member.guard();
    let notes = begun.clone();
    let refuses: command::NativeDeciders =
        Arc::new(move |_| Some(Box::new(Refuses(takes, notes.clone()))));
    let worker = rig.work_as(member.clone(), refuses, CancellationToken::new());
    let epoch = everything(&member).await[&rig.key.slot().number()];
    let mut answers = tokio::time::timeout(PATIENCE, rig.ask(epoch, &begun)).await.unwrap();
    rig.signal_broker("STOP");
    tokio::time::sleep(takes + Duration::from_millis(300)).await;
    assert!(!guard.holds());
    rig.signal_broker("CONT");
    let answer = tokio::time::timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
    let outcome: Outcome = serde_json::from_slice(&answer.payload).unwrap();
    assert!(matches!(outcome, Outcome::Unavailable { .. }), "{outcome:?}");
    worker.abort();
    rig.servers.stop().await;
}

/// A command that is sent before its sender knows would be lost, and nobody could say if it was
/// done.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_to_be_left_answers_for_a_moment_yet() {
    let rig = Rig::start().await;
    let member = rig.member(LEASE).await;
    let mut assigned = member.assigned();
    let worker =
        rig.work_as(member.clone(), Arc::new(|_| Some(Box::new(Panics))), CancellationToken::new());
    everything(&member).await;
    let _second = rig.member(LEASE).await;
    let left = assigned.wait_for(|now| !now.leaving(COMMANDS).is_empty());
    let left = tokio::time::timeout(PATIENCE, left).await.unwrap().unwrap().leaving(COMMANDS);
    // Long enough for a worker that stops at once.
    tokio::time::sleep(Duration::from_millis(40)).await;
    let asked = left.into_iter().map(|(number, epoch)| {
        let ids = (0..).map(|n| AggregateId::parse(&format!("c{n}")).unwrap());
        let (tenant, aggregate) = (rig.key.tenant(), rig.key.aggregate());
        let mut keys = ids.map(|id| AggregateKey::new(tenant.clone(), aggregate.clone(), id));
        let key = keys.find(|key| key.slot().number() == number).unwrap();
        rig.store.client().request(Command::outcome_subject(epoch, &key), "".into())
    });
    let answers = futures::future::join_all(asked).await;
    assert!(answers.iter().any(Result::is_ok), "{answers:?}");
    worker.abort();
    rig.servers.stop().await;
}

/// Until the map says otherwise it keeps receiving requests; a request that it does not hear would
/// be lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_answers_until_the_map_says_so() {
    let rig = Rig::start().await;
    let (member, stop) = (rig.member(LEASE).await, CancellationToken::new());
    let worker = rig.work_as(member.clone(), Arc::new(|_| None), stop.clone());
    let epoch = everything(&member).await[&rig.key.slot().number()];
    // Somebody could take over, but nobody leads who could say so.
    member.resign();
    while look(rig.store.client()).await.unwrap().leader.is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let other = r#"{"kinds":["command"],"role":"","version":"","started_s":0,"serves":{}}"#;
    let key = "$KV.flex_cluster.member.other";
    rig.store.jetstream().publish(key, other.into()).await.unwrap().await.unwrap();
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = rig.store.client().request(Command::outcome_subject(epoch, &rig.key), "".into());
    assert!(asked.await.is_ok(), "it is listened to yet");
    // Nor does it wait for ever.
    tokio::time::timeout(Duration::from_secs(8), worker).await.unwrap().unwrap().unwrap();
}

/// A lane that had panicked once left its slots without an answer until somebody noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_panics_ends_the_worker() {
    let rig = Rig::start().await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Panics)))).await;
    let key = rig.key.clone();
    let name = CommandName::parse("add").unwrap();
    let owners = Owners::attach(COMMANDS, rig.store.client()).await.unwrap();
    // Until the worker has subscribed, nobody gets the request.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !worker.is_finished() {
        assert!(tokio::time::Instant::now() < deadline, "the worker goes on without its lane");
        let question = |epoch, _| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, "c-1");
            (Command::request_subject(epoch, &key, &name), headers)
        };
        let within = Duration::from_millis(200);
        let slot = key.slot().number();
        let _ = owners.ask(slot, within, "{}".into(), question).await;
    }
    let error = worker.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("lane"), "{error}");
    rig.servers.stop().await;
}

/// It once went on by what had been deployed so far, beside others that knew better.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hears_of_no_deployment_any_more_ends() {
    let rig = Rig::start().await;
    let (deployed, catalog) = watch::channel(Arc::new(Catalog::default()));
    let (store, member) = (rig.store.clone(), rig.member(LEASE).await);
    let (settings, stop) = (command::Settings::default(), CancellationToken::new());
    let running = tokio::spawn(command::run(store, catalog, member.clone(), settings, stop));
    everything(&member).await;
    assert!(!running.is_finished());
    drop(deployed);
    let ended = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("not followed any more"));
    rig.servers.stop().await;
}
