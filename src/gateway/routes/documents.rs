//! What is to be read: the index, the contracts, the advice on problems, the public keys.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};

use super::{JSON, answer};
use crate::{
    asyncapi as asynchronous, error::Problem, extract::Call, openapi as synchronous, problems,
    shared::Shared,
};

const INDEX: &str = include_str!("index.json");

/// `GET /`
pub(crate) async fn index() -> Response {
    answer(StatusCode::OK, JSON, INDEX)
}

/// `GET /openapi.json`
pub(crate) async fn openapi(State(shared): State<Arc<Shared>>) -> Response {
    let write = |catalog: &_| synchronous::document(catalog).into();
    answer(StatusCode::OK, JSON, shared.documents.openapi.get(shared.catalog(), write))
}

/// `GET /asyncapi.json`
pub(crate) async fn asyncapi(State(shared): State<Arc<Shared>>) -> Response {
    let write = |catalog: &_| asynchronous::document(catalog).into();
    answer(StatusCode::OK, JSON, shared.documents.asyncapi.get(shared.catalog(), write))
}

/// `GET /problems/{code}`: what the `type` of a problem document points to.
pub(crate) async fn problem(call: Call) -> Result<Response, Problem> {
    let kind = problems::find(call.part("code")).ok_or_else(|| {
        let known: Vec<&str> = problems::ALL.iter().map(|kind| kind.code).collect();
        Problem::new(&problems::NOT_FOUND, "known lists the existing problems").with("known", known)
    })?;
    let text = format!("# {}\n\n{}\n", kind.code, kind.advice());
    Ok(answer(StatusCode::OK, "text/markdown; charset=utf-8", text))
}

/// `GET /.well-known/jwks.json`
pub(crate) async fn jwks(State(shared): State<Arc<Shared>>) -> Response {
    answer(StatusCode::OK, JSON, shared.verifier.jwks())
}
