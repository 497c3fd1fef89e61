//! Telling a plugin to end.

use std::time::Duration;

use tonic::Code;

use super::call::call;
use crate::{
    Connection, Error,
    wire::{CONTROLLER_SHUTDOWN, Empty},
};

/// Tells it. False if the plugin will not end by itself for all that is known: it cannot be told,
/// or says nothing within the time.
pub(super) async fn shut_down(connection: &Connection, within: Duration) -> bool {
    let answer = call::<_, Empty>(connection, CONTROLLER_SHUTDOWN, Empty {}, within).await;
    let heard = has_heard(&answer);
    if let (false, Err(error)) = (heard, &answer) {
        tracing::debug!(%error, "a plugin does not hear that it is to end");
    }
    heard
}

/// A plugin in Go stops its server before it answers, so that the connection ends instead.
fn has_heard(answer: &Result<Empty, Error>) -> bool {
    match answer {
        Ok(Empty {}) => true,
        Err(Error::Status { status, .. }) => {
            matches!(status.code(), Code::Unavailable | Code::Cancelled)
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_connection_that_ends_is_an_answer() {
        let refused = |status| has_heard(&Err(Error::status("Controller/Shutdown")(status)));
        assert!(has_heard(&Ok(Empty {})));
        assert!(refused(Status::unavailable("the connection has ended")));
        assert!(refused(Status::cancelled("the stream was reset")));
        assert!(!refused(Status::unimplemented("unknown service")));
        assert!(!refused(Status::unknown("exception in the plugin's code")));
        let late = Error::Late { what: "an answer", limit: Duration::from_secs(2) };
        assert!(!has_heard(&Err(late)));
    }
}
