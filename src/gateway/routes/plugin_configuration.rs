//! The configuration that an installed plugin has for the token's own tenant.

use std::sync::Arc;

use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use flexcore_domain::{
    Name,
    plugin_configuration::{CONFIGURATION_BYTES_MAX, ConfigurationLook},
};
use flexcore_operations::plugins::{self as installed, Looked};
use flexcore_resilience::Deadline;
use tokio::time::{Instant, timeout};

use super::{JSON, answer};
use crate::{
    error::{self, Problem},
    extract::{self, Call},
    shared::Shared,
};

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
    told(within(deadline, looked).await?)
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
    within(deadline, removed).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn read(call: &Call) -> Result<(Name, Deadline), Problem> {
    let plugin = call.name("plugin", Name::parse)?;
    call.parameters()?.finish(&[])?;
    Ok((plugin, extract::deadline(&call.headers)?))
}

/// What comes of it until the client waits no longer.
async fn within<T>(
    deadline: Deadline,
    done: impl Future<Output = Result<T, flexcore_operations::Error>>,
) -> Result<T, Problem> {
    let done = timeout(deadline.remaining(Instant::now()), done).await;
    let done = done.map_err(|_| Problem::unavailable(&"the configuration took too long"))?;
    done.map_err(Problem::from)
}

fn told(looked: Looked) -> Result<Response, Problem> {
    match looked {
        Looked::At(look) => Ok(json(&look)),
        Looked::Refused(reply) => Err(error::not_returned(reply)),
    }
}

fn json(look: &ConfigurationLook) -> Response {
    let body = serde_json::to_vec(look).expect("BUG: JSON serialises");
    answer(StatusCode::OK, JSON, body)
}
