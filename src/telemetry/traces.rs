//! Traces over OTLP, and how a trace crosses a process border as a `traceparent`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData},
};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

use crate::{Error, Settings};

/// Longest wait for the collector, for one batch of spans: the queue behind it is bounded, and
/// spans are dropped when it is full.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The `traceparent` of the span that is entered now, to pass on over HTTP or NATS. `None` when
/// traces are off or no span is entered.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    let span = Context::map_current(|context| context.span().span_context().clone());
    let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
    span.is_valid().then(|| format!("00-{trace}-{id}-{flags:02x}"))
}

/// Makes `span` a child of the span that the `traceparent` names. To be called before the span is
/// entered for the first time; without effect when traces are off or the text is no traceparent.
pub fn link(span: &Span, traceparent: &str) {
    if span.is_disabled() {
        return;
    }
    let parent = remote(traceparent);
    if parent.span().span_context().is_valid() {
        // Refused only for a span that has begun, or without traces: nothing to do about either.
        let _ = span.set_parent(parent);
    }
}

/// Notes on `span` that the span which the `traceparent` names led to it: for a consumer that
/// handles messages of many traces in one span.
pub fn add_link(span: &Span, traceparent: &str) {
    if !span.is_disabled() {
        span.add_link(remote_span(traceparent));
    }
}

fn remote_span(traceparent: &str) -> SpanContext {
    remote(traceparent).span().span_context().clone()
}

fn remote(traceparent: &str) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &One(traceparent))
}

/// A carrier with one header.
struct One<'a>(&'a str);

impl Extractor for One<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }
    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// Sends spans to the configured endpoint, from a thread of its own; `None` without an endpoint.
pub(crate) fn provider(settings: &Settings) -> Result<Option<SdkTracerProvider>, Error> {
    let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
    let bad = |reason: String| Error::Otlp { endpoint: endpoint.clone(), reason };
    if !endpoint.starts_with("http://") {
        return Err(bad("only plain http is spoken to the collector".to_owned()));
    }
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let resource = Resource::builder().with_service_name(settings.service_name.clone()).build();
    Ok(Some(
        SdkTracerProvider::builder()
            .with_batch_exporter(Reporting { exporter, failing: AtomicBool::new(false) })
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                settings.sample_ratio,
            ))))
            .with_resource(resource)
            .build(),
    ))
}

/// Turns spans of `tracing` into spans of OpenTelemetry.
pub(crate) fn layer<S>(provider: &SdkTracerProvider) -> OpenTelemetryLayer<S, SdkTracer>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // Where and on which thread a span was opened costs more than the span and helps nobody.
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("flexcore"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
}

/// Says once when the collector stops answering, and once when it answers again.
#[derive(Debug)]
struct Reporting<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter
    for Reporting<E>
{
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => {
                tracing::warn!(%error, "the trace collector does not answer: spans are dropped");
            }
            Ok(()) if failed_before => tracing::info!("the trace collector answers again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Exported(Arc<Mutex<Vec<SpanData>>>);

    impl opentelemetry_sdk::trace::SpanExporter for Exported {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    impl Exported {
        fn span(&self, name: &str) -> SpanData {
            let spans = self.0.lock().unwrap();
            spans.iter().find(|span| span.name == name).cloned().expect("an exported span")
        }
    }

    fn traced(run: impl FnOnce()) -> Exported {
        let exported = Exported::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exported.clone()).build();
        let subscriber = tracing_subscriber::registry().with(layer(&provider));
        tracing::subscriber::with_default(subscriber, run);
        exported
    }

    #[test]
    fn a_trace_goes_on_behind_a_process_border() {
        let exported = traced(|| {
            let request = tracing::debug_span!("request");
            let header = request.in_scope(|| current_traceparent().expect("a span is entered"));
            let command = tracing::debug_span!("command");
            link(&command, &header);
            let stored = command.in_scope(|| current_traceparent().expect("a span is entered"));
            let projection = tracing::debug_span!("projection");
            add_link(&projection, &stored);
            projection.in_scope(|| {});
        });
        let [request, command, projection] =
            ["request", "command", "projection"].map(|name| exported.span(name));
        assert_eq!(command.span_context.trace_id(), request.span_context.trace_id());
        assert_eq!(command.parent_span_id, request.span_context.span_id());
        assert_ne!(projection.span_context.trace_id(), command.span_context.trace_id());
        let linked: Vec<_> = projection.links.iter().map(|l| l.span_context.span_id()).collect();
        assert_eq!(linked, [command.span_context.span_id()]);
    }

    #[test]
    fn what_is_no_traceparent_begins_a_new_trace() {
        let exported = traced(|| {
            let span = tracing::debug_span!("command");
            link(&span, "00-zz-1\r\n");
            span.in_scope(|| {});
        });
        assert!(exported.span("command").span_context.is_valid());
        assert_eq!(exported.span("command").parent_span_id, opentelemetry::trace::SpanId::INVALID);
    }

    #[test]
    fn without_traces_there_is_nothing_to_pass_on() {
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            let span = tracing::debug_span!("command");
            link(&span, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
            assert_eq!(span.in_scope(current_traceparent), None);
        });
    }
}
