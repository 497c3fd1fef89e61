//! The engine's current work on a thread, for the watch.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use flexcore_definition::FileLine;

/// Calls into the engine on one thread.
#[derive(Default)]
pub(super) struct Mark {
    /// Number of the call that runs; 0: none does.
    call: AtomicU64,
    calls: AtomicU64,
    within_ms: AtomicU64,
    /// The running call, in words, with its place.
    what: Mutex<Option<(FileLine, &'static str)>>,
    /// A call came back long after it should have been over.
    overran: AtomicBool,
    /// The thread was left behind, under this number.
    left: OnceLock<u64>,
}

thread_local! {
    static HERE: RefCell<Option<Arc<Mark>>> = const { RefCell::new(None) };
}

/// Has the calls of this thread marked.
pub(super) fn install(mark: Arc<Mark>) {
    HERE.set(Some(mark));
}

/// A call that runs until this is dropped.
pub(crate) struct Marked(Option<Arc<Mark>>);

/// Marks a call into the engine that may use so much processor time. Nothing happens on a thread that
/// nobody watches.
pub(crate) fn begin(within: Duration, place: &FileLine, what: &'static str) -> Marked {
    let mark = HERE.with_borrow(Clone::clone);
    if let Some(mark) = &mark {
        *mark.what.lock().unwrap_or_else(PoisonError::into_inner) = Some((place.clone(), what));
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        mark.within_ms.store(within_ms, Ordering::Relaxed);
        // Only this thread counts.
        let number = mark.calls.load(Ordering::Relaxed) + 1;
        mark.calls.store(number, Ordering::Relaxed);
        mark.call.store(number, Ordering::Release);
    }
    Marked(mark)
}

impl Marked {
    /// The call is over, and came back long after it should have.
    pub(crate) fn overran(&self) {
        if let Some(mark) = &self.0 {
            mark.overran.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        if let Some(mark) = &self.0 {
            mark.call.store(0, Ordering::Release);
        }
    }
}

impl Mark {
    /// The number of the running call, and its limit.
    pub(super) fn running(&self) -> Option<(u64, Duration)> {
        let number = self.call.load(Ordering::Acquire);
        let within = Duration::from_millis(self.within_ms.load(Ordering::Relaxed));
        (number != 0).then_some((number, within))
    }

    /// The running call, in words.
    pub(super) fn what(&self) -> String {
        let what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        what.as_ref().map_or_else(String::new, |(place, what)| format!("{place}: {what}"))
    }

    /// True if a call has overrun since the last question.
    pub(super) fn overran(&self) -> bool {
        // A plain look first, since this is asked after every call.
        self.overran.load(Ordering::Relaxed) && self.overran.swap(false, Ordering::Relaxed)
    }

    pub(super) fn leave_as(&self, number: u64) {
        let _ = self.left.set(number);
    }

    pub(super) fn left_as(&self) -> Option<u64> {
        self.left.get().copied()
    }
}
