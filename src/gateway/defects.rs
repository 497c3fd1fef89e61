//! Faults that can be switched on in the gateway: see `src/readmodel/defects.rs`.

use std::fs::File;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use flexcore_readmodel::defects::{is_due, is_on};
use tokio_util::sync::CancellationToken;

/// An event stream leaves a commit out.
const MISS_EVENT: &str = "miss-event";

/// A request is answered with 500, after any outcome.
const ANSWER_500: &str = "answer-500";

/// Each request leaves a descriptor open.
const LEAK_DESCRIPTOR: &str = "leak-descriptor";

/// The process ends as soon as it is asked to, with its work under way.
const END_AT_ONCE: &str = "end-at-once";

/// True if a commit is left out of an event stream.
pub(crate) fn misses() -> bool {
    is_due(MISS_EVENT)
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
