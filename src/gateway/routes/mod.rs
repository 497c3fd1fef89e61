//! What answers, one file for each resource.

pub(crate) mod aggregates;
pub(crate) mod cluster;
pub(crate) mod commands;
pub(crate) mod documents;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod managed_plugins;
pub(crate) mod plugin_configuration;
pub(crate) mod plugins;
pub(crate) mod queries;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

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
