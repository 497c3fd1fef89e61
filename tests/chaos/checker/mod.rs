//! The checker: what clients were told, what the log holds, and what Postgres shows must be one
//! story. Every check is a pure function over the story that gives the number of things that it
//! looked at, and the faults.

pub(crate) mod account;
pub(crate) mod answers;
pub(crate) mod commands;
pub(crate) mod epochs;
pub(crate) mod log;
pub(crate) mod model;
pub(crate) mod reads;
pub(crate) mod resources;
pub(crate) mod rows;
pub(crate) mod stored;

#[cfg(test)]
mod example;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use account::Accounts;

use crate::{
    evidence::{Log, Rows, Snapshot},
    history::{Call, Read, Seen, Told},
    listener::Heard,
};

/// Name of the check that the queue is drained, and that rows have come as far as the log.
pub(crate) const REST: &str = "everything comes to rest";
/// Violations that are told in full; the rest is counted.
const TOLD_MAX: usize = 5;
/// The most by which the broker's clock and ours may differ on one machine, in milliseconds.
pub(crate) const CLOCK_MS: u64 = 20;

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) calls: Vec<Call>,
    pub(crate) reads: Vec<Read>,
    /// Milliseconds since 1970 at nanosecond 0 of the calls.
    pub(crate) begun_ms: u64,
    pub(crate) log: Log,
    /// The last outcomes of stored commands, by tenant, account and key.
    pub(crate) outcomes: BTreeMap<(String, String, String), stored::Outcome>,
    pub(crate) rows: Rows,
    /// After a rebuild from the log's beginning.
    pub(crate) rebuilt: Option<Rows>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// Commits that the listener was told of, in order.
    pub(crate) heard: Vec<Heard>,
    /// Messages, deletions and last sequence of the log, by broker.
    pub(crate) replicas: BTreeMap<String, (u64, u64, u64)>,
}

impl Story {
    /// The size of the history, in a line.
    pub(crate) fn told(&self) -> String {
        let calls = |of: fn(&Told) -> bool| self.calls.iter().filter(|c| of(&c.told)).count();
        let reads = |of: fn(&Seen) -> bool| self.reads.iter().filter(|r| of(&r.seen)).count();
        let most = self.most_on_one_account();
        format!(
            "{} calls: {} accepted, {} queued, {} refused, {} turned away, {} unknown, {} without \
             an answer, {} without a connection; {} questions: {} not answered, {} without an \
             answer; {} commits, up to {most} on one account",
            self.calls.len(),
            calls(|told| matches!(told, Told::Accepted { .. })),
            calls(|told| *told == Told::Queued),
            calls(|told| matches!(told, Told::Refused { .. })),
            calls(|told| matches!(told, Told::TurnedAway { .. })),
            calls(|told| matches!(told, Told::Unknown { .. })),
            calls(|told| matches!(told, Told::NoAnswer { .. })),
            calls(|told| *told == Told::NotSent),
            self.reads.len(),
            reads(|seen| matches!(seen, Seen::Not { .. })),
            reads(|seen| matches!(seen, Seen::Nothing { .. })),
            self.log.commits.len()
        )
    }

    /// Commits of the account that has most.
    fn most_on_one_account(&self) -> usize {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for commit in &self.log.commits {
            *counts.entry((&commit.tenant, &commit.account)).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Number of the invariant.
    pub(crate) invariant: u8,
    pub(crate) what: &'static str,
    /// Number of checked things.
    pub(crate) n: usize,
    /// The violations, each in words.
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

    pub(crate) fn is_broken(&self) -> bool {
        !self.violations.is_empty()
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

/// Every check that needs nothing but the story.
pub(crate) fn all(story: &Story) -> Vec<Verdict> {
    let accounts = Accounts::of(story);
    let mut verdicts = vec![
        commands::accepted_are_recorded_once(story, &accounts),
        commands::commits_are_explained(story, &accounts),
        commands::turned_away_leave_nothing(story, &accounts),
        commands::refused_are_justified(story, &accounts),
        commands::unknown_are_whole_or_nothing(story, &accounts),
        log::sequences_follow(story),
        log::listeners_miss_nothing(story),
        log::versions_follow(story),
        commands::commits_follow_what_was_known(story, &accounts),
        commands::one_wins_a_version(story, &accounts),
        commands::queued_keep_their_order(story, &accounts),
        commands::acknowledged_in_the_log(story, &accounts),
        stored::stored_come_to_one_outcome(story, &accounts),
        rows::rows_are_the_fold(story, &story.rows, rows::FOLD),
    ];
    if let Some(rebuilt) = &story.rebuilt {
        verdicts.push(rows::rows_are_the_fold(story, rebuilt, "a rebuild gives the same rows"));
    }
    verdicts.extend([
        rows::checkpoints_never_go_back(story),
        rows::checkpoints_commit_with_rows(story),
        reads::rows_are_explained(story, &accounts),
        reads::states_are_explained(story, &accounts),
        answers::nothing_failed_inside(&story.calls, &story.reads),
        epochs::checkpoints_epochs_never_go_back(story),
    ]);
    verdicts
}

/// Of a log alone, after faults that may have torn everything else.
pub(crate) fn of_the_log(story: &Story) -> Vec<Verdict> {
    let accounts = Accounts::of(story);
    vec![
        commands::accepted_are_recorded_once(story, &accounts),
        commands::acknowledged_in_the_log(story, &accounts),
    ]
}
