//! The one that waits for an answer of a lane, and whether it still does.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use flexcore_domain::{Outcome, StateReply, Tenant};
use flexcore_resilience::HeldPlace;
use tokio::sync::{mpsc, oneshot};

use super::turns::Class;

/// The one that waits for an answer. A receiver that has gone away is not missed.
pub(super) enum Responder {
    /// For a command, in the tenant's place.
    Waiting(
        oneshot::Sender<Option<Outcome>>,
        Begun,
        #[expect(dead_code, reason = "it is kept until the answer is given")] HeldPlace<Tenant>,
    ),
    /// For a question for a command.
    Outcome(oneshot::Sender<Option<Outcome>>),
    /// For a state.
    State(oneshot::Sender<StateReply>),
    /// For a queued command: its reader, with the command's number there.
    Queue(mpsc::UnboundedSender<(u64, Outcome)>, u64),
}

impl Responder {
    /// Answers without having done anything. A queued command comes again, to the slot's next owner.
    pub(super) fn refuse(self, why: &str) {
        let message = why.to_owned();
        match self {
            Self::Waiting(to, ..) | Self::Outcome(to) => {
                drop(to.send(Some(Outcome::Unavailable { message })));
            }
            Self::State(to) => drop(to.send(StateReply::Unavailable { message })),
            Self::Queue(..) => {}
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::Queue(..) => Class::Stored,
            Self::Waiting(..) | Self::Outcome(_) | Self::State(_) => Class::Waiting,
        }
    }

    /// True if nobody waits for the answer any more. A command that is not to be begun then costs
    /// others nothing.
    pub(super) fn has_given_up(&self) -> bool {
        match self {
            Self::Waiting(_, begun, _) => !begun.take(),
            Self::Outcome(to) => to.is_closed(),
            Self::State(to) => to.is_closed(),
            Self::Queue(..) => false,
        }
    }
}

/// Begun, or given up before: the first of the two holds.
#[derive(Clone, Default)]
pub(super) struct Begun(Arc<AtomicBool>);

impl Begun {
    /// Returns whether it was neither before.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}
