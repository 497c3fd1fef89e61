//! The last link of each aggregate that a reader has met, in bounded memory.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use flexcore_domain::{AggregateKey, Hash};

use crate::{Error, Recorded, load};

/// Aggregates whose last link is remembered, about 100 bytes each. Beyond it those are forgotten that
/// were not met for longest, and their links are checked again from their next commit on; also those that
/// are broken, since whoever folds them remembers that.
pub const LINKS_MAX: usize = 1_000_000;

/// Stands for an aggregate: 128 bits under keys that this process alone knows. Tenants choose the
/// ids. Of a hash that they can compute they find two ids that look like one aggregate, whose
/// commits then seem not to follow one another.
type KeyHash = u128;

/// What is remembered of an aggregate.
#[derive(Clone, Copy)]
enum Last {
    /// Its version, and its last link.
    Link(u64, Hash),
    /// Its commits do not follow one another.
    Broken,
}

/// Some of the aggregates: each is in one of so many parts, by keys that nobody outside knows.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) keys: RandomState,
    pub(crate) number: u64,
    pub(crate) of: u64,
}

impl Part {
    fn has(&self, key: &AggregateKey) -> bool {
        self.keys.hash_one(key) % self.of == self.number
    }
}

/// The last link of each aggregate, in two generations: when the young one is full the old one is
/// forgotten, and the young one becomes old.
pub(crate) struct Links {
    keys: [RandomState; 2],
    young: HashMap<KeyHash, Last>,
    old: HashMap<KeyHash, Last>,
    max: usize,
    /// Only these aggregates are checked; `None`: all.
    part: Option<Part>,
    /// Aggregates whose first commit was checked.
    pub(crate) begun: u64,
    /// Commits that could not be checked, because their predecessor was not read or was forgotten.
    pub(crate) unchecked: u64,
}

impl Links {
    /// Remembers so many aggregates at most.
    pub(crate) fn with_room_for(max: usize) -> Self {
        Self {
            keys: [RandomState::new(), RandomState::new()],
            young: HashMap::new(),
            old: HashMap::new(),
            max,
            part: None,
            begun: 0,
            unchecked: 0,
        }
    }

    /// The same for a part of the aggregates: the others are passed over.
    pub(crate) fn of_part(part: Part, max: usize) -> Self {
        Self { part: Some(part), ..Self::with_room_for(max) }
    }

    /// Checks a commit against the one before it, where that one is remembered, and remembers it.
    /// One that does not follow is not remembered. Those of a broken aggregate pass: nobody can say what
    /// should follow there.
    pub(crate) fn check(&mut self, recorded: &Recorded) -> Result<(), Error> {
        let key = &recorded.commit.key;
        if !self.has(key) {
            return Ok(());
        }
        let of = self.key_hash(key);
        let mut now = Last::Link(recorded.commit.version(), recorded.hash);
        match self.last(&of) {
            Some(Last::Link(version, hash)) => {
                load::check_link(key, recorded, version, Some(&hash))?;
            }
            Some(Last::Broken) => now = Last::Broken,
            None if recorded.commit.version_before() == 0 => {
                load::check_link(key, recorded, 0, Some(&Hash::ZERO))?;
                self.begun += 1;
            }
            None => {
                self.unchecked += 1;
                metrics::counter!("flexcore_log_links_unchecked_total").increment(1);
            }
        }
        self.remember(of, now);
        Ok(())
    }

    /// Remembers that an aggregate is broken. Returns false when that was known.
    pub(crate) fn break_off(&mut self, key: &AggregateKey) -> bool {
        if !self.has(key) {
            return false;
        }
        let of = self.key_hash(key);
        let was_broken = matches!(self.last(&of), Some(Last::Broken));
        self.remember(of, Last::Broken);
        !was_broken
    }

    fn has(&self, key: &AggregateKey) -> bool {
        self.part.as_ref().is_none_or(|part| part.has(key))
    }

    fn last(&mut self, of: &KeyHash) -> Option<Last> {
        self.young.get(of).copied().or_else(|| self.old.remove(of))
    }

    fn remember(&mut self, of: KeyHash, last: Last) {
        if self.young.len() >= (self.max / 2).max(1) && !self.young.contains_key(&of) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(of, last);
    }

    fn key_hash(&self, key: &AggregateKey) -> KeyHash {
        let [high, low] = &self.keys;
        u128::from(high.hash_one(key)) << 64 | u128::from(low.hash_one(key))
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use flexcore_domain::{
        ActorName, AggregateId, AggregateName, CommandHash, CommandId, Commit, Event, EventName,
        Provenance, Tenant,
    };
    use serde_json::value::RawValue;

    use super::*;

    fn key(id: &str) -> AggregateKey {
        AggregateKey::new(
            Tenant::parse("demo").unwrap(),
            AggregateName::parse("blob").unwrap(),
            AggregateId::parse(id).unwrap(),
        )
    }

    fn commit(id: &str, version: u64, previous: &Hash) -> Recorded {
        let event = Event {
            event: EventName::parse("grew").unwrap(),
            version,
            schema_version: 1,
            data: RawValue::from_string("{}".to_owned()).unwrap(),
        };
        let commit = Commit {
            key: key(id),
            command_id: CommandId::parse("c").unwrap(),
            command_hash: CommandHash::of("", ""),
            provenance: Provenance::of(ActorName::parse("a").unwrap()),
            time_ms: 0,
            events: vec![event],
        };
        let encoded = commit.encode(previous);
        Recorded { sequence: version, hash: encoded.hash, body: encoded.body.into(), commit }
    }

    /// A tenant found them in two minutes: they stopped every projection of every tenant.
    #[test]
    fn two_ids_that_one_hash_cannot_tell_apart_are_two_aggregates() {
        let ids = ["85eec3d2c784313e", "00c0dce69a15679a"];
        let public = ids.map(|id| {
            let mut hasher = DefaultHasher::new();
            key(id).hash(&mut hasher);
            hasher.finish()
        });
        assert_eq!(public[0], public[1], "they collide where anybody can compute the hash");
        let mut links = Links::with_room_for(LINKS_MAX);
        for id in ids {
            links.check(&commit(id, 1, &Hash::ZERO)).unwrap();
        }
        assert_eq!((links.begun, links.unchecked), (2, 0));
        let hashes = ids.map(|id| links.key_hash(&key(id)));
        let others = ids.map(|id| Links::with_room_for(LINKS_MAX).key_hash(&key(id)));
        assert_ne!(hashes, others, "hashes can be computed outside");
    }

    #[test]
    fn a_commit_that_does_not_follow_is_found_and_not_remembered() {
        let mut links = Links::with_room_for(LINKS_MAX);
        let first = commit("a", 1, &Hash::ZERO);
        links.check(&first).unwrap();
        assert!(matches!(links.check(&commit("a", 3, &first.hash)), Err(Error::Gap { .. })));
        let other = commit("a", 2, &Hash::ZERO);
        assert!(matches!(links.check(&other), Err(Error::BrokenChain { .. })));
        links.check(&commit("a", 2, &first.hash)).unwrap();
        let headless = commit("b", 1, &first.hash);
        assert!(matches!(links.check(&headless), Err(Error::BrokenChain { .. })));
    }

    #[test]
    fn what_is_broken_is_found_once_and_passes_from_then_on() {
        let mut links = Links::with_room_for(LINKS_MAX);
        links.check(&commit("a", 1, &Hash::ZERO)).unwrap();
        let other = commit("a", 2, &Hash::ZERO);
        links.check(&other).unwrap_err();
        assert!(links.break_off(&key("a")) && !links.break_off(&key("a")));
        links.check(&other).unwrap();
        links.check(&commit("a", 7, &Hash::ZERO)).unwrap();
        assert!(!links.break_off(&key("a")), "still");
        assert!(links.break_off(&key("never-met")));
        assert_eq!((links.begun, links.unchecked), (1, 0));
    }

    /// Memory is bounded; unchecked commits are counted, not passed over.
    #[test]
    fn what_is_met_again_soon_is_remembered_and_what_is_forgotten_is_counted() {
        let mut links = Links::with_room_for(8);
        let mut hot = commit("hot", 1, &Hash::ZERO);
        links.check(&hot).unwrap();
        for number in 0..100 {
            links.check(&commit(&format!("cold-{number}"), 1, &Hash::ZERO)).unwrap();
            if number % 3 == 2 {
                hot = commit("hot", hot.commit.version() + 1, &hot.hash);
                links.check(&hot).unwrap();
            }
            assert!(links.young.len() + links.old.len() <= 8);
        }
        assert_eq!((links.begun, links.unchecked), (101, 0));
        let cold = commit("cold-0", 1, &Hash::ZERO);
        links.check(&commit("cold-0", 2, &cold.hash)).unwrap();
        assert_eq!(links.unchecked, 1);
    }
}
