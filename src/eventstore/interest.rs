//! The part of the log that a reader follows: kinds of aggregates, and of each the slots.

use std::collections::BTreeMap;

use flexcore_domain::{AggregateName, SLOTS, Slot};

use crate::subjects;

/// Most subjects of one consumer: the broker compares each message with all of them. Messages that
/// are read too much then are passed over by their subject.
const SUBJECTS_MAX: usize = 64;

/// A bit for each slot.
type Slots = u64;

const ALL: Slots = Slots::MAX;
const _: () = assert!(SLOTS as u32 == Slots::BITS);

/// The aggregates whose commits are wanted: by kind, and by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    of: BTreeMap<AggregateName, Slots>,
}

impl Interest {
    /// Adds the aggregates of this kind in these slots.
    pub fn add(&mut self, aggregate: &AggregateName, slots: impl IntoIterator<Item = Slot>) {
        let bits = slots.into_iter().fold(0, |bits, slot| bits | (1 << slot.number()));
        *self.of.entry(aggregate.clone()).or_default() |= bits;
    }

    /// True if a subject of the log is that of a wanted aggregate. Decided without looking further.
    pub(crate) fn has(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.').skip(1);
        let (slot, aggregate) = (tokens.next(), tokens.nth(1));
        let slot = slot.and_then(|slot| slot.parse().ok()).and_then(Slot::new);
        let (Some(slot), Some(aggregate)) = (slot, aggregate) else { return false };
        self.of.get(aggregate).is_some_and(|slots| slots & (1 << slot.number()) != 0)
    }

    /// The subjects that a consumer is to filter by. No two of them overlap.
    pub(crate) fn subjects(&self) -> Vec<String> {
        let of = |(aggregate, slots): (&AggregateName, &Slots)| {
            let whole = *slots == ALL || self.count() > SUBJECTS_MAX;
            let some = Slot::all().filter(move |slot| !whole && slots & (1 << slot.number()) != 0);
            let some = some.map(move |slot| subjects::of_aggregates(slot, aggregate));
            some.chain(whole.then(|| subjects::of_aggregates('*', aggregate))).collect::<Vec<_>>()
        };
        if self.of.len() > SUBJECTS_MAX {
            return vec![subjects::ALL.to_owned()];
        }
        self.of.iter().filter(|(_, slots)| **slots != 0).flat_map(of).collect()
    }

    /// Number of subjects that there would be.
    fn count(&self) -> usize {
        let of = |slots: &Slots| if *slots == ALL { 1 } else { slots.count_ones() as usize };
        self.of.values().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> AggregateName {
        AggregateName::parse(name).unwrap()
    }

    fn slots(numbers: impl IntoIterator<Item = u16>) -> impl Iterator<Item = Slot> {
        numbers.into_iter().filter_map(Slot::new)
    }

    #[test]
    fn subjects_name_what_is_wanted_and_no_more_than_the_broker_likes() {
        let mut interest = Interest::default();
        interest.add(&kind("order"), Slot::all());
        interest.add(&kind("ship"), slots([1, 17]));
        let subjects = ["evt.*.*.order.*", "evt.1.*.ship.*", "evt.17.*.ship.*"];
        assert_eq!(interest.subjects(), subjects);
        for (subject, wanted) in [
            ("evt.3.acme.order.o-1", true),
            ("evt.1.acme.ship.s-1", true),
            ("evt.2.acme.ship.s-1", false),
            ("evt.1.ship.acme.s-1", false),
            ("evt.64.acme.order.o-1", false),
            ("evt.junk", false),
            ("evt", false),
        ] {
            assert_eq!(interest.has(subject), wanted, "{subject}");
        }
        interest.add(&kind("bill"), slots(0..62));
        let widened = ["evt.*.*.bill.*", "evt.*.*.order.*", "evt.*.*.ship.*"];
        assert_eq!(interest.subjects(), widened, "the slots are told apart by the reader");
        assert!(!interest.has("evt.63.acme.bill.b-1"));
        for number in 0..=SUBJECTS_MAX {
            interest.add(&kind(&format!("kind{number}")), Slot::all());
        }
        assert_eq!(interest.subjects(), ["evt.>"]);
    }
}
