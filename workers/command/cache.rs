//! Aggregates that a lane holds in memory, within a limit of bytes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use flexcore_domain::{
    AggregateKey, Command, CommandId, Decision, Outcome, Position, Secret, Slot, State, StateReply,
    Tenant,
    commit::{Commit, Event},
};
use flexcore_eventstore::{
    Appended, Expected, Recorded,
    snapshot::{RememberedCommand, Snapshot},
};
use lru::LruCache;
use serde_json::value::RawValue;

use super::{
    deciders::Fingerprint,
    memory::{Memory, Recall},
};

/// An aggregate: its state, its place in the log, and its command ids.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Events so far.
    pub(super) version: u64,
    /// The last sequence on its subject.
    pub(super) expected: Expected,
    /// When its last commit was decided. No later commit has an earlier time.
    pub(super) time_ms: i64,
    /// The last result of its decider's `evolve`.
    pub(super) state: State,
    /// By these functions. It is decided on, and more is folded on it, only while they are in force.
    pub(super) folded_by: Fingerprint,
    /// Shared with the entry that an append would make until that one is recorded.
    memory: Arc<Memory>,
}

impl Entry {
    /// An aggregate without events. The secret is for the fingerprints of its command ids.
    pub(super) fn new(secret: Secret, folded_by: Fingerprint) -> Self {
        Self {
            version: 0,
            expected: Expected::default(),
            time_ms: i64::MIN,
            state: State::none(),
            folded_by,
            memory: Arc::new(Memory::new(secret)),
        }
    }

    /// An aggregate as a snapshot of these functions has it.
    pub(super) fn from_snapshot(snapshot: &Snapshot, folded_by: Fingerprint) -> Self {
        Self {
            version: snapshot.version,
            expected: snapshot.expected(),
            time_ms: snapshot.time_ms,
            state: State::from_json(snapshot.state.get()),
            folded_by,
            memory: Arc::new(Memory::restore(&snapshot.commands, &snapshot.older)),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let (commands, older) = self.memory.save();
        Snapshot {
            fingerprint: self.folded_by.as_str().to_owned(),
            version: self.version,
            sequence: self.expected.sequence,
            hash: self.expected.hash,
            time_ms: self.time_ms,
            state: self.raw_state(),
            commands,
            older,
        }
    }

    /// True if this aggregate accepted a command before.
    pub(super) fn recall(&self, id: &CommandId) -> Recall<'_> {
        self.memory.recall(id)
    }

    /// The sequence in the queue of the stored command that has made this commit; `None`: none has, or nobody
    /// here knows any more.
    pub(super) fn made_by(&self, command: &RememberedCommand) -> Option<u64> {
        self.memory.made_by(command.sequence)
    }

    /// The log was asked for a command, and this is its answer.
    pub(super) fn looked_up(&mut self, id: CommandId, said: Option<RememberedCommand>) {
        Arc::make_mut(&mut self.memory).looked_up(id, said);
    }

    /// The broker has so many blocks of fingerprints, made with this secret.
    pub(super) fn keeps(&mut self, secret: Secret, blocks: usize) {
        Arc::make_mut(&mut self.memory).keeps(secret, blocks);
    }

    /// The commit of a decision, and the aggregate with it; its place is not known yet.
    pub(super) fn commit(
        &self,
        command: &Command,
        decision: Decision,
        now_ms: i64,
    ) -> (Commit, Self) {
        let events: Vec<Event> = decision
            .events
            .into_iter()
            .zip(self.version + 1..)
            .map(|(event, version)| Event {
                event: event.event,
                version,
                schema_version: event.schema_version,
                data: event.data,
            })
            .collect();
        let after = Self {
            version: self.version + events.len() as u64,
            expected: self.expected,
            time_ms: now_ms,
            state: decision.state,
            folded_by: self.folded_by.clone(),
            memory: self.memory.clone(),
        };
        let commit = Commit {
            key: command.key.clone(),
            command_id: command.id.clone(),
            command_hash: command.hash,
            provenance: command.provenance.clone(),
            time_ms: now_ms,
            events,
        };
        (commit, after)
    }

    /// The commit was appended there. `stored`: the command's sequence in the queue, if it came from there.
    pub(super) fn appended(&mut self, appended: Appended, command: &Command, stored: Option<u64>) {
        self.expected = Expected { sequence: appended.sequence, hash: appended.hash };
        self.remember(RememberedCommand {
            id: command.id.clone(),
            hash: command.hash,
            version: self.version,
            sequence: appended.sequence,
        });
        if let Some(stored) = stored {
            Arc::make_mut(&mut self.memory).was_stored(appended.sequence, stored);
        }
    }

    /// A commit was read from the log, and the state after it is this.
    pub(super) fn record(&mut self, recorded: &Recorded, state: State) {
        self.version = recorded.commit.version();
        self.expected = Expected { sequence: recorded.sequence, hash: recorded.hash };
        // Logs of earlier builds may have times that go back.
        self.time_ms = self.time_ms.max(recorded.commit.time_ms);
        self.state = state;
        self.remember(RememberedCommand::of(recorded));
    }

    fn remember(&mut self, command: RememberedCommand) {
        Arc::make_mut(&mut self.memory).remember(command);
    }

    pub(super) fn accepted(&self, key: &AggregateKey) -> Outcome {
        Outcome::Accepted {
            version: self.version,
            position: Some(Position { slot: key.slot(), sequence: self.expected.sequence }),
            replayed: false,
        }
    }

    pub(super) fn state_reply(&self) -> StateReply {
        if self.version == 0 {
            return StateReply::NotFound;
        }
        StateReply::Found { version: self.version, state: self.raw_state() }
    }

    fn raw_state(&self) -> Box<RawValue> {
        RawValue::from_string(self.state.as_str().to_owned())
            .expect("BUG: a decider's state is JSON text")
    }

    fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.state.as_str().len() + self.memory.size_bytes() + 256
    }
}

/// Entries by aggregate, within a limit of bytes that tenants share: the one that has most of them
/// loses its least recently used one first.
pub(super) struct Cache {
    of: HashMap<Tenant, Own>,
    /// The tenants by their bytes.
    by_size: BTreeSet<(usize, Tenant)>,
    size_bytes: usize,
    size_bytes_max: usize,
}

/// One tenant's.
struct Own {
    entries: LruCache<AggregateKey, (Entry, usize)>,
    size_bytes: usize,
}

impl Cache {
    pub(super) fn new(size_bytes_max: usize) -> Self {
        Self { of: HashMap::new(), by_size: BTreeSet::new(), size_bytes: 0, size_bytes_max }
    }

    pub(super) fn take(&mut self, key: &AggregateKey) -> Option<Entry> {
        let (entry, size) = self.of.get_mut(key.tenant())?.entries.pop(key)?;
        self.resize(key.tenant(), 0, size);
        Some(entry)
    }

    pub(super) fn put(&mut self, key: AggregateKey, entry: Entry) {
        let (tenant, size) = (key.tenant().clone(), entry.size_bytes());
        let own = self.of.entry(tenant.clone());
        let own = own.or_insert_with(|| Own { entries: LruCache::unbounded(), size_bytes: 0 });
        let replaced = own.entries.push(key, (entry, size)).map_or(0, |(_, (_, size))| size);
        self.resize(&tenant, size, replaced);
        while self.size_bytes > self.size_bytes_max {
            let Some((_, most)) = self.by_size.last().cloned() else { return };
            let least_used = self.of.get_mut(&most).and_then(|own| own.entries.pop_lru());
            let Some((_, (_, size))) = least_used else { return };
            self.resize(&most, 0, size);
        }
    }

    pub(super) fn get_mut(&mut self, key: &AggregateKey) -> Option<&mut Entry> {
        let own = self.of.get_mut(key.tenant())?;
        own.entries.peek_mut(key).map(|(entry, _)| entry)
    }

    /// Takes down what a tenant has more and less.
    fn resize(&mut self, tenant: &Tenant, more: usize, less: usize) {
        self.size_bytes = self.size_bytes + more - less;
        let Some(own) = self.of.get_mut(tenant) else { return };
        let mut place = (own.size_bytes, tenant.clone());
        self.by_size.remove(&place);
        own.size_bytes = own.size_bytes + more - less;
        if own.entries.is_empty() {
            self.of.remove(tenant);
            return;
        }
        place.0 = own.size_bytes;
        self.by_size.insert(place);
    }

    /// Drops the aggregates of a slot.
    pub(super) fn forget(&mut self, slot: Slot) {
        let all = self.of.values().flat_map(|own| own.entries.iter());
        let of_slot = all.filter(|(key, _)| key.slot() == slot);
        let keys: Vec<AggregateKey> = of_slot.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.take(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::some_keys::key;

    fn entry() -> Entry {
        Entry::new([0; 16].into(), Fingerprint::native())
    }

    #[test]
    fn a_flood_of_aggregates_takes_nobody_elses_from_the_cache() {
        let size = entry().size_bytes();
        let mut cache = Cache::new(100 * size);
        for id in 0..40 {
            cache.put(key("calm", id), entry());
        }
        for id in 0..1_000 {
            cache.put(key("flood", id), entry());
        }
        assert!((0..40).all(|id| cache.take(&key("calm", id)).is_some()));
        assert_eq!(cache.size_bytes, 60 * size);
        assert!((940..1_000).all(|id| cache.take(&key("flood", id)).is_some()), "the last used");
        assert_eq!(cache.size_bytes, 0);
        assert!(cache.of.is_empty() && cache.by_size.is_empty());
        for id in 0..1_000 {
            cache.put(key("flood", id), entry());
        }
        assert_eq!(cache.size_bytes, 100 * size, "alone it has all");
        cache.put(key("flood", 999), entry());
        assert_eq!(cache.size_bytes, 100 * size);
    }
}
