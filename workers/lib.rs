//! The workers: what keeps FlexCore running. One file a worker; this is the complete list.

pub mod command;
#[cfg(feature = "defects")]
mod defects;
mod places;
pub mod projection;

use std::time::Duration;

/// Longest time that a worker that stops waits until the map says so. Until then it keeps receiving
/// and answering requests. A leader takes a twentieth of it; when it is the leader that stops,
/// another must be found first.
const TOLD_MAX: Duration = Duration::from_secs(2);
