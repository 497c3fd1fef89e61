//! States at a version: of the log they cost what lies before that version and behind a snapshot.

use std::sync::atomic::Ordering;

use flexcore_domain::StateReply;

use super::*;
use crate::deciders::deployed;

/// The last command of so many makes a snapshot.
const COMMANDS: u64 = 2_048;

const COUNTER: &str = "aggregate: counter
commands:
  add: { decide: \"() => [{ event: 'added', data: {} }]\" }
events:
  added: { data: { type: object }, evolve: '(state) => (state ?? 0) + 1' }
";

/// Folds that take a while for each event, and whose states are the number of events all the same.
const SLOW: &str = "aggregate: counter
commands:
  add: { decide: \"() => []\" }
events:
  added:
    data: { type: object }
    evolve: |
      (state) => { let dust = 0; for (let i = 0; i < 30000; i++) dust += i % 7; return (state ?? 0) + 1; }
";

impl Rig {
    /// Appends the commits up to this version.
    pub(crate) async fn append_to(&self, version: u64, mut last: Expected, from: u64) {
        for version in from + 1..=version {
            let commit = self.commit(&format!("c-{version}"), version);
            let appended = self.store.append(&commit, last).await.unwrap();
            last = Expected { sequence: appended.sequence, hash: appended.hash };
        }
    }

    /// Fewest bytes that came from the broker for a question for the state at a version: something else
    /// may come between, but not each time.
    async fn read_for_state(&self, epoch: u64, version: u64) -> u64 {
        let client = self.store.client();
        let (subject, mut fewest) = (Command::state_subject(epoch, &self.key), u64::MAX);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for _ in 0..4 {
            let bytes = || client.statistics().in_bytes.load(Ordering::Relaxed);
            let (answer, before) = loop {
                let mut headers = HeaderMap::new();
                headers.insert(header::AT_VERSION, version.to_string());
                let before = bytes();
                let asked = client.request_with_headers(subject.clone(), headers, "".into());
                match asked.await {
                    Ok(answer) => break (answer, before),
                    // Nobody has subscribed yet.
                    Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            fewest = fewest.min(bytes() - before);
            match serde_json::from_slice(&answer.payload).unwrap() {
                StateReply::Found { version: found, state } => {
                    assert_eq!((found, state.get()), (version, version.to_string().as_str()));
                }
                other => panic!("{other:?}"),
            }
        }
        fewest
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_at_a_version_costs_what_lies_between_a_snapshot_and_that_version() {
    let rig = Rig::start().await;
    rig.append_to(COMMANDS - 1, Expected::default(), 0).await;
    let (catalog, settings) = (deployed(COUNTER), command::Settings::default());
    let (epochs, stop) = rig.work_alone(catalog, settings).await;
    let epoch = epochs[&rig.key.slot().number()];
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let log_bytes = log.cached_info().state.bytes;

    let early = rig.read_for_state(epoch, 10).await;
    assert!(early < log_bytes / 50, "{early} bytes of the log's {log_bytes} for version 10");
    rig.put("last").await;
    rig.settled().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let snapshot = loop {
        if let Some(snapshot) = rig.store.snapshot(&rig.key).await.unwrap() {
            break snapshot;
        }
        assert!(tokio::time::Instant::now() < deadline, "no snapshot is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(snapshot.version, COMMANDS);
    rig.append_to(COMMANDS + 5, snapshot.expected(), COMMANDS).await;
    let late = rig.read_for_state(epoch, COMMANDS + 3).await;
    assert!(late < log_bytes / 3, "{late} bytes of the log's {log_bytes} behind a snapshot");
    let early = rig.read_for_state(epoch, 10).await;
    // It looks if the snapshot is of use: it is of a later version.
    assert!(early < log_bytes / 3, "{early} bytes of the log's {log_bytes} for version 10");
    stop.cancel();
    rig.servers.stop().await;
}

/// Many commits were folded in one call, which has the time of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_at_a_version_has_the_time_of_each_of_its_commits() {
    const FOLDED: u64 = 500;
    let rig = Rig::start().await;
    rig.append_to(FOLDED, Expected::default(), 0).await;
    let (catalog, settings) = (deployed(SLOW), command::Settings::default());
    let (epochs, stop) = rig.work_alone(catalog, settings).await;
    rig.read_for_state(epochs[&rig.key.slot().number()], FOLDED - 1).await;
    stop.cancel();
    rig.servers.stop().await;
}
