//! How failures are made and told.

use std::{fmt, time::Duration};

use bytes::Bytes;

use super::messages::Failure;
use crate::limits::FAILURE_MESSAGE_BYTES_MAX;

/// The code of a failure that a plugin's own half of the contract, in every language, sends in place of
/// an answer that breaks the contract, and of one for which there is no room beside others.
pub(super) const BROKEN: &str = "broken_answer";

impl Failure {
    /// A failure for good: trying again is in vain. The code is a stable word for programs
    /// (`[a-z][a-z0-9_]{0,39}`); the message is for people, and has no secrets, since it is logged.
    pub fn new(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { code: code.into(), message: cut(message.to_string()), ..Self::default() }
    }

    /// A failure that passes, such as an outage, a full disk, a rate limit.
    pub fn passing(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { temporary: true, ..Self::new(code, message) }
    }

    /// A failure that passes, but not before this time.
    #[must_use]
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.temporary = true;
        self.retry_after_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// With JSON for programs: [`DETAILS_BYTES_MAX`](crate::limits::DETAILS_BYTES_MAX) at most.
    #[must_use]
    pub fn details(mut self, details: &serde_json::Value) -> Self {
        self.details = Bytes::from(details.to_string());
        self
    }

    /// As it is taken from the other side: its message may be too long, or turn the direction of a text.
    pub(super) fn taken(mut self) -> Self {
        self.message = cut(self.message);
        self
    }
}

/// Not too long, and in one direction: wherever it is shown, what stands around it stays as it is.
fn cut(message: String) -> String {
    let mut message =
        if message.contains(turns) { message.replace(turns, "\u{fffd}") } else { message };
    if message.len() > FAILURE_MESSAGE_BYTES_MAX {
        let end = message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX - '…'.len_utf8());
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Ends a line, or turns the direction of a text.
fn turns(sign: char) -> bool {
    matches!(sign, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_says_what_it_was_told() {
        let failure = Failure::passing("busy", "the queue is full")
            .retry_after(Duration::from_millis(1_500))
            .details(&json!({"queue": 3}));
        assert_eq!(failure.to_string(), "busy: the queue is full");
        assert!(failure.temporary);
        assert_eq!(failure.retry_after_ms, 1_500);
        assert_eq!(failure.details, r#"{"queue":3}"#);
        assert!(!Failure::new("gone", "it is gone").temporary);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failure = Failure::new("long", "é".repeat(FAILURE_MESSAGE_BYTES_MAX));
        assert!(failure.message.len() <= FAILURE_MESSAGE_BYTES_MAX, "{}", failure.message.len());
        assert!(failure.message.ends_with("é…"));
    }

    #[test]
    fn a_message_runs_in_one_direction() {
        let told =
            Failure { message: "paid\u{202e}100\u{2069}\n".to_owned(), ..Failure::default() };
        assert_eq!(told.taken().message, "paid\u{fffd}100\u{fffd}\n");
        assert_eq!(Failure::new("no", "a\u{2028}b").message, "a\u{fffd}b");
    }
}
