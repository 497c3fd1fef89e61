//! The projection worker: follows the log and keeps read models up to date.
//!
//! A read model belongs to a share, by its name, and a share to one worker, as the cluster's map
//! says: a row is written by one worker, in the order of the log. One that is shared has portions,
//! by slot, of which each belongs to the next share: its rows are, too, each written by one worker
//! at a time. The serving versions of a worker's shares are read together, from one subscription
//! into one transaction a batch. A version that is being built has a reader of its own until it has
//! caught up, takes over, and joins the others; one whose events go through a plugin keeps a reader of its own.

mod batch;
mod commit;
mod failure;
mod former;
mod indexing;
mod looks;
mod origin;
mod reader;
mod readers;
mod share;
mod standing;
mod transform;
mod upcast;
mod waiting;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use flexcore_cluster::Member;
use flexcore_definition::Catalog;
use flexcore_domain::Name;
use flexcore_eventstore::{self as eventstore, EventStore};
use flexcore_readmodel::{Error, Owned, ReadModels, Requests, Version, VersionState};
use flexcore_resilience::Backoff;
use metrics::gauge;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{PROJECTIONS, places::OwnPlaces};
use former::Former;
use indexing::Indexing;
use origin::Origin;
use reader::{End, Reader};
use readers::Readers;
use share::share;
use standing::Standing;

/// Before a look, or a reader, that failed begins again.
const RETRY: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
/// Between two looks at what is to be run, when nothing tells of a change: how soon a reader that
/// failed may start again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Settings of the projection worker.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Time for which the indexes of a read model are not tried again after a build that failed;
    /// twice as long after each further one, and an hour at most.
    pub index_pause: Duration,
    /// Most aggregates that a read model holds back since a break in the log; one that would hold back
    /// more stops, and no other does.
    pub held_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { index_pause: indexing::PAUSE_FIRST, held_max: batch::HELD_MAX }
    }
}

/// Keeps the read models of its shares up to date until the token is cancelled; then finishes the
/// batch at hand. Outages of the broker or of Postgres are waited out. `read_models` is migrated.
/// Fails when deployments are not followed any more.
#[boxed::async_recursion]
pub async fn run(
    store: EventStore,
    read_models: ReadModels,
    catalog: watch::Receiver<Arc<Catalog>>,
    member: Member,
    settings: Settings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut worker = Worker {
        store,
        read_models,
        catalog,
        member,
        origin: Origin::default(),
        troubles: None,
        told_for: BTreeMap::new(),
        requests: None,
        former: Former::default(),
        indexing: Indexing::new(settings.index_pause),
        held_max: settings.held_max,
        standing: Standing::default(),
    };
    // Its shares have their readers in common, so it does not serve each by a task.
    let mut own = OwnPlaces::of(&worker.member, PROJECTIONS);
    let mut readers = Readers::default();
    let result = worker.project(&mut readers, &mut own, &stop).await;
    for (_, token) in readers.running.values() {
        token.cancel();
    }
    while readers.tasks.join_next().await.is_some() {}
    worker.member.resign();
    let _ = tokio::time::timeout(crate::TOLD_MAX, own.hand_over()).await;
    result
}

struct Worker {
    store: EventStore,
    read_models: ReadModels,
    catalog: watch::Receiver<Arc<Catalog>>,
    member: Member,
    origin: Origin,
    /// Of the read models that cannot be managed, as it was told last.
    troubles: Option<BTreeMap<String, String>>,
    /// The shares for which that was.
    told_for: BTreeMap<u16, u64>,
    requests: Option<Requests>,
    former: Former,
    indexing: Indexing,
    held_max: usize,
    standing: Standing,
}

impl Worker {
    /// Projects what is assigned until told to stop.
    async fn project(
        &mut self,
        readers: &mut Readers,
        own: &mut OwnPlaces,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut attempt = 0;
        while !stop.is_cancelled() {
            let epochs = own.look();
            #[cfg(feature = "defects")]
            let epochs = crate::defects::never_let_go(epochs);
            readers.keep_only(&epochs);
            own.report(readers.shares(&epochs));
            let pause = match self.look(readers, &epochs).await {
                Ok(()) => {
                    attempt = 0;
                    LOOK_INTERVAL
                }
                Err(Error::Gone(missing)) => {
                    attempt += 1;
                    self.make_anew(readers, &missing).await;
                    RETRY.jittered(attempt + 1)
                }
                Err(error) => {
                    attempt += 1;
                    self.standing.forget();
                    tell_of_look(&error, attempt);
                    RETRY.jittered(attempt + 1)
                }
            };
            metrics::gauge!("flexcore_projection_looks_failed").set(f64::from(attempt));
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = requested(&mut self.requests) => {}
                changed = own.changed() => changed?,
                changed = self.catalog.changed() => {
                    changed.context("deployments are not followed any more")?;
                }
                Some(ended) = readers.tasks.join_next() => {
                    let (group, end) = ended.context("a reader panicked")?;
                    if let End::CaughtUp { unindexed: Some(unindexed) } = &end {
                        self.indexing.failed(unindexed, Instant::now());
                    }
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
        self.standing.forget();
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
            self.standing.forget();
            readers.forget(|_| false);
            return Ok(());
        }
        if self.requests.is_none() {
            self.requests = Some(self.read_models.rebuild_requests().await?);
        }
        if !self.origin.is_this_log(&self.store, &self.read_models).await? {
            readers.running.values().for_each(|(_, token)| token.cancel());
            self.standing.forget();
            return Ok(());
        }
        let owned = |name: &Name, portion| {
            epochs.get(&share(name, portion)).map(|epoch| epoch.cast_signed())
        };
        let deployed = self.catalog.borrow_and_update().clone();
        let mut versions =
            self.read_models.versions(&self.former.beside(&deployed), &owned).await?;
        let looked_up = self.former.look_up(&self.store, &versions.unknown).await;
        if looked_up.map_err(|error| of_log(&error))? {
            versions = self.read_models.versions(&self.former.beside(&deployed), &owned).await?;
        }
        if self.told_for != *epochs {
            self.told_for.clone_from(epochs);
            // This owner has to take back the notes of another one.
            self.troubles = None;
        }
        let unmade = self.indexing.look(&self.read_models, &versions.run, Instant::now()).await?;
        versions.troubles.extend(unmade);
        versions.troubles.extend(readers.locked(&versions.run));
        let stopped = readers.told(&versions.run);
        self.tell(&versions.troubles, stopped, &owned).await?;
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
                let was_locked = members.iter().any(|version| readers.is_locked(version));
                let reader = Reader {
                    store: self.store.clone(),
                    read_models: self.read_models.clone(),
                    guard: self.member.guard(),
                    versions: members,
                    held_max: self.held_max,
                    failures: readers.failures(&group),
                    waiting: readers.waiting.clone(),
                    was_locked,
                };
                readers.start(group, reader);
            }
        }
    }

    /// Raises the alarm for read models that cannot be managed, have stopped or stand still, where it has
    /// changed.
    async fn tell(
        &mut self,
        found: &[(Name, Error)],
        stopped: Vec<(String, String)>,
        owned: Owned<'_>,
    ) -> Result<(), Error> {
        // One that has another owner by now is no trouble: what is assigned says so soon.
        let found = found.iter().filter(|(_, error)| !matches!(error, Error::Fenced { .. }));
        let found = found.map(|(name, error)| (name.to_string(), error.to_string()));
        // Of several, the cause: that it stands still may follow from each of the others.
        let troubles: BTreeMap<String, String> =
            self.standing.told().chain(stopped).chain(found).collect();
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

    /// Sets the gauges. The broker may be away: then the lag stays as it was. Places of others
    /// count as nothing here, so that a sum over the workers is right.
    async fn measure(&mut self, readers: &Readers, owned: Owned<'_>) {
        let (Ok(last), Ok(all)) =
            (self.store.last_sequence().await, self.read_models.status().await)
        else {
            self.standing.forget();
            return;
        };
        self.standing.look(all.iter().filter(|s| owned(&s.read_model, 0).is_some()), last);
        for status in all.iter().filter(|status| owned(&status.read_model, 0).is_some()) {
            let name = status.read_model.to_string();
            gauge!("flexcore_read_model_unmanaged", "read_model" => name)
                .set(f64::from(u8::from(status.trouble.is_some())));
        }
        for status in all.iter().filter(|status| status.state == VersionState::Serving) {
            let name = status.read_model.to_string();
            let lag = owned(&status.read_model, 0).map_or(0, |_| status.lag(last));
            gauge!("flexcore_projection_lag_events", "read_model" => name.clone()).set(lag as f64);
            let stopped = readers.broken.values().any(|broken| *broken == status.read_model);
            let held = owned(&status.read_model, 0).map_or(0, |_| status.held);
            gauge!("flexcore_projection_held_aggregates", "read_model" => name.clone())
                .set(held as f64);
            gauge!("flexcore_projection_stopped", "read_model" => name)
                .set(f64::from(u8::from(stopped)));
        }
    }
}

/// Says what a look has failed with, less and less often. The gauge `flexcore_projection_looks_failed` says
/// that it has.
fn tell_of_look(error: &Error, attempt: u32) {
    if !attempt.is_power_of_two() {
        return;
    }
    // Another worker has taken a read model over: what is assigned says so soon.
    if error.is_passing() || matches!(error, Error::Fenced { .. }) {
        tracing::warn!(%error, attempt, "read models stay as they are for now");
    } else {
        tracing::error!(%error, attempt, "read models stay as they are until somebody mends this");
    }
}

/// An error of the log as one of a look.
fn of_log(error: &eventstore::Error) -> Error {
    let reason = error.to_string();
    if error.is_passing() { Error::Unavailable(reason) } else { Error::Misconfigured(reason) }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A look that met it was tried again as in an outage, and said no more than that.
    #[test]
    fn a_damaged_log_is_no_outage() {
        let (subject, reason) = (String::new(), String::new());
        assert!(!of_log(&eventstore::Error::Corrupt { subject, sequence: 1, reason }).is_passing());
        assert!(of_log(&eventstore::Error::Unavailable(String::new())).is_passing());
    }
}
