//! Sizes of the cluster's records; the broker has to take them. All of them are bounded where they
//! are made: ids are cut, and places are counted. So none can grow beyond a message later, when a
//! lease would end for it.

use serde::Serialize;

use crate::{Error, Kind, Record, Serves};

/// Largest record that there can be: the map, with an owner of the longest id at every place. It takes
/// some 11 KiB.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 10;
/// Largest record of one member: its own texts, and the numbers of all places.
const MEMBER_BYTES_MAX: usize = 2 << 10;
/// Left for the headers of a record: its condition, and its time to live.
const HEADERS_BYTES: usize = 512;

/// Fails when the broker does not take the largest record. `max_payload` is what it has announced.
pub(crate) fn check_broker(max_payload: usize) -> Result<(), Error> {
    let needed = RECORD_BYTES_MAX + HEADERS_BYTES;
    if max_payload < needed {
        return Err(Error::SmallMessages { found: max_payload, needed });
    }
    Ok(())
}

/// Fails when a member's record would be too large while it serves all that it can: before it is one.
pub(crate) fn check_member(record: &Record) -> Result<(), Error> {
    let most = |kind: Kind| Serves { followed: u64::MAX, places: (0..kind.places()).collect() };
    let serves = record.kinds.iter().map(|kind| (*kind, most(*kind))).collect();
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Map, MemberId, Place, node::Leadership};

    /// As somebody may name a host, and cut to an id.
    fn longest() -> MemberId {
        MemberId::new(&"ß".repeat(10_000), "12345678")
    }

    #[test]
    fn whatever_members_are_called_no_record_is_larger_than_the_broker_was_asked_for() {
        let place =
            || Place { owner: Some(longest()), epoch: u64::MAX, leaving: true, since: u64::MAX };
        let places = |kind: Kind| (0..kind.places()).map(|_| place()).collect();
        let map = Map {
            epoch: u64::MAX,
            leader: longest(),
            places: Kind::ALL.into_iter().map(|kind| (kind, places(kind))).collect(),
        };
        let leader = Leadership { member: Some(longest()), epoch: Some(u64::MAX), beat: u64::MAX };
        let records =
            BTreeMap::from([("map", encoded_bytes(&map)), ("leader", encoded_bytes(&leader))]);
        assert!(records.values().all(|bytes| *bytes <= RECORD_BYTES_MAX), "{records:?}");
        const { assert!(MEMBER_BYTES_MAX <= RECORD_BYTES_MAX) };
    }

    #[test]
    fn a_member_that_says_too_much_of_itself_is_refused_and_one_byte_less_is_not() {
        let member = |role: usize| Record {
            kinds: Kind::ALL.into(),
            role: "r".repeat(role),
            version: "0.1.0".to_owned(),
            started_s: u64::MAX,
            ..Record::default()
        };
        check_member(&member("worker".len())).unwrap();
        let Err(Error::LargeMember { bytes, .. }) = check_member(&member(10_000)) else {
            panic!("it is taken")
        };
        let most = MEMBER_BYTES_MAX - (bytes - 10_000);
        for (role, is_taken) in [(most - 1, true), (most, true), (most + 1, false)] {
            assert_eq!(check_member(&member(role)).is_ok(), is_taken, "{role}");
        }
    }

    #[test]
    fn a_broker_that_takes_too_little_is_refused_at_the_start() {
        let least = RECORD_BYTES_MAX + HEADERS_BYTES;
        for (bytes, is_taken) in [(least - 1, false), (least, true), (1 << 20, true)] {
            assert_eq!(check_broker(bytes).is_ok(), is_taken, "{bytes}");
        }
    }
}
