//! What answers, one file for each resource.

pub(crate) mod aggregates;
pub(crate) mod cluster;
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

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_cluster::{Kind, Unanswered};
use flexcore_domain::AggregateKey;
use flexcore_resilience::{self as resilience, Deadline};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{error::Problem, shared::Shared};

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

/// Asks the worker that owns the aggregate's slot; `subject` makes the subject for the owner's epoch.
/// The question may be taken up twice, by an owner and its successor: then `is_final` says whether the
/// successor's answer holds whatever the first one does. Fails with `lost` when it is unknown what came
/// of the question, and with "unavailable" when it certainly was not taken up.
#[expect(clippy::too_many_arguments, reason = "each is another part of one question")]
pub(crate) async fn ask<T: DeserializeOwned>(
    shared: &Shared,
    key: &AggregateKey,
    subject: impl Fn(u64) -> String,
    headers: HeaderMap,
    payload: Bytes,
    deadline: Deadline,
    is_final: fn(&T) -> bool,
    lost: fn(&dyn std::fmt::Display) -> Problem,
) -> Result<T, Problem> {
    if shared.store.client().connection_state() != async_nats::connection::State::Connected {
        return Err(Problem::unavailable(&"not connected to the broker"));
    }
    let question = |epoch, _| {
        let mut headers = headers.clone();
        let left = deadline.encode(Instant::now()).unwrap_or_else(|| "1".to_owned());
        headers.insert(resilience::HEADER, left);
        (subject(epoch), headers)
    };
    let number = key.slot().number();
    let within = deadline.remaining(Instant::now());
    let asked = shared.owners.ask(Kind::Command, number, within, payload, question);
    let answer = asked.await.map_err(|error| match error {
        Unanswered::NoOwner => Problem::unavailable(&error),
        Unanswered::InDoubt(_) => lost(&error),
    })?;
    let said = serde_json::from_slice(&answer.message.payload).map_err(|error| {
        Problem::internal(&format!("a worker's answer does not parse: {error}"))
    })?;
    if answer.repeated && !is_final(&said) {
        return Err(lost(&"the slot's owner has changed meanwhile"));
    }
    Ok(said)
}
