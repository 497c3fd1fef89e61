//! Leases that have ended although the broker still has their records. Pure.
//!
//! The broker frees a key whose lease has ended. One that is killed, and started again, may bring such keys back, and
//! keep them for ever (seen with nats-server 2.15.1): a dead leader, and dead members that are given places. So a
//! record counts only while its sequence moves.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Time by which a record is kept longer than its lease: the broker is to be the first to free it.
const SLACK: Duration = Duration::from_secs(1);
/// Most time that one look adds to a record's age. Between two looks that lie further apart the broker may have been
/// away, or the whole machine: then nobody could renew.
const LOOK_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Looked {
    sequence: u64,
    age: Duration,
    at: Instant,
}

/// What a member has seen of other members' records.
#[derive(Debug, Default)]
pub(crate) struct Overdue(BTreeMap<String, Looked>);

impl Overdue {
    /// Learns that a key with a lease is at this sequence now. True if it has been so for longer than the lease.
    pub(crate) fn is(&mut self, key: &str, sequence: u64, lease: Duration, now: Instant) -> bool {
        let fresh = || Looked { sequence, age: Duration::ZERO, at: now };
        let looked = self.0.entry(key.to_owned()).or_insert_with(fresh);
        if looked.sequence != sequence {
            *looked = fresh();
        }
        looked.age += now.duration_since(looked.at).min(LOOK_MAX);
        looked.at = now;
        looked.age > lease + SLACK
    }

    /// Forgets all keys but those.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(12);
    const LOOK: Duration = Duration::from_secs(1);

    #[test]
    fn a_record_is_overdue_when_it_has_not_moved_for_longer_than_its_lease() {
        let (mut overdue, start) = (Overdue::default(), Instant::now());
        for look in 0..=13 {
            assert!(!overdue.is("dead", 7, LEASE, start + LOOK * look), "{look}");
            assert!(!overdue.is("renewed", 7 + u64::from(look / 2), LEASE, start + LOOK * look));
        }
        let later = start + LOOK * 14;
        assert!(overdue.is("dead", 7, LEASE, later));
        assert!(!overdue.is("renewed", 14, LEASE, later));
        assert!(!overdue.is("dead", 8, LEASE, later), "somebody has written it");
        overdue.retain(|key| key != "renewed");
        assert_eq!(overdue.0.len(), 1);
    }

    #[test]
    fn a_time_without_looks_counts_little() {
        let (mut overdue, start) = (Overdue::default(), Instant::now());
        assert!(!overdue.is("member", 7, LEASE, start));
        assert!(!overdue.is("member", 7, LEASE, start + LEASE * 10));
        assert_eq!(overdue.0["member"].age, LOOK_MAX);
    }
}
