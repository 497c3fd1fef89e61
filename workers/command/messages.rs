//! Inputs and actions of a lane.

use std::{sync::Arc, time::Duration};

use flexcore_definition::Catalog;
use flexcore_domain::{
    AggregateKey, Command, CommandHash, CommandId, Outcome, Payload, Secret, StateReply, Tenant,
    commit::Commit,
};
use flexcore_eventstore::{
    Appended, Error, Expected,
    snapshot::{RememberedCommand, Snapshot},
};
use flexcore_queue::Queued;

use super::deciders::{Fingerprint, Proposals, ToDecide};

/// Answers that this lane owes, by number.
pub(super) type Ticket = u64;

/// A question to an aggregate.
#[derive(Debug)]
pub(super) enum Work {
    /// A command.
    Command(Owed),
    /// Its state now.
    State {
        /// The answer's number.
        ticket: Ticket,
    },
    /// The outcome of a command.
    OutcomeOf {
        /// The command's id.
        id: CommandId,
        /// The stored one that is meant; `None`: whichever has this id.
        stored: Option<Box<StoredCommand>>,
        /// The answer's number.
        ticket: Ticket,
    },
}

/// A stored command that somebody asks for. Another one may have had its id before.
#[derive(Debug)]
pub(crate) struct StoredCommand {
    /// Its sequence in the queue.
    pub(super) sequence: u64,
    /// The hashes that a commit of it may have; `None`: the queue does not have it any more.
    pub(super) hashes: Option<Vec<CommandHash>>,
}

impl StoredCommand {
    /// The one at this sequence, as the queue has it if it is still there.
    pub(super) fn new(sequence: u64, message: Option<&Queued>) -> Self {
        Self { sequence, hashes: message.map(hashes) }
    }
}

/// None where it cannot be read: nothing is committed of that.
fn hashes(message: &Queued) -> Vec<CommandHash> {
    let name = message.subject.rsplit('.').next().unwrap_or_default();
    let Ok((payload, canonical)) = Payload::parse_canonical(&message.payload) else {
        return Vec::new();
    };
    // Logs of earlier versions have the hash of the payload as it was sent.
    vec![CommandHash::of(name, &canonical), CommandHash::of(name, payload.as_str())]
}

/// A command that an answer is owed for.
#[derive(Debug)]
pub(super) struct Owed {
    /// The command.
    pub(super) command: Box<Command>,
    /// True if it waits out an outage: it came from the queue, so it is retried for ever where a
    /// waiting client would be told to try again.
    pub(super) patient: bool,
    /// Its sequence in the queue, if it came from there.
    pub(super) stored: Option<u64>,
    /// Its answer's number.
    pub(super) ticket: Ticket,
}

impl Work {
    /// The answer's number.
    pub(super) fn ticket(&self) -> Ticket {
        let (Self::Command(Owed { ticket, .. })
        | Self::State { ticket }
        | Self::OutcomeOf { ticket, .. }) = self;
        *ticket
    }

    /// True if it waits out an outage.
    pub(super) fn is_patient(&self) -> bool {
        matches!(self, Self::Command(owed) if owed.patient)
    }
}

/// An input of a lane.
#[derive(Debug)]
pub(super) enum Input {
    /// Somebody asks an aggregate.
    Work {
        /// The aggregate.
        key: AggregateKey,
        /// The question.
        work: Work,
    },
    /// A load has ended.
    Loaded {
        /// The aggregate.
        key: AggregateKey,
        /// The result.
        result: Result<Loaded, Error>,
    },
    /// A stored command whose decider was away comes again.
    Again {
        /// The aggregate.
        key: AggregateKey,
        /// The number of the command's answer.
        ticket: Ticket,
    },
    /// What was loaded had to go before its turn came.
    Unloaded {
        /// The aggregate.
        key: AggregateKey,
    },
    /// An append has ended.
    Appended {
        /// The aggregate.
        key: AggregateKey,
        /// Where the commit is.
        result: Result<Appended, Error>,
    },
    /// A command was looked up in the log.
    LookedUp {
        /// The aggregate.
        key: AggregateKey,
        /// Its outcome; `None`: it is at none of those places.
        result: Result<Option<RememberedCommand>, Error>,
    },
    /// A decider has answered, or its time is over.
    Decided {
        /// The aggregate.
        key: AggregateKey,
        /// The question's number.
        number: u64,
        /// The events that it proposes.
        result: Proposals,
    },
    /// The broker has blocks of an aggregate's fingerprints.
    BlocksKept {
        /// The aggregate.
        key: AggregateKey,
        /// The key of their fingerprints.
        secret: Secret,
        /// So many of the first.
        count: usize,
    },
    /// Other applications are in force.
    Catalog(Arc<Catalog>),
}

impl Input {
    /// The tenant that the lane works for.
    pub(super) fn tenant(&self) -> Option<&Tenant> {
        match self {
            Self::Work { key, .. }
            | Self::Loaded { key, .. }
            | Self::Again { key, .. }
            | Self::Unloaded { key }
            | Self::Appended { key, .. }
            | Self::LookedUp { key, .. }
            | Self::Decided { key, .. }
            | Self::BlocksKept { key, .. } => Some(key.tenant()),
            Self::Catalog(_) => None,
        }
    }
}

/// Commits of an aggregate, and the snapshot that they follow.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// A snapshot of the right fingerprint, when one was used.
    pub(super) snapshot: Option<Snapshot>,
    /// The first commits after it, or after that sequence.
    pub(super) commits: Vec<flexcore_eventstore::Recorded>,
    /// True if there are later ones: they are loaded when these are folded, so that a long
    /// aggregate takes neither the memory nor the lane of others.
    pub(super) more: bool,
}

/// An action for the shell.
#[derive(Debug)]
pub(super) enum Action {
    /// Load the commits after this sequence, after a pause; from a snapshot if it is worth it.
    Load {
        /// The aggregate.
        key: AggregateKey,
        /// The sequence that is known already: later commits are wanted. 0: everything.
        after: Expected,
        /// Fingerprint that a snapshot must have.
        fingerprint: Fingerprint,
        /// The time to wait first.
        pause: Duration,
        /// A client's command waits for it: while the broker has no room, not for long.
        for_client: bool,
    },
    /// Go on with the rest of what was loaded, when others have had their turns.
    GoOn {
        /// The aggregate.
        key: AggregateKey,
        /// The rest.
        loaded: Loaded,
    },
    /// Ask the aggregate's decider, for so long as it may take.
    AskDecider {
        /// The aggregate.
        key: AggregateKey,
        /// The question's number; its answer carries it.
        number: u64,
        /// The question.
        to_decide: Box<ToDecide>,
    },
    /// Have a stored command come again after a pause, and leave its aggregate to clients meanwhile.
    Wait {
        /// The aggregate.
        key: AggregateKey,
        /// The number of the command's answer.
        ticket: Ticket,
        /// The time to wait first.
        pause: Duration,
    },
    /// Append a commit.
    Append {
        /// The commit. Kept by the lane, too: without an answer it is sent again.
        commit: Arc<Commit>,
        /// The expected end of the aggregate.
        expected: Expected,
    },
    /// Look up whether a command's commit is at one of these places.
    LookUp {
        /// The aggregate.
        key: AggregateKey,
        /// The command.
        id: CommandId,
        /// Stream sequences, in order. Few: fingerprints that fit by chance, and the one that does not.
        places: Vec<u64>,
    },
    /// Answer a command, or a question for one: `None` when the aggregate never accepted it.
    Answer {
        /// The answer's number.
        ticket: Ticket,
        /// Its outcome.
        outcome: Option<Outcome>,
    },
    /// Answer a question for a state.
    AnswerState {
        /// The answer's number.
        ticket: Ticket,
        /// The state.
        reply: StateReply,
    },
    /// Keep a snapshot; nobody waits for it.
    SaveSnapshot {
        /// The aggregate.
        key: AggregateKey,
        /// The snapshot.
        snapshot: Box<Snapshot>,
    },
}
