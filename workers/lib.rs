//! The workers: what keeps FlexCore running. One file a worker; this is the complete list.

pub mod command;
#[cfg(feature = "defects")]
mod defects;
pub mod projection;

use std::time::Duration;

/// How long a worker that stops waits for the map to say so. Until then it is asked, and answers; after
/// that nobody asks it any more. The leader takes a tenth of it, and another leader must be found first
/// when it is the leader that stops.
const TOLD_MAX: Duration = Duration::from_secs(2);
