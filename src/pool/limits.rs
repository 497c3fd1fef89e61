//! Every limit of this crate, each with its reason.

use std::time::Duration;

use flexcore_resilience::Backoff;

/// The pause before an instance is started again. 100 ms first: a crash is over by then. 30 s at
/// most: whatever it needs is noticed soon after it is back.
pub(crate) const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) };

/// Starts in a row of which none led to a life of [`LIFE_MIN`], without those that ended under a
/// call; then it is given up for [`GIVEN_UP_PAUSE`]. 10: with the pauses between them most of a
/// minute, in which a crash is over.
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

/// Least time of a call that is sent to an instance. 20 ms: with less it would nearly always be given up.
pub const LEFT_MIN: Duration = Duration::from_millis(20);

/// Least time for which a call keeps its place, though its caller waits no longer: its answer is dropped
/// then. 1 s: few calls are given up, which a connection does not bear in numbers.
pub const LINGER_MIN: Duration = Duration::from_secs(1);

/// Longest time between failures of two tenants that speak against a plugin together. 30 s: as long as
/// the breaker remembers them.
pub(crate) const FAILURES_WITHIN: Duration = Duration::from_secs(30);

/// Deaths of instances in a row under calls of one tenant, before its calls are refused. 3: one or two may
/// be somebody else's.
pub(crate) const DEATHS_MAX: u32 = 3;

/// Deaths under one tenant's calls within this time count as one: it may have many calls under way. 1 s.
pub(crate) const DEATHS_APART: Duration = Duration::from_secs(1);

/// Time after which a death says nothing any more. 10 min: the longest of [`DEATHS_REFUSED`].
pub(crate) const DEATHS_WITHIN: Duration = Duration::from_secs(600);

/// Time for which calls of such a tenant are refused. 1 min first; 10 min at most: what is mended is
/// noticed soon.
pub(crate) const DEATHS_REFUSED: Backoff =
    Backoff { first: Duration::from_secs(60), longest: Duration::from_secs(600) };

/// Time after which a decision is late by the plugin's fault. 1 s: decisions are asked for within two seconds, some
/// of which have gone by before.
pub(crate) const DECISION_FULL: Duration = Duration::from_secs(1);

/// Tenants that have a stream of questions to one instance. 32: the streams of others are begun anew when they ask
/// again, which takes a moment.
pub(crate) const DECIDERS_MAX: usize = 32;

/// Most instances of a plugin in one process. 16: more are for more machines.
pub(crate) const INSTANCES_MAX: usize = 16;

/// Most calls under way at one instance. 1,024: each may hold an input and an output.
pub(crate) const CONCURRENCY_MAX: usize = 1_024;

/// Lines that are kept of what a plugin printed. 256: a screen or five.
pub(crate) const LINES_MAX: usize = 256;

/// Longest line that is kept, in bytes; the rest is cut off. 4 KiB.
pub(crate) const LINE_BYTES_MAX: usize = 4 * 1024;

/// Lines of a plugin that are in the log of its host in each [`LINES_LOGGED_EVERY`]. 100: more says no more to a
/// person, and other plugins' lines stand there, too.
pub(crate) const LINES_LOGGED_MAX: usize = 100;

/// The time for which so many lines are logged. 1 s.
pub(crate) const LINES_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// Last calls whose durations are kept for percentiles. 1,024: ten of them are above the 99th.
pub(crate) const DURATIONS_MAX: usize = 1_024;

/// Least time between two lines of the log that say that calls of a plugin were late. 1 s: a tenant in a
/// hurry would fill it otherwise.
pub(crate) const LATE_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Longest time for which calls of a tenant wait until the plugin has taken its configuration. 10 s: it may connect to
/// something.
pub(crate) const CONFIGURE_WAIT: Duration = Duration::from_secs(10);

/// Longest time for a plugin to take the configuration of a tenant. Until then the tenant's next one is not given: the
/// plugin could finish them in another order, and would use the older one. 60 s: what it connects to has answered by
/// then, or given up.
pub(crate) const CONFIGURE_MAX: Duration = Duration::from_secs(60);

/// Time for which a tenant's calls are refused before its configuration is given once more, where the plugin says
/// that its failure passes. 5 s; where it asks for more, as long as that.
pub(crate) const UNCONFIGURED_PAUSE: Duration = Duration::from_secs(5);

/// The longest such time. One minute: what is mended is noticed soon.
pub(crate) const UNCONFIGURED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Longest wait for the end of a process whose connection has ended, and the other way round. 100
/// ms: the kernel closes the one with the other.
pub(crate) const DEATH_WAIT: Duration = Duration::from_millis(100);
