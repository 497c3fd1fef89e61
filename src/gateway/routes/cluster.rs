//! The cluster as `flexcore_operations` reports it.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use flexcore_operations::report::report;

use super::{JSON, answer};
use crate::{error::Problem, extract::Call, shared::Shared};

/// `GET /v1/cluster`
pub(crate) async fn view(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    call.parameters()?.finish(&[])?;
    let _place = shared.admission.read(call.tenant()).await?;
    let report = report(&shared.store, &shared.read_models).await;
    let report = report.map_err(|error| Problem::unavailable(&error))?;
    let body = serde_json::to_vec(&report).expect("BUG: names and numbers serialise");
    Ok(answer(StatusCode::OK, JSON, body))
}
