//! Profiles: the promise of an acknowledgement, by name.

use std::{fmt, str::FromStr};

/// The promise of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// An acknowledged message survives a power cut: the server syncs before it acknowledges.
    PowerLoss,
    /// An acknowledged message survives the death of a process; the server syncs at leisure. For
    /// benches and data that may be lost.
    Relaxed,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerLoss => "power-loss",
            Self::Relaxed => "relaxed",
        })
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "power-loss" => Ok(Self::PowerLoss),
            "relaxed" => Ok(Self::Relaxed),
            other => Err(format!("unknown profile {other:?}: power-loss or relaxed")),
        }
    }
}
