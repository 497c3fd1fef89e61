//! Answers.

use flexcore_domain::{Command, CommandHash, CommandId, Outcome, Position, Slot, StateReply};
use flexcore_eventstore::snapshot::RememberedCommand;

use super::{Action, Entry, Lane, Owed, Recall, StoredCommand, Turn, Work};

impl Lane {
    /// The same for all of this: nothing was recorded.
    pub(super) fn answer_all(
        &mut self,
        turn: &mut Turn,
        all: impl IntoIterator<Item = Work>,
        outcome: &Outcome,
    ) {
        for work in all {
            turn.actions.push(match work {
                Work::Command(Owed { ticket, .. }) => {
                    let outcome = self.tries.told(&work, outcome);
                    self.tries.give_up(ticket);
                    Action::Answer { ticket, outcome: Some(outcome) }
                }
                Work::OutcomeOf { ticket, .. } => {
                    Action::Answer { ticket, outcome: Some(outcome.clone()) }
                }
                Work::State { ticket } => Action::AnswerState { ticket, reply: no_state(outcome) },
            });
        }
    }
}

/// The answer to a question for a state where commands would have this outcome.
fn no_state(outcome: &Outcome) -> StateReply {
    match outcome {
        Outcome::Faulty { message } => StateReply::Faulty { message: message.clone() },
        Outcome::Unavailable { message }
        | Outcome::Away { message }
        | Outcome::NoRoom { message } => StateReply::Unavailable { message: message.clone() },
        _ => StateReply::Unavailable { message: "the state cannot be computed".to_owned() },
    }
}

/// The answer to a command whose id was accepted before.
pub(super) fn repeated(command: &Command, first: &RememberedCommand) -> Outcome {
    // Logs of earlier versions have the hash of the payload as it was sent.
    let as_sent = || CommandHash::of(command.name.as_str(), command.payload.as_str());
    if first.hash == command.hash || first.hash == as_sent() {
        return replay(command.key.slot(), first);
    }
    Outcome::IdMismatch
}

/// The answer to a question that is no command.
pub(super) fn answer(slot: Slot, entry: &Entry, work: &Work) -> Option<Action> {
    match work {
        Work::State { ticket } => {
            Some(Action::AnswerState { ticket: *ticket, reply: entry.state_reply() })
        }
        Work::OutcomeOf { id, stored, ticket } => {
            let outcome = outcome_of(slot, entry, id, stored.as_deref());
            Some(Action::Answer { ticket: *ticket, outcome })
        }
        Work::Command(_) => None,
    }
}

/// The answer to a question for a command; `None`: none of its id was accepted. A stored one that has made
/// the commit itself is no repetition.
fn outcome_of(
    slot: Slot,
    entry: &Entry,
    id: &CommandId,
    stored: Option<&StoredCommand>,
) -> Option<Outcome> {
    let Recall::Known(first) = entry.recall(id) else { return None };
    let Some(stored) = stored else { return Some(replay(slot, first)) };
    if stored.hashes.as_ref().is_some_and(|hashes| !hashes.contains(&first.hash)) {
        return Some(Outcome::IdMismatch);
    }
    if entry.made_by(first) != Some(stored.sequence) {
        return Some(replay(slot, first));
    }
    let position = Some(Position { slot, sequence: first.sequence });
    Some(Outcome::Accepted { version: first.version, position, replayed: false })
}

pub(super) fn replay(slot: Slot, first: &RememberedCommand) -> Outcome {
    Outcome::Accepted {
        version: first.version,
        position: Some(Position { slot, sequence: first.sequence }),
        replayed: true,
    }
}
