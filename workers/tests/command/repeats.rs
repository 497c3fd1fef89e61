//! Commands that come again when much has come between.

use std::sync::{Arc, atomic::Ordering};

use flexcore_cluster::Owners;
use flexcore_domain::{Command, CommandId, Outcome, command::header};
use flexcore_eventstore::{Expected, topology};

use crate::{HeaderMap, PATIENCE, Rig, deciders::Accepts};

/// More than twice what an aggregate remembers whole.
const COMMANDS: usize = 2_100;

impl Rig {
    /// Stores these commands, each with this payload, and waits until they are settled.
    async fn put_all(&self, ids: impl Iterator<Item = usize>, payload: &str) {
        let publisher = self.store.command_publisher();
        let name = flexcore_domain::CommandName::parse("add").unwrap();
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
        let question = |epoch, _| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, id);
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
