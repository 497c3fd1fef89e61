//! What is missing, as it was found last. `routes/health.rs` looks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use flexcore_http::health::Missing;
use tokio::sync::Mutex;

use crate::{error::Problem, problems};

/// What was found last, and when.
#[derive(Default)]
pub(crate) struct Readiness {
    pub(crate) found: Mutex<Option<(Instant, Arc<[Missing]>)>>,
    /// Everything was there once.
    pub(crate) started: AtomicBool,
    /// The rows are of another log: no query is answered from them.
    pub(crate) other_log: AtomicBool,
}

impl Readiness {
    /// Fails when queries would be answered with another log's rows.
    pub(crate) fn check_rows(&self) -> Result<(), Problem> {
        if self.other_log.load(Ordering::Relaxed) {
            let detail = "the read models are of another log; /readyz says what to do";
            return Err(Problem::new(&problems::UNAVAILABLE, detail));
        }
        Ok(())
    }
}
