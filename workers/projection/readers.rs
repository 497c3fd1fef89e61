//! The running readers, the versions that each feeds, and the results of those that ended.

mod failures;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
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
    reader::{Cause, End, Reached, Reader},
    share::{owned, share},
    waiting::Waiting,
};
use failures::{Failures, Resting};

/// The targets of one reader: versions' ids, their portions, and the epoch under which each is
/// owned.
pub(super) type Group = BTreeSet<(i64, u16, i64)>;

/// Noted for a read model that has stopped. The reason is in the log: it may name objects of others.
const STOPPED: &str = "its projection has stopped: the worker's log says why; mend the cause and start \
                       the worker again";

/// After so many batches in a row that Postgres did not commit, though it had answered before each, read models
/// are read apart: one of them may be the reason. Until then it holds up the others.
const APART_AFTER: u32 = 3;
/// Time for which read models are read apart at least. Those that go on failing stay apart for as long.
const APART_FOR: Duration = Duration::from_secs(600);

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
    /// must not. Until then at least.
    apart: BTreeMap<i64, Instant>,
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
        // Another owner may have the event by now that one of them waited at.
        let gone = self.resting.keys().filter(|group| !wanted(group));
        self.waiting.is_over(gone.flat_map(ids));
        self.resting.retain(|group, _| wanted(group));
        self.join(Instant::now());
    }

    /// Versions are read with the others again that were parted long ago, and have not failed lately.
    fn join(&mut self, now: Instant) {
        let resting = &self.resting;
        self.apart.retain(|id, until| {
            let is_of = |group: &Group| group.iter().any(|(of, ..)| of == id);
            let fails = |(group, it): (&Group, &Resting)| it.counts(now) && is_of(group);
            now < *until || resting.iter().any(fails)
        });
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
            let is_alone = self.apart.contains_key(&id)
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

    /// How often in a row readers of the group have failed that applied nothing, and not for a plugin.
    pub(super) fn failures(&self, group: &Group) -> u32 {
        self.resting.get(group).map_or(0, |it| it.failures.batches)
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
        self.ended_at(group, end, Instant::now());
    }

    fn ended_at(&mut self, group: Group, end: End, now: Instant) {
        self.running.remove(&group);
        self.clear(&group, &end);
        match end {
            End::Stopped => {
                self.resting.remove(&group);
            }
            End::CaughtUp { .. } => {
                self.resting.remove(&group);
                let done = ids(&group);
                self.locked.retain(|id, _| !done.contains(id));
            }
            End::Retry { reason, reached, cause } => {
                self.failed(group, (cause, reached), &reason, now);
            }
            End::NoPlugin { reason, names, reached } => {
                self.waiting.note(&names, &reason, now);
                self.failed(group, (Cause::Plugin, reached), &reason, now);
            }
            End::Locked { id, name, progressed } => {
                if self.locked.insert(id, name.clone()).is_none() {
                    tracing::warn!(read_model = %name, "its table is locked: it is read apart");
                }
                if ids(&group).len() == 1 {
                    let reached = if progressed { Reached::Rows } else { Reached::Nothing };
                    let how = (Cause::Postgres, reached);
                    self.failed(group, how, "its table is locked", now);
                }
            }
            // Another worker owns it by now; what is assigned says so soon.
            End::Fenced(error) => {
                let failures = Failures { attempt: 1, batches: 1, uncommitted: 0 };
                self.rest(group, failures, &error.to_string(), now);
            }
            End::Refused { reason, .. } if ids(&group).len() > 1 => {
                tracing::warn!(reason, "read models are read apart, to find the one that fails");
                self.part(&group, now);
            }
            End::Refused { reason, names } | End::Broken { reason, names } => {
                self.stopped(&reason, names);
            }
        }
    }

    /// Takes back that a group waits for a plugin, unless it goes on as it is.
    fn clear(&self, group: &Group, end: &End) {
        if !matches!(end, End::NoPlugin { .. } | End::Retry { .. } | End::Locked { .. }) {
            // What comes after it may never come to the event that it waited at.
            self.waiting.is_over(ids(group).into_iter());
        }
    }

    /// Has a group wait, each time longer when it has failed before and done nothing since.
    fn failed(
        &mut self,
        group: Group,
        (cause, reached): (Cause, Reached),
        reason: &str,
        now: Instant,
    ) {
        let before = self.resting.get(&group).filter(|it| it.counts(now));
        let failures = before.map(|it| it.failures).unwrap_or_default().and(cause, reached);
        if failures.uncommitted >= APART_AFTER && ids(&group).len() > 1 {
            tracing::warn!(reason, "read models are read apart: nothing of them is committed");
            self.part(&group, now);
        }
        self.rest(group, failures, reason, now);
    }

    /// Has the versions of a group read apart.
    fn part(&mut self, group: &Group, now: Instant) {
        self.apart.extend(ids(group).into_iter().map(|id| (id, now + APART_FOR)));
    }

    /// Has a group wait before it starts again.
    fn rest(&mut self, group: Group, failures: Failures, reason: &str, now: Instant) {
        let attempt = failures.attempt;
        if attempt <= 1 || lasts(attempt) {
            tracing::warn!(reason, attempt, "a projection's reader starts again");
        }
        let until = now + RETRY.jittered(attempt.saturating_add(1));
        self.resting.insert(group, Resting { until, failures });
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
    use super::{failures::WELL_AFTER, *};

    fn end(cause: Cause, reached: Reached) -> End {
        End::Retry { reason: "away".to_owned(), reached, cause }
    }

    fn retry() -> End {
        end(Cause::Postgres, Reached::Nothing)
    }

    fn apart(readers: &Readers) -> BTreeSet<i64> {
        readers.apart.keys().copied().collect()
    }

    #[test]
    fn failures_count_while_a_group_is_wanted_and_are_forgotten_with_its_ownership() {
        let mut readers = Readers::default();
        let (kept, lost) = (Group::from([(1, 0, 7)]), Group::from([(2, 0, 7), (3, 0, 7)]));
        let failed =
            |readers: &Readers, group| readers.resting.get(group).map(|it| it.failures.attempt);
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
        let end = |reached| end(Cause::Postgres, reached);
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
        assert_eq!(apart(&readers), BTreeSet::from([1, 2]));
        let alone = Group::from([(3, 0, 7), (3, 1, 7)]);
        for _ in 0..9 {
            readers.ended(alone.clone(), end(Reached::Log));
        }
        assert_eq!(apart(&readers), BTreeSet::from([1, 2]), "it is alone");
    }

    /// On a quiet log three lost connections, days apart, once had all read models read apart until a restart.
    #[test]
    fn the_broker_parts_nobody_and_what_failed_long_ago_does_not_count() {
        let (mut readers, both) = (Readers::default(), Group::from([(1, 0, 7), (2, 0, 7)]));
        let mut now = Instant::now();
        for cause in [Cause::Broker, Cause::Broker, Cause::Plugin, Cause::Broker, Cause::Broker] {
            readers.ended_at(both.clone(), end(cause, Reached::Log), now);
        }
        assert_eq!(readers.resting[&both].failures.attempt, 5, "it starts later each time");
        for _ in 0..9 {
            readers.ended_at(both.clone(), end(Cause::Postgres, Reached::Log), now);
            now = readers.resting[&both].until + WELL_AFTER;
        }
        assert!(readers.apart.is_empty(), "each had lived for long");
        for _ in 0..APART_AFTER {
            readers.ended_at(both.clone(), end(Cause::Postgres, Reached::Log), now);
            readers.ended_at(both.clone(), end(Cause::Broker, Reached::Log), now);
        }
        assert_eq!(apart(&readers), BTreeSet::from([1, 2]));
    }

    #[test]
    fn read_models_are_read_together_again_when_they_have_not_failed_for_long() {
        let (mut readers, both) = (Readers::default(), Group::from([(1, 0, 7), (2, 0, 7)]));
        let start = Instant::now();
        let refused = || End::Refused { reason: "on purpose".to_owned(), names: Vec::new() };
        readers.ended_at(both, refused(), start);
        let later = start + APART_FOR;
        readers.join(later - Duration::from_secs(1));
        assert_eq!(apart(&readers), BTreeSet::from([1, 2]));
        let bad = Group::from([(2, 0, 7)]);
        readers.ended_at(bad, end(Cause::Postgres, Reached::Log), later);
        readers.join(later);
        assert_eq!(apart(&readers), BTreeSet::from([2]), "it fails yet");
        readers.join(later + APART_FOR);
        assert!(readers.apart.is_empty());
    }

    /// People were told for hours that a read model waits, when another worker had the event at which it did.
    #[test]
    fn a_wait_is_over_when_another_reader_takes_its_place() {
        let mut readers = Readers::default();
        let (all, fewer) = (Group::from([(1, 0, 7), (1, 1, 7)]), Group::from([(1, 0, 7)]));
        let away = || {
            let names = vec![(1, Name::parse("sums").unwrap())];
            End::NoPlugin { reason: "plugin geo: why".to_owned(), names, reached: Reached::Log }
        };
        readers.ended(all.clone(), away());
        assert!(readers.waiting.waits(1));
        readers.forget(|group| *group == all);
        assert!(readers.waiting.waits(1), "it rests");
        readers.forget(|group| *group == fewer);
        assert!(!readers.waiting.waits(1));
        readers.ended(all.clone(), away());
        readers.ended(all, End::Stopped);
        assert!(!readers.waiting.waits(1));
    }

    /// It once ended the worker, and the next one that took the share over.
    #[tokio::test]
    async fn a_reader_that_panics_stops_its_own_read_model() {
        let name = |text| Name::parse(text).unwrap();
        let (mut readers, both) = (Readers::default(), Group::from([(1, 0, 7), (2, 0, 7)]));
        let names = vec![(1, name("bad")), (2, name("good"))];
        readers.ended(both, caught(names, async { panic!("on purpose") }).await);
        assert_eq!(apart(&readers), BTreeSet::from([1, 2]), "read apart, to find the one");
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
            assert_eq!(readers.resting[&alone].failures.attempt, attempt);
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
            assert_eq!(readers.resting[&group].failures.attempt, attempt);
        }
        assert_eq!(readers.failures(&group), 0, "its batches are not the reason");
        assert!(!readers.may_start(&group), "it rests");
        readers.ended(group.clone(), away(Reached::Rows));
        assert_eq!(readers.resting[&group].failures.attempt, 0, "rows have moved on");
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
        assert_eq!((apart(&readers), readers.broken.len()), (BTreeSet::from([2, 3]), 1));
    }
}
