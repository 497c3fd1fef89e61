//! Under which number the leader writes the next map. Pure.

use std::collections::BTreeMap;

use crate::{MemberId, Record};

/// The leader's knowledge of the maps that were stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Fence {
    /// The greatest sequence that a map was seen to have: no epoch that was given is above it.
    seen: u64,
    /// The sequence of the key `leader` under which a map was written that has no answer.
    in_doubt: Option<u64>,
}

impl Fence {
    /// A map was read, or stored by us, with this sequence.
    pub(crate) fn saw(&mut self, at: u64) {
        self.seen = self.seen.max(at);
    }

    /// A map was written while the key `leader` was at this sequence, and has no answer.
    pub(crate) fn unanswered(&mut self, leader: u64) {
        self.in_doubt = Some(leader);
    }

    /// The number for places that get another owner: above every epoch that was given, and not below
    /// the beginning of any member's tenure. `None`: the key `leader` has to be renewed first, since
    /// the map in doubt may be stored yet, over the next one and with the same epochs.
    pub(crate) fn next(&self, leader: u64, members: &BTreeMap<MemberId, Record>) -> Option<u64> {
        let tenures = members.values().filter_map(|record| record.epoch);
        let next = tenures.fold(leader.max(self.seen), u64::max);
        (self.in_doubt != Some(leader)).then_some(next)
    }

    /// Every sequence in it, for a model that numbers them anew.
    #[cfg(test)]
    pub(crate) fn sequences(&mut self) -> impl Iterator<Item = &mut u64> {
        std::iter::once(&mut self.seen).chain(&mut self.in_doubt)
    }
}
