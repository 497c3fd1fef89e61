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
    reader::{End, Reached, Reader},
    share::{owned, share},
    waiting::Waiting,
};

/// The targets of one reader: versions' ids, their portions, and the epoch under which each is
/// owned.
pub(super) type Group = BTreeSet<(i64, u16, i64)>;

/// Noted for a read model that has stopped. The reason is in the log: it may name objects of others.
const STOPPED: &str = "its projection has stopped: the worker's log says why; mend the cause and start \
                       the worker again";

/// After so many batches in a row that were not committed, though Postgres had answered before each, read models
/// are read apart: one of them may be the reason. Until then it holds up the others.
const APART_AFTER: u32 = 3;

/// A group that waits.
#[derive(Clone, Copy)]
struct Resting {
    until: Instant,
    /// How often in a row it has failed and applied nothing.
    attempt: u32,
    /// How often in a row it had begun to read and then failed.
    uncommitted: u32,
}

/// The running readers, and the results of ended ones.
#[derive(Default)]
pub(super) struct Readers {
    /// With the shares that they serve, and the epochs of these.
    pub(super) running: HashMap<Group, (BTreeMap<u16, u64>, CancellationToken)>,
    pub(super) tasks: JoinSet<(Group, End)>,
    resting: HashMap<Group, Resting>,
    /// Versions that wait for a person.
    pub(super) broken: HashMap<i64, Name>,
    /// Serving versions that have a reader of their own, because one of them failed and the others
    /// must not.
    apart: BTreeSet<i64>,
    /// Versions whose tables somebody has locked: each has a reader of its own until it has what it
    /// missed.
    locked: BTreeMap<i64, Name>,
    /// Versions that wait for a plugin.
    pub(super) waiting: Waiting,
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
        self.waiting.forget();
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

    /// The read models of which a version has stopped or waits for a plugin, each with that as its trouble.
    pub(super) fn told(&self, versions: &[Arc<Version>]) -> Vec<(String, String)> {
        let stopped = versions.iter().filter(|version| self.broken.contains_key(&version.id()));
        let stopped = stopped.map(|version| (version.read_model.to_string(), STOPPED.to_owned()));
        self.waiting.told(versions, Instant::now()).into_iter().chain(stopped).collect()
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
            // A plugin that is away holds up nothing but what goes through it.
            let is_alone = self.apart.contains(&id)
                || self.is_locked(version)
                || version.plan.is_transformed();
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
        let rested = self.resting.get(group).is_none_or(|it| it.until <= Instant::now());
        // A version's former reader finishes first: two would refuse each other's checkpoints.
        let ids = ids(group);
        rested && self.running.keys().all(|running| self::ids(running).is_disjoint(&ids))
    }

    /// How often in a row readers of the group have failed that applied nothing.
    pub(super) fn failures(&self, group: &Group) -> u32 {
        self.resting.get(group).map_or(0, |it| it.attempt)
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
            End::Retry { reason, reached } => self.failed(group, reached, &reason),
            End::NoPlugin { reason, names, reached } => {
                self.waiting.note(&names, &reason, Instant::now());
                self.failed(group, reached, &reason);
            }
            End::Locked { id, name, progressed } => {
                if self.locked.insert(id, name.clone()).is_none() {
                    tracing::warn!(read_model = %name, "its table is locked: it is read apart");
                }
                if ids(&group).len() == 1 {
                    let reached = if progressed { Reached::Rows } else { Reached::Nothing };
                    self.failed(group, reached, "its table is locked");
                }
            }
            // Another worker owns it by now; what is assigned says so soon.
            End::Fenced(error) => self.rest(group, (1, 0), &error.to_string()),
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
    fn failed(&mut self, group: Group, reached: Reached, reason: &str) {
        let before = self.resting.get(&group).map_or((0, 0), |it| (it.attempt, it.uncommitted));
        let now = match reached {
            Reached::Rows => (0, 0),
            Reached::Log => (before.0 + 1, before.1 + 1),
            Reached::Nothing => (before.0 + 1, 0),
        };
        if now.1 >= APART_AFTER && ids(&group).len() > 1 {
            tracing::warn!(reason, "read models are read apart: nothing of them is committed");
            self.apart.extend(ids(&group));
        }
        self.rest(group, now, reason);
    }

    /// Has a group wait before it starts again.
    fn rest(&mut self, group: Group, (attempt, uncommitted): (u32, u32), reason: &str) {
        if attempt <= 1 || lasts(attempt) {
            tracing::warn!(reason, attempt, "a projection's reader starts again");
        }
        let until = Instant::now() + RETRY.jittered(attempt + 1);
        self.resting.insert(group, Resting { until, attempt, uncommitted });
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
        End::Retry { reason: "away".to_owned(), reached: Reached::Nothing }
    }

    #[test]
    fn failures_count_while_a_group_is_wanted_and_are_forgotten_with_its_ownership() {
        let mut readers = Readers::default();
        let (kept, lost) = (Group::from([(1, 0, 7)]), Group::from([(2, 0, 7), (3, 0, 7)]));
        let failed = |readers: &Readers, group| readers.resting.get(group).map(|it| it.attempt);
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

    /// One read model whose batches end the connection once held up all that are read with it, for ever.
    #[test]
    fn read_models_are_parted_when_nothing_is_committed_though_postgres_answers() {
        let end = |reached| End::Retry { reason: "gone".to_owned(), reached };
        let (mut readers, both) = (Readers::default(), Group::from([(1, 0, 7), (2, 0, 7)]));
        let row = [Reached::Log, Reached::Log, Reached::Nothing];
        for reached in row.into_iter().cycle().take(50) {
            readers.ended(both.clone(), end(reached));
        }
        readers.ended(both.clone(), end(Reached::Rows));
        readers.ended(both.clone(), end(Reached::Log));
        readers.ended(both.clone(), end(Reached::Log));
        assert!(readers.apart.is_empty(), "an outage parts nobody");
        readers.ended(both, end(Reached::Log));
        assert_eq!(readers.apart, BTreeSet::from([1, 2]));
        let alone = Group::from([(3, 0, 7), (3, 1, 7)]);
        for _ in 0..9 {
            readers.ended(alone.clone(), end(Reached::Log));
        }
        assert_eq!(readers.apart, BTreeSet::from([1, 2]), "it is alone");
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
            assert_eq!(readers.resting[&alone].attempt, attempt);
        }
        readers.ended(alone, End::CaughtUp { unindexed: None });
        assert!(readers.locked.is_empty() && readers.resting.is_empty());
    }

    /// What goes through a plugin is read alone in any case.
    #[test]
    fn a_version_that_waits_for_a_plugin_rests_and_never_stops() {
        let (mut readers, group) = (Readers::default(), Group::from([(1, 0, 7)]));
        let names = vec![(1, Name::parse("sums").unwrap())];
        let away = |reached| {
            let reason = "plugin geo: why".to_owned();
            End::NoPlugin { reason, names: names.clone(), reached }
        };
        for attempt in 1..=50 {
            readers.ended(group.clone(), away(Reached::Log));
            assert_eq!(readers.failures(&group), attempt);
        }
        assert!(!readers.may_start(&group), "it rests");
        readers.ended(group.clone(), away(Reached::Rows));
        assert_eq!(readers.failures(&group), 0, "rows have moved on");
        assert!(readers.apart.is_empty() && readers.broken.is_empty());
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
