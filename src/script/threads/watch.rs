//! Watches the calls of all script threads, and leaves behind what does not come back.

use std::{
    fs, io,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use flexcore_domain::Refusal;
use rustix::process::{Pid, setpriority_process};

use super::{Driver, Shared, locked, runaways, start};
use crate::limits::LEAVE_AFTER;

/// Time between looks at the threads. A call is counted from the first look that finds it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Niceness of a thread that was left behind: a tenth of what others get where processors are short.
/// With the least there is (19) it would hardly ever end there, and keep its place and its memory.
const NICE: i32 = 10;

/// Nanoseconds of a tick in which Linux tells times of threads, where it tells no finer ones.
const TICK: Duration = Duration::from_millis(10);

/// Looks at one task; `false` when there is nothing more to look at.
type Look = Box<dyn FnMut() -> bool + Send>;

struct Looks {
    started: bool,
    looks: Vec<Look>,
}

static LOOKS: Mutex<Looks> = Mutex::new(Looks { started: false, looks: Vec::new() });

/// The call that was seen last, and what its thread had used by then.
#[derive(Default)]
struct Seen {
    call: Option<(Pid, u64)>,
    used: Duration,
    /// It could not be left behind, and that was said.
    said: bool,
}

/// Watches a task until it is gone. Fails when there is no thread for that.
pub(super) fn watch<L: 'static>(shared: &Arc<Shared<L>>) -> io::Result<()> {
    let (shared, mut seen) = (Arc::downgrade(shared), Seen::default());
    let mut all = locked(&LOOKS);
    if !all.started {
        thread::Builder::new().name("script-watch".to_owned()).spawn(|| {
            loop {
                thread::sleep(LOOK_EVERY);
                locked(&LOOKS).looks.retain_mut(|look| look());
            }
        })?;
        all.started = true;
    }
    all.looks.push(Box::new(move || {
        let Some(shared) = shared.upgrade() else { return false };
        look(&shared, &mut seen);
        true
    }));
    Ok(())
}

fn look<L: 'static>(shared: &Arc<Shared<L>>, seen: &mut Seen) {
    let Some(driver) = shared.lock().driver.clone() else { return };
    let Some((number, within)) = driver.mark.running() else {
        seen.call = None;
        return;
    };
    let Some(used) = used_by(driver.thread) else { return };
    let call = Some((driver.thread, number));
    if seen.call != call {
        *seen = Seen { call, used, said: false };
        return;
    }
    // Processor time of that thread: a process that stands still, or waits for a processor, uses none.
    let used = used.saturating_sub(seen.used);
    if used > within + LEAVE_AFTER {
        leave(shared, &driver, number, used, seen);
    }
}

/// Has a fresh thread go on with the task, in which the call has failed.
fn leave<L: 'static>(
    shared: &Arc<Shared<L>>,
    driver: &Driver,
    number: u64,
    used: Duration,
    seen: &mut Seen,
) {
    let Some(generation) = fail(shared, driver, number, used, seen) else { return };
    give_way(driver.thread);
    if let Err(error) = start(shared, generation) {
        tracing::error!(%error, "no thread to go on with what a call has left");
    }
}

/// Takes the task from its thread, with its call failed. Returns the number of the thread that is to
/// have it; `None` when the call has just ended, or too many run on.
fn fail<L>(
    shared: &Shared<L>,
    driver: &Driver,
    number: u64,
    used: Duration,
    seen: &mut Seen,
) -> Option<u64> {
    let (what, used_ms) = (driver.mark.what(), used.as_millis());
    let mut state = shared.lock();
    let same = driver.mark.running().is_some_and(|(running, _)| running == number);
    let of = state.of.clone().filter(|_| same && state.task.is_some())?;
    let Some(place) = runaways::begin(&of) else {
        if !std::mem::replace(&mut seen.said, true) {
            tracing::error!(key = %of.key, what, "a call holds its lane: too many were left behind");
        }
        return None;
    };
    driver.mark.leave_as(place);
    tracing::error!(key = %of.key, what, used_ms, "a call does not end, and was left behind");
    state.failed = Some(Refusal::Faulty(format!(
        "{what}: it does not end: after {used_ms} ms of processor time inside the engine it was left \
         behind"
    )));
    state.generation += 1;
    // Until the fresh thread says that it has begun.
    state.driver = None;
    Some(state.generation)
}

/// Gives a thread that was left behind a low priority.
pub fn give_way(thread: Pid) {
    if let Err(error) = setpriority_process(Some(thread), NICE) {
        tracing::warn!(%error, "a thread that was left behind keeps its priority");
    }
}

/// Processor time that a thread of this process has used; `None` where the system does not say.
#[must_use]
pub fn used_by(thread: Pid) -> Option<Duration> {
    let of = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    let text = fs::read_to_string(format!("{of}/schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|first| first.parse().ok());
    if let Some(nanos @ 1..) = nanos {
        return Some(Duration::from_nanos(nanos));
    }
    // A kernel that does not count so finely. Behind the name, which may hold anything.
    let text = fs::read_to_string(format!("{of}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u32>().ok();
    Some(TICK * (ticks(11)? + ticks(12)?))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::clock::processor_time;

    #[test]
    fn what_a_thread_has_used_is_what_it_says_itself() {
        let since = Instant::now();
        while processor_time() < Duration::from_millis(30) && since.elapsed().as_secs() < 60 {}
        let used = used_by(rustix::thread::gettid()).unwrap();
        let own = processor_time();
        assert!(used <= own + TICK, "{used:?}, {own:?}");
        assert!(used + Duration::from_millis(25) >= own, "{used:?}, {own:?}");
    }
}
