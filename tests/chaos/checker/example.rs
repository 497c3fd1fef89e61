//! A short story in which everything is right, for the checks' own tests to spoil.

use super::Story;
use crate::{
    evidence::{Change, Commit, Log, Row, Rows, Snapshot},
    history::{Call, Read, Seen, Told, Way},
};

const BEGUN_MS: u64 = 1_000_000;

pub(crate) fn accepted(version: u64, sequence: u64) -> Told {
    Told::Accepted { version, sequence: Some(sequence), replayed: false }
}

/// A call from second 10 to 11, about one deposit on account `a` of `alder`.
pub(crate) fn call(key: &str, told: Told) -> Call {
    Call {
        tenant: "alder",
        account: "a-g0".to_owned(),
        command: "deposit",
        key: key.to_owned(),
        tag: key.to_owned(),
        parts: 1,
        if_match: None,
        way: Way::Wait,
        gateway: 1,
        start_ns: 10_000_000_000,
        end_ns: 11_000_000_000,
        told,
    }
}

/// A deposit of 5 that was stored at second 10.5.
pub(crate) fn commit(key: &str, version: u64, sequence: u64) -> Commit {
    let change = Change {
        event: "deposited".to_owned(),
        branch: "b0".to_owned(),
        amount: 5,
        tag: key.to_owned(),
    };
    Commit {
        sequence,
        stored_ms: BEGUN_MS + 10_500,
        slot: 7,
        tenant: "alder".to_owned(),
        account: "a-g0".to_owned(),
        key: key.to_owned(),
        first: version,
        last: version,
        changes: vec![change],
        chained: true,
    }
}

pub(crate) fn story() -> Story {
    let keys = ["open", "first", "second"];
    let mut commits: Vec<Commit> =
        (1..).zip(keys).map(|(version, key)| commit(key, version, version)).collect();
    commits[0].changes[0].event = "opened".to_owned();
    commits[0].changes[0].amount = 0;
    let mut calls: Vec<Call> =
        (1..).zip(keys).map(|(version, key)| call(key, accepted(version, version))).collect();
    calls[2].if_match = Some(2);
    // Two went through the queue, one after the other.
    let mut queued = call("open", Told::Queued);
    (queued.start_ns, queued.end_ns) = (1_000_000_000, 2_000_000_000);
    for queued in [&mut queued].into_iter().chain(&mut calls[..2]) {
        queued.way = Way::Queue;
    }
    calls.insert(0, queued);
    calls.insert(0, call("no", Told::Refused { status: 409, code: "too_little".to_owned() }));
    calls.insert(0, call("lost", Told::NoAnswer { why: "Timeout".to_owned() }));
    let account = ("alder".to_owned(), "a-g0".to_owned());
    let row = Row { branch: "b0".to_owned(), changes: 2, deposited: 10, withdrawn: 0, version: 3 };
    let rows = Rows {
        balances: [(account.clone(), row)].into(),
        branches: [(("alder".to_owned(), "b0".to_owned()), [1, 2, 10, 0])].into(),
    };
    let snapshot = |position: i64, version: u64, epoch: i64| Snapshot {
        checkpoints: [((1, 7), (position, epoch))].into(),
        serving: 1,
        generation: 0,
        versions: [(account.clone(), version)].into(),
    };
    let read = Read {
        tenant: "alder",
        account: "a-g0".to_owned(),
        least: 2,
        gateway: 1,
        start_ns: 0,
        end_ns: 0,
        seen: Seen::Row(Some(2)),
    };
    Story {
        calls,
        reads: vec![read],
        begun_ms: BEGUN_MS,
        log: Log { commits, sequences: vec![1, 2, 3], unreadable: Vec::new() },
        outcomes: Default::default(),
        rebuilt: Some(rows.clone()),
        rows,
        snapshots: vec![snapshot(2, 2, 1), snapshot(3, 3, 2)],
        heard: vec![1, 2, 3],
        replicas: (1..=3).map(|n| (format!("nats-{n}"), (3, 0, 3))).collect(),
    }
}
