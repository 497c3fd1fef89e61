//! Assigns slots to members. Pure: from the map in force and the members that are there to the next
//! map.
//!
//! Balanced: members of a kind differ by one place at most. Sticky: a place moves only when its owner
//! is gone, leaves, or has more than its share. Cooperative: a place that moves is first revoked, and
//! given away when its owner has confirmed that it does not serve it any more, or is gone.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{MemberId, Record, WorkKind, WorkName};

/// A slot, or a share of the projections, in the map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Its owner; `None`: nobody at the moment.
    pub owner: Option<MemberId>,
    /// Of the ownership: greater than that of every owner before.
    pub epoch: u64,
    /// The owner is to stop, and to say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// The sequence that the map had before the last change here: an owner that has followed a later
    /// one knows of the change.
    pub since: u64,
}

/// The map: every place of every kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Map {
    /// Of the leader that wrote it.
    pub epoch: u64,
    /// The leader.
    pub leader: MemberId,
    /// By kind, then by number.
    pub places: BTreeMap<WorkName, Vec<Place>>,
}

impl Map {
    /// The owner of a place, with its epoch. An owner that is to leave is one until it has.
    #[must_use]
    pub fn owner(&self, kind: WorkKind, number: u16) -> Option<(&MemberId, u64)> {
        let place = self.places.get(kind.name)?.get(usize::from(number))?;
        place.owner.as_ref().map(|owner| (owner, place.epoch))
    }

    /// True if a place is between two owners: about to be left, or not given away yet.
    #[must_use]
    pub fn is_moving(&self, kind: WorkKind, number: u16) -> bool {
        let place = self.places.get(kind.name).and_then(|places| places.get(usize::from(number)));
        place.is_some_and(|place| place.leaving || place.owner.is_none())
    }

    /// The places that a member is to serve, with their epochs.
    #[must_use]
    pub fn of(&self, member: &MemberId, kind: WorkKind) -> BTreeMap<u16, u64> {
        self.owned(member, kind, false)
    }

    /// The places that a member is to leave, with their epochs.
    #[must_use]
    pub fn left_by(&self, member: &MemberId, kind: WorkKind) -> BTreeMap<u16, u64> {
        self.owned(member, kind, true)
    }

    fn owned(&self, member: &MemberId, kind: WorkKind, leaving: bool) -> BTreeMap<u16, u64> {
        let places = self.places.get(kind.name).map_or(&[][..], Vec::as_slice);
        let mine = |(number, place): (u16, &Place)| {
            let owns = place.owner.as_ref() == Some(member) && place.leaving == leaving;
            owns.then_some((number, place.epoch))
        };
        (0..).zip(places).filter_map(mine).collect()
    }
}

/// The next map, or the one in force when nothing is to change. `fence` is greater than the epoch of
/// every place, and not below the sequence of the map in force or the epoch of a member: places that
/// change owners get it. Only these kinds are shared out.
#[must_use]
pub fn plan(
    kinds: &[WorkKind],
    map: &Map,
    members: &BTreeMap<MemberId, Record>,
    leaving: &BTreeSet<MemberId>,
    fence: u64,
) -> Map {
    let mut next = map.clone();
    for kind in kinds {
        let places = next.places.entry(kind.name.into()).or_default();
        places.resize_with(usize::from(kind.places), Place::default);
        share_out(places, *kind, members, leaving, fence);
    }
    next
}

/// The places of one kind.
pub(crate) fn share_out(
    places: &mut [Place],
    kind: WorkKind,
    members: &BTreeMap<MemberId, Record>,
    leaving: &BTreeSet<MemberId>,
    fence: u64,
) {
    let able: BTreeSet<&MemberId> = members
        .iter()
        .filter(|(_, record)| record.kinds.contains(kind.name))
        .map(|(id, _)| id)
        .collect();
    let wanted: BTreeSet<&MemberId> =
        able.iter().copied().filter(|id| !leaving.contains(*id)).collect();
    // Nobody else is there: better served by one that should leave than by nobody.
    let owners = if wanted.is_empty() { able } else { wanted };
    free(places, kind, members, fence);
    spread(places, &owners, fence);
}

/// Frees the places whose owner is gone, or has confirmed that it left.
fn free(places: &mut [Place], kind: WorkKind, members: &BTreeMap<MemberId, Record>, fence: u64) {
    for (number, place) in (0..).zip(places) {
        let Some(owner) = &place.owner else { continue };
        let gone = match members.get(owner) {
            None => true,
            Some(record) if !record.kinds.contains(kind.name) => true,
            // It has lost its lease since, and does not serve its places.
            Some(record) if record.epoch.is_some_and(|epoch| place.epoch < epoch) => true,
            Some(record) => place.leaving && record.has_left(kind, number, place.since),
        };
        if gone {
            *place = Place { owner: None, leaving: false, since: fence, ..*place };
        }
    }
}

/// Gives free places to those with fewer than their share, and revokes what others have above it.
fn spread(places: &mut [Place], owners: &BTreeSet<&MemberId>, fence: u64) {
    let mut counts: BTreeMap<&MemberId, usize> = owners.iter().map(|id| (*id, 0)).collect();
    for place in places.iter().filter(|place| !place.leaving) {
        if let Some(count) = place.owner.as_ref().and_then(|owner| counts.get_mut(owner)) {
            *count += 1;
        }
    }
    let shares = shares(&counts, places.len());
    let mut surplus: BTreeMap<&MemberId, usize> = BTreeMap::new();
    for (id, count) in &counts {
        surplus.insert(*id, count.saturating_sub(shares[id]));
    }
    let mut lacking: BTreeMap<&MemberId, usize> =
        counts.iter().map(|(id, count)| (*id, shares[id].saturating_sub(*count))).collect();
    for place in places {
        match &place.owner {
            Some(_) if place.leaving => {}
            Some(owner) => {
                let above = match surplus.get_mut(owner) {
                    // An owner that is not wanted any more.
                    None => !owners.is_empty(),
                    Some(0) => false,
                    Some(above) => {
                        *above -= 1;
                        true
                    }
                };
                if above {
                    place.leaving = true;
                    place.since = fence;
                }
            }
            None => {
                let next = lacking.iter_mut().filter(|(_, lacks)| **lacks > 0);
                if let Some((id, lacks)) =
                    next.max_by_key(|(id, lacks)| (**lacks, std::cmp::Reverse(*id)))
                {
                    *lacks -= 1;
                    *place = Place {
                        owner: Some((*id).clone()),
                        epoch: fence,
                        leaving: false,
                        since: fence,
                    };
                }
            }
        }
    }
}

/// Number of places that each is to have. Those that have most get what does not divide: nothing
/// moves for the remainder's sake.
fn shares<'a>(
    counts: &BTreeMap<&'a MemberId, usize>,
    places: usize,
) -> BTreeMap<&'a MemberId, usize> {
    let mut order: Vec<(&MemberId, usize)> =
        counts.iter().map(|(id, count)| (*id, *count)).collect();
    order.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
    let (base, rest) = match order.len() {
        0 => (0, 0),
        members => (places / members, places % members),
    };
    order.into_iter().enumerate().map(|(at, (id, _))| (id, base + usize::from(at < rest))).collect()
}
