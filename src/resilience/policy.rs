//! Every policy with its defaults, each with its reason.

use std::time::Duration;

/// The policies against faults, one for each target that may fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policies {
    /// Reads from Postgres: the gateway's breaker. They are not tried again.
    pub postgres: Policy,
    /// Commands that a gateway stores in the queue, which are tried again within a budget: the same
    /// command again is recognised. They have no breaker.
    pub queue: Policy,
    /// Gateways that an operator lists as equals: a tool looks which of them are there, and goes on
    /// to the next one, within a budget. Its knowledge of them lasts for one call.
    pub gateways: Policy,
}

impl Default for Policies {
    fn default() -> Self {
        // A connection is waited for for 2 s, and Postgres gives up a statement after 5 s by itself: what
        // takes longer is no slow query but a connection that leads nowhere.
        let postgres =
            BreakerPolicy { slow_call: Duration::from_millis(7_500), ..Default::default() };
        // While the broker elects a leader, which takes up to 6.5 s, each attempt fails at once.
        let elected = RetryPolicy {
            attempts_max: 12,
            pause_min: Duration::from_millis(200),
            pause_max: Duration::from_secs(2),
        };
        // A gateway may let a query wait for a position for 30 s, and read for 8 s then; for a worker it
        // waits 15 s at most.
        // One look is all that a tool has before its call.
        let gateway = BreakerPolicy {
            slow_call: Duration::from_secs(40),
            failures_in_a_row: 1,
            // Longer than that look.
            pause_min: Duration::from_secs(3),
            ..Default::default()
        };
        Self {
            postgres: Policy { breaker: postgres, ..Policy::default() },
            queue: Policy { retry: elected, ..Policy::default() },
            gateways: Policy { breaker: gateway, ..Policy::default() },
        }
    }
}

/// The policy against the faults of one target.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Policy {
    /// When to leave it alone.
    pub breaker: BreakerPolicy,
    /// The policy of retries.
    pub retry: RetryPolicy,
    /// The budget of retries, for all callers together.
    pub budget: BudgetPolicy,
    /// The policy of looks between calls.
    pub check: CheckPolicy,
}

/// When a circuit opens, for how long, and what closes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Failures in a row that open. 5: at a passing failure share of 10 % that is one run in
    /// 100,000, and a caller who sends one at a time finds out after five timeouts.
    pub failures_in_a_row: u32,
    /// Number of recent calls of which the share is taken. 20: a target that fails half of its
    /// calls is found within 20 of them.
    pub window: usize,
    /// Calls that must be in the window. 10: one failure of two calls says nothing.
    pub calls_min: usize,
    /// Share of failures that opens, in percent. 50: below it trying again within the budget still
    /// gets most requests through.
    pub failures_percent: usize,
    /// Outcomes that are older say nothing about now. 30 s: failures of a quiet night do not add up.
    pub window_age: Duration,
    /// A call that is not answered by then counts as failed, with any outcome. A call that its
    /// deadline or its client ended sooner does not count, or else a client with a deadline of 1 ms
    /// could open the circuit for all. 2 s: a thousand times the time of a call.
    pub slow_call: Duration,
    /// The first pause. 500 ms: a restarted process takes about as long.
    pub pause_min: Duration,
    /// The longest pause; each is twice the one before, less up to half by chance. 5 s: the longest
    /// that a recovered target is left unused, and rare enough for one probe.
    pub pause_max: Duration,
    /// Probes in a row that close. 3: a target that fails half of its calls passes one of eight
    /// times.
    pub successes: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            failures_in_a_row: 5,
            window: 20,
            calls_min: 10,
            failures_percent: 50,
            window_age: Duration::from_secs(30),
            slow_call: Duration::from_secs(2),
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(5),
            successes: 3,
        }
    }
}

/// The way in which a call is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all. 5: with the pauses below 0.75 s at most between the first and the last, for
    /// a target that is back in a moment. A target that may be away for longer says so in its own
    /// policy.
    pub attempts_max: u32,
    /// Upper end of the first pause; each is twice the one before. 50 ms: what a reconnect takes.
    pub pause_min: Duration,
    /// Upper end of the longest pause. 1 s: beyond it a breaker or the client should decide.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(1),
        }
    }
}

/// The number of retries that all callers of a target in one process have together: in any stretch
/// of time at most `burst` + `percent` of the requests in it + `floor_per_second` × its seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetPolicy {
    /// Retries earned by requests, in percent. 10: an outage makes a great load about a tenth higher.
    pub percent: u32,
    /// Retries earned by time. 2 a second: a process with few requests can try again, too.
    pub floor_per_second: u32,
    /// Most retries that are saved, and the number at the start. 20: a lost connection fails all
    /// calls under way on it at once.
    pub burst: u32,
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self { percent: 10, floor_per_second: 2, burst: 20 }
    }
}

/// The way in which endpoints are checked between calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CheckPolicy {
    /// Mean time between two looks; each wait is a random one up to twice as long, so that many
    /// processes do not look at once. 2 s: a dead endpoint is known before most callers meet it.
    pub interval: Duration,
    /// Longest look. 1 s: a healthy endpoint answers in a hundredth.
    pub timeout: Duration,
}

impl Default for CheckPolicy {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(1) }
    }
}
