//! Failures of what a reader does.

use flexcore_eventstore as eventstore;
use flexcore_readmodel::Error;

/// Why a step failed.
pub(super) enum Failure {
    ReadModel(Error),
    Log(eventstore::Error),
    /// A plugin that events go through gives no answer now.
    Plugin(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::ReadModel(error)
    }
}

impl From<eventstore::Error> for Failure {
    fn from(error: eventstore::Error) -> Self {
        Self::Log(error)
    }
}
