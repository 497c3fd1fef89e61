//! The command ids that an aggregate remembers: all of them, so that a command is applied once
//! however much comes between.
//!
//! The last 1,024 are kept whole, with their outcomes. Of each older one there is a fingerprint of
//! 32 bits and the place of its commit in the log. That no fingerprint fits is a proof that the
//! command is new, and costs a look into memory. Where one fits, the commit at its place says
//! whether it was this command: one message of the log is read. Among a million older commands a
//! new one is looked up in vain once in 4,000 times. Clients cannot make that more: the
//! fingerprints are keyed with a secret that only workers and the snapshots' bucket know.

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
};

use flexcore_domain::{CommandId, Secret, limits};
use flexcore_eventstore::snapshot::{Block, OlderCommands, RememberedCommand};

/// A secret that nobody can foresee.
pub(super) fn random_secret() -> Secret {
    // The standard library keys its hash tables from the system's randomness.
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        half.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes());
    }
    bytes.into()
}

/// True if a command was accepted before.
#[derive(Debug, PartialEq)]
pub(super) enum Recall<'m> {
    /// It was, with this outcome.
    Known(&'m RememberedCommand),
    /// It was if one of the commits at these places in the log, in their order, is its own.
    Perhaps(Vec<u64>),
    /// It was not.
    Never,
}

/// An aggregate's memory.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    secret: Secret,
    /// Oldest first.
    recent: VecDeque<RememberedCommand>,
    /// Theirs, in the same order: to be compared before the ids are.
    recent_prints: VecDeque<u32>,
    /// Oldest first, all full.
    blocks: Vec<Arc<Block>>,
    /// Those of the first blocks that the broker is known to have.
    kept: usize,
    /// Older than the recent ones and later than the blocks.
    open: Block,
    /// The log's answer about the id that was looked up last.
    looked_up: Option<(CommandId, Option<RememberedCommand>)>,
    /// Of the last commits that this process has made for stored commands, oldest first: the sequences in the
    /// log and in the queue. Not kept: who waits for a stored command asks at once.
    stored: VecDeque<(u64, u64)>,
}

impl Memory {
    pub(super) fn new(secret: Secret) -> Self {
        Self {
            secret,
            recent: VecDeque::new(),
            recent_prints: VecDeque::new(),
            blocks: Vec::new(),
            kept: 0,
            open: Block::default(),
            looked_up: None,
            stored: VecDeque::new(),
        }
    }

    /// As a snapshot has it, and its secret with it.
    pub(super) fn restore(commands: &[RememberedCommand], older: &OlderCommands) -> Self {
        let secret = older.secret;
        Self {
            secret,
            recent: commands.iter().cloned().collect(),
            recent_prints: commands.iter().map(|it| secret.fingerprint(it.id.as_str())).collect(),
            blocks: older.blocks.clone(),
            kept: older.blocks.len(),
            open: older.open.clone(),
            looked_up: None,
            stored: VecDeque::new(),
        }
    }

    /// For a snapshot: the recent ones, and the older ones.
    pub(super) fn save(&self) -> (Vec<RememberedCommand>, OlderCommands) {
        let older = OlderCommands {
            secret: self.secret,
            full: self.blocks.len(),
            open: self.open.clone(),
            blocks: self.blocks.clone(),
            kept: self.kept,
        };
        (self.recent.iter().cloned().collect(), older)
    }

    pub(super) fn recall(&self, id: &CommandId) -> Recall<'_> {
        let print = self.secret.fingerprint(id.as_str());
        if let Some(known) = self.known(print, id) {
            return Recall::Known(known);
        }
        #[cfg(feature = "defects")]
        if crate::defects::is_on(crate::defects::FORGET_OLD) {
            return Recall::Never;
        }
        if let Some((_, said)) = self.looked_up.as_ref().filter(|(of, _)| of == id) {
            return said.as_ref().map_or(Recall::Never, Recall::Known);
        }
        let mut places: Vec<u64> =
            self.blocks.iter().flat_map(|block| found(block, print)).copied().collect();
        let open = self.open.prints.iter().zip(&self.open.sequences);
        places.extend(open.filter(|(its, _)| **its == print).map(|(_, sequence)| *sequence));
        if places.is_empty() { Recall::Never } else { Recall::Perhaps(places) }
    }

    /// The first of the recent ones that has this id.
    fn known(&self, print: u32, id: &CommandId) -> Option<&RememberedCommand> {
        let (front, back) = self.recent_prints.as_slices();
        [(0, front), (front.len(), back)].into_iter().find_map(|(offset, prints)| {
            let alike = prints.iter().enumerate().filter(|(_, its)| **its == print);
            let mut alike = alike.map(|(place, _)| &self.recent[offset + place]);
            alike.find(|command| command.id == *id)
        })
    }

    /// The log was asked for this command, and this is its answer.
    pub(super) fn looked_up(&mut self, id: CommandId, said: Option<RememberedCommand>) {
        self.looked_up = Some((id, said));
    }

    pub(super) fn remember(&mut self, command: RememberedCommand) {
        self.looked_up = None;
        if self.recent.len() == limits::COMMAND_IDS_REMEMBERED
            && let Some((oldest, print)) =
                self.recent.pop_front().zip(self.recent_prints.pop_front())
        {
            self.open.prints.push(print);
            self.open.sequences.push(oldest.sequence);
            if self.open.prints.len() == limits::FINGERPRINTS_PER_BLOCK {
                self.blocks.push(Arc::new(sorted(&std::mem::take(&mut self.open))));
            }
        }
        self.recent_prints.push_back(self.secret.fingerprint(command.id.as_str()));
        self.recent.push_back(command);
    }

    /// The commit at this sequence of the log is of the stored command at that one of the queue.
    pub(super) fn was_stored(&mut self, committed: u64, stored: u64) {
        if self.stored.len() == limits::COMMAND_IDS_REMEMBERED {
            self.stored.pop_front();
        }
        self.stored.push_back((committed, stored));
    }

    /// The sequence in the queue of the stored command that has made the commit at this sequence of the log, if
    /// that is known.
    pub(super) fn made_by(&self, committed: u64) -> Option<u64> {
        let place = self.stored.binary_search_by_key(&committed, |(at, _)| *at).ok()?;
        self.stored.get(place).map(|(_, stored)| *stored)
    }

    /// The broker has so many blocks, of the memory with this secret.
    pub(super) fn keeps(&mut self, secret: Secret, blocks: usize) {
        if secret == self.secret {
            self.kept = self.kept.max(blocks.min(self.blocks.len()));
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        // A remembered command takes its struct and about 48 bytes of id.
        let recent = size_of::<RememberedCommand>() + 48 + size_of::<u32>();
        let older = size_of::<u32>() + size_of::<u64>();
        let count = self.blocks.len() * limits::FINGERPRINTS_PER_BLOCK + self.open.prints.len();
        let stored = self.stored.len() * size_of::<(u64, u64)>();
        size_of::<Self>() + self.recent.len() * recent + count * older + stored
    }
}

/// The block by its fingerprints, those that are equal in the log's order.
fn sorted(block: &Block) -> Block {
    let mut pairs: Vec<(u32, u64)> =
        block.prints.iter().copied().zip(block.sequences.iter().copied()).collect();
    pairs.sort_unstable();
    let (prints, sequences) = pairs.into_iter().unzip();
    Block { prints, sequences }
}

/// Places in a sorted block.
fn found(block: &Block, print: u32) -> &[u64] {
    let start = block.prints.partition_point(|its| *its < print);
    let count = block.prints[start..].iter().take_while(|its| **its == print).count();
    block.sequences.get(start..start + count).unwrap_or_default()
}
