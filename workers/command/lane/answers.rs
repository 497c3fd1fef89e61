//! Answers, and when a refusal is one.

use std::collections::{HashMap, VecDeque};

use flexcore_domain::{
    AggregateKey, Command, CommandHash, Outcome, Position, Refusal, Slot, StateReply,
};
use flexcore_eventstore::snapshot::RememberedCommand;

use super::{Action, Ticket, Work};

/// Times that a queued command is looked at again before a refusal is taken to be final, some 10 s in
/// all: by then a commit that had no answer is in the log or will never be.
const LOOKS_MAX: u32 = 10;

/// Commands whose commit had no answer: it may be in the log, or get there yet. A refusal that follows
/// from a state without it says nothing then.
#[derive(Default)]
pub(super) struct Doubts(HashMap<Ticket, AggregateKey>);

impl Doubts {
    pub(super) fn begin(&mut self, ticket: Ticket, key: &AggregateKey) {
        self.0.insert(ticket, key.clone());
    }

    pub(super) fn end(&mut self, ticket: Ticket) {
        self.0.remove(&ticket);
    }

    pub(super) fn leave(&mut self, slot: Slot) {
        self.0.retain(|_, key| key.slot() != slot);
    }

    /// Whether a queued command has to be looked at again before this is its outcome.
    pub(super) fn must_look_again(&self, ticket: Ticket, outcome: &Outcome, looks: u32) -> bool {
        depends_on_the_state(outcome) && self.is_open(ticket, looks)
    }

    /// Whether an earlier commit of a command may be in the log yet, so often looked for.
    pub(super) fn is_open(&self, ticket: Ticket, looks: u32) -> bool {
        self.0.contains_key(&ticket) && looks < LOOKS_MAX
    }

    /// What a waiting client is told in place of this outcome.
    pub(super) fn told(&mut self, ticket: Ticket, patient: bool, outcome: Outcome) -> Outcome {
        let in_doubt = self.0.remove(&ticket).is_some();
        if in_doubt && !patient && depends_on_the_state(&outcome) {
            let message = "a commit of this command had no answer".to_owned();
            return Outcome::Unavailable { message };
        }
        outcome
    }
}

fn depends_on_the_state(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Rejected { .. }
            | Outcome::Conflict { .. }
            | Outcome::Faulty { .. }
            | Outcome::NoRoom { .. }
    )
}

pub(super) fn answer_all(
    waiting: VecDeque<Work>,
    outcome: &Outcome,
    message: &str,
    actions: &mut Vec<Action>,
) {
    actions.extend(waiting.into_iter().map(|work| match work {
        Work::Command { ticket, .. } | Work::OutcomeOf { ticket, .. } => {
            Action::Answer { ticket, outcome: Some(outcome.clone()) }
        }
        Work::State { ticket } => Action::AnswerState {
            ticket,
            reply: StateReply::Unavailable { message: message.to_owned() },
        },
    }));
}

pub(super) fn is_patient(work: &Work) -> bool {
    matches!(work, Work::Command { patient: true, .. })
}

/// The answer to a command whose id was accepted before.
pub(super) fn repeated(command: &Command, first: &RememberedCommand) -> Outcome {
    // Logs of earlier versions have the hash of the payload as it was sent.
    let as_sent = || CommandHash::of(command.name.as_str(), command.payload.get());
    if first.hash == command.hash || first.hash == as_sent() {
        return replay(command.key.slot(), first);
    }
    Outcome::IdMismatch
}

pub(super) fn replay(slot: Slot, first: &RememberedCommand) -> Outcome {
    Outcome::Accepted {
        version: first.version,
        position: Some(Position { slot, sequence: first.sequence }),
        replayed: true,
    }
}

pub(super) fn refused(refusal: Refusal) -> Outcome {
    match refusal {
        Refusal::Rejected { code, message } => Outcome::Rejected { code, message },
        Refusal::UnknownCommand { known } => Outcome::UnknownCommand { known },
        Refusal::InvalidPayload { violations } => Outcome::InvalidPayload { violations },
        Refusal::Faulty(message) => Outcome::Faulty { message },
    }
}
