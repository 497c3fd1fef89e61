//! Every metric of FlexCore by name, and the recorder behind `/metrics`.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of latency buckets, in seconds: from a cached read to the longest wait that a
/// request may ask for, about 2.5 times apart.
const SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];

/// Upper bounds of batch sizes, in commits: up to the 1,000 messages of an atomic batch.
const COMMITS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_000.0];

enum MetricKind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// The complete list: name, kind, unit, and help.
const METRICS: &[(&str, MetricKind, Unit, &str)] = &[
    (
        "flexcore_append_seconds",
        MetricKind::Histogram(SECONDS),
        Unit::Seconds,
        "Time from handing a commit to the event store to its acknowledgement",
    ),
    (
        "flexcore_append_conflicts_total",
        MetricKind::Counter,
        Unit::Count,
        "Commits refused because the aggregate had changed",
    ),
    (
        "flexcore_append_refused_total",
        MetricKind::Counter,
        Unit::Count,
        "Commits that the log has certainly not taken, by reason",
    ),
    (
        "flexcore_append_batch_commits",
        MetricKind::Histogram(COMMITS),
        Unit::Count,
        "Commits that went to the log together",
    ),
    ("flexcore_commands_total", MetricKind::Counter, Unit::Count, "Commands by outcome"),
    (
        "flexcore_command_lookups_total",
        MetricKind::Counter,
        Unit::Count,
        "Commands looked up in the log because their id may be an old one",
    ),
    (
        "flexcore_command_seconds",
        MetricKind::Histogram(SECONDS),
        Unit::Seconds,
        "Time from a lane's taking up a command or a question to its answer",
    ),
    (
        "flexcore_commands_waiting",
        MetricKind::Gauge,
        Unit::Count,
        "Stored commands from the first on that is not settled; 0 where another worker looks",
    ),
    (
        "flexcore_seals_wrong_total",
        MetricKind::Counter,
        Unit::Count,
        "Commands not done since the seal of their sender does not fit the secret",
    ),
    (
        "flexcore_streams_remade_total",
        MetricKind::Counter,
        Unit::Count,
        "Streams that were deleted while workers ran, and were made anew, by stream",
    ),
    (
        "flexcore_progress_unreadable_total",
        MetricKind::Counter,
        Unit::Count,
        "Times that a slot's progress in the queue could not be read",
    ),
    (
        "flexcore_log_bytes",
        MetricKind::Gauge,
        Unit::Bytes,
        "Size of the log; 0 where another worker looks",
    ),
    (
        "flexcore_log_aggregates",
        MetricKind::Gauge,
        Unit::Count,
        "Aggregates in the log, each a subject in the servers' memory; 0 where another worker looks",
    ),
    (
        "flexcore_broker_memory_bytes",
        MetricKind::Gauge,
        Unit::Bytes,
        "Memory of a server of the broker",
    ),
    (
        "flexcore_broker_memory_limit_bytes",
        MetricKind::Gauge,
        Unit::Bytes,
        "Limit of a server's memory, its GOMEMLIMIT; 0: it has none",
    ),
    (
        "flexcore_broker_store_bytes",
        MetricKind::Gauge,
        Unit::Bytes,
        "Bytes of its disk that a server's streams take",
    ),
    (
        "flexcore_broker_store_limit_bytes",
        MetricKind::Gauge,
        Unit::Bytes,
        "Bytes of its disk that a server's streams may take",
    ),
    (
        "flexcore_broker_full",
        MetricKind::Gauge,
        Unit::Count,
        "1 while commands are refused because a server has only its reserve of disk left",
    ),
    (
        "flexcore_projection_looks_failed",
        MetricKind::Gauge,
        Unit::Count,
        "Looks at the read models that failed one after the other: 0 while they are managed",
    ),
    (
        "flexcore_queries_unstopped",
        MetricKind::Gauge,
        Unit::Count,
        "Queries that go on after their time limit, since Postgres cannot stop them",
    ),
    (
        "flexcore_snapshots_too_large_total",
        MetricKind::Counter,
        Unit::Count,
        "Snapshots not kept, as they are larger than a message",
    ),
    (
        "flexcore_capacity_alarm",
        MetricKind::Gauge,
        Unit::Count,
        "1 while the log is near this limit of its servers",
    ),
    (
        "flexcore_queue_depth",
        MetricKind::Gauge,
        Unit::Count,
        "Commands and questions that a lane has taken on and not answered yet",
    ),
    (
        "flexcore_clock_ahead_seconds",
        MetricKind::Gauge,
        Unit::Seconds,
        "Time that this host's clock is ahead of the broker's; below 0: behind",
    ),
    (
        "flexcore_script_runaways",
        MetricKind::Gauge,
        Unit::Count,
        "Calls of functions that do not end: abandoned, but still running",
    ),
    (
        "flexcore_script_runaways_total",
        MetricKind::Counter,
        Unit::Count,
        "Calls of functions that were abandoned, or ended long after their limit",
    ),
    (
        "flexcore_script_calls_refused_total",
        MetricKind::Counter,
        Unit::Count,
        "Calls that were not made, since the aggregate's functions had run away",
    ),
    ("flexcore_leader", MetricKind::Gauge, Unit::Count, "1 while this member leads the cluster"),
    (
        "flexcore_leader_changes_total",
        MetricKind::Counter,
        Unit::Count,
        "Times that this member has become the leader",
    ),
    (
        "flexcore_slots_owned",
        MetricKind::Gauge,
        Unit::Count,
        "Slots of commands that this member owns",
    ),
    (
        "flexcore_dead_total",
        MetricKind::Counter,
        Unit::Count,
        "Messages put aside in FLEX_DEAD, by kind",
    ),
    (
        "flexcore_kept_trimmed_total",
        MetricKind::Counter,
        Unit::Count,
        "Dead messages and outcomes that a tenant with too many has lost, by stream",
    ),
    (
        "flexcore_projection_lag_events",
        MetricKind::Gauge,
        Unit::Count,
        "Messages of the log that a read model has not applied yet",
    ),
    (
        "flexcore_projection_events_total",
        MetricKind::Counter,
        Unit::Count,
        "Events applied, by read model",
    ),
    (
        "flexcore_projection_other_log",
        MetricKind::Gauge,
        Unit::Count,
        "1 while the rows in Postgres are of another log, and no read model is written",
    ),
    (
        "flexcore_read_model_unmanaged",
        MetricKind::Gauge,
        Unit::Count,
        "1 while a read model cannot be changed or removed, or is not written",
    ),
    (
        "flexcore_read_model_indexes_missing",
        MetricKind::Gauge,
        Unit::Count,
        "Indexes that are to be made or dropped on the version that serves",
    ),
    (
        "flexcore_projection_stopped",
        MetricKind::Gauge,
        Unit::Count,
        "1 while a read model is stopped by a damaged log or a refusal of Postgres",
    ),
    (
        "flexcore_projection_held_aggregates",
        MetricKind::Gauge,
        Unit::Count,
        "Aggregates that a read model holds back since a break in the log",
    ),
    (
        "flexcore_log_broken_total",
        MetricKind::Counter,
        Unit::Count,
        "Messages of the log that readers found broken, each once an aggregate and reader",
    ),
    (
        "flexcore_log_links_unchecked_total",
        MetricKind::Counter,
        Unit::Count,
        "Commits read without their predecessor at hand to check them against",
    ),
    (
        "flexcore_deployment_unreadable",
        MetricKind::Gauge,
        Unit::Count,
        "1 while an application's last deployment cannot be read here and the one before is in force",
    ),
    (
        "flexcore_projection_parked_total",
        MetricKind::Counter,
        Unit::Count,
        "Events that could not be applied and were put aside, by read model",
    ),
    (
        "http_server_request_duration_seconds",
        MetricKind::Histogram(SECONDS),
        Unit::Seconds,
        "Time from a request's head to its answer, by method, route and status",
    ),
    ("flexcore_http_shed_total", MetricKind::Counter, Unit::Count, "Requests shed, by reason"),
    (
        "flexcore_breaker_state",
        MetricKind::Gauge,
        Unit::Count,
        "Circuit of a target: 0 closed, 1 half open, 2 open",
    ),
    (
        "flexcore_breaker_transitions_total",
        MetricKind::Counter,
        Unit::Count,
        "Changes of a target's circuit, by its new state",
    ),
    ("flexcore_retries_total", MetricKind::Counter, Unit::Count, "Calls made again, by target"),
    (
        "flexcore_retry_budget_exhausted_total",
        MetricKind::Counter,
        Unit::Count,
        "Calls not made again because the budget of retries was used up, by target",
    ),
    (
        "flexcore_failovers_total",
        MetricKind::Counter,
        Unit::Count,
        "Calls made again at another endpoint, by target",
    ),
    (
        "flexcore_deadline_exceeded_total",
        MetricKind::Counter,
        Unit::Count,
        "Calls that their deadline ended, by target",
    ),
    ("flexcore_http_connections", MetricKind::Gauge, Unit::Count, "Open HTTP connections"),
    (
        "flexcore_plugin_calls_total",
        MetricKind::Counter,
        Unit::Count,
        "Calls of a plugin's functions, by outcome",
    ),
    (
        "flexcore_plugin_call_seconds",
        MetricKind::Histogram(SECONDS),
        Unit::Seconds,
        "Time of a call of a plugin's function, with its wait for an instance",
    ),
    (
        "flexcore_plugin_instances_ready",
        MetricKind::Gauge,
        Unit::Count,
        "Instances of a plugin that take calls",
    ),
    (
        "flexcore_plugin_instances_wanted",
        MetricKind::Gauge,
        Unit::Count,
        "Instances of a plugin that should take calls; 0 once it is removed",
    ),
    (
        "flexcore_plugin_restarts_total",
        MetricKind::Counter,
        Unit::Count,
        "Instances of a plugin that were started again",
    ),
    (
        "flexcore_plugin_under_way",
        MetricKind::Gauge,
        Unit::Count,
        "Calls of a plugin's functions that are under way",
    ),
];

/// The metrics of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    recorder: PrometheusHandle,
    last: Arc<RwLock<Rendered>>,
    /// Held by the one that renders.
    rendering: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Rendered {
    text: String,
    /// It is good enough until then.
    until: Instant,
}

/// A text is good for so many times the time that it took: asking without end costs a tenth of one
/// processor.
const GOOD_FOR: u32 = 10;

impl Metrics {
    fn new(recorder: PrometheusHandle) -> Self {
        let rendered = Rendered { text: String::new(), until: Instant::now() };
        let (last, rendering) = (Arc::new(RwLock::new(rendered)), Arc::default());
        Self { recorder, last, rendering }
    }

    /// All metrics in Prometheus' text format (`text/plain; version=0.0.4`). Whoever asks again soon,
    /// or while they are rendered for somebody else, gets the last text.
    #[must_use]
    pub fn render(&self) -> String {
        let begun = Instant::now();
        if let Some(text) = self.last(|last| begun < last.until) {
            return text;
        }
        let _one = match self.rendering.try_lock() {
            Ok(one) => one,
            Err(_) => {
                if let Some(text) = self.last(|last| !last.text.is_empty()) {
                    return text;
                }
                self.rendering.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        let text = self.recorder.render();
        let until = Instant::now() + begun.elapsed() * GOOD_FOR;
        let mut last = self.last.write().unwrap_or_else(PoisonError::into_inner);
        *last = Rendered { text: text.clone(), until };
        text
    }

    fn last(&self, is_good: impl Fn(&Rendered) -> bool) -> Option<String> {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
        is_good(&last).then(|| last.text.clone())
    }

    pub(crate) fn run_upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

/// Makes the recorder the one of this process; `None` when it has one already.
pub(crate) fn install() -> Option<Metrics> {
    let recorder = builder().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).ok()?;
    describe();
    Some(Metrics::new(handle))
}

fn builder() -> PrometheusBuilder {
    METRICS.iter().fold(PrometheusBuilder::new(), |builder, (name, kind, ..)| match kind {
        MetricKind::Histogram(buckets) => builder
            .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
            .expect("BUG: buckets are not empty"),
        MetricKind::Counter | MetricKind::Gauge => builder,
    })
}

fn describe() {
    for (name, kind, unit, what) in METRICS {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(*name, *unit, *what),
            MetricKind::Gauge => metrics::describe_gauge!(*name, *unit, *what),
            MetricKind::Histogram(_) => metrics::describe_histogram!(*name, *unit, *what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_without_end_renders_now_and_then() {
        let recorder = builder().build_recorder();
        let metrics = Metrics::new(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            let count =
                || metrics::counter!("flexcore_commands_total", "outcome" => "x").increment(1);
            let mut texts = std::collections::HashSet::new();
            for _ in 0..200 {
                count();
                texts.insert(metrics.render());
            }
            assert!(texts.len() < 100, "{} texts of 200", texts.len());
            let last = metrics.last.read().unwrap().until;
            std::thread::sleep(last.saturating_duration_since(Instant::now()));
            assert!(metrics.render().contains("outcome=\"x\"} 200"), "it is soon up to date");
        });
    }

    #[test]
    fn metrics_render_with_their_help_and_buckets() {
        let recorder = builder().build_recorder();
        let metrics = Metrics::new(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::histogram!("flexcore_append_seconds").record(0.003);
            metrics::counter!("flexcore_commands_total", "outcome" => "accepted").increment(2);
            metrics::gauge!("flexcore_queue_depth", "lane" => "sync").set(7.0);
        });
        metrics.run_upkeep();
        let text = metrics.render();
        for line in [
            "# HELP flexcore_append_seconds Time from handing a commit to the event store to its \
             acknowledgement",
            "# TYPE flexcore_append_seconds histogram",
            "flexcore_append_seconds_bucket{le=\"0.0025\"} 0",
            "flexcore_append_seconds_bucket{le=\"0.005\"} 1",
            "flexcore_append_seconds_count 1",
            "flexcore_commands_total{outcome=\"accepted\"} 2",
            "flexcore_queue_depth{lane=\"sync\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
    }
}
