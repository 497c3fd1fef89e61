//! The projection worker: follows the log and keeps read models up to date.
//!
//! One worker at a time projects; others stand by. What serves is read together, from one
//! subscription into one transaction a batch; what is being built has a reader of its own until it
//! has caught up, takes over, and joins the others.

mod batch;
mod reader;
mod upcast;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use flexcore_domain::{Catalog, Name};
use flexcore_eventstore::EventStore;
use flexcore_readmodel::{Error, Lead, ReadModels, State, Version};
use metrics::gauge;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use reader::{End, Reader};

/// Between two looks at what is to be run, when nothing tells of a change: how soon a reader that
/// failed may start again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// First and longest pause before a reader that failed starts again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// How often a worker that stands by tries to lead.
const STANDBY_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps read models up to date until the token is cancelled; then finishes the batch at hand.
/// Outages of the broker or of Postgres are waited out. `read_models` is migrated. Fails when
/// deployments are not followed any more.
pub async fn run(
    store: EventStore,
    read_models: ReadModels,
    catalog: watch::Receiver<Arc<Catalog>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut worker = Worker { store, read_models, catalog };
    let mut attempt = 0;
    while !stop.is_cancelled() {
        let since = Instant::now();
        let pause = match worker.lead(&stop).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => STANDBY_INTERVAL,
            Err(error) => {
                attempt = if since.elapsed() > RETRY_LONGEST { 1 } else { attempt + 1 };
                if attempt == 1 {
                    tracing::warn!(%error, "read models stay as they are for now");
                }
                backoff(attempt)
            }
        };
        anyhow::ensure!(
            worker.catalog.has_changed().is_ok(),
            "deployments are not followed any more"
        );
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
    }
    Ok(())
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
}

/// The versions that one reader feeds, by id.
type Group = BTreeSet<i64>;

/// What runs, and what came of what ran.
#[derive(Default)]
struct Readers {
    running: HashMap<Group, CancellationToken>,
    tasks: JoinSet<(Group, End)>,
    /// When a group may start again, and how often it has failed.
    resting: HashMap<Group, (Instant, u32)>,
    /// Versions that wait for a person.
    broken: HashMap<i64, Name>,
    /// Serving versions that have a reader of their own, because one of them failed and the others
    /// must not.
    apart: BTreeSet<i64>,
}

impl Worker {
    /// Leads until told to stop; false: another worker does. Fails when it may lead no longer.
    async fn lead(&mut self, stop: &CancellationToken) -> Result<bool, Error> {
        let Some(mut lead) = self.read_models.lead().await? else { return Ok(false) };
        tracing::info!(epoch = lead.epoch(), "projecting");
        let result = self.project(&mut lead, stop).await;
        lead.release().await;
        result.map(|()| true)
    }

    /// Projects while this worker leads. Fails when it may no longer.
    async fn project(&mut self, lead: &mut Lead, stop: &CancellationToken) -> Result<(), Error> {
        let mut readers = Readers::default();
        let result = loop {
            if let Err(error) = self.look(lead, &mut readers).await {
                break Err(error);
            }
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = lead.rebuild_requested() => {}
                changed = self.catalog.changed() => if changed.is_err() { break Ok(()) },
                Some(ended) = readers.tasks.join_next() => {
                    let Ok((group, end)) = ended else {
                        break Err(Error::Unavailable("a reader panicked".to_owned()));
                    };
                    if let Err(error) = readers.ended(group, end) {
                        break Err(error);
                    }
                }
            }
        };
        for token in readers.running.values() {
            token.cancel();
        }
        while readers.tasks.join_next().await.is_some() {}
        result
    }

    /// Starts and stops readers as versions come and go.
    async fn look(&mut self, lead: &mut Lead, readers: &mut Readers) -> Result<(), Error> {
        lead.check().await?;
        let catalog = self.catalog.borrow_and_update().clone();
        let versions = self.read_models.versions(&catalog).await?;
        for (name, error) in &versions.refused {
            if readers.broken.insert(refused_id(name), name.clone()).is_none() {
                tracing::error!(%error, "a read model cannot be created");
            }
        }
        let groups = readers.groups(&versions.run);
        for (group, token) in &readers.running {
            if !groups.contains_key(group) {
                token.cancel();
            }
        }
        for (group, members) in groups {
            if readers.may_start(&group) {
                let reader = Reader {
                    store: self.store.clone(),
                    read_models: self.read_models.clone(),
                    catalog: self.catalog.clone(),
                    epoch: lead.epoch(),
                    versions: members,
                };
                readers.start(group, reader);
            }
        }
        self.measure(readers).await;
        self.read_models.sweep().await
    }

    /// Sets the gauges. The broker may be away: then the lag stays as it was.
    async fn measure(&self, readers: &Readers) {
        let (Ok(last), Ok(all)) =
            (self.store.last_sequence().await, self.read_models.status().await)
        else {
            return;
        };
        for status in all.iter().filter(|status| status.state == State::Serving) {
            let name = status.read_model.to_string();
            gauge!("flexcore_projection_lag_events", "read_model" => name.clone())
                .set(status.lag(last) as f64);
            let stopped = readers.broken.values().any(|broken| *broken == status.read_model);
            gauge!("flexcore_projection_stopped", "read_model" => name)
                .set(f64::from(u8::from(stopped)));
        }
    }
}

/// A key among the broken for a read model that has no version: no id is negative.
fn refused_id(name: &Name) -> i64 {
    let hash = name
        .as_str()
        .bytes()
        .fold(0_i64, |hash, byte| hash.wrapping_mul(31).wrapping_add(i64::from(byte)));
    -1 - (hash & i64::MAX)
}

impl Readers {
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
                groups.insert(Group::from([id]), vec![version.clone()]);
            }
        }
        if !together.is_empty() {
            groups.insert(together.iter().map(|version| version.id()).collect(), together);
        }
        groups
    }

    fn may_start(&self, group: &Group) -> bool {
        let rested = self.resting.get(group).is_none_or(|(until, _)| *until <= Instant::now());
        // A version's former reader finishes first: two would refuse each other's checkpoints.
        rested && self.running.keys().all(|running| running.is_disjoint(group))
    }

    fn start(&mut self, group: Group, reader: Reader) {
        let stop = CancellationToken::new();
        self.running.insert(group.clone(), stop.clone());
        self.tasks.spawn(async move { (group, reader.run(stop).await) });
    }

    /// Fails when another worker has taken over.
    fn ended(&mut self, group: Group, end: End) -> Result<(), Error> {
        self.running.remove(&group);
        match end {
            End::Stopped | End::CaughtUp => {
                self.resting.remove(&group);
            }
            End::Retry { reason, progressed } => {
                let failed = self.resting.get(&group).map_or(0, |(_, attempt)| *attempt);
                let attempt = if progressed { 0 } else { failed + 1 };
                if attempt <= 1 {
                    tracing::warn!(reason, "a projection's reader starts again");
                }
                self.resting.insert(group, (Instant::now() + backoff(attempt), attempt));
            }
            End::Fenced(error) => return Err(error),
            End::Refused { reason, .. } if group.len() > 1 => {
                tracing::warn!(reason, "read models are read apart, to find the one that fails");
                self.apart.extend(group);
            }
            End::Refused { reason, names } | End::Broken { reason, names } => {
                self.stopped(&reason, names);
            }
        }
        Ok(())
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
