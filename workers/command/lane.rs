//! A lane: the owner of some slots' aggregates. Pure: it takes inputs and returns actions; the shell
//! in [`super`] performs them. Commands of one aggregate are decided one after another, those of
//! different aggregates overlap.

mod answers;
mod asking;
mod away;
mod fold;
mod leave;
mod loading;
mod look_up;
mod tries;
mod turn;
mod undecided;
mod unknown;
mod unstored;

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use flexcore_domain::{AggregateKey, Command, CommandId, Outcome, Secret, commit::Commit};
use flexcore_eventstore::{Appended, Error};

use asking::{Asking, Asks, concluded, context};
use fold::{FOLD_MAX, Folded};
use look_up::to_look_up;
use tries::{Tries, Unanswered};
use turn::Turn;
use undecided::Undecided;

use super::{
    cache::{Cache, Entry},
    deciders::{Deciders, Fault},
    guesses::Guesses,
    memory::{Recall, random_secret},
    messages::{Action, Input, Loaded, Owed, StoredCommand, Ticket, Work},
};

/// Events between two snapshots of an aggregate: folding this many takes about a millisecond.
pub(super) const SNAPSHOT_EVENTS: u64 = 256;
/// Times that a command is decided again after a conflict or an unknown outcome before a waiting
/// client is told.
const ATTEMPTS_MAX: u32 = 4;

enum Phase {
    Loading {
        /// The aggregate as it was known, to put later commits on; `None`: all are asked for. Not in
        /// the cache: until the log has answered it may be out of date.
        base: Option<Box<Entry>>,
    },
    Appending(Box<Appending>),
    /// A command may be an old one: the log is asked.
    LookingUp {
        entry: Box<Entry>,
        id: CommandId,
    },
    Asking(Asking),
}

/// A commit on its way into the log.
struct Appending {
    /// The aggregate as it is while the append has not succeeded.
    before: Entry,
    /// The aggregate when it has, but for its place in the log.
    after: Entry,
    owed: Owed,
    commit: Arc<Commit>,
    /// It was not loaded before, in the belief that there is nothing to load.
    guessed: bool,
}

/// An aggregate that something is under way for. Later arrivals wait in order.
struct Busy {
    phase: Phase,
    waiting: VecDeque<Work>,
    /// Failed tries in a row of what is under way.
    attempts: u32,
    /// The work under way was begun for a slot that was left meanwhile: nothing follows from it.
    void: bool,
}

/// The state machine of one lane.
pub(super) struct Lane {
    deciders: Deciders,
    cache: Cache,
    guesses: Guesses,
    tries: Tries,
    busy: HashMap<AggregateKey, Busy>,
    /// Stored commands that come again when their deciders may be there.
    waits: HashMap<Ticket, (AggregateKey, Work)>,
    /// Questions to deciders so far.
    asked: u64,
    /// Processor time after which a fold lets others go first.
    fold_max: Duration,
    /// For the fingerprints of the aggregates that are folded here.
    secret: Secret,
}

impl Lane {
    /// A lane without aggregates. Its cache keeps at most this many bytes.
    #[must_use]
    pub(super) fn new(deciders: Deciders, cache_bytes_max: usize) -> Self {
        Self {
            deciders,
            cache: Cache::new(cache_bytes_max),
            guesses: Guesses::default(),
            tries: Tries::default(),
            busy: HashMap::new(),
            waits: HashMap::new(),
            asked: 0,
            fold_max: FOLD_MAX,
            secret: random_secret(),
        }
    }

    /// Takes one input and returns what to do. `now_ms` is the time that deciders see. It waits for
    /// nothing but their calls.
    pub(super) async fn take(&mut self, input: Input, now_ms: i64) -> Vec<Action> {
        match input {
            Input::Work { key, work } => self.take_up(Turn::new(key, now_ms), work).await,
            Input::Loaded { key, result } => self.loaded(key, result, now_ms).await,
            Input::Again { key, ticket } => self.again(key, ticket, now_ms).await,
            Input::Unloaded { key } => self.unloaded(key, now_ms),
            Input::Appended { key, result } => self.appended(key, result, now_ms).await,
            Input::LookedUp { key, result } => self.looked_up(key, result, now_ms).await,
            Input::Decided { key, number, result } => {
                self.decided(key, number, result, now_ms).await
            }
            Input::BlocksKept { key, secret, count } => {
                self.blocks_kept(&key, secret, count);
                Vec::new()
            }
            Input::Catalog(catalog) => {
                // A state is compared when it is taken up. A walk over the whole cache would take the
                // lane from everybody, at each deployment.
                self.deciders.follow(catalog);
                Vec::new()
            }
        }
    }

    /// Takes one input, with the deciders on this thread.
    #[cfg(test)]
    pub(super) fn handle(&mut self, input: Input, now_ms: i64) -> Vec<Action> {
        flexcore_script::threads::run_here(&self.deciders.scripts(), self.take(input, now_ms))
    }

    /// Each fold lets others go first after one commit.
    #[cfg(test)]
    pub(super) fn folds_one_by_one(&mut self) {
        self.fold_max = Duration::ZERO;
    }

    /// The part of an aggregate that is at hand.
    #[cfg(test)]
    pub(super) fn entry(&mut self, key: &AggregateKey) -> Option<&Entry> {
        self.cache.get_mut(key).map(|entry| &*entry)
    }

    async fn take_up(&mut self, mut turn: Turn, work: Work) -> Vec<Action> {
        let beside = self.answer_beside(&turn.key, &work);
        if let Some(busy) = self.busy.get_mut(&turn.key) {
            match beside {
                Some(answer) => turn.actions.push(answer),
                None => busy.waiting.push_back(work),
            }
            return turn.actions;
        }
        let cached = self.cache.take(&turn.key);
        if let Some(entry) = cached.filter(|entry| self.is_current(&turn.key, entry)) {
            turn.waiting.push_back(work);
            return self.drain(turn, entry).await;
        }
        match work {
            Work::Command(owed)
                if self.guesses.is_new(&owed.command)
                    && self.deciders.later(&owed.command).is_none() =>
            {
                self.guess(turn, owed).await
            }
            work => {
                turn.waiting.push_back(work);
                self.load(turn, None)
            }
        }
    }

    /// The answer to a question, rather than a command, while a decider is asked for stored commands: what is
    /// recorded so far. `None`: it has to wait.
    fn answer_beside(&mut self, key: &AggregateKey, work: &Work) -> Option<Action> {
        let Busy { phase: Phase::Asking(Asking { entry, .. }), waiting, void: false, .. } =
            self.busy.get(key)?
        else {
            return None;
        };
        let is_known = waiting.iter().all(Work::is_patient)
            && entry.folded_by == self.deciders.fingerprint(key.aggregate())
            && to_look_up(entry, work).is_none();
        if is_known { answers::answer(key.slot(), entry, work) } else { None }
    }

    /// Decides as if the aggregate were new. Only a commit counts: the log refuses it when there is
    /// one already. Any other answer may be wrong, and needs the load after all.
    async fn guess(&mut self, mut turn: Turn, owed: Owed) -> Vec<Action> {
        let in_force = self.deciders.fingerprint(turn.key.aggregate());
        let before = Entry::new(self.secret, in_force);
        if let Ok((commit, after)) = self.decide(&before, &owed.command, turn.now_ms).await {
            self.guesses.begin();
            let appending =
                Appending { before, after, owed, commit: Arc::new(commit), guessed: true };
            return self.append(turn, appending);
        }
        self.guesses.learn(&owed.command, false);
        turn.waiting.push_back(Work::Command(owed));
        self.load(turn, None)
    }

    /// Works off what waits for an aggregate until something has to be appended.
    async fn drain(&mut self, mut turn: Turn, mut entry: Entry) -> Vec<Action> {
        while let Some(work) = turn.waiting.pop_front() {
            if let Some((id, places)) = to_look_up(&entry, &work) {
                turn.waiting.push_front(work);
                return self.look_up(turn, entry, id, places);
            }
            if let Some(answer) = answers::answer(turn.key.slot(), &entry, &work) {
                turn.actions.push(answer);
                continue;
            }
            let Work::Command(owed) = work else { continue };
            let tried = match self.asks_later(&entry, &owed, turn.now_ms).await {
                Asks::Later(asked) => {
                    turn.waiting.push_front(Work::Command(owed));
                    return self.ask(turn, entry, asked);
                }
                Asks::Nobody { why, in_doubt } => Self::to_append(&entry, Err(why), in_doubt),
                Asks::Here => self.next_try(&entry, &owed, turn.now_ms).await,
            };
            match self.tried(turn, entry, owed, tried) {
                ControlFlow::Break(actions) => return actions,
                ControlFlow::Continue(left) => (turn, entry) = left,
            }
        }
        self.cache.put(turn.key, entry);
        turn.actions
    }

    /// Appends what a try came to, or has the command come again, or answers it. `Continue`: the next one
    /// may follow.
    fn tried(
        &mut self,
        mut turn: Turn,
        entry: Entry,
        owed: Owed,
        tried: Result<Unanswered, Undecided>,
    ) -> ControlFlow<Vec<Action>, (Turn, Entry)> {
        let undecided = match tried {
            Ok(Unanswered { commit, after, .. }) => {
                let appending = Appending { before: entry, after, owed, commit, guessed: false };
                return ControlFlow::Break(self.append(turn, appending));
            }
            Err(undecided) => undecided,
        };
        let plugin = self.deciders.plugin(&owed.command);
        let (ticket, work) = (owed.ticket, Work::Command(owed));
        if self.tries.comes_again(&undecided, &work, &turn, plugin) {
            if matches!(undecided, Undecided::Away(_) | Undecided::Busy(_))
                && let Some(tries) = self.tries.away.tries(ticket)
            {
                self.wait(&mut turn, work, tries);
                return ControlFlow::Continue((turn, entry));
            }
            turn.waiting.push_front(work);
            turn.attempts = turn.attempts.saturating_add(1);
            return ControlFlow::Break(self.load(turn, Some(Box::new(entry))));
        }
        self.tries.end(ticket);
        turn.actions.push(Action::Answer { ticket, outcome: Some(undecided.outcome()) });
        turn.attempts = 0;
        ControlFlow::Continue((turn, entry))
    }

    fn append(&mut self, turn: Turn, appending: Appending) -> Vec<Action> {
        let (commit, expected) = (appending.commit.clone(), appending.before.expected);
        let phase = Phase::Appending(Box::new(appending));
        self.wait_for(turn, phase, Action::Append { commit, expected })
    }

    /// The commit and the aggregate after it, or why there is nothing to append.
    async fn decide(
        &mut self,
        entry: &Entry,
        command: &Command,
        now_ms: i64,
    ) -> Result<(Commit, Entry), Undecided> {
        let context = context(entry, command, now_ms)?;
        let now_ms = context.now_ms;
        let decision = self.deciders.decide(&entry.state, command, context).await?;
        concluded(entry, command, decision, now_ms)
    }

    async fn loaded(
        &mut self,
        key: AggregateKey,
        result: Result<Loaded, Error>,
        now_ms: i64,
    ) -> Vec<Action> {
        let Some((turn, phase, void)) = self.resume(key, now_ms) else { return Vec::new() };
        let Phase::Loading { base } = phase else { return Vec::new() };
        if void {
            return self.begin_anew(turn);
        }
        let in_force = self.deciders.fingerprint(turn.key.aggregate());
        let by_others = |loaded: &Loaded| {
            loaded.folded_by(base.as_deref()).is_some_and(|by| by != in_force.as_str())
        };
        if result.as_ref().is_ok_and(by_others) {
            return self.begin_anew(turn);
        }
        let base = base.filter(|base| base.folded_by == in_force);
        let more = result.as_ref().is_ok_and(|loaded| loaded.more);
        let folded = match result {
            Ok(loaded) => {
                let base = base.map(|base| *base);
                self.fold(&turn.key, (base, in_force), loaded).await
            }
            Err(Error::Unavailable(message)) => return self.not_loaded(turn, base, message),
            Err(Error::NoRoom(why)) => return self.no_room_and_not_loaded(turn, base, why),
            Err(broken) => Err(broken),
        };
        match folded {
            Ok(Folded::Part(entry, commits)) => {
                let loaded = Loaded { snapshot: None, commits, more };
                let action = Action::GoOn { key: turn.key.clone(), loaded };
                self.wait_for(turn, Phase::Loading { base: Some(entry) }, action)
            }
            Ok(Folded::Whole(entry)) if more => self.load_after(Duration::ZERO, turn, Some(entry)),
            Ok(Folded::Whole(entry)) => {
                if let Some(Work::Command(owed)) = turn.waiting.front() {
                    self.guesses.learn(&owed.command, entry.version == 0);
                }
                self.drain(turn, *entry).await
            }
            Ok(Folded::Refused(refusal)) => self.not_folded(turn, refusal),
            Err(broken) => self.broken(turn, &broken),
        }
    }

    /// The log does not hold what it must: all that waits is told.
    fn broken(&mut self, mut turn: Turn, broken: &Error) -> Vec<Action> {
        let waiting = std::mem::take(&mut turn.waiting);
        self.answer_all(&mut turn, waiting, &Outcome::Faulty { message: broken.to_string() });
        turn.actions
    }

    /// The log did not answer: waiting clients are told, the queue waits it out.
    fn not_loaded(
        &mut self,
        mut turn: Turn,
        base: Option<Box<Entry>>,
        message: String,
    ) -> Vec<Action> {
        let (patient, others): (VecDeque<Work>, _) =
            turn.waiting.into_iter().partition(Work::is_patient);
        turn.waiting = patient;
        self.answer_all(&mut turn, others, &Outcome::Unavailable { message });
        if turn.waiting.is_empty() {
            return turn.actions;
        }
        turn.attempts += 1;
        self.load(turn, base)
    }

    async fn appended(
        &mut self,
        key: AggregateKey,
        result: Result<Appended, Error>,
        now_ms: i64,
    ) -> Vec<Action> {
        let Some((mut turn, phase, void)) = self.resume(key, now_ms) else { return Vec::new() };
        let Phase::Appending(appending) = phase else { return Vec::new() };
        if appending.guessed {
            self.guesses.end();
        }
        if void {
            return self.begin_anew(turn);
        }
        match result {
            Ok(appended) => self.recorded(turn, *appending, appended).await,
            Err(Error::TooLarge(why))
                if !appending.guessed
                    && !self.tries.is_open(appending.owed.ticket, turn.attempts) =>
            {
                self.too_large(turn, *appending, &why).await
            }
            Err(Error::NoRoom(why)) => {
                turn.attempts += 1;
                self.no_room(turn, *appending, why)
            }
            Err(error) => {
                let wrong_guess = appending.guessed && matches!(error, Error::Conflict);
                if wrong_guess {
                    self.guesses.wrong(&appending.owed.command);
                }
                turn.attempts = if wrong_guess { 0 } else { turn.attempts + 1 };
                self.not_recorded(turn, *appending, &error)
            }
        }
    }

    async fn recorded(
        &mut self,
        mut turn: Turn,
        appending: Appending,
        appended: Appended,
    ) -> Vec<Action> {
        let Appending { before, mut after, owed, .. } = appending;
        let Owed { command, stored, ticket, .. } = owed;
        let snapshots_before = before.version / SNAPSHOT_EVENTS;
        // First, since the two share the commands that they remember: a list of one owner grows in
        // place, one of two is copied.
        drop(before);
        after.appended(appended, &command, stored);
        self.tries.end(ticket);
        turn.actions.push(Action::Answer { ticket, outcome: Some(after.accepted(&turn.key)) });
        if !self.is_current(&turn.key, &after) {
            return self.begin_anew(turn);
        }
        if after.version / SNAPSHOT_EVENTS > snapshots_before {
            let snapshot = Box::new(after.snapshot());
            turn.actions.push(Action::SaveSnapshot { key: turn.key.clone(), snapshot });
        }
        turn.attempts = 0;
        self.drain(turn, after).await
    }

    /// A conflict, or an unknown outcome: what the log says now decides, and whether the command's
    /// id stands in it.
    fn not_recorded(&mut self, mut turn: Turn, appending: Appending, error: &Error) -> Vec<Action> {
        let Appending { before, after, owed, commit, guessed } = appending;
        let (patient, ticket) = (owed.patient, owed.ticket);
        if matches!(error, Error::Unavailable(_)) {
            let expects = before.expected.sequence;
            self.tries.begin(ticket, Unanswered { commit, after, expects });
        }
        let work = Work::Command(owed);
        if turn.attempts >= ATTEMPTS_MAX && !patient {
            let outcome = match error {
                Error::Conflict => Outcome::Conflict { version: before.version },
                other => Outcome::Unavailable { message: other.to_string() },
            };
            self.answer_all(&mut turn, [work], &outcome);
        } else {
            turn.waiting.push_front(work);
        }
        if turn.waiting.is_empty() {
            return turn.actions;
        }
        // A guess knows nothing, and what older functions folded is void.
        let known = !guessed && self.is_current(&turn.key, &before);
        self.load(turn, known.then(|| Box::new(before)))
    }
}
