//! All metrics of this crate. `flexcore-telemetry` describes them.

use std::time::Duration;

use crate::circuit::CircuitState;

/// Sets the metrics to zero at the start, so that rates are known from the first event on.
pub(crate) fn breaker(target: &'static str) {
    metrics::gauge!("flexcore_breaker_state", "target" => target).set(0.0);
    for to in [CircuitState::Closed, CircuitState::HalfOpen, CircuitState::Open] {
        let counter = metrics::counter!(
            "flexcore_breaker_transitions_total", "target" => target, "to" => to.word()
        );
        counter.increment(0);
    }
}

/// A circuit of the target changed; `best` is the state of the best one that it has.
pub(crate) fn transition(
    target: &'static str,
    to: CircuitState,
    best: CircuitState,
    pause: Duration,
) {
    let level = match best {
        CircuitState::Closed => 0.0,
        CircuitState::HalfOpen => 1.0,
        CircuitState::Open => 2.0,
    };
    metrics::gauge!("flexcore_breaker_state", "target" => target).set(level);
    metrics::counter!(
        "flexcore_breaker_transitions_total", "target" => target, "to" => to.word()
    )
    .increment(1);
    match to {
        CircuitState::Closed => tracing::info!(downstream = target, "it works again"),
        CircuitState::HalfOpen => {
            tracing::debug!(downstream = target, "checking if it works again")
        }
        CircuitState::Open => {
            let pause_ms = pause.as_millis();
            tracing::warn!(downstream = target, pause_ms, "it is failing; not retried for now");
        }
    }
}

pub(crate) fn retry(target: &'static str) {
    metrics::counter!("flexcore_retries_total", "target" => target).increment(1);
}

pub(crate) fn budget_exhausted(target: &'static str) {
    metrics::counter!("flexcore_retry_budget_exhausted_total", "target" => target).increment(1);
}

pub(crate) fn failover(target: &'static str) {
    metrics::counter!("flexcore_failovers_total", "target" => target).increment(1);
}

pub(crate) fn deadline_exceeded(target: &'static str) {
    metrics::counter!("flexcore_deadline_exceeded_total", "target" => target).increment(1);
}
