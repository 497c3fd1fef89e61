//! The command worker: takes commands from requests and from the queue, has their lane decide, and
//! performs what the lane asks for.
//!
//! A lane is a thread: JavaScript runs there, away from the network's threads. Slots are spread over
//! the lanes, so an aggregate's commands meet in one place and keep their order.

mod asked_plugins;
mod cache;
mod clock;
mod deciders;
mod growth;
mod guesses;
mod lane;
#[cfg(test)]
mod lane_tests;
pub mod measure;
mod memory;
#[cfg(test)]
mod memory_tests;
mod messages;
mod outside;
mod perform;
mod pieces;
mod reading;
mod requests;
mod responder;
mod rests;
mod slots;
#[cfg(test)]
mod some_keys;
mod stored;
mod streams;
mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flexcore_cluster::Member;
use flexcore_definition::Catalog;
use flexcore_domain::{AggregateKey, Command, CommandId, Outcome, Slot, StateReply, Tenant};
use flexcore_eventstore::{Error, EventStore};
use flexcore_resilience::{Deadline, HeldPlace, Shares};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

pub use deciders::{
    LaterDecider, LaterDeciders, NativeDeciders, NoDecision, Proposals, ProposedEvent, ToDecide,
};

use crate::{places::LEAVE_MAX, queue};
use clock::Clock;
use messages::{Input, Owed, StoredCommand, Work};
use perform::{LaneThread, ToLane};
use requests::Answerer;
use responder::{Begun, Responder};

/// Settings of a command worker.
#[derive(Clone)]
pub struct Settings {
    /// Threads that decide.
    pub lanes: usize,
    /// Bytes of aggregates kept at hand, over all lanes.
    pub cache_bytes_max: usize,
    /// Deciders written in Rust.
    pub native: NativeDeciders,
    /// Deciders that answer later, beside those of the plugins that definitions name.
    pub later: LaterDeciders,
    /// This host's clock, in milliseconds since 1970-01-01 UTC: what deciders see as `now`, unless
    /// it is far ahead of the broker's, or their aggregate's last event is later.
    pub clock: fn() -> i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lanes: std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8),
            cache_bytes_max: 128 << 20,
            native: Arc::new(|_| None),
            later: Arc::new(|_, _, _| None),
            clock: now_ms,
        }
    }
}

/// Questions that one lane takes on for waiting clients before it answers "overloaded". A tenant takes
/// at most as many as are left for others, so the first gets 2,048: about 100 ms of work. Stored
/// commands take none: nobody waits for them.
const LANE_ROOM: usize = 4_096;
/// Aggregates that one tenant has under way at once over all lanes for its clients, and as many for
/// its stored commands: what one atomic batch takes of commits. More would only wait for the batch
/// before, and others' commits behind them.
const UNDER_WAY_MAX: usize = 1_024;
/// Work that tenants have under way in a lane while there are several: their shares are equal parts
/// of it. One that wants n times its share has an n-th part of it under way beside those that want
/// less than theirs.
const BESIDE: usize = 64;
/// The part that is left to each of them: with one more the next command of somebody else waits
/// that much longer.
const BESIDE_FEW: usize = 1;
/// Longest time for the last answers once the worker is told to stop, with a second for saying so.
const DRAIN_TIMEOUT: Duration =
    crate::TOLD_MAX.saturating_add(LEAVE_MAX).saturating_add(Duration::from_secs(1));
/// Time between measurements of what the lanes owe.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// The lanes of this process; cheap to clone.
#[derive(Clone)]
pub(crate) struct Lanes {
    lanes: Arc<[LaneHandle]>,
    /// Of the ownership under which they are asked.
    epoch: u64,
}

struct LaneHandle {
    inputs: mpsc::UnboundedSender<ToLane>,
    /// For waiting clients.
    room: Shares<Tenant>,
    /// Answers that it owes, those to the queue included.
    depth: Arc<AtomicUsize>,
    next_ticket: AtomicU64,
}

impl Lanes {
    fn of(&self, key: &AggregateKey) -> &LaneHandle {
        self.of_slot(key.slot())
    }

    /// A place for a question that somebody waits for; `None`: the tenant should rather be told to
    /// come back.
    pub(crate) fn enter(&self, key: &AggregateKey) -> Option<HeldPlace<Tenant>> {
        self.of(key).room.enter(key.tenant())
    }

    fn ask(&self, key: AggregateKey, work: impl FnOnce(u64) -> Work, to: Responder) {
        let lane = self.of(&key);
        lane.depth.fetch_add(1, Ordering::Relaxed);
        let ticket = lane.next_ticket.fetch_add(1, Ordering::Relaxed);
        // A lane ends only with the process.
        let (work, epoch) = (work(ticket), self.epoch);
        let _ = lane.inputs.send(ToLane::Ask { key, work, ticket, to, epoch });
    }

    /// The answer to a command whose sender waits for it. It is not begun in the last quarter of
    /// that time, since nobody would know what came of it: then nothing is done, and "overloaded"
    /// is the answer.
    pub(crate) async fn command(
        &self,
        command: Command,
        until: Deadline,
        place: HeldPlace<Tenant>,
    ) -> Outcome {
        let (to, mut answer) = oneshot::channel();
        let (key, command, begun) = (command.key.clone(), Box::new(command), Begun::default());
        let work = |ticket| Work::Command(Owed { command, patient: false, stored: None, ticket });
        self.ask(key, work, Responder::Waiting(to, begun.clone(), place));
        let patience = until.remaining(Instant::now()) / 4 * 3;
        let mut answered = tokio::time::timeout(patience, &mut answer).await.ok();
        if answered.is_none() {
            if begun.take() {
                return Outcome::Overloaded { retry_after_s: 1 };
            }
            answered = Some(answer.await);
        }
        let lost = || Outcome::Unavailable { message: "the worker is stopping".to_owned() };
        answered.and_then(Result::ok).flatten().unwrap_or_else(lost)
    }

    /// Takes up the command that has this sequence in the queue, and waits out an outage. The outcome goes to
    /// its reader, with the number that it has there.
    pub(crate) fn queued(
        &self,
        command: Command,
        sequence: u64,
        number: u64,
        to: mpsc::UnboundedSender<(u64, Outcome)>,
    ) {
        let (key, command) = (command.key.clone(), Box::new(command));
        let stored = Some(sequence);
        let work = |ticket| Work::Command(Owed { command, patient: true, stored, ticket });
        self.ask(key, work, Responder::Queue(to, number));
    }

    /// Takes a slot up under this epoch. Returns the lanes as its owner asks them: what comes under
    /// another epoch is not begun.
    pub(crate) fn own(&self, slot: Slot, epoch: u64) -> Self {
        let _ = self.of_slot(slot).inputs.send(ToLane::Enter { slot, epoch });
        Self { lanes: self.lanes.clone(), epoch }
    }

    /// Gives back what is stored for a slot and not begun, and begins no more of that. Returns when that is
    /// so. Clients of the slot still get their answers.
    pub(crate) async fn give_back(&self, slot: Slot) {
        let (done, given_back) = oneshot::channel();
        let _ = self.of_slot(slot).inputs.send(ToLane::GiveBack { slot, done });
        // A lane that has ended begins nothing either.
        let _ = given_back.await;
    }

    /// Leaves a slot: nothing of it is begun any more, what is under way has no further effect than
    /// it has had, and what is kept of its aggregates is dropped. Returns when that is so.
    pub(crate) async fn leave(&self, slot: Slot) {
        let (done, left) = oneshot::channel();
        let _ = self.of_slot(slot).inputs.send(ToLane::Leave { slot, done });
        // A lane that has ended does nothing either.
        let _ = left.await;
    }

    fn of_slot(&self, slot: Slot) -> &LaneHandle {
        &self.lanes[usize::from(slot.number()) % self.lanes.len()]
    }

    /// The outcome of a command that the aggregate accepted; `None`: it never did. Where it accepted another
    /// one of this id than the stored one that is meant, that is a mismatch.
    pub(crate) async fn outcome(
        &self,
        key: AggregateKey,
        id: CommandId,
        stored: Option<StoredCommand>,
    ) -> Option<Outcome> {
        let Some(_place) = self.enter(&key) else {
            return Some(Outcome::Overloaded { retry_after_s: 1 });
        };
        let (to, answer) = oneshot::channel();
        let stored = stored.map(Box::new);
        let work = |ticket| Work::OutcomeOf { id, stored, ticket };
        self.ask(key, work, Responder::Outcome(to));
        let lost = || Some(Outcome::Unavailable { message: "the worker is stopping".to_owned() });
        answer.await.unwrap_or_else(|_| lost())
    }

    /// The aggregate's state now.
    pub(crate) async fn state(&self, key: AggregateKey) -> StateReply {
        let Some(_place) = self.enter(&key) else {
            let message = "the tenant asks for too much at once".to_owned();
            return StateReply::Unavailable { message };
        };
        let (to, answer) = oneshot::channel();
        self.ask(key, |ticket| Work::State { ticket }, Responder::State(to));
        let lost = || StateReply::Unavailable { message: "the worker is stopping".to_owned() };
        answer.await.unwrap_or_else(|_| lost())
    }

    /// Returns when the thread of a lane has ended.
    async fn ended(&self) {
        let lanes = self.lanes.iter().map(|lane| Box::pin(lane.inputs.closed()));
        futures::future::select_all(lanes).await;
    }

    fn depth(&self) -> usize {
        self.lanes.iter().map(|lane| lane.depth.load(Ordering::Relaxed)).sum()
    }

    fn follow(&self, catalog: &Arc<Catalog>) {
        for lane in self.lanes.iter() {
            let _ = lane.inputs.send(ToLane::Told(Input::Catalog(catalog.clone())));
        }
    }
}

/// Serves the commands of the slots that the member is assigned until the token is cancelled; then
/// answers what it has taken on and returns. Fails when the broker refuses a subscription at the
/// start, when a lane has panicked, and when deployments are not followed any more.
#[boxed::async_recursion]
pub async fn run(
    store: EventStore,
    mut catalog: watch::Receiver<Arc<Catalog>>,
    member: Member,
    mut settings: Settings,
    stop: CancellationToken,
) -> Result<(), Error> {
    settings.later = asked_plugins::with_plugins(settings.later, store.client().clone());
    let now = catalog.borrow_and_update().clone();
    let clock = Clock::new(settings.clock);
    clock.look(&store, &mut false).await;
    let lanes: Arc<[LaneHandle]> = (0..settings.lanes.max(1))
        .map(|number| LaneThread::start(&store, number, &now, (&settings, &clock), member.guard()))
        .collect();
    let lanes = Lanes { lanes, epoch: 0 };
    let tasks = TaskTracker::new();
    // Before anybody can ask, since a deployment may come while the consumers are being made.
    let (told, in_force) = watch::channel(now);
    let following = tokio::spawn(follow(catalog, lanes.clone(), told));
    let mut following = AbortOnDropHandle::new(following);
    let folds = requests::folds();
    let answerer =
        Answerer { store: store.clone(), lanes: lanes.clone(), catalog: in_force, folds };
    requests::serve_catalog(&answerer, &tasks, &stop).await?;
    let (made, progress_made) = watch::channel(None);
    tasks.spawn(streams::watch(store.clone(), member.clone(), stop.clone()));
    let queue = store.command_queue().clone();
    tasks.spawn(queue::watch_progress(queue.clone(), made, stop.clone()));
    tasks.spawn(slots::follow(answerer, progress_made, member.clone(), stop.clone()));
    tasks.spawn(growth::watch(store.clone(), member.clone(), stop.clone()));
    tasks.spawn(clock.follow(store.clone(), stop.clone()));
    tasks.spawn(measure_depth(lanes.clone(), stop.clone()));
    let waiting = || metrics::gauge!("flexcore_commands_waiting");
    tasks.spawn(queue::purge(queue, member, crate::COMMANDS, waiting, stop.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        () = lanes.ended() => {
            // Its panic is in the log. Nobody else would answer for its slots.
            return Err(Error::Unavailable("a lane's thread has ended".to_owned()));
        }
        _ = &mut following => {
            // It would go on by what was deployed so far, beside others that know better.
            return Err(Error::Unavailable("deployments are not followed any more".to_owned()));
        }
    }
    tasks.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(left = lanes.depth(), "stopped before every answer was given");
    }
    Ok(())
}

/// Tells the lanes what is deployed, and then the others that the lanes have been told: what is
/// asked of a lane after that meets the new version.
async fn follow(
    mut catalog: watch::Receiver<Arc<Catalog>>,
    lanes: Lanes,
    told: watch::Sender<Arc<Catalog>>,
) {
    while catalog.changed().await.is_ok() {
        let now = catalog.borrow_and_update().clone();
        lanes.follow(&now);
        told.send_replace(now);
    }
}

/// Says how much each lane owes.
async fn measure_depth(lanes: Lanes, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(MEASURE_EVERY) => {}
        }
        for (number, lane) in lanes.lanes.iter().enumerate() {
            let depth = lane.depth.load(Ordering::Relaxed);
            metrics::gauge!("flexcore_queue_depth", "lane" => number.to_string()).set(depth as f64);
        }
    }
}

/// Milliseconds since 1970-01-01 UTC.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
