//! A lane's thread, and the performing of its actions.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use flexcore_cluster::Guard;
use flexcore_definition::Catalog;
use flexcore_domain::{AggregateKey, Commit, Outcome, Slot, StateReply, Tenant};
use flexcore_eventstore::{Error, EventStore, Expected};
use flexcore_resilience::{Beside, Shares};
use flexcore_script::{clock::processor_time, threads};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

#[cfg(feature = "defects")]
use crate::defects;

use super::{
    BESIDE, BESIDE_FEW, LANE_ROOM, LaneHandle, Settings, UNDER_WAY_MAX,
    clock::Clock,
    deciders::{Deciders, Made, ToDecide},
    lane::Lane,
    messages::{Action, Input, Ticket, Work},
    outside::{decided, keep, load, load_while_there_is_room},
    pieces::Pieces,
    responder::Responder,
    turns::{Class, Turns},
};

/// Inputs of a lane's thread.
pub(super) enum ToLane {
    /// A question, with who waits for its answer.
    Ask { key: AggregateKey, work: Work, ticket: Ticket, to: Responder, epoch: u64 },
    /// The slot is ours from now on, under this epoch.
    Enter { slot: Slot, epoch: u64 },
    /// The slot is to be left: what is stored for it and not begun is for its next owner. To be answered
    /// when nothing of that is begun any more.
    GiveBack { slot: Slot, done: oneshot::Sender<()> },
    /// The slot is not ours any more; to be answered when that is in force.
    Leave { slot: Slot, done: oneshot::Sender<()> },
    /// The result of an action, or news.
    Told(Input),
    /// A tenant's rest may be over.
    Rested(Tenant),
}

const ANOTHER_OWNER: &str = "the slot has another owner now";
/// Paused or cut off for longer than the lease: somebody else may own the slot.
const LEASE_OVER: &str = "the member's lease does not hold";

/// A question whose turn has not come.
struct Asked {
    work: Work,
    ticket: Ticket,
    to: Responder,
    epoch: u64,
}

/// A slot that is ours.
struct Entered {
    /// Of the ownership.
    epoch: u64,
    /// Stored commands are for the next owner.
    gives_back: bool,
}

pub(super) struct LaneThread {
    lane: Lane,
    store: EventStore,
    runtime: Handle,
    turns: Turns<Asked>,
    pieces: Pieces,
    /// Tenants that a wake-up is under way for.
    woken: HashSet<Tenant>,
    owed: HashMap<Ticket, (Responder, Instant, AggregateKey)>,
    /// Those of them that wait, or have waited, for a decider that is away.
    waits: HashSet<Ticket>,
    /// The slots that are ours.
    entered: HashMap<Slot, Entered>,
    depth: Arc<AtomicUsize>,
    guard: Guard,
    clock: Clock,
    /// Weak, so that the thread ends when nobody can ask any more.
    inputs: mpsc::WeakUnboundedSender<ToLane>,
}

impl LaneThread {
    /// Starts the thread of one lane. It ends when its handle is dropped.
    pub(super) fn start(
        store: &EventStore,
        number: usize,
        catalog: &Arc<Catalog>,
        (settings, clock): (&Settings, &Clock),
        guard: Guard,
    ) -> LaneHandle {
        let (inputs, receiver) = mpsc::unbounded_channel();
        let depth = Arc::new(AtomicUsize::new(0));
        let (store, catalog, settings) = (store.clone(), catalog.clone(), settings.clone());
        let clock = clock.clone();
        let (runtime, weak, counted) = (Handle::current(), inputs.downgrade(), depth.clone());
        let lane = |scripts| {
            let cache_bytes = settings.cache_bytes_max / settings.lanes.max(1);
            let deciders = Deciders::new(catalog, settings.native, settings.later, scripts);
            let thread = Self {
                lane: Lane::new(deciders, cache_bytes),
                store,
                runtime,
                turns: Turns::new(
                    (UNDER_WAY_MAX / settings.lanes.max(1)).max(1),
                    Beside::new(BESIDE, BESIDE_FEW),
                ),
                pieces: Pieces::default(),
                woken: HashSet::new(),
                owed: HashMap::new(),
                waits: HashSet::new(),
                entered: HashMap::new(),
                depth: counted,
                guard,
                clock,
                inputs: weak,
            };
            thread.run(receiver)
        };
        // A call of a function that does not end is left behind, and the lane goes on without it.
        threads::spawn(&format!("lane-{number}"), Made::new, lane)
            .expect("BUG: a thread can be started while the process starts");
        LaneHandle {
            inputs,
            room: Shares::new(LANE_ROOM, 1),
            depth,
            next_ticket: AtomicU64::new(0),
        }
    }

    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<ToLane>) {
        while let Some(message) = receiver.recv().await {
            self.receive(message).await;
            loop {
                self.sort(&mut receiver).await;
                let went_on = self.go_on().await;
                // Otherwise what is taken in here would wait for the next message.
                if went_on {
                    self.sort(&mut receiver).await;
                }
                if !self.begin_next().await && !went_on {
                    break;
                }
            }
        }
    }

    /// Arrivals are only sorted, and no function is called: so everybody is in the turns before the next
    /// one is.
    async fn sort(&mut self, receiver: &mut mpsc::UnboundedReceiver<ToLane>) {
        for _ in 0..receiver.len() {
            if let Ok(message) = receiver.try_recv() {
                self.receive(message).await;
            }
        }
    }

    /// Goes on with the next piece of work that was begun. Returns whether there was one.
    async fn go_on(&mut self) -> bool {
        let now = Instant::now();
        let Some(input) = self.pieces.next(|tenant| self.turns.rests_until(tenant, now).is_some())
        else {
            return false;
        };
        self.handle(input).await;
        true
    }

    /// Begins with the next question. Returns whether there was one.
    async fn begin_next(&mut self) -> bool {
        let Some((key, asked)) = self.turns.next(Instant::now()) else { return false };
        self.begin(key, asked).await;
        true
    }

    async fn receive(&mut self, message: ToLane) {
        match message {
            ToLane::Told(input) => self.told(input).await,
            ToLane::Rested(tenant) => self.rested(tenant),
            ToLane::Enter { slot, epoch } => {
                self.entered.insert(slot, Entered { epoch, gives_back: false });
            }
            ToLane::GiveBack { slot, done } => {
                self.give_back(slot);
                let _ = done.send(());
            }
            ToLane::Leave { slot, done } => {
                self.leave(slot);
                let _ = done.send(());
            }
            ToLane::Ask { key, work, ticket, to, epoch } => {
                let class = to.class();
                let asked = Asked { work, ticket, to, epoch };
                self.turns.push(key, class, asked, Instant::now());
            }
        }
    }

    /// Takes news in. Where functions follow from it, it waits for its turn.
    async fn told(&mut self, input: Input) {
        if let Some(input) = self.pieces.put(input) {
            self.handle(input).await;
        }
    }

    /// A tenant's rest may be over.
    fn rested(&mut self, tenant: Tenant) {
        let now = Instant::now();
        self.woken.remove(&tenant);
        if let Some(until) = self.turns.rests_until(&tenant, now) {
            return self.wake(tenant, until);
        }
        self.turns.rested(&tenant, now);
        self.pieces.rested(&tenant);
    }

    /// Has [`Self::rested`] called at this time, once for each tenant.
    fn wake(&mut self, tenant: Tenant, at: Instant) {
        if !self.woken.insert(tenant.clone()) {
            return;
        }
        let inputs = self.inputs.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(ToLane::Rested(tenant));
            }
        });
    }

    /// Begins with what was asked of an aggregate, unless that is of no use any more.
    async fn begin(&mut self, key: AggregateKey, asked: Asked) {
        let Asked { work, ticket, to, epoch } = asked;
        let own = self.entered.get(&key.slot()).filter(|own| own.epoch == epoch);
        // It may have stood next already when the slot was to be left, or come after that.
        let is_for_next = |own: &Entered| own.gives_back && to.class() == Class::Stored;
        let refused = if own.is_none_or(is_for_next) {
            Some(ANOTHER_OWNER)
        } else if to.has_given_up() {
            Some("its time was over before it began")
        } else {
            None
        };
        if let Some(why) = refused {
            self.depth.fetch_sub(1, Ordering::Relaxed);
            self.turns.ended(&key, Instant::now());
            return to.refuse(why);
        }
        self.owed.insert(ticket, (to, Instant::now(), key.clone()));
        self.handle(Input::Work { key, work }).await;
    }

    async fn handle(&mut self, input: Input) {
        let tenant = input.tenant().cloned();
        let (thread, before) = (thread::current().id(), processor_time());
        let actions = self.lane.take(input, self.clock.now_ms()).await;
        // A call that was left behind is held against its tenant by `threads`.
        if let Some(tenant) = tenant
            && thread == thread::current().id()
        {
            self.used(tenant, processor_time().saturating_sub(before));
        }
        for action in actions {
            self.perform(action);
        }
    }

    /// Something of a tenant has used this thread's processor for so long.
    fn used(&mut self, tenant: Tenant, time: Duration) {
        if let Some(until) = self.turns.used(&tenant, time, Instant::now()) {
            self.wake(tenant, until);
        }
    }

    /// What is stored for the slot and not begun is dropped: its next owner reads it again. What is under
    /// way goes on, and clients are still answered.
    fn give_back(&mut self, slot: Slot) {
        if let Some(own) = self.entered.get_mut(&slot) {
            own.gives_back = true;
        }
        let dropped = self.turns.take_stored(slot, Instant::now());
        self.depth.fetch_sub(dropped.len(), Ordering::Relaxed);
    }

    /// Clients that wait for something of the slot are told to ask its next owner. From now on
    /// nothing of it is begun.
    fn leave(&mut self, slot: Slot) {
        self.entered.remove(&slot);
        let theirs = |(ticket, (_, _, of)): (&Ticket, &(Responder, Instant, AggregateKey))| {
            (of.slot() == slot).then_some(*ticket)
        };
        let tickets: Vec<Ticket> = self.owed.iter().filter_map(theirs).collect();
        for ticket in tickets {
            if let Some(to) = self.settle(ticket) {
                to.refuse(ANOTHER_OWNER);
            }
        }
        self.lane.leave(slot);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Load { key, after, fingerprint, pause, for_client } => {
                let store = self.store.clone();
                self.tell(async move {
                    tokio::time::sleep(pause).await;
                    let result = if for_client {
                        load_while_there_is_room(&store, &key, after, &fingerprint).await
                    } else {
                        load(&store, &key, after, &fingerprint).await
                    };
                    Input::Loaded { key, result }
                });
            }
            Action::GoOn { key, loaded } => {
                drop(self.pieces.put(Input::Loaded { key, result: Ok(loaded) }));
            }
            Action::AskDecider { key, number, to_decide } => {
                self.ask_decider(key, number, *to_decide);
            }
            Action::Wait { key, ticket, pause } => self.wait(key, ticket, pause),
            #[cfg(feature = "defects")]
            Action::Append { commit, expected } if defects::is_on(defects::EARLY_ANSWER) => {
                let (store, key) = (self.store.clone(), commit.key.clone());
                self.runtime.spawn(async move {
                    tokio::time::sleep(defects::APPEND_DELAY).await;
                    store.append_then(&commit, expected, |_| ());
                });
                self.tell(async move {
                    Input::Appended { key, result: Ok(defects::hoped_for(expected)) }
                });
            }
            Action::Append { commit, expected } => self.append(commit, expected),
            Action::SaveSnapshot { key, snapshot } => {
                let (store, inputs) = (self.store.clone(), self.inputs.clone());
                self.runtime.spawn(async move {
                    let kept = keep(&store, key, &snapshot).await;
                    if let Some((inputs, kept)) = inputs.upgrade().zip(kept) {
                        let _ = inputs.send(ToLane::Told(kept));
                    }
                });
            }
            Action::LookUp { key, id, places } => {
                let store = self.store.clone();
                self.tell(async move {
                    let result = store.command_at(&key, &id, &places).await;
                    let found = matches!(result, Ok(Some(_))).to_string();
                    let looked =
                        metrics::counter!("flexcore_command_lookups_total", "found" => found);
                    looked.increment(1);
                    Input::LookedUp { key, result }
                });
            }
            Action::Answer { ticket, outcome } => self.answer(ticket, outcome),
            Action::AnswerState { ticket, reply } => {
                let reply = if self.guard.holds() {
                    reply
                } else {
                    StateReply::Unavailable { message: LEASE_OVER.to_owned() }
                };
                if let Some(Responder::State(to)) = self.settle(ticket) {
                    let _ = to.send(reply);
                }
            }
        }
    }

    fn append(&self, commit: Arc<Commit>, expected: Expected) {
        #[cfg(feature = "defects")]
        let commit = defects::undisguised(commit);
        let (inputs, key) = (self.inputs.clone(), commit.key.clone());
        if !self.guard.holds() {
            let result = Err(Error::Unavailable(LEASE_OVER.to_owned()));
            return self.tell(async { Input::Appended { key, result } });
        }
        self.store.append_then(&commit, expected, move |result| {
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(ToLane::Told(Input::Appended { key, result }));
            }
        });
    }

    fn ask_decider(&self, key: AggregateKey, number: u64, to_decide: ToDecide) {
        let decider = self.lane.later(&to_decide.command);
        self.tell(async move {
            let result = decided(decider, to_decide).await;
            Input::Decided { key, number, result }
        });
    }

    fn wait(&mut self, key: AggregateKey, ticket: Ticket, pause: Duration) {
        if self.waits.insert(ticket) {
            self.turns.waits(&key, Instant::now());
        }
        self.tell(async move {
            tokio::time::sleep(pause).await;
            Input::Again { key, ticket }
        });
    }

    fn answer(&mut self, ticket: Ticket, outcome: Option<Outcome>) {
        match (self.settle(ticket), outcome) {
            (Some(Responder::Outcome(to)), outcome) => drop(to.send(outcome)),
            (Some(Responder::Waiting(to, ..)), outcome) => {
                let outcome = outcome.map(|outcome| vouched_for(outcome, &self.guard));
                #[cfg(feature = "defects")]
                let outcome = outcome.map(defects::told);
                drop(to.send(outcome));
            }
            (Some(Responder::Queue(to, number)), Some(outcome)) => {
                drop(to.send((number, outcome)));
            }
            _ => {}
        }
    }

    fn settle(&mut self, ticket: Ticket) -> Option<Responder> {
        let (to, since, key) = self.owed.remove(&ticket)?;
        self.depth.fetch_sub(1, Ordering::Relaxed);
        if self.waits.remove(&ticket) {
            self.turns.waits_no_more(&key, Instant::now());
        } else {
            self.turns.ended(&key, Instant::now());
        }
        if to.class() == Class::Stored {
            self.lane.passed(key.slot());
        }
        metrics::histogram!("flexcore_command_seconds").record(since.elapsed().as_secs_f64());
        Some(to)
    }

    /// Runs something on the network's threads and feeds what becomes of it back in.
    fn tell(&self, outcome: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        self.runtime.spawn(async move {
            let input = outcome.await;
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(ToLane::Told(input));
            }
        });
    }
}

/// The answer to a waiting client. A commit in the log stands, whichever worker reports it;
/// anything else may be decided on a state that the slot's next owner has changed.
fn vouched_for(outcome: Outcome, guard: &Guard) -> Outcome {
    let recorded = matches!(outcome, Outcome::Accepted { position: Some(_), .. });
    if recorded || guard.holds() {
        return outcome;
    }
    Outcome::Unavailable { message: LEASE_OVER.to_owned() }
}

/// Longest that a waiting client's command is worked on; then it learns that the outcome is
/// unknown. Longer than one append, shorter than the gateway's patience.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_begun_for_whoever_has_gone() {
        let (to, asker) = oneshot::channel();
        let outcome = Responder::Outcome(to);
        assert!(!outcome.has_given_up());
        drop(asker);
        assert!(outcome.has_given_up());
        let (to, asker) = oneshot::channel();
        let state = Responder::State(to);
        assert!(!state.has_given_up());
        drop(asker);
        assert!(state.has_given_up());
    }
}
