//! Every limit of this crate, each with its reason.

use std::time::Duration;

use flexcore_resilience::Backoff;

/// The pause before an instance is started again. 100 ms first: a crash is over by then. 30 s at
/// most: whatever it needs is noticed soon after it is back.
pub(crate) const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) };

/// Starts in a row of which none led to a life of [`LIFE_MIN`]; then it is given up for
/// [`GIVEN_UP_PAUSE`]. 10: with the pauses between them most of a minute, in which a crash is over.
pub(crate) const STARTS_MAX: u32 = 10;

/// The pause before an instance that was given up is started once more, about. 5 min: what it needs
/// may be back, and what is broken takes next to no time of the machine.
pub(crate) const GIVEN_UP_PAUSE: Duration = Duration::from_secs(300);

/// Failures of an instance after which its version is not put in the place of another one. 3: a
/// start may fail by chance, and whoever installs it waits for the answer.
pub(crate) const TRIES_MAX: u32 = 3;

/// A life that is no failure, however it ends. One minute.
pub(crate) const LIFE_MIN: Duration = Duration::from_secs(60);

/// Time between two questions whether an instance is well. 10 s.
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Such questions in a row that were not answered well; then the instance is started anew. 3: it
/// may be busy for a moment.
pub(crate) const MISSES_MAX: u32 = 3;

/// Longest time that calls under way have before their instance is ended because it is not well or
/// cannot be reached. 10 s: they may be answered all the same.
pub(crate) const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// Time that an instance which was replaced has beyond that of a call. 1 s: for calls that have
/// just begun, and for their answers.
pub(crate) const DRAIN_MORE: Duration = Duration::from_secs(1);

/// Most instances of a plugin in one process. 16: more are for more machines.
pub(crate) const INSTANCES_MAX: usize = 16;

/// Most calls under way at one instance. 1,024: each may hold an input and an output.
pub(crate) const CONCURRENCY_MAX: usize = 1_024;

/// Lines that are kept of what a plugin printed. 256: a screen or five.
pub(crate) const LINES_MAX: usize = 256;

/// Longest line that is kept, in bytes; the rest is cut off. 4 KiB.
pub(crate) const LINE_BYTES_MAX: usize = 4 * 1024;

/// Last calls whose durations are kept for percentiles. 1,024: ten of them are above the 99th.
pub(crate) const DURATIONS_MAX: usize = 1_024;

/// Longest wait for the end of a process whose connection has ended, and the other way round. 100
/// ms: the kernel closes the one with the other.
pub(crate) const DEATH_WAIT: Duration = Duration::from_millis(100);
