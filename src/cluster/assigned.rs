//! The places that the map gives to one member.

use std::collections::BTreeMap;

use crate::{WorkKind, WorkName};

/// The places that a member is to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The sequence of the map that says so; to be reported.
    pub followed: u64,
    /// The places by number, each with the epoch of the ownership.
    pub places: BTreeMap<WorkName, BTreeMap<u16, u64>>,
    /// Those that it has and is to leave, when it has answered what it has taken on.
    pub leaving: BTreeMap<WorkName, BTreeMap<u16, u64>>,
}

impl Assigned {
    /// The places of one kind.
    #[must_use]
    pub fn of(&self, kind: WorkKind) -> BTreeMap<u16, u64> {
        self.places.get(kind.name).cloned().unwrap_or_default()
    }

    /// Those of one kind that it is to leave.
    #[must_use]
    pub fn leaving(&self, kind: WorkKind) -> BTreeMap<u16, u64> {
        self.leaving.get(kind.name).cloned().unwrap_or_default()
    }
}
