//! Faults that can be switched on in the gateway: see `src/readmodel/defects.rs`.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Mutex, PoisonError},
};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use flexcore_domain::AggregateKey;
use flexcore_readmodel::defects::{is_due, is_on};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

/// An event stream leaves a commit out.
const MISS_EVENT: &str = "miss-event";

/// A request is answered with 500, after any outcome.
const ANSWER_500: &str = "answer-500";

/// A state is told as it was when it was asked for the first time.
const OLD_STATE: &str = "old-state";

/// Each request leaves a descriptor open.
const LEAK_DESCRIPTOR: &str = "leak-descriptor";

/// The process ends as soon as it is asked to, with its work under way.
const END_AT_ONCE: &str = "end-at-once";

/// True if a commit is left out of an event stream.
pub(crate) fn misses() -> bool {
    is_due(MISS_EVENT)
}

/// An aggregate's version and state.
type Seen = (u64, Box<RawValue>);

/// The state to tell of an aggregate: where it is old, now and then the first that anybody was told.
pub(crate) fn seen(key: &AggregateKey, now: Seen) -> Seen {
    static FIRST: Mutex<BTreeMap<AggregateKey, Seen>> = Mutex::new(BTreeMap::new());
    if !is_on(OLD_STATE) {
        return now;
    }
    let mut all = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let first = all.entry(key.clone()).or_insert_with(|| now.clone());
    if is_due(OLD_STATE) { first.clone() } else { now }
}

/// The answer to a client of `/v1/`.
pub(crate) fn answered(response: Response) -> Response {
    if is_on(LEAK_DESCRIPTOR) {
        std::mem::forget(File::open("/dev/null"));
    }
    if is_due(ANSWER_500) {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    response
}

/// Ends the process when it is asked to stop.
pub(crate) fn watch(stop: CancellationToken) {
    if is_on(END_AT_ONCE) {
        tokio::spawn(async move {
            stop.cancelled().await;
            std::process::exit(1);
        });
    }
}
