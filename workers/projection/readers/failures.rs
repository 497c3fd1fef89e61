//! Failures of readers, and what counts as several in a row.

use std::time::Duration;

use tokio::time::Instant;

use crate::projection::reader::{Cause, Reached};

/// A reader that lived for so long before it failed was well: what failed before is not in a row with that. The
/// largest batch takes seconds.
pub(super) const WELL_AFTER: Duration = Duration::from_secs(300);

/// How often in a row readers of a group have failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// And applied nothing.
    pub(super) attempt: u32,
    /// Those among them that were not for a plugin: their batch may be the reason.
    pub(super) batches: u32,
    /// It had begun to read, and then Postgres failed.
    pub(super) uncommitted: u32,
}

/// A group that waits.
#[derive(Clone, Copy)]
pub(super) struct Resting {
    pub(super) until: Instant,
    pub(super) failures: Failures,
}

impl Resting {
    /// True if it has failed lately.
    pub(super) fn counts(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.until) < WELL_AFTER
    }
}

impl Failures {
    /// With one more.
    pub(super) fn and(self, cause: Cause, reached: Reached) -> Self {
        let uncommitted = match (reached, cause) {
            (Reached::Rows, _) => return Self::default(),
            // An outage, and not the batch.
            (Reached::Nothing, _) => 0,
            (Reached::Log, Cause::Postgres) => self.uncommitted.saturating_add(1),
            (Reached::Log, _) => self.uncommitted,
        };
        let batches = self.batches.saturating_add(u32::from(cause != Cause::Plugin));
        Self { attempt: self.attempt.saturating_add(1), batches, uncommitted }
    }
}
