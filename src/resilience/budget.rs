//! The retry budget: a token bucket that requests and time fill and retries empty, so that trying
//! again cannot make an outage's load much higher than usual.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{measure, policy::BudgetPolicy};

/// Millionths of a retry: a floor of one a second fills one in each microsecond, with no rounding.
const RETRY: u64 = 1_000_000;

/// The bucket, without clock or lock.
#[derive(Debug)]
pub struct Tokens {
    policy: BudgetPolicy,
    millionths: u64,
    filled_at: Instant,
}

impl Tokens {
    /// A full bucket.
    #[must_use]
    pub fn new(policy: BudgetPolicy, now: Instant) -> Self {
        Self { policy, millionths: u64::from(policy.burst) * RETRY, filled_at: now }
    }

    /// Counts a request, its first attempt.
    pub fn on_request(&mut self) {
        self.add(u64::from(self.policy.percent) * (RETRY / 100));
    }

    /// Takes a retry out, if there is one.
    #[must_use]
    pub fn take(&mut self, now: Instant) -> bool {
        let passed_us = now.saturating_duration_since(self.filled_at).as_micros();
        let passed_us = u64::try_from(passed_us).unwrap_or(u64::MAX);
        // Whole microseconds only: the rest counts next time.
        self.filled_at += Duration::from_micros(passed_us);
        self.add(passed_us.saturating_mul(u64::from(self.policy.floor_per_second)));
        let left = self.millionths.checked_sub(RETRY);
        self.millionths = left.unwrap_or(self.millionths);
        left.is_some()
    }

    fn add(&mut self, millionths: u64) {
        let most = u64::from(self.policy.burst) * RETRY;
        self.millionths = self.millionths.saturating_add(millionths).min(most);
    }
}

/// The budget of one target, shared by all who call it.
#[derive(Debug)]
pub struct Budget {
    target: &'static str,
    tokens: Mutex<Tokens>,
}

impl Budget {
    /// A full one. Metrics carry the target's name.
    #[must_use]
    pub fn new(target: &'static str, policy: BudgetPolicy) -> Self {
        Self { target, tokens: Mutex::new(Tokens::new(policy, Instant::now())) }
    }

    /// Counts a request, its first attempt.
    pub fn on_request(&self) {
        self.with(Tokens::on_request);
    }

    /// Takes a retry out. `false`, which is counted, when there is none: then do not try again.
    #[must_use]
    pub fn take(&self) -> bool {
        let taken = self.with(|tokens| tokens.take(Instant::now()));
        if !taken {
            measure::budget_exhausted(self.target);
        }
        taken
    }

    fn with<R>(&self, act: impl FnOnce(&mut Tokens) -> R) -> R {
        act(&mut self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: BudgetPolicy = BudgetPolicy { percent: 10, floor_per_second: 2, burst: 5 };

    #[test]
    fn a_burst_then_a_tenth_of_requests_and_a_few_by_time() {
        let start = Instant::now();
        let mut tokens = Tokens::new(POLICY, start);
        let granted = |tokens: &mut Tokens, now| (0..100).filter(|_| tokens.take(now)).count();
        assert_eq!(granted(&mut tokens, start), 5, "the burst");
        (0..39).for_each(|_| tokens.on_request());
        assert_eq!(granted(&mut tokens, start), 3, "a tenth of 39");
        tokens.on_request();
        assert_eq!(granted(&mut tokens, start), 1, "what was left over counts");
        assert_eq!(granted(&mut tokens, start + Duration::from_secs(2)), 4, "by time");
        assert_eq!(granted(&mut tokens, start + Duration::from_secs(3_600)), 5, "no more is saved");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Request,
        Take,
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let pass = (0_u64..2_000_000).prop_map(Step::Pass);
        let step = prop_oneof![3 => Just(Step::Request), 3 => Just(Step::Take), 1 => pass];
        proptest::collection::vec(step, 0..300)
    }

    proptest! {
        #![proptest_config(crate::cases())]

        /// In every stretch of every sequence.
        #[test]
        fn retries_stay_within_the_budget(steps in steps()) {
            let start = Instant::now();
            let (mut now, mut tokens) = (start, Tokens::new(POLICY, start));
            // Before each step: time, requests and retries so far.
            let (mut requests, mut granted, mut seen) = (0_u64, 0_u64, vec![]);
            for step in steps {
                seen.push((now, requests, granted));
                match step {
                    Step::Request => { tokens.on_request(); requests += 1; }
                    Step::Take => granted += u64::from(tokens.take(now)),
                    Step::Pass(us) => now += Duration::from_micros(us),
                }
                for (at, requests_then, granted_then) in &seen {
                    let earned_us = (now - *at).as_micros() as u64 * 2
                        + (requests - requests_then) * RETRY / 10
                        + 5 * RETRY;
                    prop_assert!((granted - granted_then) * RETRY <= earned_us);
                }
            }
        }
    }
}
