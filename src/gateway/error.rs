//! Errors as HTTP shows them: the one place that knows status codes. Every answer of 4xx and 5xx is
//! a problem document (RFC 9457) with a stable `type` and the request's trace id.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flexcore_domain::{InvalidName, Outcome, PluginRefusal, PluginReply};
use flexcore_operations as operations;
use flexcore_readmodel as readmodel;
use flexcore_resilience as resilience;
use serde_json::{Value, json};

use crate::problems::{self, ProblemKind};

/// Why the gateway stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener's address could not be read.
    #[error("the HTTP listener failed: {0}")]
    Listen(#[from] std::io::Error),
}

/// An answer that names the fault. Travels in the response's extensions until the trace id is known
/// and the body can be written.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: &'static ProblemKind,
    detail: Cow<'static, str>,
    members: Vec<(&'static str, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log, never for the sender.
    cause: Option<Box<str>>,
}

impl Problem {
    pub(crate) fn new(kind: &'static ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        let mut problem = Self {
            kind,
            detail: detail.into(),
            members: Vec::new(),
            headers: Vec::new(),
            cause: None,
        };
        if kind.retry_after_s > 0 {
            problem = problem.header(header::RETRY_AFTER, kind.retry_after_s.into());
        }
        problem
    }

    /// A member beside the standard ones.
    pub(crate) fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        self.members.push((member, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value));
        self
    }

    /// True if it is of this kind.
    pub(crate) fn is(&self, kind: &ProblemKind) -> bool {
        self.kind.code == kind.code
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.kind.status
    }

    /// Something failed that should not. The cause goes to the log and is not told.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        Self::new(&problems::INTERNAL, "the cause is in the log, under this trace id").caused(cause)
    }

    /// The broker, a worker or Postgres does not answer; nothing was done.
    pub(crate) fn unavailable(cause: &dyn std::fmt::Display) -> Self {
        Self::new(&problems::UNAVAILABLE, "nothing was done; try again").caused(cause)
    }

    /// A needed service is failing; it is not retried for now. Without a cause: its failures are in
    /// the log, and a line for each request that was not made would bury them.
    fn resting(target: &str, retry_after: Duration) -> Self {
        let detail = format!("{target} is failing and not retried for now; nothing was done");
        Self::new(&problems::UNAVAILABLE, detail).after(retry_after)
    }

    /// Not to be sent again before this time, rounded up to seconds.
    fn after(self, pause: Duration) -> Self {
        let wait_s = pause.as_millis().div_ceil(1_000).max(1);
        let wait = HeaderValue::try_from(wait_s.to_string()).expect("BUG: digits are ASCII");
        self.header(header::RETRY_AFTER, wait)
    }

    /// The broker has no room; nothing was done.
    pub(crate) fn storage_full(cause: &dyn std::fmt::Display) -> Self {
        let detail = "nothing was done; send it again when there is room";
        Self::new(&problems::STORAGE_FULL, detail).caused(cause)
    }

    pub(crate) fn outcome_unknown(cause: &dyn std::fmt::Display) -> Self {
        let detail = "the command may or may not have been recorded: send it again with the same \
                      Idempotency-Key to learn which";
        Self::new(&problems::OUTCOME_UNKNOWN, detail).caused(cause)
    }

    fn caused(mut self, cause: &dyn std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string().into());
        self
    }

    /// Logs the cause, once, where the trace id is known.
    pub(crate) fn log(&self, trace_id: &str) {
        let (Some(error), code) = (&self.cause, self.kind.code) else { return };
        if self.kind.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(trace_id, code, %error, "a request failed");
        } else {
            tracing::warn!(trace_id, code, %error, "a dependency did not answer");
        }
    }

    /// The document with everything in it.
    pub(crate) fn render(self, trace_id: Option<&str>) -> Response {
        let mut document = json!({
            "type": format!("/problems/{}", self.kind.code),
            "title": self.kind.title,
            "status": self.kind.status.as_u16(),
            "detail": self.detail,
        });
        let members = document.as_object_mut().expect("BUG: made as an object just now");
        if let Some(trace_id) = trace_id {
            members.insert("trace_id".to_owned(), trace_id.into());
        }
        members.extend(self.members.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let mut response = Response::new(Body::from(document.to_string()));
        *response.status_mut() = self.kind.status;
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response.headers_mut().extend(self.headers);
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        Self::new(&problems::INVALID_NAME, error.to_string())
    }
}

/// The outcome of a command that was not accepted. `if_match`: the request named a version.
pub(crate) fn refused(outcome: Outcome, if_match: bool) -> Problem {
    match outcome {
        Outcome::Rejected { code, message } => {
            Problem::new(&problems::REJECTED, message).with("code", code)
        }
        Outcome::InvalidPayload { violations } => {
            Problem::new(&problems::INVALID_PAYLOAD, "errors says which field, and why")
                .with("errors", violations_json(&violations))
        }
        Outcome::UnknownAggregate { known } => {
            Problem::new(&problems::UNKNOWN_AGGREGATE, "known lists the existing ones")
                .with("known", known)
        }
        Outcome::UnknownCommand { known } => {
            Problem::new(&problems::UNKNOWN_COMMAND, "known lists the existing ones")
                .with("known", known)
        }
        Outcome::Conflict { version } => {
            let kind = if if_match { &problems::VERSION_MISMATCH } else { &problems::CONFLICT };
            let detail = format!("the aggregate has version {version}");
            Problem::new(kind, detail).with("version", version)
        }
        Outcome::IdMismatch => Problem::new(
            &problems::IDEMPOTENCY_KEY_REUSED,
            "this key was used for a command with another name or payload",
        ),
        Outcome::Faulty { message } => Problem::new(&problems::FAULTY_DECIDER, message),
        Outcome::Overloaded { retry_after_s } => {
            Problem::new(&problems::OVERLOADED, "too many commands wait; nothing was done")
                .header(header::RETRY_AFTER, retry_after_s.max(1).into())
        }
        Outcome::NoRoom { message } => Problem::storage_full(&message),
        Outcome::Away { message } => Problem::unavailable(&message),
        Outcome::Unavailable { message } => Problem::outcome_unknown(&message),
        Outcome::Unknown => {
            let detail = "it has recorded nothing: never received, or refused too long ago";
            Problem::new(&problems::NO_OUTCOME, detail)
        }
        other @ (Outcome::Accepted { .. } | Outcome::Pending | Outcome::Dead { .. }) => {
            Problem::internal(&format!("{other:?} is not the answer to a command"))
        }
    }
}

/// Said where nobody knows what a plugin has done.
const MAYBE_DONE: &str = "the plugin may or may not have done it: if the function is idempotent, send it \
                          again with the same Idempotency-Key";

/// What came of a call of a plugin that has no output.
pub(crate) fn not_returned(reply: PluginReply) -> Problem {
    match reply {
        PluginReply::Output(_) => Problem::internal(&"an output is no failure"),
        PluginReply::Failed { code, message, temporary, retry_after_ms, details } => {
            let problem = match temporary {
                true => Problem::new(&problems::PLUGIN_FAILED_FOR_NOW, message)
                    .after(Duration::from_millis(retry_after_ms)),
                false => Problem::new(&problems::PLUGIN_FAILED, message),
            };
            let details = details.and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
            let problem = problem.with("code", code);
            match details {
                Some(details) => problem.with("details", details),
                None => problem,
            }
        }
        PluginReply::Refused { refusal, message } => plugin_refused(refusal, message),
    }
}

/// Said of a plugin that is not for the tenant, too: what others have is nobody's business.
const NO_PLUGIN: &str = "no plugin of this name is installed, or it is not for your tenant";

fn plugin_refused(refusal: PluginRefusal, message: String) -> Problem {
    match refusal {
        PluginRefusal::NotInstalled | PluginRefusal::NotForTenant => {
            Problem::new(&problems::UNKNOWN_PLUGIN, NO_PLUGIN)
        }
        PluginRefusal::UnknownFunction => Problem::new(&problems::UNKNOWN_FUNCTION, message),
        PluginRefusal::InvalidInput => Problem::new(&problems::INVALID_INPUT, message),
        PluginRefusal::TooLarge => Problem::new(&problems::PAYLOAD_TOO_LARGE, message),
        PluginRefusal::Busy => {
            let detail = "too many calls of this plugin are under way; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
        }
        // Calls of ours name no version.
        PluginRefusal::Away | PluginRefusal::OtherVersion => Problem::unavailable(&message),
        // Its worker has a line about late calls in its log, not one for each.
        PluginRefusal::Late => Problem::new(&problems::PLUGIN_TIMEOUT, MAYBE_DONE),
        PluginRefusal::Unknown => {
            Problem::new(&problems::OUTCOME_UNKNOWN, MAYBE_DONE).caused(&message)
        }
        PluginRefusal::Faulty => {
            let detail = "what came is in the log, under this trace id";
            Problem::new(&problems::PLUGIN_FAULTY, detail).caused(&message)
        }
    }
}

pub(crate) fn violations_json(violations: &[flexcore_domain::Violation]) -> Value {
    let json = |v: &flexcore_domain::Violation| json!({"field": v.field, "reason": v.reason});
    violations.iter().map(json).collect()
}

impl From<readmodel::Error> for Problem {
    fn from(error: readmodel::Error) -> Self {
        use readmodel::Error as E;
        let text = error.to_string();
        match error {
            E::UnknownColumn { known, .. } => {
                Self::new(&problems::UNKNOWN_COLUMN, text).with("known", known)
            }
            E::UnknownParameter { known, .. } => {
                Self::new(&problems::INVALID_PARAMETER, text).with("known", known)
            }
            E::InvalidValue { .. }
            | E::InvalidOption { .. }
            | E::InvalidCursor
            | E::MissingParameter { .. } => Self::new(&problems::INVALID_PARAMETER, text),
            E::UnknownReadModel { known, .. } => {
                Self::new(&problems::UNKNOWN_READ_MODEL, text).with("known", known)
            }
            E::QueryFailed { .. }
            | E::TooManyRows { .. }
            | E::ResultTooLarge { .. }
            | E::TooMuch(_)
            | E::ReadOnly(_) => Self::new(&problems::FAULTY_QUERY, text),
            E::NotBuilt(_) | E::ColumnNotBuilt { .. } | E::Gone(_) => {
                Self::new(&problems::READ_MODEL_BUILDING, text)
            }
            E::NotYet { .. } => Self::new(&problems::POSITION_NOT_REACHED, text),
            E::NoPlace | E::TooManyWaiters => Self::new(&problems::OVERLOADED, text),
            E::Timeout(_) => Self::new(&problems::QUERY_TIMEOUT, text),
            E::Unavailable(_) | E::Exhausted(_) | E::Moved => Self::unavailable(&text),
            other => Self::internal(&other),
        }
    }
}

impl<E: Into<Problem>> From<resilience::Error<E>> for Problem {
    fn from(error: resilience::Error<E>) -> Self {
        match error {
            resilience::Error::Open { target, retry_after } => Self::resting(target, retry_after),
            resilience::Error::TimedOut { target } => {
                Self::unavailable(&format!("{target} did not answer in time"))
            }
            resilience::Error::Failed(error) => error.into(),
        }
    }
}

impl From<operations::Error> for Problem {
    fn from(error: operations::Error) -> Self {
        if error.is_passing() { Self::unavailable(&error) } else { Self::internal(&error) }
    }
}

impl From<flexcore_eventstore::Error> for Problem {
    fn from(error: flexcore_eventstore::Error) -> Self {
        match error {
            flexcore_eventstore::Error::Unavailable(cause) => Self::unavailable(&cause),
            flexcore_eventstore::Error::NoRoom(cause) => Self::storage_full(&cause),
            flexcore_eventstore::Error::TooMuch(why) => Self::new(&problems::OVERLOADED, why),
            flexcore_eventstore::Error::TooLarge(why) => {
                Self::new(&problems::PAYLOAD_TOO_LARGE, why)
            }
            other => Self::internal(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_and_body(problem: Problem) -> (u16, Option<String>, Value) {
        let response = problem.render(None);
        let after = response.headers().get(header::RETRY_AFTER);
        let after = after.map(|value| value.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 9_999);
        let body = futures::FutureExt::now_or_never(body).unwrap().unwrap();
        (status, after, serde_json::from_slice(&body).unwrap())
    }

    fn failed(temporary: bool, retry_after_ms: u64) -> PluginReply {
        let details = serde_json::value::to_raw_value(&json!({"queue": 3})).unwrap();
        PluginReply::Failed {
            code: "no_name".to_owned(),
            message: "It has no name.".to_owned(),
            temporary,
            retry_after_ms,
            details: Some(details),
        }
    }

    /// A command whose decider was not asked was said to be recorded, perhaps.
    #[test]
    fn a_command_that_nobody_decided_is_not_of_unknown_outcome() {
        let message = || "secret host".to_owned();
        for (outcome, code) in [
            (Outcome::Away { message: message() }, "unavailable"),
            (Outcome::Unavailable { message: message() }, "outcome-unknown"),
        ] {
            let (status, after, body) = headers_and_body(refused(outcome, false));
            assert_eq!((status, after.as_deref()), (503, Some("1")));
            assert_eq!(body["type"], format!("/problems/{code}"));
            assert!(!body.to_string().contains("secret host"), "{body}");
        }
    }

    #[test]
    fn a_plugins_failure_is_told_in_its_words() {
        let (status, after, body) = headers_and_body(not_returned(failed(false, 0)));
        assert_eq!((status, after), (409, None));
        assert_eq!(body["code"], "no_name");
        assert_eq!(body["detail"], "It has no name.");
        assert_eq!(body["details"]["queue"], 3);
        for (retry_after_ms, said) in [(0, "1"), (1_001, "2"), (3_000, "3")] {
            let problem = not_returned(failed(true, retry_after_ms));
            let (status, after, body) = headers_and_body(problem);
            assert_eq!((status, after.as_deref()), (503, Some(said)));
            assert_eq!(body["type"], "/problems/plugin-failed-for-now");
        }
    }

    #[test]
    fn a_statement_that_takes_too_much_is_not_tried_again() {
        let of = |error: fn(String) -> readmodel::Error| {
            let (status, after, body) = headers_and_body(error("1 GB of files".to_owned()).into());
            (status, after.is_some(), body["detail"].as_str().unwrap().contains("1 GB of files"))
        };
        assert_eq!(of(readmodel::Error::TooMuch), (422, false, true));
        assert_eq!(of(readmodel::Error::ReadOnly), (422, false, true));
        assert_eq!(of(readmodel::Error::Exhausted), (503, true, false));
    }

    #[test]
    fn each_refusal_of_a_call_has_its_problem() {
        use PluginRefusal as R;
        for (refusal, status, code, is_told) in [
            (R::NotInstalled, 404, "unknown-plugin", false),
            (R::NotForTenant, 404, "unknown-plugin", false),
            (R::UnknownFunction, 404, "unknown-function", true),
            (R::InvalidInput, 422, "invalid-input", true),
            (R::TooLarge, 413, "payload-too-large", true),
            (R::Busy, 503, "overloaded", false),
            (R::Away, 503, "unavailable", false),
            (R::OtherVersion, 503, "unavailable", false),
            (R::Late, 504, "plugin-timeout", false),
            (R::Unknown, 503, "outcome-unknown", false),
            (R::Faulty, 502, "plugin-faulty", false),
        ] {
            let reply = PluginReply::refused(refusal, "secret host");
            let (found, after, body) = headers_and_body(not_returned(reply));
            assert_eq!((found, &body["type"]), (status, &format!("/problems/{code}").into()));
            assert_eq!(after.is_some(), status == 503, "{code}");
            assert_eq!(body["detail"] == "secret host", is_told, "{code}");
        }
    }

    /// The answers to a call told a tenant which plugins others have.
    #[test]
    fn a_plugin_of_others_is_as_unknown_as_one_that_is_not_installed() {
        let [none, others] =
            [PluginRefusal::NotInstalled, PluginRefusal::NotForTenant].map(|why| {
                let (status, _, body) =
                    headers_and_body(not_returned(PluginReply::refused(why, "x")));
                (status, body)
            });
        assert_eq!(none, others);
    }
}
