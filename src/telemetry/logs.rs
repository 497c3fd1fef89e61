//! The two shapes of a log line. A tenant may have written any field: it is cut to a length and its
//! control characters are escaped, so that no line can be forged.

use std::{fmt, io::Write};

use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    Layer,
    fmt::{FormatFields, MakeWriter, format},
    layer::Context,
    registry::LookupSpan,
};

/// The version of the Elastic Common Schema that the lines follow.
const ECS_VERSION: &str = "8.17.0";

/// Longest text of one field, in bytes: a log line is read, not a place to keep payloads.
const FIELD_BYTES_MAX: usize = 2_048;

/// Fields of the lines for people: `name=value`, in one line for every value.
pub(crate) fn human_fields() -> impl for<'w> FormatFields<'w> + 'static {
    format::debug_fn(|writer, field, value| {
        let text = escaped(&cut(format!("{value:?}")));
        match field.name() {
            "message" => write!(writer, "{text}"),
            name => write!(writer, " {name}={text}"),
        }
    })
}

fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

fn cut(mut text: String) -> String {
    if text.len() > FIELD_BYTES_MAX {
        text.truncate(text.floor_char_boundary(FIELD_BYTES_MAX));
        text.push('…');
    }
    text
}

/// Writes every event as one line of JSON in the shape of the Elastic Common Schema. The fields
/// of the event and of the spans around it stand together under `flexcore`.
pub(crate) struct Ecs<W> {
    service_name: String,
    writer: W,
}

impl<W> Ecs<W> {
    pub(crate) fn new(service_name: &str, writer: W) -> Self {
        Self { service_name: service_name.to_owned(), writer }
    }
}

/// The fields of a span or an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn take_text(&mut self, name: &str) -> Option<String> {
        match self.0.remove(name)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, cut(value.to_owned()));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, cut(format!("{value:?}")));
    }
}

impl<S, W> Layer<S> for Ecs<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.0.extend(of_span.0.clone());
            }
        }
        event.record(&mut fields);
        let mut line = Value::Object(self.line(event, fields)).to_string();
        line.push('\n');
        // A log that cannot be written has nowhere to say so.
        let _ = self.writer.make_writer_for(event.metadata()).write_all(line.as_bytes());
    }
}

impl<W> Ecs<W> {
    fn line(&self, event: &Event<'_>, mut fields: Fields) -> Map<String, Value> {
        let about = event.metadata();
        let time = OffsetDateTime::now_utc().format(&Rfc3339);
        let time = time.expect("BUG: the present is within RFC 3339");
        let mut line = Map::new();
        let mut put = |name: &str, value: String| line.insert(name.to_owned(), value.into());
        put("@timestamp", time);
        put("log.level", about.level().as_str().to_ascii_lowercase());
        put("message", fields.take_text("message").unwrap_or_default());
        put("ecs.version", ECS_VERSION.to_owned());
        put("service.name", self.service_name.clone());
        put("log.logger", about.target().to_owned());
        if let Some(error) = fields.take_text("error") {
            put("error.message", error);
        }
        // The exported span knows best; without traces a field may still name the trace.
        let span = opentelemetry::Context::map_current(|c| c.span().span_context().clone());
        let named = fields.take_text("trace_id");
        if span.is_valid() {
            put("trace.id", span.trace_id().to_string());
            put("span.id", span.span_id().to_string());
        } else if let Some(trace_id) = named {
            put("trace.id", trace_id);
        }
        if !fields.0.is_empty() {
            line.insert("flexcore".to_owned(), Value::Object(fields.0));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::{fmt, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn writer(&self) -> impl Fn() -> Buffer + Send + Sync + 'static {
            let buffer = self.clone();
            move || buffer.clone()
        }
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn a_json_line_has_the_shape_of_ecs() {
        let buffer = Buffer::default();
        let subscriber = tracing_subscriber::registry().with(Ecs::new("flexcore", buffer.writer()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("command", tenant = "acme", trace_id = "4bf92f35");
            span.in_scope(|| {
                tracing::warn!(target: "flexcore_gateway", status = 503_u64, error = "no broker",
                    path = "a\r\n{\"forged\":1}", "refused");
            });
        });
        let text = buffer.text();
        let (before, after) = text.split_once("\",\"log.level\"").unwrap();
        let time = before.strip_prefix("{\"@timestamp\":\"").unwrap();
        assert!(OffsetDateTime::parse(time, &Rfc3339).is_ok(), "{time}");
        let golden = [
            r#":"warn","message":"refused","ecs.version":"8.17.0","service.name":"flexcore""#,
            r#""log.logger":"flexcore_gateway","error.message":"no broker","trace.id":"4bf92f35""#,
            r#""flexcore":{"tenant":"acme","status":503,"path":"a\r\n{\"forged\":1}"}}"#,
        ];
        assert_eq!(after, golden.join(",") + "\n");
    }

    #[test]
    fn a_line_for_people_stays_one_short_line() {
        let buffer = Buffer::default();
        let layer =
            fmt::layer().with_writer(buffer.writer()).with_ansi(false).fmt_fields(human_fields());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(id = %"x\n2026 ERROR forged \u{1b}[31m", big = "é".repeat(9_000), "in");
        });
        let text = buffer.text();
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("x\\n2026"), "{text}");
        assert!(text.len() < FIELD_BYTES_MAX + 200, "{}", text.len());
    }
}
