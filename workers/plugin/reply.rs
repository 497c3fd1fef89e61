//! What came of a call, as it is told to whoever asked.

use bytes::Bytes;
use flexcore_domain::{PluginRefusal, PluginReply};
use flexcore_plugin::contract::Failure;
use flexcore_pool::PoolError;
use serde_json::value::{RawValue, to_raw_value};

/// The code of a failure where the input does not fit the message that a method takes. No status has it.
const NOT_FITTING: &str = "invalid_input";

/// The reply with what a function of the contract returned.
pub(super) fn of_output(output: &Bytes) -> PluginReply {
    let text = String::from_utf8(output.to_vec()).map_err(|error| error.to_string());
    let json = text.and_then(|text| RawValue::from_string(text).map_err(|error| error.to_string()));
    match json {
        Ok(output) => PluginReply::Output(output),
        Err(reason) => {
            PluginReply::refused(PluginRefusal::Faulty, format!("its output is no JSON: {reason}"))
        }
    }
}

/// The reply with what a method of a foreign plugin returned.
pub(super) fn of_value(output: &serde_json::Value) -> PluginReply {
    let json = to_raw_value(output);
    json.map_or_else(
        |error| PluginReply::refused(PluginRefusal::Faulty, error.to_string()),
        PluginReply::Output,
    )
}

/// The reply where there is no output.
pub(super) fn of_error(error: PoolError) -> PluginReply {
    let message = error.to_string();
    let refusal = match error {
        PoolError::Failed(failure) => return of_failure(failure),
        PoolError::Busy => PluginRefusal::Busy,
        PoolError::Away(_) => PluginRefusal::Away,
        PoolError::Late => PluginRefusal::Late,
        PoolError::Unknown(_) => PluginRefusal::Unknown,
        PoolError::UnknownFunction => PluginRefusal::UnknownFunction,
        // Of the output: what fits into a message is no input that is too large.
        PoolError::TooLarge | PoolError::Faulty(_) => PluginRefusal::Faulty,
    };
    PluginReply::refused(refusal, message)
}

/// The reply where a foreign plugin's method gave none.
pub(super) fn of_method_error(error: PoolError) -> PluginReply {
    match error {
        PoolError::Failed(failure) if failure.code == NOT_FITTING => {
            PluginReply::refused(PluginRefusal::InvalidInput, failure.message)
        }
        error => of_error(error),
    }
}

fn of_failure(failure: Failure) -> PluginReply {
    let Failure { code, message, temporary, retry_after_ms, details } = failure;
    // None, or what the contract does not let pass.
    let details = std::str::from_utf8(&details).ok().filter(|text| !text.is_empty());
    let details = details.and_then(|text| RawValue::from_string(text.to_owned()).ok());
    PluginReply::Failed { code, message, temporary, retry_after_ms, details }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn text(reply: &PluginReply) -> String {
        serde_json::to_string(reply).unwrap()
    }

    #[test]
    fn an_output_goes_as_it_came() {
        let output = Bytes::from_static(br#"{"b":1.50,"a":[]}"#);
        assert_eq!(text(&of_output(&output)), r#"{"output":{"b":1.50,"a":[]}}"#);
        assert_eq!(text(&of_value(&json!({"b": 1}))), r#"{"output":{"b":1}}"#);
        for wrong in [&b"{"[..], b"\xff", b""] {
            let reply = of_output(&Bytes::from_static(wrong));
            assert!(text(&reply).contains("faulty"), "{wrong:?}");
        }
    }

    #[test]
    fn a_failure_keeps_what_it_says() {
        let failure = Failure::passing("busy", "later")
            .retry_after(Duration::from_secs(2))
            .details(&json!({"queue": 3}));
        let PluginReply::Failed { code, temporary, retry_after_ms, details, .. } =
            of_error(PoolError::Failed(failure))
        else {
            panic!("it is a failure")
        };
        assert_eq!((&*code, temporary, retry_after_ms), ("busy", true, 2_000));
        assert_eq!(details.unwrap().get(), r#"{"queue":3}"#);
        let bare = of_error(PoolError::Failed(Failure::new("gone", "it is gone")));
        assert!(matches!(bare, PluginReply::Failed { details: None, temporary: false, .. }));
    }

    #[test]
    fn whoever_asks_learns_whether_it_may_have_been_done() {
        for (error, word) in [
            (PoolError::Busy, "busy"),
            (PoolError::Away("x".to_owned()), "away"),
            (PoolError::Late, "late"),
            (PoolError::Unknown("x".to_owned()), "unknown"),
            (PoolError::UnknownFunction, "unknown_function"),
            (PoolError::TooLarge, "faulty"),
            (PoolError::Faulty("x".to_owned()), "faulty"),
        ] {
            let refusal = format!(r#"{{"refused":{{"refusal":"{word}","#);
            assert!(text(&of_error(error)).starts_with(&refusal), "{word}");
        }
        let unfit = || PoolError::Failed(Failure::new(NOT_FITTING, "input.name: no text"));
        assert!(text(&of_method_error(unfit())).contains("\"refusal\":\"invalid_input\""));
        assert!(text(&of_error(unfit())).starts_with("{\"failed\":"));
    }
}
