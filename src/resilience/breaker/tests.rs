//! The breaker around futures, on a clock that moves when nothing else does.

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::time::{Instant, sleep};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// An error is a failure, but for "no".
fn judge<T>(result: &Result<T, &'static str>) -> Verdict {
    match result {
        Ok(_) | Err("no") => Verdict::Success,
        Err(_) => Verdict::Failure,
    }
}

async fn answers(
    breaker: &Breaker,
    answer: Result<(), &'static str>,
) -> Result<(), Error<&'static str>> {
    breaker.call(soon(), judge, async { answer }).await
}

async fn opened() -> Breaker {
    let breaker = Breaker::new("t", BreakerPolicy::default());
    for _ in 0..5 {
        assert_eq!(answers(&breaker, Err("away")).await, Err(Error::Failed("away")));
    }
    assert_eq!(breaker.state(), CircuitState::Open);
    breaker
}

async fn half_open() -> Breaker {
    let breaker = opened().await;
    sleep(breaker.rests_for()).await;
    assert_eq!(answers(&breaker, Ok(())).await, Ok(()));
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    breaker
}

#[tokio::test(start_paused = true)]
async fn refusals_do_not_open_and_an_open_one_does_not_begin_the_call() {
    let breaker = Breaker::new("t", BreakerPolicy::default());
    for _ in 0..50 {
        assert_eq!(answers(&breaker, Err("no")).await, Err(Error::Failed("no")));
    }
    assert_eq!(breaker.state(), CircuitState::Closed);
    let breaker = opened().await;
    let call = async { panic!("it must not begin") };
    let Err(Error::Open { target: "t", retry_after }) =
        breaker.call::<(), &str>(soon(), judge, call).await
    else {
        panic!("it should be left alone");
    };
    assert!(retry_after >= 250 * MS && retry_after <= 500 * MS, "{retry_after:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_open_it() {
    let breaker = Breaker::new("t", BreakerPolicy::default());
    let hang = || breaker.call::<(), &str>(soon(), judge, std::future::pending());
    let hung = tokio::join!(hang(), hang(), hang(), hang(), hang()).0;
    assert_eq!(hung, Err(Error::TimedOut { target: "t" }));
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_or_has_no_time_is_no_failure() {
    let breaker = Breaker::new("t", BreakerPolicy::default());
    for _ in 0..100 {
        let hang = breaker.call::<(), &str>(soon(), judge, std::future::pending());
        assert!(tokio::time::timeout(5 * MS, hang).await.is_err(), "dropped here");
        let brief = Deadline::after(MS);
        let hang = breaker.call::<(), &str>(brief, judge, std::future::pending());
        assert_eq!(hang.await, Err(Error::TimedOut { target: "t" }));
    }
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_sends_one_probe_and_a_dropped_one_makes_room() {
    let breaker = half_open().await;
    let slow = || {
        let answer = async {
            sleep(100 * MS).await;
            Ok(())
        };
        breaker.call(soon(), judge, answer)
    };
    let crowd = futures::future::join_all((0..50).map(|_| slow())).await;
    let passed = crowd.iter().filter(|result| result.is_ok()).count();
    assert_eq!(passed, 1, "{crowd:?}");
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    {
        let mut probe = std::pin::pin!(slow());
        assert!(futures::poll!(probe.as_mut()).is_pending());
        let refused = answers(&breaker, Ok(())).await;
        assert!(matches!(refused, Err(Error::Open { .. })), "{refused:?}");
    }
    assert_eq!(answers(&breaker, Ok(())).await, Ok(()), "the probe was dropped");
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_makes_room() {
    let breaker = std::sync::Arc::new(half_open().await);
    let probing = breaker.clone();
    let probe = async move {
        probing.call::<(), &str>(soon(), judge, async { panic!("a test's own panic") }).await
    };
    assert!(tokio::spawn(probe).await.unwrap_err().is_panic());
    assert_eq!(answers(&breaker, Ok(())).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn metrics_show_states_and_changes() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let shows = |line: &str| {
        let text = recorder.handle().render();
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    };
    let breaker = Breaker::new("t", BreakerPolicy::default());
    shows("flexcore_breaker_state{target=\"t\"} 0");
    shows("flexcore_breaker_transitions_total{target=\"t\",to=\"open\"} 0");
    drop(breaker);
    let breaker = half_open().await;
    shows("flexcore_breaker_state{target=\"t\"} 1");
    shows("flexcore_breaker_transitions_total{target=\"t\",to=\"open\"} 1");
    answers(&breaker, Err("away")).await.unwrap_err();
    shows("flexcore_breaker_state{target=\"t\"} 2");
    sleep(breaker.rests_for()).await;
    let began = Instant::now();
    for _ in 0..3 {
        answers(&breaker, Ok(())).await.unwrap();
    }
    assert!(began.elapsed().is_zero());
    shows("flexcore_breaker_state{target=\"t\"} 0");
    shows("flexcore_breaker_transitions_total{target=\"t\",to=\"half_open\"} 2");
    shows("flexcore_breaker_transitions_total{target=\"t\",to=\"closed\"} 1");
    let brief = Deadline::after(MS);
    brief.timeout("t", std::future::pending::<()>()).await.unwrap_err();
    shows("flexcore_deadline_exceeded_total{target=\"t\"} 1");
}
