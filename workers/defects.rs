//! Faults of our own making, for the chaos harness: with one switched on its checker must complain.
//! Only in builds with the feature `defects`, which nothing but the tests turns on.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use flexcore_eventstore::{Appended, Expected};

/// A command worker answers before the log has the commit.
pub(crate) const EARLY_ANSWER: &str = "acknowledge-before-append";

/// A projection worker goes on with what was taken from it, and nothing stops it.
const NO_FENCE: &str = "no-fence";

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

/// What a worker owns, with everything that it ever owned, and no fence in Postgres.
pub(crate) fn never_let_go(owned: BTreeMap<u16, u64>) -> BTreeMap<u16, u64> {
    static EVER: Mutex<BTreeMap<u16, u64>> = Mutex::new(BTreeMap::new());
    if !is_on(NO_FENCE) {
        return owned;
    }
    flexcore_readmodel::UNFENCED.store(true, Ordering::Relaxed);
    let mut ever = EVER.lock().unwrap_or_else(PoisonError::into_inner);
    ever.extend(owned);
    ever.clone()
}
