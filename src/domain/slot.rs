//! Slots: the hash buckets of aggregates. A slot has one owner at a time.

use std::fmt;

/// Slots of an installation. Fixed when the streams are created: another number would send an
/// aggregate's later commits to another subject.
pub const SLOTS: u16 = 64;

/// Portions of a read model that is shared among workers, each of which has four slots: as many as there
/// are shares of projections to be owned, since more would make nobody faster.
pub const PORTIONS: u16 = 16;

/// FNV-1a with 32 bits: the same on every machine and in every version. Whoever chooses the bytes can choose
/// the hash.
#[must_use]
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A hash bucket of aggregates, below [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// The first of them.
    pub const FIRST: Self = Self(0);

    /// The slot of an aggregate by its names: FNV-1a 32 over tenant, aggregate and id with nothing
    /// between, modulo [`SLOTS`]; the same function as the broker's `partition(64,1,2,3)` mapping.
    pub(crate) fn of(names: [&str; 3]) -> Self {
        let hash = fnv1a(names.iter().flat_map(|name| name.bytes()));
        Self((hash % u32::from(SLOTS)) as u16)
    }

    /// The slot with this number, or `None` at [`SLOTS`] and above.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// Every slot, from 0 up.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(Self)
    }

    /// The slot's number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
