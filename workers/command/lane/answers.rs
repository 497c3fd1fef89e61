//! Answers.

use std::collections::VecDeque;

use flexcore_domain::{Command, CommandHash, Outcome, Position, Refusal, Slot, StateReply};
use flexcore_eventstore::snapshot::RememberedCommand;

use super::{Action, Lane, Undecided, Work};

impl Lane {
    /// The same for all that waits: nothing was recorded.
    pub(super) fn answer_all(
        &mut self,
        waiting: VecDeque<Work>,
        outcome: &Outcome,
        message: &str,
        actions: &mut Vec<Action>,
    ) {
        for work in waiting {
            actions.push(match work {
                Work::Command { ticket, .. } => {
                    let outcome = self.doubts.told(&work, outcome);
                    self.doubts.give_up(ticket);
                    Action::Answer { ticket, outcome: Some(outcome) }
                }
                Work::OutcomeOf { ticket, .. } => {
                    Action::Answer { ticket, outcome: Some(outcome.clone()) }
                }
                Work::State { ticket } => {
                    let reply = match outcome {
                        Outcome::Faulty { message } => {
                            StateReply::Faulty { message: message.clone() }
                        }
                        _ => StateReply::Unavailable { message: message.to_owned() },
                    };
                    Action::AnswerState { ticket, reply }
                }
            });
        }
    }
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

pub(super) fn refused(refusal: Refusal) -> Undecided {
    Undecided::Told(match refusal {
        Refusal::Rejected { code, message } => Outcome::Rejected { code, message },
        Refusal::UnknownCommand { known } => Outcome::UnknownCommand { known },
        Refusal::InvalidPayload { violations } => Outcome::InvalidPayload { violations },
        Refusal::Faulty(message) => Outcome::Faulty { message },
        Refusal::Exhausted(message) => return Undecided::Exhausted(message),
    })
}
