//! Sizes of the cluster's records; the broker has to take them. All of them are bounded where they
//! are made: ids are cut, and places are counted. So none can grow beyond a message later, when a
//! lease would end for it.

use serde::Serialize;

use crate::{Error, Map, MemberId, Place, Record, Serves, WorkKind};

/// Largest record of one member: its own texts, and the numbers of all places.
const MEMBER_BYTES_MAX: usize = 2 << 10;
/// Left for the headers of a record: its condition, and its time to live.
const HEADERS_BYTES: usize = 512;

/// Bytes of the largest record that there can be: the map, with an owner of the longest id at every place.
fn record_bytes_max(shared_out: &[WorkKind]) -> usize {
    let place =
        Place { owner: Some(MemberId::longest()), epoch: u64::MAX, leaving: true, since: u64::MAX };
    let places = |kind: &WorkKind| vec![place.clone(); usize::from(kind.places)];
    let map = Map {
        epoch: u64::MAX,
        leader: MemberId::longest(),
        places: shared_out.iter().map(|kind| (kind.name.into(), places(kind))).collect(),
    };
    encoded_bytes(&map).max(MEMBER_BYTES_MAX)
}

/// Fails when the broker does not take the largest record. `max_payload` is what it has announced.
pub(crate) fn check_broker(shared_out: &[WorkKind], max_payload: usize) -> Result<(), Error> {
    let needed = record_bytes_max(shared_out) + HEADERS_BYTES;
    if max_payload < needed {
        return Err(Error::SmallMessages { found: max_payload, needed });
    }
    Ok(())
}

/// Fails when a member's record would be too large while it serves all that it can: before it is one.
pub(crate) fn check_member(kinds: &[WorkKind], record: &Record) -> Result<(), Error> {
    let most = |kind: &WorkKind| Serves { followed: u64::MAX, places: (0..kind.places).collect() };
    let serves = kinds.iter().map(|kind| (kind.name.into(), most(kind))).collect();
    let fullest =
        Record { serves, leaving: true, beat: u64::MAX, epoch: Some(u64::MAX), ..record.clone() };
    let bytes = encoded_bytes(&fullest);
    if bytes > MEMBER_BYTES_MAX {
        return Err(Error::LargeMember { bytes, bytes_max: MEMBER_BYTES_MAX });
    }
    Ok(())
}

fn encoded_bytes(record: &impl Serialize) -> usize {
    serde_json::to_vec(record).expect("BUG: records serialise").len()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{node::Leadership, plan, plan_tests::KINDS};

    /// As somebody may name a host, and cut to an id.
    fn long() -> MemberId {
        MemberId::new(&"ß".repeat(10_000), &crate::random())
    }

    #[test]
    fn whatever_members_are_called_no_record_is_larger_than_the_broker_was_asked_for() {
        let kinds = KINDS.iter().map(|kind| kind.name.into()).collect();
        let members = BTreeMap::from([(long(), Record { kinds, ..Record::default() })]);
        let mut map = plan(&KINDS, &Map::default(), &members, &BTreeSet::new(), u64::MAX);
        map.places.values_mut().flatten().for_each(|place| place.leaving = true);
        (map.epoch, map.leader) = (u64::MAX, long());
        let leader = Leadership { member: Some(long()), epoch: Some(u64::MAX), beat: u64::MAX };
        let records =
            BTreeMap::from([("map", encoded_bytes(&map)), ("leader", encoded_bytes(&leader))]);
        let largest = record_bytes_max(&KINDS);
        assert!(records.values().all(|bytes| *bytes <= largest), "{records:?}");
        assert!((10_000..16 << 10).contains(&largest), "{largest}");
    }

    #[test]
    fn a_member_that_says_too_much_of_itself_is_refused_and_one_byte_less_is_not() {
        let member = |role: usize| Record {
            kinds: KINDS.iter().map(|kind| kind.name.into()).collect(),
            role: "r".repeat(role),
            version: "0.1.0".to_owned(),
            started_s: u64::MAX,
            ..Record::default()
        };
        check_member(&KINDS, &member("worker".len())).unwrap();
        let Err(Error::LargeMember { bytes, .. }) = check_member(&KINDS, &member(10_000)) else {
            panic!("it is taken")
        };
        let most = MEMBER_BYTES_MAX - (bytes - 10_000);
        for (role, is_taken) in [(most - 1, true), (most, true), (most + 1, false)] {
            assert_eq!(check_member(&KINDS, &member(role)).is_ok(), is_taken, "{role}");
        }
    }

    #[test]
    fn a_broker_that_takes_too_little_is_refused_at_the_start() {
        let least = record_bytes_max(&KINDS) + HEADERS_BYTES;
        for (bytes, is_taken) in [(least - 1, false), (least, true), (1 << 20, true)] {
            assert_eq!(check_broker(&KINDS, bytes).is_ok(), is_taken, "{bytes}");
        }
    }
}
