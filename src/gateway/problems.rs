//! The kinds of problems: stable codes, each with a short page of advice at `/problems/{code}`.

use axum::http::StatusCode;

/// One kind of problem.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The last part of its `type`, never changed once published.
    pub(crate) code: &'static str,
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    /// What the sender can do about it.
    pub(crate) advice: &'static str,
    /// Seconds of `Retry-After`; 0: sending the same again does not help by itself.
    pub(crate) retry_after_s: u16,
}

macro_rules! kinds {
    ($($name:ident $code:literal $status:ident $retry:literal $title:literal $advice:literal)*) => {
        $(pub(crate) static $name: Kind = Kind {
            code: $code,
            status: StatusCode::$status,
            title: $title,
            advice: $advice,
            retry_after_s: $retry,
        };)*

        /// All of them, in the order of their status.
        pub(crate) static ALL: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    BAD_REQUEST "bad-request" BAD_REQUEST 0
        "The request cannot be read"
        "The detail says what is wrong. Correct the request; sending it again unchanged gives \
         the same answer."
    INVALID_HEADER "invalid-header" BAD_REQUEST 0
        "A header is malformed"
        "The detail names the header and its form: Idempotency-Key is [A-Za-z0-9_:-]{1,128}, \
         plain or in double quotes; If-Match is one strong entity tag as an answer gave it, \
         such as \"3\"; Last-Event-ID is the id of an event."
    INVALID_NAME "invalid-name" BAD_REQUEST 0
        "A name does not follow its rule"
        "Aggregates, commands, read models and queries are [a-z][a-z0-9_]{0,39}; aggregate \
         ids are [A-Za-z0-9_-]{1,128}. Encode ids of your own that have other characters."
    INVALID_PARAMETER "invalid-parameter" BAD_REQUEST 0
        "A parameter is unknown or malformed"
        "The detail names the parameter. /openapi.json lists them all."
    UNKNOWN_COLUMN "unknown-column" BAD_REQUEST 0
        "The read model has no such column"
        "known lists the existing columns."
    MALFORMED_JSON "malformed-json" BAD_REQUEST 0
        "The body is not acceptable JSON"
        "The body must be one JSON document in UTF-8, with no key twice in an object and not \
         nested too deep. errors says where it goes wrong."
    UNAUTHENTICATED "unauthenticated" UNAUTHORIZED 0
        "A valid access token is needed"
        "Send Authorization: Bearer TOKEN. `flexcore token` mints one; `flexcore dev` prints \
         one. Tokens end by themselves: mint another when yours has expired."
    FORBIDDEN "forbidden" FORBIDDEN 0
        "The token does not allow this"
        "Requests about the whole platform need a token of the platform's own tenant: \
         `flexcore token --tenant flexcore`."
    NOT_FOUND "not-found" NOT_FOUND 0
        "There is nothing here"
        "The index at / says where things are."
    NO_SUCH_AGGREGATE "no-such-aggregate" NOT_FOUND 0
        "The aggregate has no events"
        "Nothing has been recorded under this id for your tenant. Ids are case-sensitive."
    NO_OUTCOME "no-outcome" NOT_FOUND 0
        "No outcome of this command is kept"
        "No command of this id waits for the aggregate and its log has none, so it has recorded \
         nothing: it was never received, or it was refused longer ago than refusals are kept, \
         which is 7 days, and less where very many are. Sent again under the same key it is \
         done now."
    UNKNOWN_AGGREGATE "unknown-aggregate" NOT_FOUND 0
        "No deployed application has this aggregate"
        "known lists the existing aggregates. Deploy the application with `flexcore apply`."
    UNKNOWN_COMMAND "unknown-command" NOT_FOUND 0
        "The aggregate has no such command"
        "known lists the existing commands."
    UNKNOWN_READ_MODEL "unknown-read-model" NOT_FOUND 0
        "No deployed application has this read model"
        "known lists the existing read models."
    UNKNOWN_QUERY "unknown-query" NOT_FOUND 0
        "No deployed application has this query"
        "known lists the existing queries."
    METHOD_NOT_ALLOWED "method-not-allowed" METHOD_NOT_ALLOWED 0
        "The method is not allowed here"
        "The header Allow lists those that are."
    REQUEST_TIMEOUT "request-timeout" REQUEST_TIMEOUT 0
        "The body did not arrive in time"
        "Send the body at once and without long pauses. Nothing was done; the request can be \
         sent again."
    REJECTED "rejected" CONFLICT 0
        "The rules say no"
        "The application's rules refused the command; code is a stable word for programs, \
         detail a sentence for people. Nothing was recorded."
    CONFLICT "conflict" CONFLICT 0
        "The aggregate was changed meanwhile"
        "Others changed the aggregate at the same time, again and again. Nothing was \
         recorded; send the command again."
    VERSION_MISMATCH "version-mismatch" PRECONDITION_FAILED 0
        "The aggregate has another version"
        "If-Match named a version that the aggregate does not have (any more). Read its \
         state, decide again, and send the ETag that you got."
    PAYLOAD_TOO_LARGE "payload-too-large" PAYLOAD_TOO_LARGE 0
        "The body is too long"
        "A command's payload has at most 262144 bytes. Keep large things elsewhere and send \
         their address."
    URI_TOO_LONG "uri-too-long" URI_TOO_LONG 0
        "Path and query are too long"
        "They have at most 8192 bytes together."
    UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE 0
        "The body's type is not supported"
        "Send Content-Type: application/json, in UTF-8 and not compressed."
    INVALID_PAYLOAD "invalid-payload" UNPROCESSABLE_ENTITY 0
        "The payload does not match the command's schema"
        "errors has a JSON pointer to each field that is wrong, and the reason. The schema \
         is in /openapi.json."
    IDEMPOTENCY_KEY_REUSED "idempotency-key-reused" UNPROCESSABLE_ENTITY 0
        "The idempotency key belongs to another command"
        "A key stands for one command on one aggregate, byte for byte. Use a new key for a \
         new command, and the very same body for a repetition."
    FAULTY_DECIDER "faulty-decider" UNPROCESSABLE_ENTITY 0
        "The application's rules failed"
        "The application's own code threw, ran too long, asked for too much memory or \
         returned something undeclared. Nothing was recorded. Tell its author what the detail \
         says; after a fix the command can be sent again under the same key."
    FAULTY_QUERY "faulty-query" UNPROCESSABLE_ENTITY 0
        "The query's statement failed"
        "The named query itself fails with these parameters, or returns too many rows. Tell \
         its author what the detail says."
    RATE_LIMITED "rate-limited" TOO_MANY_REQUESTS 1
        "Too many requests"
        "Your tenant has used up its rate. RateLimit says what is left, Retry-After when to \
         go on. Nothing was done."
    HEADERS_TOO_LARGE "headers-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE 0
        "The headers are too long"
        "All headers together have at most 24576 bytes."
    INTERNAL "internal" INTERNAL_SERVER_ERROR 0
        "Something failed here"
        "This is our fault. Report it with the trace_id; the cause is in the log under it."
    OVERLOADED "overloaded" SERVICE_UNAVAILABLE 1
        "Too much is going on"
        "The request was turned away at once instead of waiting in a queue. Nothing was done. \
         Wait as Retry-After says, with some randomness, and send it again."
    UNAVAILABLE "unavailable" SERVICE_UNAVAILABLE 1
        "A needed service does not answer"
        "/readyz names the broker or Postgres when one of them does not answer; else it was a \
         worker. Nothing was done; send it again as Retry-After says."
    OUTCOME_UNKNOWN "outcome-unknown" SERVICE_UNAVAILABLE 1
        "The command's outcome is unknown"
        "The answer got lost. Send the command again with the same Idempotency-Key and the \
         same body: it takes effect once, and you get its outcome."
    READ_MODEL_BUILDING "read-model-building" SERVICE_UNAVAILABLE 2
        "The read model is being built"
        "It was deployed just now and does not serve yet. Send the query again as Retry-After says."
    POSITION_NOT_REACHED "position-not-reached" SERVICE_UNAVAILABLE 1
        "The read model is not there yet"
        "The read model has not passed min_position within wait_ms. Send the query again, or \
         without min_position to have it as it is."
    QUERY_TIMEOUT "query-timeout" GATEWAY_TIMEOUT 0
        "The query took too long"
        "Narrow it with filters, a smaller limit or fewer rows to sort."
    STORAGE_FULL "storage-full" INSUFFICIENT_STORAGE 10
        "The broker's storage is full"
        "Nothing was done, and nothing that was accepted is lost: stored commands wait. Tell \
         the operator of the installation; deploy/README.md says how to make room. After that the \
         command can be sent again under the same key."
}

/// The kind with this code.
pub(crate) fn find(code: &str) -> Option<&'static Kind> {
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
    fn limits_in_the_advice_are_the_limits() {
        let says = |kind: &Kind, limit: usize| kind.advice.contains(&limit.to_string());
        assert!(says(&PAYLOAD_TOO_LARGE, flexcore_domain::limits::PAYLOAD_BYTES_MAX));
        assert!(says(&URI_TOO_LONG, crate::limits::URI_BYTES_MAX));
        assert!(says(&HEADERS_TOO_LARGE, crate::limits::HEADERS_BYTES_MAX));
    }
}
