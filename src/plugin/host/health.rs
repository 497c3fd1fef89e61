//! The question whether a plugin is well.

use std::time::Duration;

use tonic::Code;

use super::call::call;
use crate::{
    Connection, Error,
    wire::{HEALTH_CHECK, HEALTH_OF_PLUGIN, HealthAnswer, HealthRequest, SERVING},
};

/// Asks within the time. A plugin that has no health checks, or none under this name, is well if
/// it says so: it has answered.
pub(super) async fn check(connection: &Connection, within: Duration) -> Result<(), Error> {
    let question = HealthRequest { service: HEALTH_OF_PLUGIN.to_owned() };
    judge(call(connection, HEALTH_CHECK, question, within).await)
}

fn judge(answer: Result<HealthAnswer, Error>) -> Result<(), Error> {
    match answer {
        Ok(HealthAnswer { status: SERVING }) => Ok(()),
        Ok(HealthAnswer { status }) => Err(Error::NotServing { status }),
        Err(Error::Status { status, .. })
            if matches!(status.code(), Code::Unimplemented | Code::NotFound) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_plugin_is_well_if_it_serves_or_has_no_opinion() {
        let refused = |status| judge(Err(Error::status("Health/Check")(status)));
        assert!(judge(Ok(HealthAnswer { status: SERVING })).is_ok());
        assert!(refused(Status::unimplemented("unknown service")).is_ok());
        assert!(refused(Status::not_found("unknown name")).is_ok());
        for status in [0, 2, 3, -1] {
            let answer = judge(Ok(HealthAnswer { status }));
            assert!(matches!(answer, Err(Error::NotServing { status: told }) if told == status));
        }
        assert!(matches!(refused(Status::unavailable("gone")), Err(Error::Status { .. })));
        let late = Error::Late { what: "an answer", limit: Duration::from_secs(2) };
        assert!(matches!(judge(Err(late)), Err(Error::Late { .. })));
    }
}
