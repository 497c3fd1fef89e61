//! An owner's messages on their way from read to settled, and what is to be done next. Pure and
//! synchronous: whoever drives it reads, does, asks and writes, and says what came of that.

mod under_way;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use flexcore_broker::ephemeral::Lost;

pub use under_way::{IN_DOUBT_MAX, SUSPECT};
use under_way::{UnderWay, as_index};

/// Messages in doubt that are looked up at once after a hand-over.
const LOOKED_UP_AT_ONCE: usize = 64;
/// Time for which an owner that has begun with a message lives on when the message does not kill
/// it: scripts are stopped after milliseconds.
const SURVIVED: Duration = Duration::from_secs(5);

/// An owner's findings when it claimed its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Sequence up to which all is settled.
    pub settled: u64,
    /// The last message that an earlier owner may have begun with.
    pub last_before: u64,
    /// Sequence up to which any message may be done: nobody knows how far earlier owners had come.
    pub in_doubt_to: u64,
    /// The first that is not settled, and how many owners have begun with it, this one included.
    pub first: Option<(u64, u32)>,
}

/// Something that has happened.
#[derive(Clone, Debug)]
pub enum Event<M> {
    /// A message was read.
    Read {
        /// Its number among those that this reader was handed, from 1.
        number: u64,
        /// Its stream sequence.
        sequence: u64,
        /// The message.
        message: M,
    },
    /// Reading was interrupted: what comes after must be read anew.
    Interrupted,
    /// A message that was in doubt was looked up: true if it is done. `None`: nobody can say now.
    LookedUp(u64, Option<bool>),
    /// A message is done, and what came of it is durable.
    Done(u64),
    /// A write was recorded, or not.
    Written(bool),
    /// The broker has handed out so many messages to this reader. `None`: it does not say.
    HandedOut(Option<u64>),
    /// Nothing has come for a while.
    Idle,
    /// The place is to be left: nothing more is begun with. What is under way is settled or given back.
    Leave,
    /// What is under way, and not done by now, is left to the next owner: of it nothing more is told. Comes
    /// after [`Event::Leave`].
    GivenBack,
    /// It is time: see [`Settling::wakes_at`].
    Time,
}

/// Something that is to be done. Messages go by their number, from 0: see [`Settling::message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out whether an earlier owner has done it; then [`Event::LookedUp`].
    LookUp(u64),
    /// Do it; then [`Event::Done`].
    Do(u64),
    /// An earlier owner has done it: nothing is left to do.
    DoneBefore(u64),
    /// Write this, then [`Event::Written`]. One at a time.
    Write(Record),
    /// Ask how many messages the broker has handed out; then [`Event::HandedOut`].
    Ask,
}

/// A record of the owner's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The owner begins with the first message.
    Begins,
    /// The owner has begun with the first message, and lives on.
    LivesOn,
    /// The owner has recorded that it begins with the first message, and ends well without having done it.
    GivesBack,
    /// Every message up to this sequence is settled.
    Settled(u64),
}

/// A message that was read and is not begun with.
struct Waiting<M> {
    message: M,
    sequence: u64,
    /// `None`: it is being looked up.
    is_done: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    /// All read messages are done, and no more are read.
    Interrupted,
    /// Nothing more is begun with.
    Closed,
}

/// The progress of one reader of a place's messages.
pub struct Settling<M> {
    found: Found,
    reading: Reading,
    /// Read, in order, up to the first that is begun with next.
    waiting: VecDeque<Waiting<M>>,
    under_way: UnderWay<M>,
    /// The first message is not begun with.
    is_to_begin: bool,
    /// The first message waits until it is recorded that the owner begins with it.
    is_held: bool,
    is_writing: bool,
    /// A write has failed: this owner can record nothing more.
    is_over: bool,
    /// When to write that the first message does not kill its owner; `None`: nothing says that it may.
    lives_on_at: Option<Instant>,
    is_asking: bool,
    lost: Lost,
}

impl<M> Settling<M> {
    /// For an owner that found this.
    #[must_use]
    pub fn new(found: Found) -> Self {
        Self {
            found,
            reading: Reading::Open,
            waiting: VecDeque::new(),
            under_way: UnderWay::after(found.first),
            is_to_begin: found.first.is_some(),
            is_held: false,
            is_writing: false,
            is_over: false,
            lives_on_at: None,
            is_asking: false,
            lost: Lost::default(),
        }
    }

    /// True if the next message is to be read.
    #[must_use]
    pub fn reads(&self) -> bool {
        self.reading == Reading::Open
            && self.waiting.len() < LOOKED_UP_AT_ONCE
            && !self.is_held
            && self.under_way.has_room()
    }

    /// True if all that was read is settled, and more may come.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_open() && self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// True if messages are still begun with.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.reading != Reading::Closed
    }

    /// True if nothing is left to do or to hear of.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.is_open() && self.under_way.is_empty() && !self.is_writing
    }

    /// When [`Event::Time`] is due; `None`: not before something else has happened.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Instant> {
        let writes = !self.is_writing && !self.is_over;
        let due = [self.lives_on_at, self.under_way.record_at()];
        due.into_iter().flatten().min().filter(|_| writes)
    }

    /// Messages that were begun with so far, without those that were given back.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.under_way.taken()
    }

    /// A message that waits or is under way, and its sequence.
    #[must_use]
    pub fn message(&self, number: u64) -> (&M, u64) {
        match number.checked_sub(self.begun()) {
            None => self.under_way.message(number),
            Some(place) => {
                let waiting = &self.waiting[as_index(place)];
                (&waiting.message, waiting.sequence)
            }
        }
    }

    /// Takes up what has happened. Returns what is to be done now, in order.
    #[must_use]
    pub fn on(&mut self, event: Event<M>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Read { number, sequence, message } => {
                self.read(number, sequence, message, &mut actions);
            }
            Event::Interrupted => self.interrupt(),
            Event::LookedUp(number, is_done) => self.looked_up(number, is_done),
            Event::Done(number) => self.under_way.settle(number, now),
            Event::Written(true) => {
                (self.is_writing, self.is_held) = (false, false);
                self.under_way.recorded();
            }
            Event::Written(false) => {
                (self.is_writing, self.is_over) = (false, true);
                self.close();
            }
            Event::HandedOut(there) => {
                self.is_asking = false;
                // The waiting messages came, too.
                let came = self.begun() + self.waiting.len() as u64;
                if there.is_none_or(|there| self.lost.some(came, there)) {
                    self.close();
                }
            }
            Event::Idle if self.is_idle() && !self.is_asking => {
                self.is_asking = true;
                actions.push(Action::Ask);
            }
            Event::Leave => self.close(),
            Event::GivenBack => {
                self.close();
                self.under_way.give_back();
            }
            Event::Idle | Event::Time => {}
        }
        self.begin(now, &mut actions);
        self.record(now, &mut actions);
        actions
    }

    fn read(&mut self, number: u64, sequence: u64, message: M, actions: &mut Vec<Action>) {
        if self.reading != Reading::Open {
            return;
        }
        let next = self.begun() + self.waiting.len() as u64;
        if number != next + 1 {
            // Commands that were lost on the way must not be passed over.
            return self.interrupt();
        }
        // A replica that does not have the next one yet may begin before it.
        let is_settled = sequence <= self.found.settled;
        let in_doubt = sequence <= self.found.in_doubt_to
            || sequence <= self.found.last_before && next < IN_DOUBT_MAX as u64;
        let is_done = if is_settled { Some(true) } else { (!in_doubt).then_some(false) };
        self.waiting.push_back(Waiting { message, sequence, is_done });
        if is_done.is_none() {
            actions.push(Action::LookUp(next));
        }
    }

    fn looked_up(&mut self, number: u64, is_done: Option<bool>) {
        // It may have been given up meanwhile.
        let Some(place) = number.checked_sub(self.begun()).map(as_index) else { return };
        match (self.waiting.get_mut(place), is_done) {
            (Some(waiting), Some(is_done)) => waiting.is_done = Some(is_done),
            (Some(_), None) => {
                // Those before it go on.
                self.waiting.truncate(place);
                self.interrupt();
            }
            (None, _) => {}
        }
    }

    fn interrupt(&mut self) {
        if self.reading == Reading::Open {
            self.reading = Reading::Interrupted;
        }
    }

    fn close(&mut self) {
        self.reading = Reading::Closed;
        self.is_held = false;
        self.waiting.clear();
    }

    /// Begins with what is known and has room, in order.
    fn begin(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while self.is_open() && !self.is_held && self.under_way.has_room() {
            if self.waiting.front().is_none_or(|next| next.is_done.is_none()) {
                break;
            }
            // Nobody dies of a message that cannot be read: it is recorded when the first has come.
            if std::mem::take(&mut self.is_to_begin) && !self.is_writing {
                (self.is_held, self.is_writing) = (true, true);
                self.lives_on_at = Some(now + SURVIVED);
                actions.push(Action::Write(Record::Begins));
                break;
            }
            let Some(Waiting { message, sequence, is_done }) = self.waiting.pop_front() else {
                break;
            };
            let number = self.under_way.take_up(message, sequence);
            if is_done == Some(true) {
                if sequence > self.found.settled {
                    actions.push(Action::DoneBefore(number));
                }
                self.under_way.settle(number, now);
            } else {
                actions.push(Action::Do(number));
            }
        }
        if self.reading == Reading::Interrupted && self.waiting.is_empty() {
            self.close();
        }
    }

    /// Writes what is due; all there is when the reader is about to end.
    fn record(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_writing || self.is_over {
            return;
        }
        let record = if let Some(sequence) = self.under_way.take_due(now, !self.is_open()) {
            Record::Settled(sequence)
        } else {
            match self.lives_on_at {
                Some(at) if at <= now => Record::LivesOn,
                // Otherwise ten owners that leave in good order would have the message put aside.
                Some(_) if !self.is_open() && self.under_way.is_empty() => Record::GivesBack,
                _ => return,
            }
        };
        actions.push(Action::Write(record));
        self.lives_on_at = None;
        self.is_writing = true;
    }
}

#[cfg(test)]
mod tests;
