//! The log on standard error, a JSON object a line, as hosts of go-plugin read it. The host stamps
//! the time.

use std::{
    fmt,
    io::{self, Write},
};

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// The variable that says which levels are logged, as in `debug` and `info,my_plugin=trace`.
const LEVELS: &str = "RUST_LOG";

/// Longest text of one field, in bytes. 8 KiB: a host takes lines of 64 KiB.
const FIELD_BYTES_MAX: usize = 8 * 1024;

/// Longest line, in bytes: what a host takes as one. A longer one has no fields.
const LINE_BYTES_MAX: usize = 60 * 1024;

/// Logs to standard error from now on, what is at least INFO unless the environment says otherwise.
/// Does nothing where the author has a log already.
pub(crate) fn to_stderr() {
    let told = std::env::var(LEVELS).ok().and_then(|levels| levels.parse::<Targets>().ok());
    let levels = told.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let layer = Hclog { write: io::stderr }.with_filter(levels);
    drop(tracing_subscriber::registry().with(layer).try_init());
}

/// Writes each event, with the fields of the spans around it.
struct Hclog<W> {
    write: W,
}

/// The fields of a span or an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
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

fn cut(mut text: String) -> String {
    if text.len() > FIELD_BYTES_MAX {
        text.truncate(text.floor_char_boundary(FIELD_BYTES_MAX));
        text.push('…');
    }
    text
}

impl<S, W, F> Layer<S> for Hclog<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write,
    F: Fn() -> W + 'static,
{
    fn on_new_span(&self, about: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        about.record(&mut fields);
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
        let line = line(event, fields);
        // A log that cannot be written has nowhere to say so. One write, so that lines stay whole.
        let _ = (self.write)().write_all(line.as_bytes());
    }
}

fn line(event: &Event<'_>, mut fields: Fields) -> String {
    let about = event.metadata();
    let message = fields.0.shift_remove("message").unwrap_or_default();
    let mut line = Map::new();
    line.insert("@level".to_owned(), about.level().as_str().to_ascii_lowercase().into());
    line.insert("@message".to_owned(), message);
    line.insert("@module".to_owned(), about.target().into());
    let bare = line.clone();
    line.extend(fields.0);
    let mut text = Value::Object(line).to_string();
    if text.len() >= LINE_BYTES_MAX {
        text = Value::Object(bare).to_string();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

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

    fn logged(log: impl FnOnce()) -> Vec<Value> {
        let buffer = Buffer::default();
        let to = buffer.clone();
        let layer = Hclog { write: move || to.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_has_its_level_and_the_fields_around_it() {
        let lines = logged(|| {
            let span = tracing::info_span!("call", function = "greet", tenant = "acme");
            span.in_scope(|| tracing::warn!(count = 3_u64, is = true, "one\ntwo"));
        });
        let expected = serde_json::json!([{
            "@level": "warn", "@message": "one\ntwo", "@module": module_path!(),
            "function": "greet", "tenant": "acme", "count": 3, "is": true,
        }]);
        assert_eq!(Value::from(lines), expected);
    }

    #[test]
    fn a_line_is_never_too_long_for_a_host() {
        let text = "é".repeat(100_000);
        let lines = logged(|| {
            tracing::info!(a = text, "short");
            tracing::info!(
                a = text,
                b = text,
                c = text,
                d = text,
                e = text,
                f = text,
                g = text,
                h = text,
                "without"
            );
        });
        assert!(lines[0]["a"].as_str().unwrap().len() < FIELD_BYTES_MAX + 10);
        assert_eq!(lines[1]["@message"], "without");
        assert!(lines[1].get("a").is_none());
    }
}
