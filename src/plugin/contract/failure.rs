//! How failures are made and told.

use std::{fmt, time::Duration};

use bytes::Bytes;

use super::messages::Failure;
use crate::limits::FAILURE_MESSAGE_BYTES_MAX;

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

    /// As it is taken from the other side: its message may be too long.
    pub(super) fn taken(mut self) -> Self {
        self.message = cut(self.message);
        self
    }
}

fn cut(mut message: String) -> String {
    if message.len() > FAILURE_MESSAGE_BYTES_MAX {
        let end = message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX - '…'.len_utf8());
        message.truncate(end);
        message.push('…');
    }
    message
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
}
