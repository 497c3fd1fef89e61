//! Commands that come again when much has come between.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use flexcore_cluster::{LEASE, Owners};
use flexcore_domain::{Command, CommandId, CommandName, Outcome, command::header};
use flexcore_eventstore::{Expected, headers::QUEUE_SEQUENCE, topology};
use flexcore_queue::Stamp;
use tokio_util::sync::CancellationToken;

use crate::{
    HeaderMap, PATIENCE, Rig,
    deciders::{Accepts, Panics},
    everything, until,
};

/// More than twice what an aggregate remembers whole.
const COMMANDS: usize = 2_100;

/// The message of the queue at this sequence, stored just now.
pub(crate) fn stamp(sequence: u64) -> Stamp {
    Stamp { sequence, stored_ms: i64::MAX }
}

fn rejected() -> Outcome {
    Outcome::Rejected { code: "closed".to_owned(), message: "not today".to_owned() }
}

impl Rig {
    /// Stores a command of this id. Returns its sequence in the queue.
    async fn put_as(&self, id: &str, payload: &str) -> u64 {
        let (name, id) = (CommandName::parse("add").unwrap(), CommandId::parse(id).unwrap());
        let publisher = self.store.command_publisher();
        let payload = payload.to_owned();
        publisher.publish(&self.key, &name, &id, HeaderMap::new(), payload).await.unwrap()
    }

    /// Keeps that the stored command at this sequence of the queue was rejected.
    async fn reject(&self, id: &str, sequence: u64) {
        let id = CommandId::parse(id).unwrap();
        let stored = self.store.stored_command(&self.key, &id, sequence).await.unwrap().unwrap();
        self.store.save_outcome(&self.key, &id, stored.stamp(), &rejected()).await.unwrap();
    }

    /// Stores these commands, each with this payload, and waits until they are settled.
    async fn put_all(&self, ids: impl Iterator<Item = usize>, payload: &str) {
        let publisher = self.store.command_publisher();
        let name = CommandName::parse("add").unwrap();
        let mut sent = Vec::new();
        for id in ids {
            let id = CommandId::parse(&format!("c-{id}")).unwrap();
            let payload = payload.to_owned();
            let send = publisher.send(&self.key, &name, &id, HeaderMap::new(), payload);
            sent.push(send.await.unwrap());
        }
        for sent in sent {
            sent.stored().await.unwrap();
        }
        self.settled().await;
    }

    /// Bytes that come from the broker while an unknown command is asked for.
    async fn read_for(&self, id: &str, owners: &Owners) -> u64 {
        let client = self.store.client();
        let bytes = || client.statistics().in_bytes.load(Ordering::Relaxed);
        let before = bytes();
        assert_eq!(self.ask_for(owners, id).await, Outcome::Unknown, "{id}");
        bytes() - before
    }

    /// The ids of the commands that were put aside.
    async fn put_aside(&self) -> Vec<String> {
        let dead = self.store.jetstream().get_stream(topology::DEAD).await.unwrap();
        let mut ids = Vec::new();
        for sequence in 1..=dead.cached_info().state.last_sequence {
            let message = dead.get_raw_message(sequence).await.unwrap();
            ids.push(message.headers.get(header::OWN_COMMAND_ID).unwrap().to_string());
        }
        ids
    }

    /// The slot owner's answer about a command.
    async fn ask_for(&self, owners: &Owners, id: &str) -> Outcome {
        self.ask_for_stored(owners, id, None).await
    }

    /// The same, for the one at this sequence of the queue.
    async fn ask_for_stored(&self, owners: &Owners, id: &str, sequence: Option<u64>) -> Outcome {
        let question = |epoch, _| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, id);
            if let Some(sequence) = sequence {
                headers.insert(QUEUE_SEQUENCE, sequence.to_string());
            }
            (Command::outcome_subject(epoch, &self.key), headers)
        };
        let slot = self.key.slot().number();
        let asked = owners.ask(slot, PATIENCE, "".into(), question).await;
        let answer = asked.unwrap_or_else(|_| panic!("no answer about {id}"));
        serde_json::from_slice(&answer.message.payload).unwrap()
    }
}

/// After 1,024 others a command was once applied again, and the question for it told of the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_applied_once_however_much_comes_between() {
    let rig = Rig::start().await;
    let accepts = || Arc::new(|_: &_| Some(Box::new(Accepts(1)) as Box<_>));
    let mut worker = rig.work(accepts()).await;
    let owners = Owners::attach(flexcore_workers::COMMANDS, rig.store.client()).await.unwrap();
    rig.put_all(0..COMMANDS, r#"{"a":1,"b":[2.0]}"#).await;
    assert_eq!(rig.recorded().await.len(), COMMANDS);
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let log_bytes = log.cached_info().state.bytes;
    // The same worker; one that starts from a snapshot; and one that finds none.
    for next in ["the same", "from a snapshot", "from the log"] {
        if next != "the same" {
            worker.abort();
            let _ = worker.await;
            let kept = rig.store.snapshot(&rig.key).await.unwrap();
            assert!(kept.is_some_and(|it| it.older.open.prints.len() > 900), "not kept");
            if next == "from the log" {
                let bucket = rig.store.jetstream().get_stream(topology::SNAPSHOTS).await.unwrap();
                bucket.purge().await.unwrap();
            }
            worker = rig.work(accepts()).await;
        }
        // A question for one that never was: from the broker comes what the aggregate lacks.
        let cold = rig.read_for("never", &owners).await;
        // Something else may come between; not each time.
        let mut warm = u64::MAX;
        for id in ["nor-this", "nor-that", "nor-a-third", "nor-a-fourth"] {
            warm = warm.min(rig.read_for(id, &owners).await);
        }
        if next == "from a snapshot" {
            assert!(cold < log_bytes / 2, "{cold} bytes of the log's {log_bytes} were read");
        }
        assert!(warm < 10_000, "{next}: {warm} bytes were read");
        // Serialised again, as clients do; and another command of an old id.
        rig.put_all((0..COMMANDS).step_by(70), r#"{ "b" : [ 2 ], "\u0061" : 1e0 }"#).await;
        rig.put_all(0..1, r#"{"a":2}"#).await;
        assert_eq!(rig.recorded().await.len(), COMMANDS, "{next}");
        for (id, version) in [("c-0", 1), ("c-1000", 1_001), ("c-2099", 2_100)] {
            let told = rig.ask_for(&owners, id).await;
            let first = matches!(told, Outcome::Accepted { version: of, .. } if of == version);
            assert!(first, "{next}: {id}: {told:?}");
        }
        assert_eq!(rig.ask_for(&owners, "never").await, Outcome::Unknown);
    }
    let Some(Outcome::Dead { reason }) = rig.outcome("c-0").await else { panic!("not refused") };
    assert!(reason.contains("id"), "{reason}");
    // One a round, of the same id with another payload; no repetition is among them.
    assert_eq!(rig.put_aside().await, ["c-0", "c-0", "c-0"]);
    worker.abort();
    rig.servers.stop().await;
}

/// Its owner died before it could record that; meanwhile other owners took 1,024 commands and more of
/// clients that waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_command_that_has_committed_is_not_applied_again_after_many_others() {
    let rig = Rig::start().await;
    rig.put("stored").await;
    let mut last = Expected::default();
    for version in 1..=1_200 {
        let id = if version == 1 { "stored".to_owned() } else { format!("waited-{version}") };
        let appended = rig.store.append(&rig.commit(&id, version), last).await.unwrap();
        last = Expected { sequence: appended.sequence, hash: appended.hash };
    }
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    let recorded = rig.recorded().await;
    assert_eq!(recorded.iter().filter(|id| *id == "stored").count(), 1, "{}", recorded.len());
    assert_eq!(rig.put_aside().await, [""; 0]);
    worker.abort();
    rig.servers.stop().await;
}

/// A client was told "rejected", and its command was done seconds later.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_no_answer_while_the_command_waits_again() {
    let rig = Rig::start().await;
    let member = rig.member(LEASE).await;
    let (first, calm) = (rig.put_as("k2", "{}").await, rig.put_as("calm", "{}").await);
    // Another one has the slot's queue, so nobody takes it up.
    let queue = rig.store.command_queue();
    let claim = queue.claim(rig.key.slot().number(), u64::MAX / 2).await.unwrap();
    rig.reject("k2", first).await;
    rig.reject("calm", calm).await;
    let worker =
        rig.work_as(member.clone(), Arc::new(|_| Some(Box::new(Panics))), CancellationToken::new());
    everything(&member).await;
    let owners = Owners::of(flexcore_workers::COMMANDS, rig.store.client(), &member);
    assert_eq!(rig.ask_for(&owners, "k2").await, rejected(), "it is not recorded as settled yet");
    claim.settle(calm).await.unwrap();
    let again = rig.put_as("k2", "{}").await;
    assert_eq!(rig.ask_for(&owners, "k2").await, Outcome::Pending);
    assert_eq!(rig.ask_for(&owners, "calm").await, rejected(), "that one was not sent again");
    for (sequence, told) in [(first, rejected()), (again, Outcome::Pending)] {
        assert_eq!(rig.ask_for_stored(&owners, "k2", Some(sequence)).await, told, "{sequence}");
    }
    // Very many stand before the next one.
    rig.reject("k2", again).await;
    assert_eq!(rig.ask_for(&owners, "k2").await, rejected());
    for number in 0..70 {
        rig.put_as(&format!("c-{number}"), "{}").await;
    }
    let last = rig.put_as("k2", "{}").await;
    for sequence in [None, Some(last)] {
        let told = rig.ask_for_stored(&owners, "k2", sequence).await;
        assert_eq!(told, Outcome::Pending, "{sequence:?}");
    }
    worker.abort();
    rig.servers.stop().await;
}

/// Another command of a used id was told "accepted", and a repetition that it had made the commit.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_stored_command_is_told_of_that_one() {
    let rig = Rig::start().await;
    let member = rig.member(LEASE).await;
    let worker = rig.work_as(
        member.clone(),
        Arc::new(|_| Some(Box::new(Accepts(1)))),
        CancellationToken::new(),
    );
    everything(&member).await;
    let owners = Owners::of(flexcore_workers::COMMANDS, rig.store.client(), &member);
    let wait_for = async |payload: &str| {
        let sequence = rig.put_as("k", payload).await;
        until(async || {
            let told = rig.ask_for_stored(&owners, "k", Some(sequence)).await;
            (told != Outcome::Pending).then_some(told)
        })
        .await
    };
    let first = wait_for(r#"{"n":1}"#).await;
    let Outcome::Accepted { version: 1, position, replayed: false } = first else {
        panic!("{first:?}")
    };
    let replayed = Outcome::Accepted { version: 1, position, replayed: true };
    assert_eq!(wait_for(r#"{ "n" : 1.0 }"#).await, replayed);
    for unlike in [r#"{"n":2}"#, "{"] {
        let told = wait_for(unlike).await;
        assert!(matches!(told, Outcome::Dead { .. }), "{unlike}: {told:?}");
    }
    assert_eq!(wait_for(r#"{"n":1}"#).await, replayed);
    assert_eq!(rig.ask_for(&owners, "k").await, first);
    assert_eq!(rig.recorded().await, ["k"]);
    worker.abort();
    rig.servers.stop().await;
}

/// It was taken for the one that had been refused in the former queue, and dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_queue_that_was_made_anew_is_decided() {
    let rig = Rig::start().await;
    for id in ["a", "b"] {
        rig.put_as(id, "{}").await;
    }
    let former = rig.put_as("k2", "{}").await;
    rig.reject("k2", former).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let jetstream = rig.store.jetstream();
    let queue = jetstream.get_stream(topology::COMMANDS).await.unwrap();
    let config = queue.cached_info().config.clone();
    jetstream.delete_stream(topology::COMMANDS).await.unwrap();
    jetstream.create_stream(config).await.unwrap();
    assert!(rig.put_as("k2", "{}").await < former);
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["k2"]);
    worker.abort();
    rig.servers.stop().await;
}
