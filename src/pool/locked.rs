//! Locks that are held for moments, and never while something is waited for.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the lock guards. No code panics half way through a change.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
