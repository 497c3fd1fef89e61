//! The running readers, the versions that each feeds, and the results of those that ended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use flexcore_domain::Name;
use flexcore_readmodel::{Error, Version, VersionState};
use flexcore_resilience::lasts;
use futures::FutureExt as _;
use metrics::gauge;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    RETRY,
    reader::{End, Reader},
    share::{owned, share},
};

/// The targets of one reader: versions' ids, their portions, and the epoch under which each is
/// owned.
pub(super) type Group = BTreeSet<(i64, u16, i64)>;

/// Noted for a read model that has stopped. The reason is in the log: it may name objects of others.
const STOPPED: &str = "its projection has stopped: the worker's log says why; mend the cause and start \
                       the worker again";

/// The running readers, and the results of ended ones.
#[derive(Default)]
pub(super) struct Readers {
    /// With the shares that they serve, and the epochs of these.
    pub(super) running: HashMap<Group, (BTreeMap<u16, u64>, CancellationToken)>,
    pub(super) tasks: JoinSet<(Group, End)>,
    /// When a group may start again, and how often it has failed.
    resting: HashMap<Group, (Instant, u32)>,
    /// Versions that wait for a person.
    pub(super) broken: HashMap<i64, Name>,
    /// Serving versions that have a reader of their own, because one of them failed and the others
    /// must not.
    apart: BTreeSet<i64>,
    /// Versions whose tables somebody has locked: each has a reader of its own until it has what it
    /// missed.
    locked: BTreeMap<i64, Name>,
}

impl Readers {
    /// Cancels the readers of what is not owned any more.
    pub(super) fn keep_only(&self, epochs: &BTreeMap<u16, u64>) {
        for (shares, token) in self.running.values() {
            if !shares.iter().all(|(share, epoch)| epochs.get(share) == Some(epoch)) {
                token.cancel();
            }
        }
    }

    /// Forgets every version, since those that come have their ids anew.
    pub(super) fn start_over(&mut self) {
        self.running.values().for_each(|(_, token)| token.cancel());
        self.resting.clear();
        self.broken.clear();
        self.apart.clear();
        self.locked.clear();
    }

    /// Forgets the failures of groups that are not wanted any more. An ownership that has ended does not
    /// come back, since the next one has another epoch.
    pub(super) fn forget(&mut self, wanted: impl Fn(&Group) -> bool) {
        self.resting.retain(|group, _| wanted(group));
    }

    /// The shares that are served: those that are owned, and those whose readers have not ended.
    pub(super) fn shares(&self, epochs: &BTreeMap<u16, u64>) -> BTreeSet<u16> {
        let running = self.running.values().flat_map(|(shares, _)| shares.keys().copied());
        epochs.keys().copied().chain(running).collect()
    }

    /// The read models whose tables are locked, each with that as its trouble.
    pub(super) fn locked(&mut self, versions: &[Arc<Version>]) -> Vec<(Name, Error)> {
        self.locked.retain(|id, _| versions.iter().any(|version| version.id() == *id));
        let trouble = |(id, name): (&i64, &Name)| {
            (name.clone(), Error::Locked { version: *id, read_model: name.clone() })
        };
        self.locked.iter().map(trouble).collect()
    }

    /// The read models of which a version has stopped, each with that as its trouble.
    pub(super) fn told(&self, versions: &[Arc<Version>]) -> Vec<(String, String)> {
        let stopped = versions.iter().filter(|version| self.broken.contains_key(&version.id()));
        stopped.map(|version| (version.read_model.to_string(), STOPPED.to_owned())).collect()
    }

    /// True if a version's table is locked.
    pub(super) fn is_locked(&self, version: &Version) -> bool {
        self.locked.contains_key(&version.id())
    }

    /// Versions that are read together.
    pub(super) fn groups(&self, versions: &[Arc<Version>]) -> HashMap<Group, Vec<Arc<Version>>> {
        let mut groups: HashMap<Group, Vec<Arc<Version>>> = HashMap::new();
        let mut together = Vec::new();
        for version in versions {
            let id = version.id();
            if self.broken.contains_key(&id) {
                continue;
            }
            let is_alone = self.apart.contains(&id) || self.is_locked(version);
            if version.state == VersionState::Serving && !is_alone {
                together.push(version.clone());
            } else {
                groups.insert(owned(version).collect(), vec![version.clone()]);
            }
        }
        if !together.is_empty() {
            groups.insert(together.iter().flat_map(owned).collect(), together);
        }
        groups
    }

    pub(super) fn may_start(&self, group: &Group) -> bool {
        let rested = self.resting.get(group).is_none_or(|(until, _)| *until <= Instant::now());
        // A version's former reader finishes first: two would refuse each other's checkpoints.
        let ids = ids(group);
        rested && self.running.keys().all(|running| self::ids(running).is_disjoint(&ids))
    }

    /// How often in a row readers of the group have failed that applied nothing.
    pub(super) fn failures(&self, group: &Group) -> u32 {
        self.resting.get(group).map_or(0, |(_, attempt)| *attempt)
    }

    pub(super) fn start(&mut self, group: Group, reader: Reader) {
        let stop = CancellationToken::new();
        let shares = |version: &Arc<Version>| {
            let name = version.read_model.clone();
            let epochs = version.portions.epochs.clone().into_iter();
            epochs.map(move |(portion, epoch)| (share(&name, portion), epoch.cast_unsigned()))
        };
        let shares = reader.versions.iter().flat_map(shares).collect();
        self.running.insert(group.clone(), (shares, stop.clone()));
        let names = reader.versions.iter().map(|v| (v.id(), v.read_model.clone())).collect();
        self.tasks.spawn(async move { (group, caught(names, reader.run(stop)).await) });
    }

    pub(super) fn ended(&mut self, group: Group, end: End) {
        self.running.remove(&group);
        match end {
            End::Stopped => {
                self.resting.remove(&group);
            }
            End::CaughtUp { .. } => {
                self.resting.remove(&group);
                let done = ids(&group);
                self.locked.retain(|id, _| !done.contains(id));
            }
            End::Retry { reason, progressed } => self.failed(group, progressed, &reason),
            End::Locked { id, name, progressed } => {
                if self.locked.insert(id, name.clone()).is_none() {
                    tracing::warn!(read_model = %name, "its table is locked: it is read apart");
                }
                if ids(&group).len() == 1 {
                    self.failed(group, progressed, "its table is locked");
                }
            }
            // Another worker owns it by now; what is assigned says so soon.
            End::Fenced(error) => self.rest(group, 1, &error.to_string()),
            End::Refused { reason, .. } if ids(&group).len() > 1 => {
                tracing::warn!(reason, "read models are read apart, to find the one that fails");
                self.apart.extend(ids(&group));
            }
            End::Refused { reason, names } | End::Broken { reason, names } => {
                self.stopped(&reason, names);
            }
        }
    }

    /// Has a group wait, each time longer when it has failed before and done nothing since.
    fn failed(&mut self, group: Group, progressed: bool, reason: &str) {
        let failed = self.failures(&group);
        self.rest(group, if progressed { 0 } else { failed + 1 }, reason);
    }

    /// Has a group wait before it starts again.
    fn rest(&mut self, group: Group, attempt: u32, reason: &str) {
        if attempt <= 1 || lasts(attempt) {
            tracing::warn!(reason, attempt, "a projection's reader starts again");
        }
        self.resting.insert(group, (Instant::now() + RETRY.jittered(attempt + 1), attempt));
    }

    fn stopped(&mut self, reason: &str, names: Vec<(i64, Name)>) {
        for (id, name) in names {
            tracing::error!(
                read_model = %name,
                reason,
                "the projection has stopped; mend the cause and start the worker again"
            );
            gauge!("flexcore_projection_stopped", "read_model" => name.to_string()).set(1.0);
            self.broken.insert(id, name);
        }
    }
}

/// The versions of a group. One that is shared has many portions there, and is one all the same.
fn ids(group: &Group) -> BTreeSet<i64> {
    group.iter().map(|(id, ..)| *id).collect()
}

/// A reader that panics ends like one that Postgres refuses, and not the worker with all others.
async fn caught(names: Vec<(i64, Name)>, reading: impl Future<Output = End>) -> End {
    let ended = AssertUnwindSafe(reading).catch_unwind().await;
    ended.unwrap_or_else(|_| End::Refused { reason: "its reader panicked".to_owned(), names })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> End {
        End::Retry { reason: "away".to_owned(), progressed: false }
    }

    #[test]
    fn failures_count_while_a_group_is_wanted_and_are_forgotten_with_its_ownership() {
        let mut readers = Readers::default();
        let (kept, lost) = (Group::from([(1, 0, 7)]), Group::from([(2, 0, 7), (3, 0, 7)]));
        let failed = |readers: &Readers, group| readers.resting.get(group).map(|(_, n)| *n);
        for _ in 0..3 {
            readers.ended(kept.clone(), retry());
            readers.ended(lost.clone(), retry());
        }
        readers.forget(|group| *group == kept);
        assert_eq!((failed(&readers, &kept), failed(&readers, &lost)), (Some(3), None));
        assert!(!readers.may_start(&kept), "it rests");
        readers.ended(kept.clone(), End::CaughtUp { unindexed: None });
        assert_eq!(failed(&readers, &kept), None);

        // One ownership after another, each of which ends with a failure.
        for epoch in 0..100 {
            let group = Group::from([(1, 0, epoch)]);
            readers.forget(|wanted| *wanted == group);
            readers.ended(group, retry());
        }
        assert_eq!(readers.resting.len(), 1);
    }

    /// It once ended the worker, and the next one that took the share over.
    #[tokio::test]
    async fn a_reader_that_panics_stops_its_own_read_model() {
        let name = |text| Name::parse(text).unwrap();
        let (mut readers, both) = (Readers::default(), Group::from([(1, 0, 7), (2, 0, 7)]));
        let names = vec![(1, name("bad")), (2, name("good"))];
        readers.ended(both, caught(names, async { panic!("on purpose") }).await);
        assert_eq!(readers.apart, BTreeSet::from([1, 2]), "read apart, to find the one");
        assert!(readers.broken.is_empty());
        let bad = caught(vec![(1, name("bad"))], async { panic!("on purpose") }).await;
        readers.ended(Group::from([(1, 0, 7)]), bad);
        readers.ended(Group::from([(2, 0, 7)]), caught(Vec::new(), async { End::Stopped }).await);
        assert_eq!(readers.broken, HashMap::from([(1, name("bad"))]));
    }

    #[test]
    fn a_locked_table_parts_its_own_read_model_and_only_until_it_has_caught_up() {
        let locked = || {
            let name = Name::parse("sums").unwrap();
            End::Locked { id: 1, name, progressed: false }
        };
        let (mut readers, alone) = (Readers::default(), Group::from([(1, 0, 7)]));
        readers.ended(Group::from([(1, 0, 7), (2, 0, 7)]), locked());
        assert!(readers.apart.is_empty() && readers.locked.keys().eq([&1]));
        assert!(readers.may_start(&alone), "it may have been a short lock");
        for attempt in 1..=3 {
            readers.ended(alone.clone(), locked());
            assert!(!readers.may_start(&alone), "it rests");
            assert_eq!(readers.resting[&alone].1, attempt);
        }
        readers.ended(alone, End::CaughtUp { unindexed: None });
        assert!(readers.locked.is_empty() && readers.resting.is_empty());
    }

    /// It once started again at once, for ever, and nobody was told: its portions were counted as
    /// versions.
    #[test]
    fn a_shared_read_model_that_postgres_refuses_stops() {
        let bad = Name::parse("bad").unwrap();
        let refused = |ids: &[i64]| End::Refused {
            reason: "on purpose".to_owned(),
            names: ids.iter().map(|id| (*id, bad.clone())).collect(),
        };
        let mut readers = Readers::default();
        readers.ended(Group::from([(1, 0, 7), (1, 1, 7), (1, 2, 9)]), refused(&[1]));
        assert_eq!((readers.apart.len(), readers.broken.len()), (0, 1), "it is alone");
        let group = Group::from([(2, 0, 7), (2, 1, 7), (3, 0, 7)]);
        readers.ended(group, refused(&[2, 3]));
        assert_eq!((readers.apart, readers.broken.len()), (BTreeSet::from([2, 3]), 1));
    }
}
