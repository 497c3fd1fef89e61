//! A reader: one subscription to the log, and the versions that it feeds. While Postgres commits one
//! batch, the next is fetched and folded.

mod promotion;

use std::{sync::Arc, time::Duration};

use flexcore_cluster::Guard;
use flexcore_domain::Name;
use flexcore_eventstore::{
    self as eventstore, Broken, EventStore, Filter, Interest, Read, Recorded, Subscription,
};
use flexcore_readmodel::{Ahead, Error, ReadModels, Version, VersionState};
use futures::FutureExt as _;
use tokio::{
    task::{JoinError, JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    batch::{self, Batch, Model, Upcasted},
    commit::commit,
    failure::Failure,
    indexing::Unindexed,
    looks::Looks,
    transform::Transforms,
    upcast::Upcasts,
    waiting::Waiting,
};

/// Commits that are decoded in a row before other tasks have their turn.
const CHUNK_COMMITS: usize = 1_000;
/// Bytes of commits after which a batch is not read on: what is decoded takes several times as much.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Longest wait for commits, and so for the end of a reader that is told to stop, and for somebody who
/// waits for a position that nothing follows which is followed here.
const WAIT: Duration = Duration::from_millis(100);
/// Distance before its checkpoints at which a reader begins. The events there are in the rows
/// already; they show that the next commits follow from them, and that the log is still the same.
const LINKED_COMMITS: u64 = 1_000;
/// One part in so many of the time, at most, is spent on trying to take over: what serves stands still
/// meanwhile.
const SWAP_SHARE: u32 = 10;
/// Traces that a batch's span names: a batch at the live end has few, a catching-up one thousands.
const TRACES_MAX: usize = 16;

/// The parts of a reader.
pub(super) struct Reader {
    pub(super) store: EventStore,
    pub(super) read_models: ReadModels,
    pub(super) guard: Guard,
    pub(super) versions: Vec<Arc<Version>>,
    /// Most aggregates that one of them holds back.
    pub(super) held_max: usize,
    /// How often in a row readers of these have failed that applied nothing.
    pub(super) failures: u32,
    /// The versions that wait for a plugin.
    pub(super) waiting: Waiting,
    /// The only version's table was locked: the reader ends when the version has caught up, which
    /// is read with the others again.
    pub(super) was_locked: bool,
}

/// Why a reader ended.
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// The version that it built serves now, perhaps without its indexes; or a version whose table
    /// was locked has all that it missed.
    CaughtUp { unindexed: Option<Unindexed> },
    /// Somebody keeps a version's table locked.
    Locked { id: i64, name: Name, progressed: bool },
    /// Postgres or the broker was away.
    Retry { reason: String, reached: Reached, cause: Cause },
    /// A plugin that events of these go through gives no answer now.
    NoPlugin { reason: String, names: Vec<(i64, Name)>, reached: Reached },
    /// Another worker has taken over.
    Fenced(Error),
    /// Postgres refuses, and will again; or too many aggregates are broken that a version follows.
    Refused { reason: String, names: Vec<(i64, Name)> },
    /// Messages are missing from the log, which may be anybody's.
    Broken { reason: String, names: Vec<(i64, Name)> },
}

/// What has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Postgres,
    Broker,
    Plugin,
}

/// How far a reader came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reached {
    /// It could not begin.
    #[default]
    Nothing,
    /// Postgres and the broker answered, and it began to read.
    Log,
    /// It has applied something.
    Rows,
}

/// The result of a step.
enum Progress {
    /// Commits were read.
    Some,
    /// There were none.
    None,
    /// There is nothing more to do apart from the others.
    CaughtUp,
}

/// A reader at work.
struct Running<'a> {
    reader: &'a Reader,
    stop: CancellationToken,
    subscription: Subscription,
    models: Vec<Model>,
    upcasts: Upcasts,
    transforms: Transforms,
    /// Of commits that are still to be folded.
    upcasted: Upcasted,
    /// Commits that were read, and are for the next batch.
    rest: Vec<Recorded>,
    /// Most commits of a batch for now.
    commits_max: usize,
    /// The log's end behind the commits that were read last.
    broken: Option<Box<Broken>>,
    /// The batch that Postgres has at hand.
    committing: Option<JoinHandle<Result<(), Failure>>>,
    /// The place up to which the log was read, or had nothing to read.
    read_to: u64,
    look_at: Instant,
    progressed: bool,
    /// Making the indexes of the version that is built. Given up with the reader.
    indexing: JoinSet<Result<bool, Error>>,
    is_indexed: bool,
    /// The part that is still missing when it takes over.
    unindexed: Option<Unindexed>,
    looks: Looks,
    /// At most one question how far the log goes on, with how long it took.
    asked: JoinSet<(Result<u64, eventstore::Error>, Duration)>,
    ahead: Ahead,
    /// Where the log ended at a look, and when that was.
    end: Option<(u64, Instant)>,
    /// Where the log ended when this began, if a table was locked before: what was missed is before.
    missed: Option<u64>,
}

impl Reader {
    /// Reads and applies until the token is cancelled, the version has caught up, or it fails.
    pub(super) async fn run(self, stop: CancellationToken) -> End {
        let mut reached = Reached::Nothing;
        match self.follow(&stop, &mut reached).await {
            Ok(end) => end,
            Err(failure) => self.end(failure, reached),
        }
    }

    async fn follow(
        &self,
        stop: &CancellationToken,
        reached: &mut Reached,
    ) -> Result<End, Failure> {
        let mut running = tokio::select! {
            () = stop.cancelled() => return Ok(End::Stopped),
            opened = self.open(stop) => opened?,
        };
        *reached = Reached::Log;
        loop {
            if stop.is_cancelled() {
                running.finish().await?;
                return Ok(End::Stopped);
            }
            let result = running.tick(Instant::now()).await;
            if running.progressed {
                *reached = Reached::Rows;
            }
            if let Progress::CaughtUp = result? {
                return Ok(End::CaughtUp { unindexed: running.unindexed.take() });
            }
        }
    }

    async fn open(&self, stop: &CancellationToken) -> Result<Running<'_>, Failure> {
        let mut models = Vec::with_capacity(self.versions.len());
        let mut interest = Interest::default();
        for version in &self.versions {
            let kept = self.read_models.take_over(version).await?;
            let held = self.read_models.held(version).await?;
            models.push(Model::new(version.clone(), &kept, held));
            for aggregate in version.plan.aggregates() {
                interest.add(aggregate, version.portions.slots());
            }
        }
        let read_to = models.iter().map(Model::position).min().unwrap_or(0);
        let filter = Filter::Of(Arc::new(interest));
        let from = (read_to + 1).saturating_sub(LINKED_COMMITS);
        let subscription = self.store.subscribe(filter, from).await?;
        // After that, so that what is subscribed to is what is looked at.
        self.store.recognise(&self.read_models.marks().await?).await?;
        let missed = match self.was_locked {
            true => Some(self.store.last_sequence().await?),
            false => None,
        };
        let now = Instant::now();
        Ok(Running {
            reader: self,
            stop: stop.clone(),
            subscription,
            models,
            upcasts: Upcasts::default(),
            transforms: Transforms::new(self.store.client().clone(), self.waiting.clone()),
            upcasted: Upcasted::new(),
            rest: Vec::new(),
            commits_max: batch::first_commits(self.failures),
            broken: None,
            committing: None,
            read_to,
            look_at: now,
            progressed: false,
            indexing: JoinSet::new(),
            is_indexed: false,
            unindexed: None,
            looks: Looks::new(now),
            asked: JoinSet::new(),
            ahead: Ahead::default(),
            end: None,
            missed,
        })
    }

    fn end(&self, failure: Failure, reached: Reached) -> End {
        let names =
            || self.versions.iter().map(|v| (v.id(), v.read_model.clone())).collect::<Vec<_>>();
        match failure {
            Failure::ReadModel(error @ Error::Fenced { .. }) => End::Fenced(error),
            Failure::ReadModel(Error::Locked { version: id, read_model: name }) => {
                End::Locked { id, name, progressed: reached == Reached::Rows }
            }
            Failure::ReadModel(error) if error.is_passing() => {
                End::Retry { reason: error.to_string(), reached, cause: Cause::Postgres }
            }
            Failure::ReadModel(error) => End::Refused { reason: error.to_string(), names: names() },
            Failure::Plugin(reason) => End::NoPlugin { reason, names: names(), reached },
            Failure::Log(error) if error.is_passing() => {
                End::Retry { reason: error.to_string(), reached, cause: Cause::Broker }
            }
            // The worker looks at that for all readers, and says so when it stays.
            Failure::Log(eventstore::Error::OtherLog(other)) => {
                End::Retry { reason: other.to_string(), reached, cause: Cause::Broker }
            }
            // So it says when the log is not the one that it was when reading began.
            Failure::Log(error @ eventstore::Error::Misconfigured(_)) => {
                End::Retry { reason: error.to_string(), reached, cause: Cause::Broker }
            }
            Failure::Log(error @ eventstore::Error::Gap { .. }) => {
                End::Broken { reason: error.to_string(), names: names() }
            }
            Failure::Log(error) => End::Refused { reason: error.to_string(), names: names() },
        }
    }
}

impl Running<'_> {
    /// Reads what there is, folds it while the batch before is being committed, and has it
    /// committed in turn.
    async fn tick(&mut self, now: Instant) -> Result<Progress, Failure> {
        let chunk = CHUNK_COMMITS.min(self.commits_max);
        let read = match (self.rest.is_empty(), self.broken.take()) {
            (false, broken) => {
                self.broken = broken;
                Read::Commits(std::mem::take(&mut self.rest))
            }
            (true, Some(broken)) => Read::Broken(broken),
            (true, None) => self.subscription.next_batch(chunk, WAIT).await?,
        };
        let mut commits = match read {
            Read::Commits(commits) => commits,
            Read::Broken(broken) => return self.put_aside(&broken).await,
        };
        self.gather(&mut commits).await?;
        let (read, full) = (commits.len(), commits.len() >= chunk);
        if read > 0 {
            self.fold(commits).await?;
        } else {
            self.finish().await?;
            self.mark().await?;
        }
        let is_close = !full && self.rest.is_empty();
        if is_close && self.is_building() && now >= self.look_at {
            self.finish().await?;
            let began = Instant::now();
            if self.promote(began).await? {
                return Ok(Progress::CaughtUp);
            }
            self.look_at = now + WAIT.max(began.elapsed().saturating_mul(SWAP_SHARE));
        }
        if self.missed.is_some_and(|missed| self.read_to >= missed) {
            self.finish().await?;
            return Ok(Progress::CaughtUp);
        }
        Ok(if read > 0 { Progress::Some } else { Progress::None })
    }

    /// Folds the commits, as many as a batch may become, and has them committed in turn. The rest is for
    /// the next one.
    async fn fold(&mut self, mut commits: Vec<Recorded>) -> Result<(), Failure> {
        let ready = self.upcasts.run(&self.models, &commits, &mut self.upcasted).await;
        // At least one: what it lacks is put aside.
        let mut rest = commits.split_off(ready.clamp(1, commits.len()));
        let passing =
            self.transforms.run(&self.models, &commits, &mut self.upcasted, &self.stop).await;
        if passing.is_err() {
            // What is on its way into Postgres moves rows on.
            self.finish().await?;
        }
        let mut behind = commits.split_off(passing?);
        behind.append(&mut rest);
        if commits.is_empty() {
            // It is to stop, or an event is asked for alone next.
            self.rest = behind;
            return Ok(());
        }
        let (batch, left) = batch::make(&mut self.models, commits, &self.upcasted);
        self.rest = left;
        self.rest.append(&mut behind);
        let last = batch.commits.last().map_or(0, |last| last.sequence);
        self.read_to = self.read_to.max(last);
        self.upcasted.retain(|(sequence, ..), _| *sequence > last);
        self.finish().await?;
        if batch.parts.iter().any(|part| !part.moves.is_empty()) {
            self.commit(batch);
        }
        Ok(())
    }

    /// Notes how far the log goes on without anything that is followed here. Nothing is written while
    /// the log stands still. Nothing was read when this is called, and what was read before is in the
    /// rows.
    async fn mark(&mut self) -> Result<(), Failure> {
        if self.asked.is_empty() {
            let asked = Instant::now();
            if !self.looks.is_due(asked) {
                return Ok(());
            }
            let seen = self.subscription.seen(self.looks.from());
            self.asked.spawn(seen.map(move |seen| (seen, asked.elapsed())));
        }
        // It may take long: it is not given up, and waited for again at the next tick.
        let Ok(Some(answer)) = tokio::time::timeout(WAIT, self.asked.join_next()).await else {
            return Ok(());
        };
        let (seen, took) = answer.map_err(|error| Error::Unavailable(error.to_string()))?;
        let seen = match seen {
            Err(error) if !error.is_passing() => return Err(error.into()),
            seen => seen.ok(),
        };
        self.looks.answered(seen, took, Instant::now());
        let Some(seen) = seen else { return Ok(()) };
        if seen <= self.read_to {
            return Ok(());
        }
        let marks: Vec<_> = self.models.iter().flat_map(Model::marks).collect();
        self.reader.read_models.mark(&marks, seen).await?;
        self.read_to = seen;
        Ok(())
    }

    /// Goes on behind a message that is no commit, or breaks its aggregate: the models hold the
    /// aggregate back, and nothing else.
    async fn put_aside(&mut self, broken: &Broken) -> Result<Progress, Failure> {
        self.finish().await?;
        // Not up to the message itself: who has no part in it is to be marked behind it, even if it is the
        // log's last.
        self.read_to = self.read_to.max(broken.sequence.saturating_sub(1));
        tracing::error!(
            subject = broken.subject,
            sequence = broken.sequence,
            reason = broken.reason,
            "the log is broken here: the aggregate is held back from now on"
        );
        let held_max = self.reader.held_max;
        let Some(batch) = batch::make_of_broken(&mut self.models, broken, held_max) else {
            let (subject, sequence) = (broken.subject.clone(), broken.sequence);
            let reason = format!("{}; {held_max} others are held back already", broken.reason);
            return Err(eventstore::Error::Corrupt { subject, sequence, reason }.into());
        };
        if !batch.parts.is_empty() {
            self.commit(batch);
        }
        Ok(Progress::Some)
    }

    /// Reads on while the batch before is being committed: the larger a batch, the less a row costs.
    async fn gather(&mut self, commits: &mut Vec<Recorded>) -> Result<(), Failure> {
        let mut size_bytes = bytes_of(commits);
        // What is behind a break comes after it.
        while self.broken.is_none()
            && let Some(committing) = &mut self.committing
            && commits.len() < self.commits_max
            && size_bytes < BATCH_BYTES_MAX
        {
            let room = CHUNK_COMMITS.min(self.commits_max - commits.len());
            // Between two chunks, since what was read must not be lost with a future.
            tokio::task::yield_now().await;
            tokio::select! {
                ended = committing => {
                    self.committing = None;
                    self.committed(ended)?;
                }
                more = self.subscription.next_batch(room, WAIT) => match more {
                    Ok(Read::Commits(more)) => {
                        size_bytes += bytes_of(&more);
                        commits.extend(more);
                    }
                    Ok(Read::Broken(broken)) => {
                        self.broken = Some(broken);
                        return Ok(());
                    }
                    Err(error) if commits.is_empty() => return Err(error.into()),
                    // It comes again with the next batch; what was read before it goes first.
                    Err(_) => return Ok(()),
                },
            }
        }
        Ok(())
    }

    /// Waits for the batch that is being committed.
    async fn finish(&mut self) -> Result<(), Failure> {
        match self.committing.take() {
            Some(committing) => {
                let ended = committing.await;
                self.committed(ended)
            }
            None => Ok(()),
        }
    }

    fn committed(&mut self, ended: Result<Result<(), Failure>, JoinError>) -> Result<(), Failure> {
        ended.map_err(|error| match error.is_panic() {
            // It would be again: the version is read apart from the others, and stops.
            true => Error::Database(format!("committing: {error}")),
            false => Error::Unavailable(format!("committing: {error}")),
        })??;
        self.progressed = true;
        self.commits_max = batch::COMMITS_MAX.min(self.commits_max * 2);
        Ok(())
    }

    fn commit(&mut self, batch: Batch) {
        #[cfg(feature = "defects")]
        let batch = Batch { parts: crate::defects::skipped(batch.parts), ..batch };
        let span = tracing::info_span!("project", commits = batch.commits.len());
        let traces = batch.commits.iter().filter_map(|c| c.commit.provenance.traceparent.as_ref());
        for traceparent in traces.take(TRACES_MAX) {
            flexcore_telemetry::add_link(&span, traceparent.as_str());
        }
        let Reader { store, read_models, guard, .. } = self.reader;
        let task = commit(store.clone(), read_models.clone(), guard.clone(), batch);
        self.committing = Some(tokio::spawn(task.instrument(span)));
    }

    fn is_building(&self) -> bool {
        self.models.iter().any(|model| model.version.state == VersionState::Building)
    }
}

fn bytes_of(commits: &[Recorded]) -> usize {
    commits.iter().map(|commit| commit.body.len()).sum()
}
