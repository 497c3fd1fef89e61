//! All metrics of this crate. `flexcore-telemetry` describes them.

use std::time::Duration;

use crate::error::PoolError;

/// Says how many instances of a plugin are wanted in this process; 0: it is none any more. Before its
/// pool is there, too: a plugin whose file cannot be fetched has instances that are wanted, and none
/// that is ready.
pub fn wanted(plugin: &str, instances: usize) {
    begin(plugin);
    let instances = u32::try_from(instances).unwrap_or(u32::MAX);
    metrics::gauge!("flexcore_plugin_instances_wanted", "plugin" => plugin.to_owned())
        .set(f64::from(instances));
}

/// Sets the metrics to zero at the start, so that rates are known from the first event on.
pub(crate) fn begin(plugin: &str) {
    metrics::counter!("flexcore_plugin_restarts_total", "plugin" => plugin.to_owned()).increment(0);
    metrics::gauge!("flexcore_plugin_instances_ready", "plugin" => plugin.to_owned()).increment(0);
    metrics::gauge!("flexcore_plugin_under_way", "plugin" => plugin.to_owned()).increment(0);
}

/// An instance is started again.
pub(crate) fn restarted(plugin: &str) {
    metrics::counter!("flexcore_plugin_restarts_total", "plugin" => plugin.to_owned()).increment(1);
}

/// A call is over; without an error it has an output.
pub(crate) fn called(plugin: &str, failed: Option<&PoolError>, took: Duration) {
    metrics::counter!(
        "flexcore_plugin_calls_total", "plugin" => plugin.to_owned(), "outcome" => outcome(failed)
    )
    .increment(1);
    metrics::histogram!("flexcore_plugin_call_seconds", "plugin" => plugin.to_owned())
        .record(took.as_secs_f64());
}

fn outcome(failed: Option<&PoolError>) -> &'static str {
    match failed {
        None => "done",
        Some(PoolError::Busy) => "busy",
        Some(PoolError::Away(_)) => "away",
        Some(PoolError::Late) => "late",
        Some(PoolError::Unknown(_)) => "unknown",
        Some(PoolError::UnknownFunction) => "unknown_function",
        Some(PoolError::TooLarge) => "too_large",
        Some(PoolError::Failed(_)) => "failed",
        Some(PoolError::Faulty(_)) => "faulty",
    }
}

/// Counts an instance as ready until it is dropped.
#[derive(Debug)]
pub(crate) struct CountedReady(String);

impl CountedReady {
    pub(crate) fn new(plugin: &str) -> Self {
        metrics::gauge!("flexcore_plugin_instances_ready", "plugin" => plugin.to_owned())
            .increment(1);
        Self(plugin.to_owned())
    }
}

impl Drop for CountedReady {
    fn drop(&mut self) {
        metrics::gauge!("flexcore_plugin_instances_ready", "plugin" => self.0.clone()).decrement(1);
    }
}

/// Counts a call as under way until it is dropped.
#[derive(Debug)]
pub(crate) struct CountedCall(String);

impl CountedCall {
    pub(crate) fn new(plugin: &str) -> Self {
        metrics::gauge!("flexcore_plugin_under_way", "plugin" => plugin.to_owned()).increment(1);
        Self(plugin.to_owned())
    }
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        metrics::gauge!("flexcore_plugin_under_way", "plugin" => self.0.clone()).decrement(1);
    }
}
