//! Why a guarded call has no answer.

use std::time::Duration;

/// The failure of a call: it was not made, got no answer in time, or failed by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error<E> {
    /// The target is failing and not called for now: nothing was sent.
    #[error("{target} is failing and not called for now; try again in {} ms", retry_after.as_millis())]
    Open {
        /// The target.
        target: &'static str,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The deadline, or the time for one attempt, has passed: the outcome of the call is unknown.
    #[error("{target} did not answer in time")]
    TimedOut {
        /// The target.
        target: &'static str,
    },
    /// The call's own error.
    #[error("{0}")]
    Failed(E),
}

impl<E> Error<Error<E>> {
    /// One error of a guarded call within another: a retry of calls through a breaker, say.
    #[must_use]
    pub fn flatten(self) -> Error<E> {
        match self {
            Self::Open { target, retry_after } => Error::Open { target, retry_after },
            Self::TimedOut { target } => Error::TimedOut { target },
            Self::Failed(inner) => inner,
        }
    }
}
