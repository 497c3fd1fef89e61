//! Health: alive without looking at anything, ready while the broker answers, started when everything
//! needed was there once.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{extract::State, http::StatusCode, response::Response};
use serde_json::json;
use tokio::sync::Mutex;

use super::{JSON, answer};
use crate::{
    error::Problem,
    limits::{READINESS_AGE, READINESS_TIMEOUT},
    problems,
    shared::Shared,
};

const POSTGRES: &str = "postgres";
const READ_MODELS: &str = "read models";
const DEPLOYMENTS: &str = "deployments";
/// Without these a gateway is of use: one that a balancer leaves does nothing at all.
const DEGRADES: [&str; 3] = [POSTGRES, READ_MODELS, DEPLOYMENTS];

/// What was found last, and when.
#[derive(Default)]
pub(crate) struct Readiness {
    found: Mutex<Option<(Instant, Arc<[Missing]>)>>,
    /// Everything was there once.
    started: AtomicBool,
}

struct Missing {
    what: &'static str,
    why: &'static str,
}

/// `GET /livez`: the process answers.
pub(crate) async fn live() -> Response {
    answer(StatusCode::OK, JSON, r#"{"status":"live"}"#)
}

/// `GET /readyz`: the gateway can do its work, or what is missing. It is of use without Postgres: a
/// balancer that left every gateway for it would take the commands down as well.
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let missing = missing(&shared).await;
    if missing.is_empty() {
        return answer(StatusCode::OK, JSON, r#"{"status":"ready"}"#);
    }
    if missing.iter().all(|missing| DEGRADES.contains(&missing.what)) {
        let body = json!({"status": "degraded", "missing": listed(&missing)}).to_string();
        return answer(StatusCode::OK, JSON, body);
    }
    not_ready(&listed(&missing))
}

/// `GET /startupz`: everything needed was there once.
pub(crate) async fn started(State(shared): State<Arc<Shared>>) -> Response {
    if shared.readiness.started.load(Ordering::Relaxed) {
        return answer(StatusCode::OK, JSON, r#"{"status":"started"}"#);
    }
    let missing = missing(&shared).await;
    if shared.readiness.started.load(Ordering::Relaxed) {
        return answer(StatusCode::OK, JSON, r#"{"status":"started"}"#);
    }
    not_ready(&listed(&missing))
}

/// `GET /metrics`
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    if shared.metrics_apart {
        let detail = "metrics are on a port of their own";
        return Err(Problem::new(&problems::NOT_FOUND, detail));
    }
    metrics_apart(State(shared)).await
}

/// `GET /metrics`, where it is at home.
pub(crate) async fn metrics_apart(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    let Some(render) = &shared.metrics else {
        return Err(Problem::new(&problems::NOT_FOUND, "metrics are switched off"));
    };
    Ok(answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render()))
}

fn listed(missing: &[Missing]) -> serde_json::Value {
    missing.iter().map(|m| json!({"what": m.what, "why": m.why})).collect()
}

fn not_ready(missing: &serde_json::Value) -> Response {
    let body = json!({"status": "not ready", "missing": missing}).to_string();
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, JSON, body);
    let wait = axum::http::HeaderValue::from_static("1");
    response.headers_mut().insert(axum::http::header::RETRY_AFTER, wait);
    response
}

async fn missing(shared: &Shared) -> Arc<[Missing]> {
    if shared.is_draining() {
        return Arc::from([Missing { what: "gateway", why: "it is stopping" }]);
    }
    look(shared).await
}

/// Asks what is needed, unless it was asked just now. One look at a time, whoever asks.
async fn look(shared: &Shared) -> Arc<[Missing]> {
    let mut found = shared.readiness.found.lock().await;
    if let Some((at, missing)) = &*found
        && at.elapsed() < READINESS_AGE
    {
        return missing.clone();
    }
    let log = check("nats", async {
        shared.store.last_sequence().await.map_err(|error| error.to_string())
    });
    let rows = check(POSTGRES, async {
        shared.read_models.ping().await.map_err(|error| error.to_string())
    });
    let (log, rows) = tokio::join!(log, rows);
    let held = match &rows {
        None => held(shared).await,
        Some(_) => None,
    };
    let unread = (!shared.catalog().unreadable.is_empty()).then_some(Missing {
        what: DEPLOYMENTS,
        why: "the last version of an application cannot be read here; the one before it is in force",
    });
    let missing: Arc<[Missing]> = log.into_iter().chain(rows).chain(held).chain(unread).collect();
    if missing.iter().all(|missing| [READ_MODELS, DEPLOYMENTS].contains(&missing.what)) {
        shared.readiness.started.store(true, Ordering::Relaxed);
    }
    *found = Some((Instant::now(), missing.clone()));
    missing
}

/// Whether the log is broken in the middle of an aggregate, and its rows stay as they were.
async fn held(shared: &Shared) -> Option<Missing> {
    let asked = tokio::time::timeout(READINESS_TIMEOUT, shared.read_models.held_in_all());
    let held = matches!(asked.await, Ok(Ok(1..)));
    held.then_some(Missing {
        what: READ_MODELS,
        why: "the log is broken in an aggregate, whose events are held back from there on",
    })
}

/// The cause goes to the log: it may name hosts, which strangers need not know.
async fn check<T>(
    what: &'static str,
    asked: impl Future<Output = Result<T, String>>,
) -> Option<Missing> {
    let why = match tokio::time::timeout(READINESS_TIMEOUT, asked).await {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => {
            tracing::warn!(what, %error, "not ready");
            "it answers with an error"
        }
        Err(_) => "it does not answer",
    };
    Some(Missing { what, why })
}
