//! The limits of a script, each with its reason.

use std::time::Duration;

/// Most memory of one runtime, in bytes: a state of the largest size, some ten times over, and the
/// engine itself. A lane has one runtime for each kind of aggregate that it sees.
pub const MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most native stack of a script, in bytes: threads have 2 MiB, and the caller needs some of it.
pub(crate) const STACK_BYTES_MAX: usize = 512 * 1024;

/// Most processor time of one command's functions: thousands of times what they need, and short enough that
/// the other commands of the lane still get their answer in time.
pub const DECIDE_MAX: Duration = Duration::from_millis(100);

/// Most processor time for each event of a fold, on top of [`DECIDE_MAX`]: an accepted event must
/// be foldable on a slower machine.
pub const EVOLVE_MAX: Duration = Duration::from_millis(20);

/// Most processor time of a fold of one commit, with the upcasts of its events and their checks, however many
/// these are: five times what they had when they were accepted. A lane does nothing else meanwhile.
pub const FOLD_MAX: Duration = Duration::from_millis(500);

/// Most processor time of the compilation of a definition's functions: they are up to 64 KiB of source each.
pub(crate) const COMPILE_MAX: Duration = Duration::from_secs(2);

/// Events that are folded in one call: it bounds the text that is copied in.
pub(crate) const FOLD_EVENTS_MAX: usize = 1_024;

/// Longest code of a rejection, in characters: it is a word for programs.
pub const CODE_CHARS_MAX: usize = 64;

/// Longest message that leaves a script, in characters: it is a sentence, and travels in a header.
pub const MESSAGE_CHARS_MAX: usize = 500;

/// Longest list that the engine's uninterruptible loops are let loose on: a hundred times the
/// elements that a state of the largest size could hold usefully, and milliseconds of work.
pub(crate) const ELEMENTS_MAX: usize = 1_000_000;

/// Most comparisons of characters in one search for a text, which cannot be interrupted: some
/// 100 ms.
pub(crate) const COMPARISONS_MAX: usize = 100_000_000;

/// Processor time beyond its limit after which a call into the engine is left behind, with its thread.
/// It is counted from a first look at the call, and two looks are 100 ms apart, so that a command's
/// functions hold a lane for 0.3 to 0.5 s. The engine stops what it can stop within some 10 ms, and its
/// longest step takes about 100 ms: more is no function that was a little slow.
pub const LEAVE_AFTER: Duration = Duration::from_millis(200);

/// Processor time beyond its limit after which a call that came back counts as one that did not: it
/// held its lane nearly as long. The longest step of the engine that begins just before the limit takes
/// less.
pub(crate) const OVERRUN_MAX: Duration = Duration::from_millis(150);

/// Threads that are left behind and run on at once in a process, with up to 64 MiB each and a low
/// priority. A call beyond that holds its lane until one of them has ended.
pub const RUNAWAYS_MAX: usize = 8;

/// Calls of one aggregate's functions for one tenant that are left behind, or came back late, within
/// [`RUNAWAY_REFUSED`], before none of them is called for that tenant.
pub const RUNAWAYS_OF_ONE_MAX: usize = 2;

/// Time for which functions that have run away are not called. Each such call holds a lane for half a
/// second at most, so that a tenant gets some hundredths of its time that way.
pub const RUNAWAY_REFUSED: Duration = Duration::from_secs(60);
