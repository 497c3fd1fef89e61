//! The member's lease, to be asked before each act of the member.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Says if the process may act as a member just now; cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct Guard {
    origin: Instant,
    pub(crate) until_ms: Arc<AtomicU64>,
}

impl Guard {
    /// One that does not hold yet.
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), until_ms: Arc::default() }
    }

    /// A monotonic clock in milliseconds that every part of the process reads alike.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// True if the member's lease holds: ask right before each effect.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.now_ms() < self.until_ms.load(Ordering::Acquire)
    }
}
