//! The errors of the crates below, as the log's.

use flexcore_broker::acknowledged::Unstored;

use crate::Error;

impl From<flexcore_broker::Error> for Error {
    fn from(error: flexcore_broker::Error) -> Self {
        use flexcore_broker::Error as Broker;
        match error {
            Broker::Conflict => Self::Conflict,
            Broker::Unavailable(why) => Self::Unavailable(why),
            Broker::TooLarge(why) => Self::TooLarge(why),
            Broker::NoRoom(why) => Self::NoRoom(why),
            Broker::Misconfigured(why) => Self::Misconfigured(why),
        }
    }
}

impl From<flexcore_queue::Error> for Error {
    fn from(error: flexcore_queue::Error) -> Self {
        match error {
            flexcore_queue::Error::Broker(error) => error.into(),
            flexcore_queue::Error::Behind { progress, last, settled } => {
                Self::QueueBehind { progress, last, settled }
            }
        }
    }
}

impl From<Unstored> for Error {
    fn from(unstored: Unstored) -> Self {
        flexcore_broker::Error::from(unstored).into()
    }
}
