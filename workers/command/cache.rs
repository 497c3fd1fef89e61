//! Aggregates that a lane has at hand, within a limit of bytes.

use std::{collections::VecDeque, sync::Arc};

use flexcore_domain::{
    AggregateKey, Command, CommandHash, CommandId, Decision, Outcome, Position, Slot, State,
    StateReply,
    commit::{Commit, Event},
    limits,
};
use flexcore_eventstore::{
    Appended, Expected, Recorded,
    snapshot::{RememberedCommand, Snapshot},
};
use lru::LruCache;
use serde_json::value::RawValue;

/// An aggregate: its state, its place in the log, and its last command ids.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Events so far.
    pub(super) version: u64,
    /// What its subject ends with.
    pub(super) expected: Expected,
    /// What its decider's `evolve` returned last.
    pub(super) state: State,
    /// Oldest first. Shared with the entry that an append would make until that one is recorded.
    commands: Arc<VecDeque<RememberedCommand>>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            version: 0,
            expected: Expected::default(),
            state: State::none(),
            commands: Arc::default(),
        }
    }
}

impl Entry {
    pub(super) fn from_snapshot(snapshot: &Snapshot) -> Self {
        Self {
            version: snapshot.version,
            expected: snapshot.expected(),
            state: State::from_json(snapshot.state.get()),
            commands: Arc::new(snapshot.commands.iter().cloned().collect()),
        }
    }

    pub(super) fn snapshot(&self, fingerprint: String) -> Snapshot {
        Snapshot {
            fingerprint,
            version: self.version,
            sequence: self.expected.sequence,
            hash: self.expected.hash,
            state: self.raw_state(),
            commands: self.commands.iter().cloned().collect(),
        }
    }

    /// What came of a command that this aggregate accepted before.
    pub(super) fn remembered(&self, id: &CommandId) -> Option<&RememberedCommand> {
        self.commands.iter().rev().find(|command| command.id == *id)
    }

    /// The commit of a decision, and the aggregate with it; its place is not known yet.
    pub(super) fn commit(
        &self,
        command: &Command,
        hash: CommandHash,
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
            state: decision.state,
            commands: self.commands.clone(),
        };
        let commit = Commit {
            key: command.key.clone(),
            command_id: command.id.clone(),
            command_hash: hash,
            actor: command.actor.clone(),
            correlation_id: command.correlation_id.clone(),
            causation_id: command.causation_id.clone(),
            traceparent: command.traceparent.clone(),
            time_ms: now_ms,
            events,
        };
        (commit, after)
    }

    /// The commit was appended there.
    pub(super) fn appended(&mut self, appended: Appended, command: &Command, hash: CommandHash) {
        self.expected = Expected { sequence: appended.sequence, hash: appended.hash };
        self.remember(RememberedCommand {
            id: command.id.clone(),
            hash,
            version: self.version,
            sequence: appended.sequence,
        });
    }

    /// A commit was read from the log, and the state after it is this.
    pub(super) fn record(&mut self, recorded: &Recorded, state: State) {
        self.version = recorded.commit.version();
        self.expected = Expected { sequence: recorded.sequence, hash: recorded.hash };
        self.state = state;
        self.remember(RememberedCommand {
            id: recorded.commit.command_id.clone(),
            hash: recorded.commit.command_hash,
            version: self.version,
            sequence: recorded.sequence,
        });
    }

    fn remember(&mut self, command: RememberedCommand) {
        let commands = Arc::make_mut(&mut self.commands);
        if commands.len() == limits::COMMAND_IDS_REMEMBERED {
            commands.pop_front();
        }
        commands.push_back(command);
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
        // A remembered command takes its struct and about 48 bytes of id.
        let command = size_of::<RememberedCommand>() + 48;
        size_of::<Self>() + self.state.as_str().len() + self.commands.len() * command + 256
    }
}

/// Entries by aggregate, the least recently used going first.
pub(super) struct Cache {
    entries: LruCache<AggregateKey, (Entry, usize)>,
    size_bytes: usize,
    size_bytes_max: usize,
}

impl Cache {
    pub(super) fn new(size_bytes_max: usize) -> Self {
        Self { entries: LruCache::unbounded(), size_bytes: 0, size_bytes_max }
    }

    pub(super) fn take(&mut self, key: &AggregateKey) -> Option<Entry> {
        let (entry, size) = self.entries.pop(key)?;
        self.size_bytes -= size;
        Some(entry)
    }

    pub(super) fn put(&mut self, key: AggregateKey, entry: Entry) {
        let size = entry.size_bytes();
        self.size_bytes += size;
        if let Some((_, (_, replaced))) = self.entries.push(key, (entry, size)) {
            self.size_bytes -= replaced;
        }
        while self.size_bytes > self.size_bytes_max {
            let Some((_, (_, size))) = self.entries.pop_lru() else { return };
            self.size_bytes -= size;
        }
    }

    /// Drops the aggregates of a slot.
    pub(super) fn forget(&mut self, slot: Slot) {
        let of_slot = self.entries.iter().filter(|(key, _)| key.slot() == slot);
        let keys: Vec<AggregateKey> = of_slot.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.take(&key);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.size_bytes = 0;
    }
}
