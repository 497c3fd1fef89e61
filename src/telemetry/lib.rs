//! Logs, metrics and traces of a FlexCore process, started once by the executable.
//!
//! The other crates know only the facades: `tracing` for logs and spans, `metrics` for metrics.
//! Spans on hot paths are at level `DEBUG`: while no OTLP endpoint is configured the default
//! filter turns them off where they stand, at the cost of one load.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::{self, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

mod logs;
mod prometheus;
mod traces;

pub use prometheus::Metrics;
pub use traces::{add_link, current_traceparent, link};

/// Time between two folds of histograms into their buckets, so that memory stays bounded when
/// nobody reads `/metrics`.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Libraries whose finer logs show what goes over the wire.
const WIRES: [&str; 4] = ["async_nats", "h2", "hyper", "hyper_util"];

/// The telemetry of a process, and its targets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `service.name` in logs and traces.
    pub service_name: String,
    /// One JSON object a line, in the shape of the Elastic Common Schema, instead of lines for
    /// people.
    pub json_logs: bool,
    /// The filter of the log, in `tracing-subscriber`'s syntax: `info`,
    /// `info,flexcore_gateway=debug`. Libraries that log what goes over the wire, secrets and inputs of
    /// callers among it (`async_nats`, `h2`, `hyper`, `hyper_util`), stay at `info` at most, unless the
    /// filter names them: `trace,async_nats=trace`.
    pub filter: String,
    /// Where traces go, such as `http://127.0.0.1:4317` (OTLP over gRPC); `None`: no traces.
    pub otlp_endpoint: Option<String>,
    /// The part of the traces that begin here that is kept, 0 to 1; a trace that begins elsewhere
    /// follows the decision made there.
    pub sample_ratio: f64,
    /// Colours in the lines for people.
    pub colours: bool,
}

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log filter cannot be read.
    #[error(
        "log filter {filter:?}: {reason}; write a level (error, warn, info, debug, trace) or \
             target=level pairs with commas between"
    )]
    Filter {
        /// The given value.
        filter: String,
        /// The problem with it.
        reason: String,
    },
    /// The OTLP endpoint cannot be used.
    #[error("OTLP endpoint {endpoint:?}: {reason}; write http://HOST:4317")]
    Otlp {
        /// The given value.
        endpoint: String,
        /// The problem with it.
        reason: String,
    },
    /// The process has telemetry already.
    #[error("telemetry was started before in this process")]
    Started,
}

/// The running telemetry of this process. Dropping it stops the upkeep of metrics; call
/// [`Telemetry::shutdown`] so that the last spans are sent.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    traces: Option<SdkTracerProvider>,
    // Dropping the sender ends the upkeep thread.
    _upkeep: Sender<()>,
}

/// Starts logs, metrics and (with an endpoint) traces for the whole process. With an endpoint it
/// must be called inside a tokio runtime, which must live until after [`Telemetry::shutdown`].
/// Fails when a setting cannot be used or telemetry runs already.
pub fn start(settings: &Settings) -> Result<Telemetry, Error> {
    let traces = traces::provider(settings)?;
    let exported = traces.is_some();
    let layer =
        traces.as_ref().map(|provider| traces::layer(provider).with_filter(filter_fn(is_our_span)));
    tracing_subscriber::registry()
        .with(layer)
        .with(log_layer(settings, exported)?)
        .try_init()
        .map_err(|_| Error::Started)?;
    let metrics = prometheus::install().ok_or(Error::Started)?;
    Ok(Telemetry { _upkeep: keep_up(metrics.clone()), metrics, traces })
}

impl Telemetry {
    /// The metrics, for `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends the spans that wait, for at most `timeout`. Blocks: call it outside of asynchronous
    /// code, while the runtime that [`start`] was called in still runs.
    pub fn shutdown(self, timeout: Duration) {
        let Some(traces) = self.traces else { return };
        if let Err(error) = traces.shutdown_with_timeout(timeout) {
            tracing::warn!(%error, "the last spans may not have been sent");
        }
    }
}

fn log_layer<S>(settings: &Settings, traces: bool) -> Result<Box<dyn Layer<S> + Send + Sync>, Error>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let chosen = chosen::<S>(&settings.filter)?;
    // With traces on, the spans exist anyway: let the log lines inside them carry their fields.
    let filter = chosen.or(filter_fn(move |about| traces && is_our_span(about)));
    Ok(if settings.json_logs {
        logs::Ecs::new(&settings.service_name, std::io::stderr).with_filter(filter).boxed()
    } else {
        fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(settings.colours)
            .with_target(false)
            .fmt_fields(logs::human_fields())
            .with_filter(filter)
            .boxed()
    })
}

/// What of the log is wanted.
fn chosen<S>(filter: &str) -> Result<impl layer::Filter<S> + Send + Sync + 'static + use<S>, Error>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let read = EnvFilter::builder().parse(filter);
    let read = read
        .map_err(|error| Error::Filter { filter: filter.to_owned(), reason: error.to_string() })?;
    let named = wires_named(filter);
    let is_told = move |about: &Metadata<'_>| {
        *about.level() <= Level::INFO || !is_quiet(about.target(), &named)
    };
    Ok(FilterExt::<S>::and(read, filter_fn(is_told)))
}

/// The targets of a filter that are of [`WIRES`].
fn wires_named(filter: &str) -> Vec<String> {
    let targets = filter.split(',').filter_map(|one| one.split(['=', '[']).next());
    targets.map(str::trim).filter(|target| is_wire(target)).map(str::to_owned).collect()
}

fn is_wire(target: &str) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    WIRES.contains(&library)
}

/// True if what is finer than `info` of this target is left out, as the filter does not name it.
fn is_quiet(target: &str, named: &[String]) -> bool {
    is_wire(target) && !named.iter().any(|named| target.starts_with(named.as_str()))
}

fn is_our_span(about: &Metadata<'_>) -> bool {
    about.is_span() && about.target().starts_with("flexcore") && *about.level() <= Level::DEBUG
}

/// A thread of its own: upkeep must go on when the runtime is busy.
fn keep_up(metrics: Metrics) -> Sender<()> {
    let (stop, stopped) = channel();
    std::thread::Builder::new()
        .name("metrics-upkeep".to_owned())
        .spawn(move || {
            while stopped.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                metrics.run_upkeep();
            }
        })
        .expect("BUG: a process that starts can have one more thread");
    stop
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log_secrets() {
        tracing::trace!(target: "async_nats::connection", "5ecret");
        tracing::debug!(target: "h2::codec", "5ecret");
        tracing::trace!(target: "hyper_util::client", "5ecret");
    }

    /// What is logged under this filter.
    fn logged(filter: &str) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let lines = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let filter = chosen::<tracing_subscriber::Registry>(filter).unwrap();
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "flexcore_gateway", "ours");
            tracing::info!(target: "async_nats", "connected");
            log_secrets();
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// With `trace` the log had the plain configurations of tenants, and the inputs of callers.
    #[test]
    fn what_goes_over_the_wire_is_logged_only_where_the_filter_names_it() {
        for filter in ["trace", "trace,flexcore_gateway=trace", "trace,sqlx=debug"] {
            let text = logged(filter);
            assert!(text.contains("ours") && text.contains("connected"), "{filter}: {text}");
            assert!(!text.contains("5ecret"), "{filter}: {text}");
        }
        for filter in ["trace,async_nats=trace", "trace,h2[a]=debug,hyper_util", "h2::codec=debug"]
        {
            assert!(!wires_named(filter).is_empty(), "{filter}");
        }
        assert_eq!(logged("info,async_nats=trace").matches("5ecret").count(), 1);
        assert_eq!(logged("trace,h2::codec=debug").matches("5ecret").count(), 1);
        assert!(!logged("warn").contains("connected"), "it raises nothing");
    }
}
