//! Faults of our own making, for the chaos harness: with one switched on its checker must complain.
//! Only in builds with the feature `defects`, which nothing but the tests turns on.

use std::{sync::OnceLock, time::Duration};

use flexcore_eventstore::{Appended, Expected};

/// A command worker answers before the log has the commit.
pub(crate) const EARLY_ANSWER: &str = "acknowledge-before-append";

/// How long the append waits that was answered already: long enough to be killed before it.
pub(crate) const APPEND_DELAY: Duration = Duration::from_millis(500);

/// Whether the defect of this name is switched on, by `FLEXCORE_DEFECT`.
pub(crate) fn is_on(name: &str) -> bool {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("FLEXCORE_DEFECT").ok()).as_deref() == Some(name)
}

/// What the log would answer, if all went well.
pub(crate) fn hoped_for(expected: Expected) -> Appended {
    Appended { sequence: expected.sequence + 1, hash: expected.hash }
}
