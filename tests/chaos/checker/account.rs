//! The log by account, folded by the rules, with the known facts of each account and their times.
//! The log gives the order, so what could have been seen during a call is a range of states and no
//! search.

use std::collections::BTreeMap;

use super::{CLOCK_MS, Story, model::Account};
use crate::{
    evidence::Commit,
    history::{Call, Seen, Told},
};

/// An account's commits, and its state after each.
#[derive(Default)]
pub(crate) struct History<'a> {
    pub(crate) commits: Vec<&'a Commit>,
    /// One more than commits: first comes the account that is not open.
    states: Vec<Account>,
    /// When at least this many commits were known to somebody: nanoseconds and number, both growing.
    known: Vec<(u64, usize)>,
}

/// Every account's history, and every call by its command.
pub(crate) struct Accounts<'a> {
    begun_ms: u64,
    by_name: BTreeMap<(&'a str, &'a str), History<'a>>,
    /// By tenant and key.
    commits: BTreeMap<(&'a str, &'a str), Vec<&'a Commit>>,
    calls: BTreeMap<(&'a str, &'a str), Vec<&'a Call>>,
    nobody: History<'a>,
}

impl<'a> Accounts<'a> {
    pub(crate) fn of(story: &'a Story) -> Self {
        let mut by_name: BTreeMap<(&str, &str), History<'a>> = BTreeMap::new();
        let mut commits: BTreeMap<_, Vec<&Commit>> = BTreeMap::new();
        for commit in &story.log.commits {
            let name = (commit.tenant.as_str(), commit.account.as_str());
            by_name.entry(name).or_default().push(commit);
            let key = (commit.tenant.as_str(), commit.key.as_str());
            commits.entry(key).or_default().push(commit);
        }
        let mut calls: BTreeMap<_, Vec<&Call>> = BTreeMap::new();
        for call in &story.calls {
            calls.entry((call.tenant, call.key.as_str())).or_default().push(call);
        }
        for (name, at_ns, version) in facts(story) {
            if let Some(history) = by_name.get_mut(&name) {
                let place = history.after(version);
                history.known.push((at_ns, place));
            }
        }
        by_name.values_mut().for_each(History::learn_in_order);
        let mut nobody = History::default();
        nobody.states.push(Account::default());
        Self { begun_ms: story.begun_ms, by_name, commits, calls, nobody }
    }

    /// An account's history; one without commits, if it has none.
    pub(crate) fn history<'s>(&'s self, tenant: &'s str, account: &'s str) -> &'s History<'s> {
        self.by_name.get(&(tenant, account)).unwrap_or(&self.nobody)
    }

    /// The commits under a command's id, on whichever account.
    pub(crate) fn commits<'s>(&'s self, tenant: &'s str, key: &'s str) -> &'s [&'s Commit] {
        self.commits.get(&(tenant, key)).map_or(&[], Vec::as_slice)
    }

    /// Every call with a command's id.
    pub(crate) fn calls<'s>(&'s self, tenant: &'s str, key: &'s str) -> &'s [&'s Call] {
        self.calls.get(&(tenant, key)).map_or(&[], Vec::as_slice)
    }

    /// Every command's calls: tenant, id and payload are the same.
    pub(crate) fn commands(&self) -> impl Iterator<Item = Vec<&'a Call>> {
        self.calls.values().flat_map(|calls| {
            let mut by_tag: BTreeMap<&str, Vec<&'a Call>> = BTreeMap::new();
            calls.iter().for_each(|call| by_tag.entry(&call.tag).or_default().push(call));
            by_tag.into_values()
        })
    }

    /// The account as it can have been seen from one moment to another.
    pub(crate) fn seen<'s>(&'s self, of: &'s Call, until_ns: u64) -> &'s [Account] {
        self.history(of.tenant, &of.account).between(of.start_ns, self.ms(until_ns))
    }

    /// The account before a commit.
    pub(crate) fn before<'s>(&'s self, commit: &'s Commit) -> Option<&'s Account> {
        self.history(&commit.tenant, &commit.account).before(commit)
    }

    /// Milliseconds since 1970 of a moment, with the clocks' difference: commits that were stored
    /// by then carry no later time.
    pub(crate) fn ms(&self, at_ns: u64) -> u64 {
        (self.begun_ms + at_ns / 1_000_000).saturating_add(CLOCK_MS)
    }

    /// True if the broker certainly stored the commit before that moment.
    pub(crate) fn was_before(&self, commit: &Commit, at_ns: u64) -> bool {
        commit.stored_ms + CLOCK_MS < self.begun_ms + at_ns / 1_000_000
    }
}

impl<'a> History<'a> {
    fn push(&mut self, commit: &'a Commit) {
        let mut account = self.states.last().cloned().unwrap_or_default();
        if self.states.is_empty() {
            self.states.push(account.clone());
        }
        commit.changes.iter().for_each(|change| account.evolve(change));
        self.states.push(account);
        self.commits.push(commit);
    }

    /// Number of commits up to this version.
    fn after(&self, version: u64) -> usize {
        self.states.partition_point(|state| state.version < version).min(self.commits.len())
    }

    fn learn_in_order(&mut self) {
        self.known.sort_unstable();
        let mut most = 0;
        for (_, number) in &mut self.known {
            most = most.max(*number);
            *number = most;
        }
    }

    /// Number of commits that somebody knew before this moment.
    pub(crate) fn known(&self, at_ns: u64) -> usize {
        let later = self.known.partition_point(|(known_ns, _)| *known_ns < at_ns);
        later.checked_sub(1).map_or(0, |last| self.known[last].1)
    }

    /// Number of commits that were stored by this time.
    fn stored(&self, until_ms: u64) -> usize {
        self.commits.partition_point(|commit| commit.stored_ms <= until_ms)
    }

    /// The states from the first that was not known to be over at the one moment to the last that was
    /// reached by the other.
    pub(crate) fn between(&self, from_ns: u64, until_ms: u64) -> &[Account] {
        let first = self.known(from_ns);
        &self.states[first..=self.stored(until_ms).max(first)]
    }

    /// Number of commits before this one.
    pub(crate) fn place(&self, commit: &Commit) -> usize {
        self.commits.partition_point(|other| other.sequence < commit.sequence)
    }

    /// The account before a commit.
    fn before(&self, commit: &Commit) -> Option<&Account> {
        self.states.get(self.place(commit))
    }
}

/// A fact that somebody was told: account, time, and version.
fn facts(story: &Story) -> impl Iterator<Item = ((&str, &str), u64, u64)> {
    let told = story.calls.iter().filter_map(|call| {
        let Told::Accepted { version, .. } = call.told else { return None };
        Some(((call.tenant, call.account.as_str()), call.end_ns, version))
    });
    // Rows say nothing here: they are another store's, and may be the ones that are wrong.
    let seen = story.reads.iter().filter_map(|read| {
        let version = match &read.seen {
            Seen::State { version, .. } => *version,
            Seen::Events { events, .. } => events.last()?.0,
            _ => return None,
        };
        Some(((read.tenant, read.account.as_str()), read.end_ns, version))
    });
    told.chain(seen)
}
