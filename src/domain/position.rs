//! Places in the log, as tokens that clients pass back without looking inside.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::slot::Slot;

/// A place in the log: event stream, slot, and sequence in the stream. As text an opaque token,
/// `<stream>-<slot>-<sequence>`; the stream is always 1 while there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    /// The slot whose checkpoint has to pass it.
    pub slot: Slot,
    /// The stream sequence of the commit.
    pub sequence: u64,
}

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
        Ok(Self { slot, sequence })
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
