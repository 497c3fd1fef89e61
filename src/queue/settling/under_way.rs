//! A place's messages under way, in order, and how far they are settled.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Messages of one place that are worked on at once. Their order is their user's matter.
const AT_ONCE: usize = 256;
/// Messages that may be settled without being recorded so, or under way: those that a next owner
/// finds in doubt. Fewer command ids than an aggregate remembers whole: to recognise them costs no look
/// into the log.
pub const IN_DOUBT_MAX: usize = 1_000;
/// Owners that have begun with a message before those behind it wait until it is recorded as settled:
/// then the one that kills its workers stands first.
pub const SUSPECT: u32 = 3;
/// Messages settled between two records.
const RECORD_EVERY: u64 = 100;
/// Time for which the last ones stay unrecorded while others may follow.
const RECORD_DELAY: Duration = Duration::from_millis(100);

/// Messages under way. Their numbers count from 0 as they are taken up.
pub(super) struct UnderWay<M> {
    /// Number of the first that is under way; all before are settled.
    first: u64,
    messages: VecDeque<Message<M>>,
    /// Stream sequence of the last one before.
    settled: u64,
    /// Number of the first that is not recorded as settled.
    unrecorded: u64,
    /// The same when what is being written has been.
    writing: u64,
    /// Time of the next record of progress.
    record_at: Option<Instant>,
    /// True if messages go one after the other for now.
    singly: bool,
}

struct Message<M> {
    message: M,
    sequence: u64,
    is_settled: bool,
}

impl<M> UnderWay<M> {
    /// For an owner that finds this first command, begun by so many.
    pub(super) fn after(first: Option<(u64, u32)>) -> Self {
        Self {
            first: 0,
            messages: VecDeque::new(),
            settled: 0,
            unrecorded: 0,
            writing: 0,
            record_at: None,
            singly: first.is_some_and(|(_, begun)| begun > SUSPECT),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages taken up so far.
    pub(super) fn taken(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    /// True if another one may be taken up.
    pub(super) fn has_room(&self) -> bool {
        let (at_once, in_doubt) =
            if self.goes_singly() { (1, 1) } else { (AT_ONCE, IN_DOUBT_MAX as u64) };
        self.messages.len() < at_once && self.taken() - self.unrecorded < in_doubt
    }

    fn goes_singly(&self) -> bool {
        // No owner can have begun with more.
        self.singly && self.taken() < IN_DOUBT_MAX as u64
    }

    /// Takes up a message of this stream sequence. Returns its number.
    pub(super) fn take_up(&mut self, message: M, sequence: u64) -> u64 {
        self.messages.push_back(Message { message, sequence, is_settled: false });
        self.taken() - 1
    }

    fn place(&self, number: u64) -> usize {
        as_index(number - self.first)
    }

    /// A message, and its stream sequence.
    pub(super) fn message(&self, number: u64) -> (&M, u64) {
        let Message { message, sequence, .. } = &self.messages[self.place(number)];
        (message, *sequence)
    }

    /// The outcome of this message is durable.
    pub(super) fn settle(&mut self, number: u64, now: Instant) {
        let place = self.place(number);
        self.messages[place].is_settled = true;
        let before = self.first;
        while let Some(message) = self.messages.pop_front_if(|message| message.is_settled) {
            self.settled = message.sequence;
            self.first += 1;
        }
        if self.first == before {
            return;
        }
        let enough = self.goes_singly() || self.first - self.writing >= RECORD_EVERY;
        let at = if enough { now } else { now + RECORD_DELAY };
        self.record_at = Some(self.record_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Drops what is under way. What was settled before the first of it counts; the rest is for a next
    /// owner, who looks up what is settled of that.
    pub(super) fn give_back(&mut self) {
        self.messages.clear();
    }

    /// The time at which progress is to be recorded; `None`: it is.
    pub(super) fn record_at(&self) -> Option<Instant> {
        self.record_at
    }

    /// The stream sequence to be recorded, when it is time, or when the reader is about to end and
    /// nothing is under way. [`Self::recorded`] is called when that has been done.
    pub(super) fn take_due(&mut self, now: Instant, ending: bool) -> Option<u64> {
        let at = self.record_at?;
        if at > now && !(ending && self.is_empty()) {
            return None;
        }
        self.record_at = None;
        self.writing = self.first;
        Some(self.settled)
    }

    /// The result of [`Self::take_due`] is recorded.
    pub(super) fn recorded(&mut self) {
        self.unrecorded = self.writing;
    }
}

/// A difference of numbers as an index.
pub(super) fn as_index(by: u64) -> usize {
    usize::try_from(by).expect("BUG: few are under way")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(first: Option<(u64, u32)>) -> UnderWay<()> {
        let mut under_way = UnderWay::after(first);
        while under_way.has_room() {
            let sequence = 10 + 2 * under_way.taken();
            under_way.take_up((), sequence);
        }
        under_way
    }

    #[test]
    fn only_what_is_settled_without_a_hole_is_recorded() {
        let now = Instant::now();
        let mut under_way = filled(None);
        assert_eq!(under_way.taken(), 256);
        under_way.settle(1, now);
        assert_eq!((under_way.take_due(now, true), under_way.record_at()), (None, None));
        under_way.settle(0, now);
        assert_eq!(under_way.take_due(now, false), None, "others may follow");
        assert_eq!(under_way.take_due(now, true), None, "others are under way");
        assert_eq!(under_way.take_due(now + RECORD_DELAY, false), Some(12));
        assert_eq!(under_way.take_due(now + RECORD_DELAY, false), None, "it is");
        for number in 2..256 {
            under_way.settle(number, now);
        }
        assert_eq!(under_way.take_due(now, false), Some(10 + 2 * 255), "a hundred are enough");
    }

    #[test]
    fn a_reader_that_ends_records_what_is_left() {
        let now = Instant::now();
        let mut under_way = UnderWay::after(None);
        under_way.take_up((), 7);
        under_way.settle(0, now);
        assert_eq!(under_way.take_due(now, true), Some(7));
    }

    #[test]
    fn what_is_settled_behind_a_hole_is_not_recorded_when_the_rest_is_given_back() {
        let now = Instant::now();
        let mut under_way = filled(None);
        under_way.settle(0, now);
        under_way.settle(2, now);
        under_way.give_back();
        assert!(under_way.is_empty());
        assert_eq!(under_way.take_due(now, true), Some(10));
        assert_eq!(under_way.take_due(now, true), None);
    }

    #[test]
    fn a_next_owner_finds_no_more_in_doubt_than_an_aggregate_remembers_whole() {
        let now = Instant::now();
        let mut under_way = UnderWay::after(None);
        let mut most = 0;
        // Nothing is ever recorded.
        while under_way.has_room() {
            let number = under_way.take_up((), most);
            under_way.settle(number, now);
            most += 1;
        }
        assert_eq!(most, 1_000);
        under_way.take_due(now + RECORD_DELAY, false);
        assert!(!under_way.has_room(), "not written yet");
        under_way.recorded();
        assert!(under_way.has_room());
    }

    #[test]
    fn behind_a_suspect_each_waits_until_the_one_before_is_recorded() {
        let now = Instant::now();
        let mut under_way = filled(Some((10, SUSPECT + 1)));
        for number in 0..999 {
            assert_eq!(under_way.taken(), number + 1);
            under_way.settle(number, now);
            assert!(!under_way.has_room(), "not recorded yet");
            assert_eq!(under_way.take_due(now, false), Some(10 + 2 * number));
            under_way.recorded();
            assert!(under_way.has_room());
            under_way.take_up((), 10 + 2 * (number + 1));
        }
        assert!(under_way.has_room(), "further than any owner can have been");
        assert_eq!(filled(Some((10, SUSPECT))).taken(), 256);
    }
}
