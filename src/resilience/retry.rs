//! Trying again: bounded attempts, pauses by chance that double, within a budget and a deadline.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    budget::Budget,
    deadline::Deadline,
    error::Error,
    measure,
    pause::{self, Backoff},
    policy::{Policy, RetryPolicy},
};

/// Retries of one target's calls; clones share the budget.
#[derive(Clone, Debug)]
pub struct Retry {
    target: &'static str,
    policy: RetryPolicy,
    budget: Arc<Budget>,
}

impl Retry {
    /// With a full budget. Metrics carry the target's name.
    #[must_use]
    pub fn new(target: &'static str, policy: &Policy) -> Self {
        let budget = Arc::new(Budget::new(target, policy.budget));
        Self { target, policy: policy.retry, budget }
    }

    /// Makes a call, and makes it again while `again` says of its error that this may help. The
    /// call is given the number of its attempt, from 1. It must be harmless to repeat.
    ///
    /// Fails with [`Error::TimedOut`] when the deadline passes during an attempt, and with the last
    /// attempt's [`Error::Failed`] when attempts, budget or time are used up: it does not sleep
    /// when no time would be left after it.
    pub async fn run<T, E, F>(
        &self,
        deadline: Deadline,
        again: impl Fn(&E) -> bool,
        mut call: impl FnMut(u32) -> F,
    ) -> Result<T, Error<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let target = self.target;
        self.budget.on_request();
        for attempt in 1.. {
            let answered = deadline.timeout(target, call(attempt)).await;
            let error = match answered.map_err(|_| Error::TimedOut { target })? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = after_attempt(&self.policy, attempt, pause::chance());
            let may = attempt < self.policy.attempts_max
                && again(&error)
                && deadline.remaining(Instant::now()) > pause
                && self.budget.take();
            if !may {
                return Err(Error::Failed(error));
            }
            measure::retry(target);
            tokio::time::sleep(pause).await;
        }
        unreachable!("BUG: attempts are bounded")
    }
}

/// The pause after this attempt, from 1: `random` in 0..1 of the doubled and capped pause ("full
/// jitter"), so that those who failed together do not come again together.
#[must_use]
pub(crate) fn after_attempt(policy: &RetryPolicy, attempt: u32, random: f64) -> Duration {
    let backoff = Backoff { first: policy.pause_min, longest: policy.pause_max };
    backoff.after(attempt).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::policy::BudgetPolicy;

    fn after(ms: u64) -> Deadline {
        Deadline::after(Duration::from_millis(ms))
    }

    /// Fails so many times, then answers its attempt.
    async fn fails(times: u32, attempt: u32) -> Result<u32, &'static str> {
        if attempt <= times { Err("away") } else { Ok(attempt) }
    }

    #[test]
    fn pauses_double_up_to_a_cap_and_chance_makes_them_shorter() {
        let policy = RetryPolicy::default();
        let pauses_ms = |random| {
            let pause = |attempt| after_attempt(&policy, attempt, random).as_millis();
            [pause(1), pause(2), pause(3), pause(6), pause(u32::MAX)]
        };
        assert_eq!(pauses_ms(1.0), [50, 100, 200, 1_000, 1_000]);
        assert_eq!(pauses_ms(0.5), [25, 50, 100, 500, 500]);
        assert_eq!(pauses_ms(0.0), [0; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_tried_again_a_bounded_number_of_times() {
        let retry = Retry::new("t", &Policy::default());
        let run = async |times| retry.run(after(10_000), |_| true, |n| fails(times, n)).await;
        assert_eq!(run(0).await, Ok(1));
        assert_eq!(run(4).await, Ok(5));
        assert_eq!(run(5).await, Err(Error::Failed("away")));
        let never = retry.run(after(10_000), |_| false, |n| fails(1, n)).await;
        assert_eq!(never, Err(Error::Failed("away")), "not what its caller calls hopeless");
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_attempts_and_pauses() {
        let retry = Retry::new("t", &Policy::default());
        let began = Instant::now();
        let hangs = |_| std::future::pending::<Result<(), &str>>();
        let hung = retry.run(after(70), |_| true, hangs).await;
        assert_eq!((hung, began.elapsed().as_millis()), (Err(Error::TimedOut { target: "t" }), 70));
        // Pauses of a minute do not fit: no time is slept away, and the true error is told.
        let long = Duration::from_secs(60_000);
        let slow = RetryPolicy { pause_min: long, pause_max: long, attempts_max: 9 };
        let retry = Retry::new("t", &Policy { retry: slow, ..Policy::default() });
        let began = Instant::now();
        let failed = retry.run(after(70), |_| true, |n| fails(8, n)).await;
        assert!(failed == Err(Error::Failed("away")) && began.elapsed().is_zero(), "{failed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_makes_the_load_of_all_callers_little_higher() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let budget = BudgetPolicy { percent: 10, floor_per_second: 0, burst: 5 };
        let retry = Retry::new("t", &Policy { budget, ..Policy::default() });
        let attempts = AtomicU32::new(0);
        for _ in 0..1_000 {
            // Clones, as callers have them.
            let call = |n| {
                attempts.fetch_add(1, Ordering::Relaxed);
                fails(u32::MAX, n)
            };
            let _failed = retry.clone().run(after(10_000), |_| true, call).await;
        }
        let attempts = attempts.into_inner();
        assert!((1_100..=1_105).contains(&attempts), "{attempts}");
        let text = recorder.handle().render();
        let line = format!("flexcore_retries_total{{target=\"t\"}} {}", attempts - 1_000);
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}
