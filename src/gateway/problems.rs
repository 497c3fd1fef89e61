//! The kinds of problems: stable codes, each with its section of advice in `schemas/problems.md`, which is
//! served at `/problems/{code}`.

use axum::http::StatusCode;

/// One kind of problem.
#[derive(Debug)]
pub(crate) struct ProblemKind {
    /// The last part of its `type`, never changed once published.
    pub(crate) code: &'static str,
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    /// Seconds of `Retry-After`; 0: sending the same again does not help by itself.
    pub(crate) retry_after_s: u16,
}

macro_rules! kinds {
    ($($name:ident $code:literal $status:ident $retry:literal $title:literal)*) => {
        $(pub(crate) static $name: ProblemKind = ProblemKind {
            code: $code,
            status: StatusCode::$status,
            title: $title,
            retry_after_s: $retry,
        };)*

        /// All of them, in the order of their status.
        pub(crate) static ALL: &[&ProblemKind] = &[$(&$name),*];
    };
}

kinds! {
    BAD_REQUEST "bad-request" BAD_REQUEST 0 "The request cannot be read"
    INVALID_HEADER "invalid-header" BAD_REQUEST 0 "A header is malformed"
    INVALID_NAME "invalid-name" BAD_REQUEST 0 "A name does not follow its rule"
    INVALID_PARAMETER "invalid-parameter" BAD_REQUEST 0 "A parameter is unknown or malformed"
    UNKNOWN_COLUMN "unknown-column" BAD_REQUEST 0 "The read model has no such column"
    MALFORMED_JSON "malformed-json" BAD_REQUEST 0 "The body is not acceptable JSON"
    UNAUTHENTICATED "unauthenticated" UNAUTHORIZED 0 "A valid access token is needed"
    FORBIDDEN "forbidden" FORBIDDEN 0 "The token does not allow this"
    NOT_FOUND "not-found" NOT_FOUND 0 "There is nothing here"
    NO_SUCH_AGGREGATE "no-such-aggregate" NOT_FOUND 0 "The aggregate has no events"
    NO_OUTCOME "no-outcome" NOT_FOUND 0 "No outcome of this command is kept"
    UNKNOWN_AGGREGATE "unknown-aggregate" NOT_FOUND 0 "No deployed application has this aggregate"
    UNKNOWN_COMMAND "unknown-command" NOT_FOUND 0 "The aggregate has no such command"
    UNKNOWN_READ_MODEL "unknown-read-model" NOT_FOUND 0 "No deployed application has this read model"
    UNKNOWN_QUERY "unknown-query" NOT_FOUND 0 "No deployed application has this query"
    UNKNOWN_PLUGIN "unknown-plugin" NOT_FOUND 0 "No plugin of this name is installed"
    UNKNOWN_FUNCTION "unknown-function" NOT_FOUND 0 "The plugin has no such function"
    METHOD_NOT_ALLOWED "method-not-allowed" METHOD_NOT_ALLOWED 0 "The method is not allowed here"
    REQUEST_TIMEOUT "request-timeout" REQUEST_TIMEOUT 0 "The body did not arrive in time"
    REJECTED "rejected" CONFLICT 0 "The rules say no"
    CONFLICT "conflict" CONFLICT 0 "The aggregate was changed meanwhile"
    PLUGIN_FAILED "plugin-failed" CONFLICT 0 "The plugin says that it failed"
    PLUGIN_CHANGED "plugin-changed" CONFLICT 0 "Somebody else changed the plugin meanwhile"
    PLUGIN_NEEDED "plugin-needed" CONFLICT 0 "Applications need the plugin"
    VERSION_MISMATCH "version-mismatch" PRECONDITION_FAILED 0 "The aggregate has another version"
    PAYLOAD_TOO_LARGE "payload-too-large" PAYLOAD_TOO_LARGE 0 "The body is too long"
    URI_TOO_LONG "uri-too-long" URI_TOO_LONG 0 "Path and query are too long"
    UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE 0
        "The body's type is not supported"
    INVALID_PAYLOAD "invalid-payload" UNPROCESSABLE_ENTITY 0
        "The payload does not match the command's schema"
    IDEMPOTENCY_KEY_REUSED "idempotency-key-reused" UNPROCESSABLE_ENTITY 0
        "The idempotency key belongs to another command"
    FAULTY_DECIDER "faulty-decider" UNPROCESSABLE_ENTITY 0 "The application's rules failed"
    FAULTY_QUERY "faulty-query" UNPROCESSABLE_ENTITY 0 "The query's statement failed"
    INVALID_INPUT "invalid-input" UNPROCESSABLE_ENTITY 0
        "The input does not match the function's schema"
    INVALID_MANIFEST "invalid-manifest" UNPROCESSABLE_ENTITY 0
        "The plugin's manifest has mistakes"
    RATE_LIMITED "rate-limited" TOO_MANY_REQUESTS 1 "Too many requests"
    HEADERS_TOO_LARGE "headers-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE 0 "The headers are too long"
    INTERNAL "internal" INTERNAL_SERVER_ERROR 0 "Something failed here"
    PLUGIN_FAULTY "plugin-faulty" BAD_GATEWAY 0 "The plugin broke its contract"
    OVERLOADED "overloaded" SERVICE_UNAVAILABLE 1 "Too much is going on"
    UNAVAILABLE "unavailable" SERVICE_UNAVAILABLE 1 "A needed service does not answer"
    OUTCOME_UNKNOWN "outcome-unknown" SERVICE_UNAVAILABLE 1 "The outcome is unknown"
    PLUGIN_FAILED_FOR_NOW "plugin-failed-for-now" SERVICE_UNAVAILABLE 1
        "The plugin says that it failed for now"
    READ_MODEL_BUILDING "read-model-building" SERVICE_UNAVAILABLE 2 "The read model is being built"
    POSITION_NOT_REACHED "position-not-reached" SERVICE_UNAVAILABLE 1 "The read model is not there yet"
    QUERY_TIMEOUT "query-timeout" GATEWAY_TIMEOUT 0 "The query took too long"
    PLUGIN_TIMEOUT "plugin-timeout" GATEWAY_TIMEOUT 0 "The plugin did not answer in time"
    STORAGE_FULL "storage-full" INSUFFICIENT_STORAGE 10 "The broker's storage is full"
}

static PAGE: &str = include_str!("../../schemas/problems.md");

impl ProblemKind {
    /// Status and title, the cause, what to do, and whether to send the same again, in Markdown.
    pub(crate) fn advice(&self) -> &'static str {
        let section = sections().find(|(code, _)| *code == self.code);
        section.map_or("", |(_, text)| text)
    }
}

/// Each code of the page with its text.
fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sections = PAGE.split("\n## ").skip(1);
    sections.filter_map(|section| section.split_once('\n')).map(|(code, text)| (code, text.trim()))
}

/// The kind with this code.
pub(crate) fn find(code: &str) -> Option<&'static ProblemKind> {
    ALL.iter().copied().find(|kind| kind.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_retries_are_only_advised_where_waiting_helps() {
        for (at, kind) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|other| other.code != kind.code), "{}", kind.code);
            assert!(kind.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
            let waiting = kind.status == StatusCode::SERVICE_UNAVAILABLE
                || kind.status == StatusCode::INSUFFICIENT_STORAGE
                || kind.status == StatusCode::TOO_MANY_REQUESTS;
            assert_eq!(kind.retry_after_s > 0, waiting, "{}", kind.code);
        }
    }

    #[test]
    fn the_page_has_a_section_for_each_code_and_no_other() {
        let codes: Vec<&str> = sections().map(|(code, _)| code).collect();
        assert_eq!(codes, ALL.iter().map(|kind| kind.code).collect::<Vec<_>>());
        for ProblemKind { code, status, title, .. } in ALL {
            let advice = find(code).unwrap().advice();
            let first = format!("{}: {title}.\n\n- Cause: ", status.as_u16());
            assert!(advice.starts_with(&first), "{code}: {advice}");
            assert!(advice.contains("\n- Do: "), "{code}: what to do?");
            assert_eq!(advice.matches("\n- Again: ").count(), 1, "{code}: may it be sent again?");
        }
        for kind in ALL.iter().filter(|kind| kind.retry_after_s > 0) {
            assert!(kind.advice().contains("\n- Again: Yes"), "{}", kind.code);
        }
    }

    #[test]
    fn limits_in_the_advice_are_the_limits() {
        let says = |kind: &ProblemKind, limit: usize| kind.advice().contains(&limit.to_string());
        assert!(says(&PAYLOAD_TOO_LARGE, flexcore_domain::limits::PAYLOAD_BYTES_MAX));
        assert!(says(&PAYLOAD_TOO_LARGE, flexcore_domain::plugin::INPUT_BYTES_MAX));
        let file = usize::try_from(flexcore_domain::limits::PLUGIN_FILE_BYTES_MAX).unwrap();
        assert!(says(&PAYLOAD_TOO_LARGE, file));
        assert!(says(&MALFORMED_JSON, flexcore_domain::limits::JSON_DEPTH_MAX));
        assert!(says(&URI_TOO_LONG, crate::limits::URI_BYTES_MAX));
        assert!(says(&HEADERS_TOO_LARGE, crate::limits::HEADERS_BYTES_MAX));
    }
}
