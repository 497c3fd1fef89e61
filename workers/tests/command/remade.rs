//! Streams that somebody deletes under a running worker.

use std::sync::OnceLock;

use async_nats::jetstream::stream::Config;
use flexcore_domain::{Context, Decider, Decision, Payload, Refusal, State};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::*;

/// The metrics of this process.
pub(crate) fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

/// What a counter says; tests beside this one count as well.
pub(crate) fn counted(row: &str) -> u64 {
    let text = metrics().render();
    let value = text.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

fn remade(stream: &str) -> u64 {
    counted(&format!("flexcore_streams_remade_total{{stream=\"{stream}\"}}"))
}

const IN_THE_WAY: &str = "IN_THE_WAY";

/// Takes a stream away, and its place: it cannot be made anew before [`give_back`].
pub(crate) async fn take_away(rig: &Rig, name: &str) {
    let jetstream = rig.store.jetstream();
    let mut config = jetstream.get_stream(name).await.unwrap().cached_info().config.clone();
    // It has to make room before it goes, or the worker would be first.
    let moved = vec![format!("moved.{name}")];
    let subjects = std::mem::replace(&mut config.subjects, moved);
    jetstream.update_stream(&config).await.unwrap();
    let taken = subjects[0].replace(['*', '>'], "taken");
    let in_the_way =
        Config { name: IN_THE_WAY.to_owned(), subjects: vec![taken], ..Config::default() };
    jetstream.create_stream(in_the_way).await.unwrap();
    jetstream.delete_stream(name).await.unwrap();
}

/// The worker makes the stream anew.
pub(crate) async fn give_back(rig: &Rig, name: &str) {
    let jetstream = rig.store.jetstream();
    jetstream.delete_stream(IN_THE_WAY).await.unwrap();
    until_there(rig, name).await;
}

async fn until_there(rig: &Rig, name: &str) {
    until(async || rig.store.jetstream().get_stream(name).await.ok().map(drop)).await;
}

/// A decider that accepts, refuses or fails, as the command's id says.
struct ById;

impl Decider for ById {
    fn decide(
        &mut self,
        state: &State,
        name: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        let id = context.command_id.as_str();
        if id.starts_with("no") {
            let (code, message) = ("closed".to_owned(), "not today".to_owned());
            return Err(Refusal::Rejected { code, message });
        }
        if id.starts_with("bad") {
            return Err(Refusal::Faulty("a bug, on purpose".to_owned()));
        }
        Accepts(1).decide(state, name, payload, context)
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

impl Rig {
    /// Stores a command in another slot, in which nothing happens afterwards.
    async fn put_elsewhere(&self, id: &str) {
        let (tenant, aggregate) = (self.key.tenant().clone(), self.key.aggregate().clone());
        let key = AggregateKey::new(tenant, aggregate, AggregateId::parse("c2").unwrap());
        assert_ne!(key.slot(), self.key.slot());
        let (name, id) = (CommandName::parse("add").unwrap(), CommandId::parse(id).unwrap());
        let publisher = self.store.command_publisher();
        publisher.publish(&key, &name, &id, HeaderMap::new(), "{}".to_owned()).await.unwrap();
    }
}

/// The commands of all tenants once waited until a process was started, and nothing said so.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_deleted_are_made_anew_and_stored_commands_go_on() {
    metrics();
    let rig = Rig::start().await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(ById)))).await;
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    let streams = [topology::SNAPSHOTS, topology::DEAD, topology::PROGRESS, topology::OUTCOMES];
    for stream in streams {
        // Settled, and not purged yet, in a slot whose owner has nothing to write.
        rig.put_elsewhere(&format!("yes-{stream}")).await;
        rig.settled().await;
        let before = remade(stream);
        rig.store.jetstream().delete_stream(stream).await.unwrap();
        let [yes, no, bad] = ["yes", "no", "bad"].map(|kind| format!("{kind}-{stream}"));
        for id in [&yes, &no, &bad] {
            rig.put(id).await;
        }
        until_there(&rig, stream).await;
        until(async || (remade(stream) > before).then_some(())).await;
        rig.settled().await;
        assert!(matches!(rig.outcome(&bad).await, Some(Outcome::Dead { .. })), "{stream}");
        accepted.push(yes);
        refused.push(no);
        assert_eq!(rig.recorded().await, accepted, "{stream}");
        if stream == topology::OUTCOMES {
            // Those before have gone with it.
            refused.drain(..refused.len() - 1);
        }
        for id in &refused {
            let outcome = rig.outcome(id).await;
            assert!(matches!(outcome, Some(Outcome::Rejected { .. })), "{stream}: {outcome:?}");
        }
        let made = rig.store.jetstream().get_stream(stream).await.unwrap();
        let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
        let [made, log] = [made, log].map(|it| it.cached_info().config.metadata.clone());
        assert_eq!(made.get("flexcore-log"), log.get("flexcore-log"), "{stream}: of this log");
    }
    worker.abort();
    rig.servers.stop().await;
}

/// The number from before once stood there as if it were one of now.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_cannot_be_counted_are_not_said_to_be_few() {
    metrics();
    let rig = Rig::start().await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    take_away(&rig, topology::PROGRESS).await;
    rig.put("waits").await;
    let is_unknown = || metrics().render().contains("\nflexcore_commands_waiting NaN\n");
    until(async || is_unknown().then_some(())).await;
    give_back(&rig, topology::PROGRESS).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["waits"]);
    worker.abort();
    rig.servers.stop().await;
}
