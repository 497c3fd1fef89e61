//! Failover among endpoints, on a clock that moves when nothing else does.

use std::{cell::RefCell, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::time::sleep;

use super::*;
use crate::policy::{BreakerPolicy, BudgetPolicy, Policies};

/// The behaviour of one endpoint, and the number of calls to it.
#[derive(Debug)]
struct Fake {
    does: RefCell<Does>,
    calls: RefCell<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answer,
    Refuse,
    Fail,
    Hang,
}

impl Fake {
    fn new(does: Does) -> Self {
        Self { does: does.into(), calls: 0.into() }
    }

    async fn answer(&self) -> Result<(), &'static str> {
        *self.calls.borrow_mut() += 1;
        let does = *self.does.borrow();
        match does {
            Does::Answer => Ok(()),
            Does::Refuse => Err("no"),
            Does::Fail => Err("away"),
            Does::Hang => std::future::pending().await,
        }
    }
}

const ENOUGH: BudgetPolicy = BudgetPolicy { percent: 100, floor_per_second: 0, burst: 100 };

fn endpoints<const N: usize>(order: Order, does: [Does; N]) -> Endpoints<Fake> {
    let policy = Policy { budget: ENOUGH, ..Policy::default() };
    Endpoints::new("t", does.map(Fake::new).into(), order, policy)
}

impl Endpoints<Fake> {
    async fn ask_within(&self, deadline: Deadline) -> Result<(), Error<&'static str>> {
        let judge = |result: &Result<(), &str>| match result {
            Ok(()) | Err("no") => Verdict::Success,
            Err(_) => Verdict::Failure,
        };
        self.call(deadline, judge, |error| *error != Error::Failed("no"), Fake::answer).await
    }

    async fn ask(&self) -> Result<(), Error<&'static str>> {
        self.ask_within(Deadline::after(Duration::from_secs(10))).await
    }

    fn calls(&self) -> Vec<u32> {
        self.all.iter().map(|fake| fake.calls.replace(0)).collect()
    }

    fn make(&self, index: usize, does: Does) {
        *self.all[index].does.borrow_mut() = does;
    }
}

#[tokio::test(start_paused = true)]
async fn the_preferred_one_is_asked_and_the_next_when_it_fails() {
    let all = endpoints(Order::Preferred, [Does::Answer, Does::Answer]);
    all.ask().await.unwrap();
    all.make(0, Does::Fail);
    for _ in 0..20 {
        all.ask().await.unwrap();
    }
    assert_eq!(all.calls(), [6, 20], "five failures open its circuit");
    assert_eq!(all.state(), CircuitState::Closed, "one is healthy");
    all.make(0, Does::Answer);
    sleep(BreakerPolicy::default().pause_min).await;
    all.ask().await.unwrap();
    assert_eq!(all.calls(), [1, 0], "a call is the probe");
}

#[tokio::test(start_paused = true)]
async fn each_in_turn() {
    let all = endpoints(Order::RoundRobin, [Does::Answer, Does::Answer, Does::Answer]);
    for _ in 0..9 {
        all.ask().await.unwrap();
    }
    assert_eq!(all.calls(), [3, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_answer_and_is_not_asked_elsewhere() {
    let all = endpoints(Order::Preferred, [Does::Refuse, Does::Answer]);
    assert_eq!(all.ask().await, Err(Error::Failed("no")));
    assert_eq!(all.calls(), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_leaves_time_for_the_next() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let all = endpoints(Order::Preferred, [Does::Hang, Does::Answer]);
    let began = Instant::now();
    all.ask().await.unwrap();
    assert_eq!(began.elapsed(), BreakerPolicy::default().slow_call);
    let brief = Deadline::after(Duration::from_millis(100));
    assert_eq!(all.ask_within(brief).await, Err(Error::TimedOut { target: "t" }));
    assert_eq!(all.calls(), [2, 1], "no time was left for another");
    let text = recorder.handle().render();
    assert!(text.contains("flexcore_failovers_total{target=\"t\"} 1\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn when_none_is_healthy_the_one_that_rested_longest_is_tried() {
    let all = endpoints(Order::Preferred, [Does::Fail, Does::Fail, Does::Fail]);
    for _ in 0..5 {
        assert_eq!(all.ask().await, Err(Error::Failed("away")));
    }
    assert_eq!((all.calls(), all.state()), (vec![5, 5, 5], CircuitState::Open));
    // The first opened first, and has rested longest, until it fails again.
    all.make(1, Does::Answer);
    all.make(2, Does::Answer);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(all.ask().await, Ok(()));
    assert_eq!(all.calls(), [1, 1, 0]);
    // Half open now, so the second is preferred to those that rest.
    assert_eq!(all.ask().await, Ok(()));
    assert_eq!(all.calls(), [0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_each_is_tried_by_one_caller_at_a_time() {
    let all = endpoints(Order::Preferred, [Does::Fail, Does::Fail]);
    for _ in 0..5 {
        all.ask().await.unwrap_err();
    }
    all.calls();
    (0..2).for_each(|index| all.make(index, Does::Hang));
    let crowd = futures::future::join_all((0..100).map(|_| all.ask())).await;
    let left_alone = crowd.iter().filter(|r| matches!(r, Err(Error::Open { .. }))).count();
    assert_eq!(left_alone, 98, "at once, without waiting for the two that try");
}

#[tokio::test(start_paused = true)]
async fn failovers_are_within_the_budget_and_seen() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let budget = BudgetPolicy { percent: 10, floor_per_second: 0, burst: 2 };
    // Always healthy, so that the budget alone is at work.
    let breaker = BreakerPolicy {
        failures_in_a_row: u32::MAX,
        calls_min: usize::MAX,
        ..BreakerPolicy::default()
    };
    let policy = Policy { budget, breaker, ..Policy::default() };
    let fakes = [Does::Fail, Does::Fail].map(Fake::new).into();
    let all = Endpoints::new("t", fakes, Order::Preferred, policy);
    for _ in 0..100 {
        assert_eq!(all.ask().await, Err(Error::Failed("away")));
    }
    // The first request finds the budget full, and adds nothing.
    assert_eq!(all.calls(), [100, 11]);
    let text = recorder.handle().render();
    for line in [
        "flexcore_failovers_total{target=\"t\"} 11",
        "flexcore_retry_budget_exhausted_total{target=\"t\"} 89",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_look_finds_those_that_hang_and_those_that_fail() {
    let policy = Policies::default().gateways;
    let fakes = [Does::Hang, Does::Fail, Does::Answer].map(Fake::new).into();
    let all = Endpoints::new("t", fakes, Order::Preferred, policy);
    let began = Instant::now();
    all.look(async |fake: &Fake| fake.answer().await.is_ok()).await;
    assert_eq!(began.elapsed(), policy.check.timeout, "all at once");
    assert_eq!(all.calls(), [1, 1, 1]);
    all.ask().await.unwrap();
    assert_eq!(all.calls(), [0, 0, 1]);
    assert_eq!(began.elapsed(), policy.check.timeout, "nobody was waited for");
    let fakes = [Does::Fail, Does::Answer, Does::Hang].map(Fake::new).into();
    let all = Endpoints::new("t", fakes, Order::Preferred, policy);
    all.look(async |fake: &Fake| fake.answer().await.is_ok()).await;
    all.ask().await.unwrap();
    assert_eq!(all.calls()[..2], [1, 2]);
    assert_eq!(
        began.elapsed(),
        policy.check.timeout,
        "one that would not be asked is not waited for"
    );
}

#[tokio::test(start_paused = true)]
async fn active_checks_find_what_is_down_and_what_is_back() {
    // Pauses so long that no call is a probe.
    let hour = Duration::from_secs(3_600);
    let breaker = BreakerPolicy { pause_min: hour, pause_max: hour, ..BreakerPolicy::default() };
    let policy = Policy { breaker, ..Policy::default() };
    let fakes = [Does::Hang, Does::Answer].map(Fake::new).into();
    let all = Endpoints::new("t", fakes, Order::Preferred, policy);
    let check = all.check(async |fake: &Fake| fake.answer().await.is_ok());
    let calls = async {
        sleep(Duration::from_secs(60)).await;
        all.calls();
        all.ask().await.unwrap();
        assert_eq!(all.calls(), [0, 1], "no call had to find out");
        all.make(0, Does::Answer);
        sleep(Duration::from_secs(60)).await;
        let looks = all.calls();
        assert!((15..60).contains(&looks[1]), "every 2 s or so: {looks:?}");
        all.ask().await.unwrap();
        assert_eq!(all.calls(), [1, 0]);
    };
    tokio::select! {
        () = check => unreachable!("it never ends"),
        () = calls => {}
    }
}
