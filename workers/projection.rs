//! The projection worker: follows the log and keeps read models up to date.
//!
//! A read model belongs to a share, by its name, and a share to one worker, as the cluster's map says:
//! a row is written by one worker, in the order of the log. One that is shared has portions, by slot, of
//! which each belongs to the next share: its rows are, too, each written by one worker at a time. What
//! serves of a worker's shares is read together, from one subscription into one transaction a batch;
//! what is being built has a reader of its own until it has caught up, takes over, and joins the
//! others.

mod batch;
mod former;
mod indexing;
mod origin;
mod reader;
mod share;
mod upcast;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use flexcore_cluster::{Assigned, Kind, Member};
use flexcore_domain::{Catalog, Name};
use flexcore_eventstore::EventStore;
use flexcore_readmodel::{Error, Owned, ReadModels, Requests, State, Version};
use futures::FutureExt as _;
use metrics::gauge;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use former::Former;
use indexing::Indexing;
use origin::Origin;
use reader::{End, Reader};
use share::{owned, share};

/// Between two looks at what is to be run, when nothing tells of a change: how soon a reader that
/// failed may start again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// First and longest pause before a reader that failed starts again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Keeps the read models of its shares up to date until the token is cancelled; then finishes the
/// batch at hand. Outages of the broker or of Postgres are waited out. `read_models` is migrated.
/// Fails when deployments are not followed any more.
pub async fn run(
    store: EventStore,
    read_models: ReadModels,
    catalog: watch::Receiver<Arc<Catalog>>,
    member: Member,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut worker = Worker {
        store,
        read_models,
        catalog,
        member,
        owned: Assigned::default(),
        origin: Origin::default(),
        troubles: None,
        told_for: BTreeMap::new(),
        requests: None,
        former: Former::default(),
        indexing: Indexing::default(),
    };
    let mut readers = Readers::default();
    let result = worker.project(&mut readers, &stop).await;
    for (_, token) in readers.running.values() {
        token.cancel();
    }
    while readers.tasks.join_next().await.is_some() {}
    worker.member.resign();
    let _ = tokio::time::timeout(crate::TOLD_MAX, handed_over(&worker.member)).await;
    result
}

/// Says that nothing is served any more, until the map has taken the shares: they are given to others
/// when their owner has said so in answer to a map that asks for it.
async fn handed_over(member: &Member) {
    let mut assigned = member.assigned();
    let alone = member.is_alone(Kind::Projection).await;
    loop {
        let now = assigned.borrow_and_update().clone();
        member.report(Kind::Projection, now.followed, BTreeSet::new());
        let none = now.of(Kind::Projection).is_empty() && now.leaving(Kind::Projection).is_empty();
        if none || alone || assigned.changed().await.is_err() {
            return;
        }
    }
}

/// Doubling, with jitter, so that many workers do not come back in step.
fn backoff(attempt: u32) -> Duration {
    let pause = (RETRY_FIRST * 2_u32.saturating_pow(attempt.min(16))).min(RETRY_LONGEST);
    // A fresh RandomState is seeded anew: randomness enough for a pause.
    let jitter = RandomState::new().hash_one(attempt) % 1_000;
    pause.mul_f64(0.5 + jitter as f64 / 2_000.0)
}

struct Worker {
    store: EventStore,
    read_models: ReadModels,
    catalog: watch::Receiver<Arc<Catalog>>,
    member: Member,
    /// The shares that it is to serve.
    owned: Assigned,
    origin: Origin,
    /// Of the read models that cannot be managed, as it was told last.
    troubles: Option<BTreeMap<String, String>>,
    /// The shares for which that was.
    told_for: BTreeMap<u16, u64>,
    requests: Option<Requests>,
    former: Former,
    indexing: Indexing,
}

/// What one reader feeds: versions' ids, their portions, and the epoch under which each is owned.
type Group = BTreeSet<(i64, u16, i64)>;

/// What runs, and what came of what ran.
#[derive(Default)]
struct Readers {
    /// With the shares that they serve, and the epochs of these.
    running: HashMap<Group, (BTreeMap<u16, u64>, CancellationToken)>,
    tasks: JoinSet<(Group, End)>,
    /// When a group may start again, and how often it has failed.
    resting: HashMap<Group, (Instant, u32)>,
    /// Versions that wait for a person.
    broken: HashMap<i64, Name>,
    /// Read models that cannot be created.
    refused: BTreeSet<Name>,
    /// Serving versions that have a reader of their own, because one of them failed and the others
    /// must not.
    apart: BTreeSet<i64>,
}

impl Worker {
    /// Projects what is assigned until told to stop.
    async fn project(
        &mut self,
        readers: &mut Readers,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (mut assigned, mut attempt) = (self.member.assigned(), 0);
        while !stop.is_cancelled() {
            self.owned = assigned.borrow_and_update().clone();
            let epochs = self.owned.of(Kind::Projection);
            #[cfg(feature = "defects")]
            let epochs = crate::defects::never_let_go(epochs);
            readers.keep_only(&epochs);
            self.member.report(Kind::Projection, self.owned.followed, readers.shares(&epochs));
            let pause = match self.look(readers, &epochs).await {
                Ok(()) => {
                    attempt = 0;
                    LOOK_INTERVAL
                }
                Err(Error::Gone(missing)) => {
                    attempt += 1;
                    self.make_anew(readers, &missing).await;
                    backoff(attempt)
                }
                Err(error) => {
                    attempt += 1;
                    if attempt == 1 {
                        tracing::warn!(%error, "read models stay as they are for now");
                    }
                    backoff(attempt)
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = requested(&mut self.requests) => {}
                changed = assigned.changed() => changed?,
                changed = self.catalog.changed() => {
                    changed.context("deployments are not followed any more")?;
                }
                Some(ended) = readers.tasks.join_next() => {
                    let (group, end) = ended.context("a reader panicked")?;
                    readers.ended(group, end);
                }
            }
        }
        Ok(())
    }

    /// Makes the tables anew that somebody dropped; every read model is built from the log then.
    async fn make_anew(&mut self, readers: &mut Readers, missing: &str) {
        tracing::error!(missing, "read models' tables were dropped, and are made anew");
        readers.start_over();
        self.troubles = None;
        if let Err(error) = self.read_models.make_anew().await {
            tracing::error!(%error, "read models' tables cannot be made anew yet");
        }
    }

    /// Starts and stops readers as versions come and go.
    async fn look(
        &mut self,
        readers: &mut Readers,
        epochs: &BTreeMap<u16, u64>,
    ) -> Result<(), Error> {
        if epochs.is_empty() {
            self.requests = None;
            readers.forget(|_| false);
            return Ok(());
        }
        if self.requests.is_none() {
            self.requests = Some(self.read_models.rebuild_requests().await?);
        }
        if !self.origin.is_this_log(&self.store, &self.read_models).await? {
            readers.running.values().for_each(|(_, token)| token.cancel());
            return Ok(());
        }
        let owned = |name: &Name, portion| {
            epochs.get(&share(name, portion)).map(|epoch| epoch.cast_signed())
        };
        let deployed = self.catalog.borrow_and_update().clone();
        let mut versions =
            self.read_models.versions(&self.former.beside(&deployed), &owned).await?;
        let looked_up = self.former.look_up(&self.store, &versions.unknown).await;
        if looked_up.map_err(|error| Error::Unavailable(error.to_string()))? {
            versions = self.read_models.versions(&self.former.beside(&deployed), &owned).await?;
        }
        for (name, error) in &versions.refused {
            if readers.refused.insert(name.clone()) {
                tracing::error!(%error, "a read model cannot be created");
            }
        }
        if self.told_for != *epochs {
            self.told_for.clone_from(epochs);
            // What another owner noted is for this one to take back.
            self.troubles = None;
        }
        let unmade = self.indexing.look(&self.read_models, &versions.run, Instant::now()).await?;
        versions.troubles.extend(unmade);
        self.tell(&versions.troubles, &owned).await?;
        self.run_readers(readers, &versions.run);
        self.measure(readers, &owned).await;
        self.read_models.sweep(&owned).await
    }

    /// Has each group of versions read, and nothing else.
    fn run_readers(&self, readers: &mut Readers, versions: &[Arc<Version>]) {
        let groups = readers.groups(versions);
        readers.forget(|group| groups.contains_key(group));
        for (group, (_, token)) in &readers.running {
            if !groups.contains_key(group) {
                token.cancel();
            }
        }
        for (group, members) in groups {
            if readers.may_start(&group) {
                let reader = Reader {
                    store: self.store.clone(),
                    read_models: self.read_models.clone(),
                    guard: self.member.guard(),
                    versions: members,
                };
                readers.start(group, reader);
            }
        }
    }

    /// Raises the alarm for read models that cannot be managed, where it has changed.
    async fn tell(&mut self, found: &[(Name, Error)], owned: Owned<'_>) -> Result<(), Error> {
        // One that has another owner by now is no trouble: what is assigned says so soon.
        let found = found.iter().filter(|(_, error)| !matches!(error, Error::Fenced { .. }));
        let troubles: BTreeMap<String, String> =
            found.map(|(name, error)| (name.to_string(), error.to_string())).collect();
        if self.troubles.as_ref() == Some(&troubles) {
            return Ok(());
        }
        let before = self.troubles.take().unwrap_or_default();
        for name in before.keys().chain(troubles.keys()) {
            let is_one = troubles.contains_key(name);
            gauge!("flexcore_read_model_unmanaged", "read_model" => name.clone())
                .set(f64::from(u8::from(is_one)));
        }
        self.read_models.note_troubles(owned, &troubles).await?;
        self.troubles = Some(troubles);
        Ok(())
    }

    /// Sets the gauges. The broker may be away: then the lag stays as it was. What others own counts
    /// as nothing here, so that a sum over the workers is right.
    async fn measure(&self, readers: &Readers, owned: Owned<'_>) {
        let (Ok(last), Ok(all)) =
            (self.store.last_sequence().await, self.read_models.status().await)
        else {
            return;
        };
        for status in all.iter().filter(|status| owned(&status.read_model, 0).is_some()) {
            let name = status.read_model.to_string();
            gauge!("flexcore_read_model_unmanaged", "read_model" => name)
                .set(f64::from(u8::from(status.trouble.is_some())));
        }
        for status in all.iter().filter(|status| status.state == State::Serving) {
            let name = status.read_model.to_string();
            let lag = owned(&status.read_model, 0).map_or(0, |_| status.lag(last));
            gauge!("flexcore_projection_lag_events", "read_model" => name.clone()).set(lag as f64);
            let stopped = readers.refused.contains(&status.read_model)
                || readers.broken.values().any(|broken| *broken == status.read_model);
            let held = owned(&status.read_model, 0).map_or(0, |_| status.held);
            gauge!("flexcore_projection_held_aggregates", "read_model" => name.clone())
                .set(held as f64);
            gauge!("flexcore_projection_stopped", "read_model" => name)
                .set(f64::from(u8::from(stopped)));
        }
    }
}

/// A reader that panics ends like one that Postgres refuses, and not the worker with all others.
async fn caught(names: Vec<(i64, Name)>, reading: impl Future<Output = End>) -> End {
    let ended = AssertUnwindSafe(reading).catch_unwind().await;
    ended.unwrap_or_else(|_| End::Refused { reason: "its reader panicked".to_owned(), names })
}

/// Returns when a rebuild was asked for, or when that would not be heard any more.
async fn requested(requests: &mut Option<Requests>) {
    match requests {
        Some(listening) => {
            if listening.next().await.is_err() {
                *requests = None;
            }
        }
        None => std::future::pending().await,
    }
}

impl Readers {
    /// Cancels the readers of what is not owned any more.
    fn keep_only(&self, epochs: &BTreeMap<u16, u64>) {
        for (shares, token) in self.running.values() {
            if !shares.iter().all(|(share, epoch)| epochs.get(share) == Some(epoch)) {
                token.cancel();
            }
        }
    }

    /// Forgets every version, since those that come have their ids anew.
    fn start_over(&mut self) {
        self.running.values().for_each(|(_, token)| token.cancel());
        self.resting.clear();
        self.broken.clear();
        self.apart.clear();
    }

    /// Forgets the failures of groups that are not wanted any more. An ownership that has ended does not
    /// come back, since the next one has another epoch.
    fn forget(&mut self, wanted: impl Fn(&Group) -> bool) {
        self.resting.retain(|group, _| wanted(group));
    }

    /// The shares that are served: those that are owned, and those whose readers have not ended.
    fn shares(&self, epochs: &BTreeMap<u16, u64>) -> BTreeSet<u16> {
        let running = self.running.values().flat_map(|(shares, _)| shares.keys().copied());
        epochs.keys().copied().chain(running).collect()
    }

    /// Which versions are read together.
    fn groups(&self, versions: &[Arc<Version>]) -> HashMap<Group, Vec<Arc<Version>>> {
        let mut groups: HashMap<Group, Vec<Arc<Version>>> = HashMap::new();
        let mut together = Vec::new();
        for version in versions {
            let id = version.id();
            if self.broken.contains_key(&id) {
                continue;
            }
            if version.state == State::Serving && !self.apart.contains(&id) {
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

    fn may_start(&self, group: &Group) -> bool {
        let rested = self.resting.get(group).is_none_or(|(until, _)| *until <= Instant::now());
        // A version's former reader finishes first: two would refuse each other's checkpoints.
        let ids = |group: &Group| group.iter().map(|(id, ..)| *id).collect::<BTreeSet<_>>();
        rested && self.running.keys().all(|running| ids(running).is_disjoint(&ids(group)))
    }

    fn start(&mut self, group: Group, reader: Reader) {
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

    fn ended(&mut self, group: Group, end: End) {
        self.running.remove(&group);
        match end {
            End::Stopped | End::CaughtUp => {
                self.resting.remove(&group);
            }
            End::Retry { reason, progressed } => {
                let failed = self.resting.get(&group).map_or(0, |(_, attempt)| *attempt);
                self.rest(group, if progressed { 0 } else { failed + 1 }, &reason);
            }
            // Another worker owns it by now; what is assigned says so soon.
            End::Fenced(error) => self.rest(group, 1, &error.to_string()),
            End::Refused { reason, .. } if group.len() > 1 => {
                tracing::warn!(reason, "read models are read apart, to find the one that fails");
                self.apart.extend(group.into_iter().map(|(id, ..)| id));
            }
            End::Refused { reason, names } | End::Broken { reason, names } => {
                self.stopped(&reason, names);
            }
        }
    }

    /// Has a group wait before it starts again.
    fn rest(&mut self, group: Group, attempt: u32, reason: &str) {
        if attempt <= 1 {
            tracing::warn!(reason, "a projection's reader starts again");
        }
        self.resting.insert(group, (Instant::now() + backoff(attempt), attempt));
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
        readers.ended(kept.clone(), End::CaughtUp);
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
}
