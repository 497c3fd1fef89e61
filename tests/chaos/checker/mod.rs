//! The checker: what clients were told, what the log holds, and what Postgres shows must be one
//! story. Every check is a pure function over the story that gives how much it looked at, and what
//! was wrong.

pub(crate) mod answers;
pub(crate) mod commands;
pub(crate) mod epochs;
pub(crate) mod log;
pub(crate) mod resources;
pub(crate) mod rows;

use std::collections::BTreeMap;

use crate::{
    evidence::{Commit, Log, Rows, Snapshot},
    history::{Call, Read},
};

/// Violations that are told in full; the rest is counted.
const TOLD_MAX: usize = 5;
/// How far the broker's clock and ours may read differently on one machine, in milliseconds.
pub(crate) const CLOCK_MS: u64 = 20;

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) calls: Vec<Call>,
    pub(crate) reads: Vec<Read>,
    /// Milliseconds since 1970 at nanosecond 0 of the calls.
    pub(crate) begun_ms: u64,
    pub(crate) log: Log,
    /// Of queued commands without an event, by tenant, account and key.
    pub(crate) outcomes: BTreeMap<(String, String, String), String>,
    pub(crate) rows: Rows,
    /// After a rebuild from the log's beginning.
    pub(crate) rebuilt: Option<Rows>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// Stream sequences that the listener was told of, in order.
    pub(crate) heard: Vec<u64>,
    /// Messages, deletions and last sequence of the log, by broker.
    pub(crate) replicas: BTreeMap<String, (u64, u64, u64)>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Number of the invariant.
    pub(crate) invariant: u8,
    pub(crate) what: &'static str,
    /// How many things were looked at.
    pub(crate) n: usize,
    /// What was wrong, each in words.
    pub(crate) violations: Vec<String>,
}

impl Verdict {
    pub(crate) fn new(invariant: u8, what: &'static str) -> Self {
        Self { invariant, what, n: 0, violations: Vec::new() }
    }

    /// Looks at one more thing, which must be so.
    pub(crate) fn hold(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.n += 1;
        if !holds {
            self.violations.push(otherwise());
        }
    }

    /// In a line, with the first violations below.
    pub(crate) fn told(&self) -> String {
        let Self { invariant, what, n, violations } = self;
        let mut told = format!("{invariant:>2} {what}: {} of {n}", violations.len());
        for violation in violations.iter().take(TOLD_MAX) {
            told.push_str("\n      ");
            told.push_str(violation);
        }
        told
    }
}

impl Story {
    /// The commits of each command, by tenant and key.
    pub(crate) fn by_key(&self) -> BTreeMap<(&str, &str), Vec<&Commit>> {
        let mut found: BTreeMap<_, Vec<&Commit>> = BTreeMap::new();
        for commit in &self.log.commits {
            found.entry((commit.tenant.as_str(), commit.key.as_str())).or_default().push(commit);
        }
        found
    }

    /// Milliseconds since 1970 of a moment of a call.
    pub(crate) fn ms(&self, at_ns: u64) -> u64 {
        self.begun_ms + at_ns / 1_000_000
    }
}

/// Every check that needs nothing but the story.
pub(crate) fn all(story: &Story) -> Vec<Verdict> {
    let mut verdicts = vec![
        commands::accepted_are_recorded_once(story),
        commands::nothing_else_is_recorded(story),
        commands::refused_leave_nothing(story),
        commands::unknown_are_whole_or_nothing(story),
        log::sequences_follow(story),
        log::listeners_miss_nothing(story),
        log::versions_follow(story),
        commands::one_wins_a_version(story),
        commands::queued_keep_their_order(story),
        commands::acknowledged_stay(story),
        rows::rows_are_the_fold(story, &story.rows, "rows equal the fold of the log"),
    ];
    if let Some(rebuilt) = &story.rebuilt {
        verdicts.push(rows::rows_are_the_fold(story, rebuilt, "a rebuild gives the same rows"));
    }
    verdicts.extend([
        rows::checkpoints_never_go_back(story),
        rows::checkpoints_commit_with_rows(story),
        rows::queries_see_own_writes(story),
        epochs::checkpoints_epochs_never_go_back(story),
    ]);
    verdicts
}

#[cfg(test)]
pub(crate) mod example;
