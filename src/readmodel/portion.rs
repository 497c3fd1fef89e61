//! The part of a version that a worker owns: all of it, or some of its portions. The slots of a
//! portion are those that leave its number when divided by the number of portions.

use std::collections::BTreeMap;

use flexcore_domain::{Name, Slot};

use crate::epoch::Owned;

/// The portions of a version that a worker owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portions {
    /// Number of the version's portions; 1: it is not shared.
    pub count: u16,
    /// The epoch of each that the worker owns, by number.
    pub epochs: BTreeMap<u16, i64>,
}

impl Portions {
    /// Those that a worker owns of a read model's version with so many.
    pub(crate) fn owned(owned: Owned<'_>, name: &Name, count: u16) -> Self {
        let epochs = (0..count).filter_map(|portion| Some((portion, owned(name, portion)?)));
        Self { count, epochs: epochs.collect() }
    }

    /// True if their owner manages the read model: makes and drops versions and indexes, and swaps.
    #[must_use]
    pub fn manage(&self) -> bool {
        self.epochs.contains_key(&0)
    }

    /// The portion of a slot.
    #[must_use]
    pub fn of(&self, slot: Slot) -> u16 {
        slot.number() % self.count
    }

    /// True if a slot's portion is owned.
    #[must_use]
    pub fn has(&self, slot: Slot) -> bool {
        self.epochs.contains_key(&self.of(slot))
    }

    /// The slots that are owned.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        Slot::all().filter(|slot| self.has(*slot))
    }

    /// The slot in whose row a portion's checkpoint moves.
    #[must_use]
    pub fn row(portion: u16) -> Slot {
        Slot::new(portion).expect("BUG: no more portions than slots")
    }

    /// The epoch of the owner of a slot's portion; one that is refused, when it is not owned.
    pub(crate) fn epoch_of(&self, slot: Slot) -> i64 {
        self.epochs.get(&self.of(slot)).copied().unwrap_or(-1)
    }
}
