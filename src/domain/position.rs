//! Places in the log, as tokens that clients pass back without looking inside.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::slot::Slot;

/// A place in the log: event stream, slot, and sequence in the stream. As text an opaque token,
/// `<stream>-<slot>-<sequence>`; the stream is always 1 while there is one. Each has one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    /// The slot whose checkpoint has to pass it.
    pub slot: Slot,
    /// The stream sequence of the commit.
    pub sequence: u64,
}

/// The last sequence that a token may have: Postgres keeps positions as `bigint`, and what reads on
/// behind a position has one more to count to.
const SEQUENCE_MAX: u64 = i64::MAX as u64 - 1;

/// Not a position token of this installation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a position: pass on the token that a command's answer or an event carried, unchanged")]
pub struct InvalidPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1-{}-{}", self.slot, self.sequence)
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let mut parts = text.strip_prefix("1-").ok_or(InvalidPosition)?.split('-');
        let (Some(slot), Some(sequence), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(InvalidPosition);
        };
        let slot = slot.parse().ok().and_then(Slot::new).ok_or(InvalidPosition)?;
        let sequence = sequence.parse().map_err(|_| InvalidPosition)?;
        let position = Self { slot, sequence };
        // Numbers may be read from more than one text, such as `+1` and `01`.
        if sequence > SEQUENCE_MAX || position.to_string() != text {
            return Err(InvalidPosition);
        }
        Ok(position)
    }
}

impl TryFrom<String> for Position {
    type Error = InvalidPosition;
    fn try_from(text: String) -> Result<Self, InvalidPosition> {
        text.parse()
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_holds_a_sequence_that_cannot_be_counted_on_from() {
        for sequence in [0, 1, SEQUENCE_MAX] {
            let position: Position = format!("1-63-{sequence}").parse().unwrap();
            assert_eq!(position.sequence, sequence);
            assert!(i64::try_from(position.sequence + 1).is_ok());
        }
        let beyond = [SEQUENCE_MAX + 1, i64::MAX as u64 + 1, u64::MAX];
        let tokens = beyond.map(|sequence| format!("1-0-{sequence}"));
        let others = ["", "1-", "1-0", "1-64-1", "1-0-1-1", "2-0-1", "1-0--1", "1-0-1e3", "1-0-١"];
        let spelt = ["1-0-+1", "1-0-01", "1-0-00", "1-+0-1", "1-00-1", "1-07-1", "01-0-1"];
        let others = others.into_iter().chain(spelt);
        for token in tokens.iter().map(String::as_str).chain(others) {
            assert_eq!(token.parse::<Position>(), Err(InvalidPosition), "{token}");
            let json = serde_json::json!(token);
            assert!(serde_json::from_value::<Position>(json).is_err(), "{token}");
        }
    }
}
