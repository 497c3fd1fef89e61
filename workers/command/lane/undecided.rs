//! Commands without a commit.

use flexcore_domain::{Outcome, Refusal};

use super::Fault;
use crate::command::deciders::NoDecision;

/// Why a command has no commit.
pub(super) enum Undecided {
    /// This is its outcome.
    Told(Outcome),
    /// Its functions, or those of its state, used up what they may.
    Exhausted(String),
    /// Its decider cannot be asked just now.
    Away(String),
    /// Its decider has too much to do.
    Busy(String),
}

impl From<Outcome> for Undecided {
    fn from(outcome: Outcome) -> Self {
        Self::Told(outcome)
    }
}

impl Undecided {
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Told(outcome) => outcome,
            Self::Exhausted(message) => Outcome::Faulty { message },
            // Its decider records nothing, and nothing of it was sent to the log.
            Self::Away(message) | Self::Busy(message) => Outcome::Away { message },
        }
    }
}

impl From<Refusal> for Undecided {
    fn from(refusal: Refusal) -> Self {
        Self::Told(match refusal {
            Refusal::Rejected { code, message } => Outcome::Rejected { code, message },
            Refusal::UnknownCommand { known } => Outcome::UnknownCommand { known },
            Refusal::InvalidPayload { violations } => Outcome::InvalidPayload { violations },
            Refusal::Faulty(message) => Outcome::Faulty { message },
            Refusal::Exhausted(message) => return Self::Exhausted(message),
        })
    }
}

impl From<Fault> for Undecided {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Undeclared { known } => Self::Told(Outcome::UnknownAggregate { known }),
            Fault::Unmade(message) => Self::Exhausted(message),
            Fault::Refused(refusal) => refusal.into(),
        }
    }
}

impl From<NoDecision> for Undecided {
    fn from(none: NoDecision) -> Self {
        match none {
            NoDecision::Refused(refusal) => refusal.into(),
            NoDecision::Away(message) => Self::Away(message),
            NoDecision::Busy(message) => Self::Busy(message),
        }
    }
}
