//! What answers, one file for each resource.

pub(crate) mod aggregates;
pub(crate) mod commands;
pub(crate) mod documents;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod queries;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

use async_nats::{HeaderMap, RequestErrorKind};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{error::Problem, limits::ANSWER_TIMEOUT, shared::Shared};

/// An answer with this type and body.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

pub(crate) const JSON: &str = "application/json";

/// The strong entity tag of a version.
pub(crate) fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("BUG: digits are ASCII")
}

/// Asks the worker that owns the slot. Fails with `lost` when it is unknown whether it took the
/// question up, and with "unavailable" when it certainly did not.
pub(crate) async fn ask<T: DeserializeOwned>(
    shared: &Shared,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    lost: fn(&dyn std::fmt::Display) -> Problem,
) -> Result<T, Problem> {
    let client = shared.store.client();
    if client.connection_state() != async_nats::connection::State::Connected {
        return Err(Problem::unavailable(&"not connected to the broker"));
    }
    let request =
        async_nats::Request::new().headers(headers).payload(payload).timeout(Some(ANSWER_TIMEOUT));
    let reply =
        client.send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Problem::unavailable(&"no worker owns this slot"),
            RequestErrorKind::TimedOut => lost(&"the worker did not answer in time"),
            _ => lost(&error),
        })?;
    serde_json::from_slice(&reply.payload)
        .map_err(|error| Problem::internal(&format!("a worker's answer does not parse: {error}")))
}
