//! A lease: the right to act under one key, for a time. Pure; times are milliseconds of the caller's
//! own monotonic clock.
//!
//! The key's message carries the lease's length as its time to live, so that the broker frees the
//! key when nobody renews it. The holder counts from the moment before it sent the renewal, and
//! stops a margin earlier than the broker can free the key. The key's sequence makes it safe all
//! the same: each write names the one that it follows, and effects are refused under an older one.

/// Duration of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// When the broker frees the key, in milliseconds after a renewal.
    pub ttl_ms: u64,
    /// Time by which its holder stops earlier: the most that clocks and scheduling may be off.
    pub margin_ms: u64,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Look who holds the key.
    Read,
    /// Write it, if it is still at this sequence (0: there is none).
    Write {
        /// The sequence that it must be at.
        expected: u64,
        /// The number of this attempt, to be stored with it.
        beat: u64,
        /// The epoch to be stored with it; `None`: the sequence of this write.
        epoch: Option<u64>,
    },
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// It is stored, with this sequence.
    Stored(u64),
    /// The key is not at the expected sequence.
    Refused,
    /// No answer: it may be stored, or be stored yet.
    Unknown,
}

/// The result of a look at the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// Nobody holds it; it is at this sequence, 0 when there is no message.
    Free(u64),
    /// Somebody else does.
    Taken,
    /// We do.
    Ours {
        /// The sequence of the message.
        sequence: u64,
        /// The number of the attempt that wrote it.
        beat: u64,
        /// The epoch in it.
        epoch: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    /// Of our last write.
    sequence: u64,
    /// Of the write that won.
    epoch: u64,
    /// When to stop acting.
    until_ms: u64,
}

/// A member's knowledge of a lease that it has or wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    terms: Terms,
    held: Option<Held>,
    /// The sequence at which it was seen to be free.
    free: Option<u64>,
    /// The last attempt, and when it began.
    beat: u64,
    began_ms: u64,
    /// Its outcome is unknown.
    in_doubt: bool,
}

impl Lease {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self { terms, held: None, free: None, beat: 0, began_ms: 0, in_doubt: false }
    }

    /// A lease on a key that nobody else can want: it is taken to be free.
    #[must_use]
    pub fn own(terms: Terms) -> Self {
        Self { free: Some(0), ..Self::new(terms) }
    }

    /// True if its holder may act. Ask again before each effect.
    #[must_use]
    pub fn holds(&self, now_ms: u64) -> bool {
        self.held.is_some_and(|held| now_ms < held.until_ms)
    }

    /// When its holder has to stop, unless it is renewed; 0: it does not hold it.
    #[must_use]
    pub fn until_ms(&self) -> u64 {
        self.held.map_or(0, |held| held.until_ms)
    }

    /// The epoch, while it may act.
    #[must_use]
    pub fn epoch(&self, now_ms: u64) -> Option<u64> {
        self.held.filter(|held| now_ms < held.until_ms).map(|held| held.epoch)
    }

    /// The epoch, also when it may not act just now: unless somebody else was there in between, it
    /// is the same afterwards.
    #[must_use]
    pub fn tenure(&self) -> Option<u64> {
        self.held.map(|held| held.epoch)
    }

    /// The sequence of the key's last message, as far as this holder knows: effects in the same
    /// stream are made to depend on it.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.held.map(|held| held.sequence)
    }

    /// Returns the next thing to do; begins an attempt when that is a write.
    pub fn step(&mut self, now_ms: u64) -> Step {
        let (expected, epoch) = match (self.in_doubt, self.held, self.free) {
            (false, Some(held), _) => (held.sequence, Some(held.epoch)),
            (false, None, Some(free)) => (free, None),
            _ => return Step::Read,
        };
        self.beat += 1;
        self.began_ms = now_ms;
        Step::Write { expected, beat: self.beat, epoch }
    }

    /// Learns the result of the write that [`Self::step`] began.
    pub fn written(&mut self, written: Written) {
        self.free = None;
        self.in_doubt = false;
        match written {
            Written::Stored(sequence) => self.renewed(sequence, None),
            // Somebody else has written or deleted it, and wants us to stop.
            Written::Refused => self.held = None,
            Written::Unknown => self.in_doubt = true,
        }
    }

    /// Learns what a look has shown.
    pub fn found(&mut self, found: Found) {
        self.free = None;
        match found {
            Found::Free(sequence) => {
                self.held = None;
                self.free = Some(sequence);
                self.in_doubt = false;
            }
            Found::Taken => {
                self.held = None;
                self.in_doubt = false;
            }
            Found::Ours { sequence, beat, epoch } if beat == self.beat => {
                self.in_doubt = false;
                self.renewed(sequence, epoch);
            }
            // An earlier attempt of ours. Its beginning is not kept, so it gives no time; the next
            // write does.
            Found::Ours { sequence, epoch, .. } => {
                self.in_doubt = false;
                let until_ms = self.until_ms();
                let epoch = epoch.unwrap_or(sequence);
                self.held = Some(Held { sequence, epoch, until_ms });
            }
        }
    }

    /// Every sequence in it, for a model that numbers them anew.
    #[cfg(test)]
    pub(crate) fn sequences(&mut self) -> impl Iterator<Item = &mut u64> {
        let held = self.held.iter_mut().flat_map(|held| [&mut held.sequence, &mut held.epoch]);
        held.chain(&mut self.free)
    }

    /// The number of the last attempt, for a model that numbers them anew.
    #[cfg(test)]
    pub(crate) fn beat(&mut self) -> &mut u64 {
        &mut self.beat
    }

    /// All that was becomes a millisecond older, for a model in which it is always `now_ms`. A
    /// state that is too old to matter stays as it is.
    #[cfg(test)]
    pub(crate) fn ages(&mut self, now_ms: u64) {
        self.began_ms = self.began_ms.saturating_sub(1).max(now_ms - self.terms.ttl_ms);
        if let Some(held) = &mut self.held {
            let until_ms = held.until_ms.saturating_sub(1);
            held.until_ms = if until_ms > now_ms { until_ms } else { 0 };
        }
    }

    fn renewed(&mut self, sequence: u64, epoch: Option<u64>) {
        let epoch = self.held.map(|held| held.epoch).or(epoch).unwrap_or(sequence);
        let until_ms = self.began_ms + self.terms.ttl_ms - self.terms.margin_ms;
        self.held = Some(Held { sequence, epoch, until_ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { ttl_ms: 12_000, margin_ms: 2_000 };

    fn held(at_ms: u64, sequence: u64) -> Lease {
        let mut lease = Lease::new(TERMS);
        assert_eq!(lease.step(at_ms), Step::Read);
        lease.found(Found::Free(0));
        assert_eq!(lease.step(at_ms), Step::Write { expected: 0, beat: 1, epoch: None });
        lease.written(Written::Stored(sequence));
        lease
    }

    #[test]
    fn the_holder_stops_before_the_broker_can_free_the_key() {
        let lease = held(500, 7);
        assert!(lease.holds(10_499) && !lease.holds(10_500));
        assert_eq!((lease.epoch(10_499), lease.epoch(10_500)), (Some(7), None));
    }

    #[test]
    fn a_renewal_counts_from_its_beginning_and_keeps_the_epoch() {
        let mut lease = held(0, 7);
        assert_eq!(lease.step(4_000), Step::Write { expected: 7, beat: 2, epoch: Some(7) });
        lease.written(Written::Stored(9));
        assert_eq!((lease.until_ms(), lease.epoch(5_000)), (14_000, Some(7)));
        assert_eq!(lease.step(6_000), Step::Write { expected: 9, beat: 3, epoch: Some(7) });
    }

    #[test]
    fn a_refused_renewal_ends_it_at_once() {
        let mut lease = held(0, 7);
        let _ = lease.step(4_000);
        lease.written(Written::Refused);
        assert!(!lease.holds(4_001));
        assert_eq!(lease.step(4_002), Step::Read);
        lease.found(Found::Taken);
        assert_eq!(lease.step(5_000), Step::Read);
    }

    #[test]
    fn an_unknown_renewal_gives_no_time_until_it_is_found() {
        let mut lease = held(0, 7);
        let _ = lease.step(4_000);
        lease.written(Written::Unknown);
        assert!(lease.holds(9_999) && !lease.holds(10_000));
        assert_eq!(lease.step(6_000), Step::Read);
        lease.found(Found::Ours { sequence: 9, beat: 2, epoch: Some(7) });
        assert_eq!((lease.until_ms(), lease.sequence()), (14_000, Some(9)));
    }

    #[test]
    fn an_unknown_renewal_that_was_lost_is_made_again() {
        let mut lease = held(0, 7);
        let _ = lease.step(4_000);
        lease.written(Written::Unknown);
        let _ = lease.step(6_000);
        lease.found(Found::Ours { sequence: 7, beat: 1, epoch: None });
        assert_eq!(lease.until_ms(), 10_000, "as before");
        assert_eq!(lease.step(6_500), Step::Write { expected: 7, beat: 3, epoch: Some(7) });
    }

    #[test]
    fn an_acquisition_in_doubt_is_ours_when_it_is_found() {
        let mut lease = Lease::own(TERMS);
        assert_eq!(lease.step(100), Step::Write { expected: 0, beat: 1, epoch: None });
        lease.written(Written::Unknown);
        assert!(!lease.holds(101));
        assert_eq!(lease.step(3_000), Step::Read);
        lease.found(Found::Ours { sequence: 4, beat: 1, epoch: None });
        assert_eq!((lease.epoch(3_000), lease.until_ms()), (Some(4), 10_100));
    }

    #[test]
    fn a_deleted_key_is_lost_and_won_anew_under_another_epoch() {
        let mut lease = held(0, 7);
        let _ = lease.step(4_000);
        lease.written(Written::Refused);
        let _ = lease.step(4_100);
        lease.found(Found::Free(12));
        assert_eq!(lease.step(4_200), Step::Write { expected: 12, beat: 3, epoch: None });
        lease.written(Written::Stored(13));
        assert_eq!(lease.epoch(4_300), Some(13));
    }
}
