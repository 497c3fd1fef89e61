//! The configuration that an installed plugin has for the token's own tenant.

use std::sync::Arc;

use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use flexcore_domain::{
    Name,
    plugin_configuration::{CONFIGURATION_BYTES_MAX, ConfigurationLook},
};
use flexcore_eventstore as eventstore;
use flexcore_operations::{
    self as operations,
    plugins::{self as installed, Looked},
};
use flexcore_resilience::Deadline;
use tokio::time::{Instant, timeout};

use super::{JSON, answer};
use crate::{
    error::{self, Problem},
    extract::{self, Call},
    problems,
    shared::Shared,
};

/// Said of a change of which nobody knows whether it was made.
const MAYBE_CHANGED: &str = "the configuration may or may not have been changed: look at it, or send the same again, \
                             which does no harm";

/// `GET /v1/plugin-configurations/{plugin}`
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let (plugin, deadline) = read(&call)?;
    let _place = shared.admission.call(call.tenant(), deadline).await?;
    let looked = installed::configuration(&shared.store, &plugin, call.tenant());
    told(within(deadline, looked).await?)
}

/// `PUT /v1/plugin-configurations/{plugin}`
pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    mut call: Call,
) -> Result<Response, Problem> {
    let (plugin, deadline) = read(&call)?;
    let _place = shared.admission.call(call.tenant(), deadline).await?;
    let json = call.json_body(CONFIGURATION_BYTES_MAX).await?;
    let looked = installed::configure(&shared.store, &plugin, call.tenant(), &json);
    told(changed(deadline, looked).await?)
}

/// `DELETE /v1/plugin-configurations/{plugin}`
pub(crate) async fn remove(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let (plugin, deadline) = read(&call)?;
    let _place = shared.admission.call(call.tenant(), deadline).await?;
    let removed = installed::unconfigure(&shared.store, &plugin, call.tenant());
    // What is not there need not be taken away: the same request again says the same.
    changed(deadline, removed).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn read(call: &Call) -> Result<(Name, Deadline), Problem> {
    let plugin = call.name("plugin", Name::parse)?;
    call.parameters()?.finish(&[])?;
    Ok((plugin, extract::deadline(&call.headers)?))
}

/// What comes of a look until the client waits no longer.
async fn within<T>(
    deadline: Deadline,
    done: impl Future<Output = Result<T, operations::Error>>,
) -> Result<T, Problem> {
    let done = timeout(deadline.remaining(Instant::now()), done).await;
    let done = done.map_err(|_| Problem::unavailable(&"the configuration took too long"))?;
    done.map_err(Problem::from)
}

/// What comes of a change until the client waits no longer. It may have been made by then, and where the broker did
/// not say so.
async fn changed<T>(
    deadline: Deadline,
    done: impl Future<Output = Result<T, operations::Error>>,
) -> Result<T, Problem> {
    let maybe = || Problem::new(&problems::OUTCOME_UNKNOWN, MAYBE_CHANGED);
    match timeout(deadline.remaining(Instant::now()), done).await {
        Ok(Err(error)) if is_open(&error) => {
            tracing::warn!(%error, "a plugin's configuration may have been changed");
            Err(maybe())
        }
        Ok(done) => done.map_err(Problem::from),
        Err(_) => Err(maybe()),
    }
}

/// Whether what failed so may be done all the same.
fn is_open(error: &operations::Error) -> bool {
    let is_refused = matches!(error, operations::Error::Log(eventstore::Error::NoRoom(_)));
    error.is_passing() && !is_refused
}

fn told(looked: Looked) -> Result<Response, Problem> {
    match looked {
        Looked::At(look) => Ok(json(&look)),
        Looked::Refused(reply) => Err(error::not_returned(reply)),
        // It is for whoever runs the gateway; the client's next try changes nothing.
        Looked::Locked(why) => Err(Problem::internal(&why)),
    }
}

fn json(look: &ConfigurationLook) -> Response {
    let body = serde_json::to_vec(look).expect("BUG: JSON serialises");
    answer(StatusCode::OK, JSON, body)
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        time::Duration,
    };

    use super::*;

    fn deadline() -> Deadline {
        Deadline::at(Instant::now(), Duration::from_millis(5))
    }

    /// "Nothing was done" was said of configurations that were stored.
    #[tokio::test]
    async fn a_change_that_is_not_known_to_be_made_may_have_been_made() {
        let late = changed(deadline(), pending::<Result<(), operations::Error>>()).await;
        assert!(late.unwrap_err().is(&problems::OUTCOME_UNKNOWN));
        let failed = |error| changed(deadline(), ready(Err::<(), operations::Error>(error)));
        let lost = eventstore::Error::Unavailable("no acknowledgement".to_owned()).into();
        assert!(failed(lost).await.unwrap_err().is(&problems::OUTCOME_UNKNOWN));
        let full = eventstore::Error::NoRoom("1 GiB".to_owned()).into();
        assert!(failed(full).await.unwrap_err().is(&problems::UNAVAILABLE));
        let late = within(deadline(), pending::<Result<(), operations::Error>>()).await;
        assert!(late.unwrap_err().is(&problems::UNAVAILABLE), "a look changes nothing");
    }

    #[test]
    fn a_gateway_without_the_key_is_not_asked_again() {
        let problem = told(Looked::Locked("no key".to_owned())).unwrap_err();
        assert!(problem.is(&problems::INTERNAL));
    }
}
