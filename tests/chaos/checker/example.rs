//! A short story in which everything is right, for the checks' own tests to spoil.

use super::{Story, rows, stored::Outcome};
use crate::{
    evidence::{Change, Commit, Log, Row, Snapshot},
    history::{Asked, Call, Read, Seen, Told, Wanted, Way},
    listener::Heard,
};

pub(crate) const BEGUN_MS: u64 = 1_000_000;
pub(crate) const SECOND_NS: u64 = 1_000_000_000;

pub(crate) fn accepted(version: u64, sequence: u64) -> Told {
    Told::Accepted { version, sequence: Some(sequence), replayed: false }
}

pub(crate) fn refused(code: &str) -> Told {
    Told::Refused { status: 409, code: code.to_owned() }
}

pub(crate) fn no_answer() -> Told {
    Told::NoAnswer { why: "Timeout".to_owned() }
}

pub(crate) fn turned_away() -> Told {
    Told::TurnedAway { status: 503, code: "overloaded".to_owned(), retry_after: true }
}

/// A deposit of 5 on account `a` of `alder` from this second on, for nine tenths of it.
pub(crate) fn call(key: &str, second: u64, told: Told) -> Call {
    Call {
        tenant: "alder",
        account: "a-g0".to_owned(),
        wanted: Wanted::Deposit { amount: 5, parts: 1 },
        key: key.to_owned(),
        tag: key.to_owned(),
        if_match: None,
        way: Way::Wait,
        gateway: 1,
        start_ns: second * SECOND_NS,
        end_ns: (second + 1) * SECOND_NS - SECOND_NS / 10,
        told,
    }
}

/// Its commit, stored half a second later, as the account's only event of this version.
pub(crate) fn commit(key: &str, second: u64, version: u64, sequence: u64) -> Commit {
    let change = Change {
        event: "deposited".to_owned(),
        branch: "b0".to_owned(),
        amount: 5,
        tag: key.to_owned(),
    };
    Commit {
        sequence,
        stored_ms: BEGUN_MS + second * 1_000 + 500,
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

/// An account is opened (1), gets 5 (2), 5 in the queue (3), 3 × 2 in the queue under an id that is
/// tried with another payload, too (4 to 6), 5 from a client that expects version 6 (7), and 5 from
/// a client that has no answer (8). Beside it: refusals of every kind, a repetition, and commands
/// that were turned away first.
pub(crate) fn story() -> Story {
    let mut story = Story { begun_ms: BEGUN_MS, log: log(), calls: calls(), ..Story::default() };
    story.reads = reads();
    let key = |key: &str| ("alder".to_owned(), "a-g0".to_owned(), key.to_owned());
    let stored = Outcome::Accepted { version: 3, sequence: Some(3) };
    let dead = Outcome::Dead { reason: "invalid payload".to_owned() };
    story.outcomes = [
        (key("queued"), stored),
        (key("several"), Outcome::Accepted { version: 6, sequence: Some(4) }),
        (key("much"), Outcome::Refused { code: "too_little".to_owned() }),
        (key("nothing"), dead),
    ]
    .into();
    let heard = |commit: &Commit| Heard {
        sequence: commit.sequence,
        tenant: commit.tenant.clone(),
        account: commit.account.clone(),
        changes: commit.changes.clone(),
    };
    story.heard = story.log.commits.iter().map(heard).collect();
    story.rows = rows::fold(&story.log.commits);
    story.rebuilt = Some(story.rows.clone());
    let snapshot = |position: i64, version: u64, epoch: i64| Snapshot {
        checkpoints: [((1, 7), (position, epoch))].into(),
        serving: 1,
        generation: 0,
        versions: [(("alder".to_owned(), "a-g0".to_owned()), version)].into(),
    };
    story.snapshots = vec![snapshot(2, 2, 1), snapshot(4, 6, 2)];
    story.replicas = (1..=3).map(|n| (format!("nats-{n}"), (6, 0, 6))).collect();
    story
}

fn log() -> Log {
    let mut commits = vec![
        commit("open", 10, 1, 1),
        commit("first", 12, 2, 2),
        commit("queued", 14, 3, 3),
        commit("several", 16, 4, 4),
        commit("second", 18, 7, 5),
        commit("silent", 20, 8, 6),
    ];
    let opened = &mut commits[0].changes[0];
    (opened.event, opened.amount) = ("opened".to_owned(), 0);
    let several = &mut commits[3];
    several.changes = vec![Change { amount: 2, ..several.changes[0].clone() }; 3];
    several.last = 6;
    Log { commits, sequences: (1..=6).collect(), unreadable: Vec::new() }
}

fn calls() -> Vec<Call> {
    let wants = |wanted: &Wanted, call: Call| Call { wanted: wanted.clone(), ..call };
    let open = Wanted::Open { branch: "b0".to_owned() };
    let much = Wanted::Withdraw { amount: 1_000 };
    let nothing = Wanted::Deposit { amount: 0, parts: 1 };
    let several = Wanted::Deposit { amount: 2, parts: 3 };
    let queue = |call: Call| Call { way: Way::Queue, ..call };
    let replayed = Told::Accepted { version: 2, sequence: Some(2), replayed: true };
    vec![
        call("early", 8, refused("not_open")),
        call("first", 9, turned_away()),
        wants(&open, call("open", 10, accepted(1, 1))),
        wants(&open, call("again", 11, refused("already_open"))),
        call("first", 12, accepted(2, 2)),
        queue(call("queued", 14, Told::Queued)),
        queue(wants(&much, call("much", 14, Told::Queued))),
        queue(wants(&nothing, call("nothing", 14, Told::Queued))),
        queue(wants(&several, call("several", 16, Told::Queued))),
        Call { tag: "other".to_owned(), ..call("several", 17, refused("idempotency-key-reused")) },
        Call { if_match: Some(6), ..call("second", 18, accepted(7, 5)) },
        Call { if_match: Some(6), ..call("rival", 19, refused("version-mismatch")) },
        call("silent", 20, no_answer()),
        wants(&much, call("more", 21, refused("too_little"))),
        wants(&nothing, call("none", 21, refused("invalid-payload"))),
        call("first", 22, replayed),
        call("lost", 23, no_answer()),
    ]
}

fn reads() -> Vec<Read> {
    let read = |asked, second: u64, seen| Read {
        tenant: "alder",
        account: "a-g0".to_owned(),
        asked,
        gateway: 1,
        start_ns: second * SECOND_NS,
        end_ns: (second + 1) * SECOND_NS,
        seen,
    };
    let row = Row { branch: "b0".to_owned(), changes: 2, deposited: 10, withdrawn: 0, version: 3 };
    let rows = Seen::Rows(vec![("a-g0".to_owned(), row)]);
    let state = |version, balance| Seen::State { version, branch: "b0".to_owned(), balance };
    let change = commit("first", 12, 2, 2).changes.remove(0);
    vec![
        read(Asked::State, 7, Seen::Not { status: 404, retry_after: false }),
        read(Asked::State, 11, state(1, 0)),
        read(
            Asked::Events { after: 1 },
            13,
            Seen::Events { events: vec![(2, change)], more: false },
        ),
        // While the third commit is stored: before it, and after it.
        read(Asked::State, 14, state(2, 5)),
        read(Asked::State, 14, state(3, 10)),
        read(Asked::Row { least: 2 }, 17, rows),
        read(Asked::Row { least: 2 }, 17, Seen::Not { status: 503, retry_after: true }),
    ]
}
