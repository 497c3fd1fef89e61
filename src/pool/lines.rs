//! The lines that a plugin prints or logs: the last ones are kept, and they are in the log of this process. Nothing
//! here knows a configuration; a plugin that prints its own has it in both.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex},
};

use flexcore_plugin::{Level, Line, Printed};
use tokio::time::Instant;

use crate::{
    limits::{LINE_BYTES_MAX, LINES_LOGGED_EVERY, LINES_LOGGED_MAX, LINES_MAX},
    locked::locked,
};

/// The last [`LINES_MAX`] lines, each cut to [`LINE_BYTES_MAX`].
#[derive(Debug)]
pub(crate) struct Lines {
    /// Whose they are.
    plugin: String,
    last: Mutex<VecDeque<String>>,
    rate: Mutex<Rate>,
}

impl Lines {
    /// None yet, of the plugin with this name.
    pub(crate) fn of(plugin: &str) -> Self {
        Self { plugin: plugin.to_owned(), last: Mutex::default(), rate: Mutex::default() }
    }

    /// The oldest first.
    pub(crate) fn all(&self) -> Vec<String> {
        locked(&self.last).iter().cloned().collect()
    }

    /// Takes a line, and what stands before it in what is kept.
    fn add(&self, level: Level, before: &str, text: &str) {
        let text = one_line(text);
        if text.is_empty() {
            return;
        }
        self.log(level, &text);
        let line = one_line(&format!("{before}{text}"));
        let mut lines = locked(&self.last);
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Has the line in the log, unless there are too many.
    fn log(&self, level: Level, line: &str) {
        // Of lines that nobody wants to see there are not too many.
        if !is_logged(level) {
            return;
        }
        let admitted = locked(&self.rate).admit(Instant::now());
        let Some(left_out) = admitted else { return };
        self.tell_left_out(left_out);
        match level {
            Level::Trace | Level::Debug => log_detail(&self.plugin, level, line),
            Level::Info | Level::Warn | Level::Error => log(&self.plugin, level, line),
        }
    }

    /// Tells of lines that are not in the log, if there are some.
    fn tell_left_out(&self, count: u64) {
        if count > 0 {
            tracing::warn!(target: TARGET, plugin = self.plugin, "{count} lines left out");
        }
    }
}

fn log(plugin: &str, level: Level, line: &str) {
    match level {
        Level::Error => tracing::error!(target: TARGET, plugin, "{line}"),
        Level::Warn => tracing::warn!(target: TARGET, plugin, "{line}"),
        _ => tracing::info!(target: TARGET, plugin, "{line}"),
    }
}

fn log_detail(plugin: &str, level: Level, line: &str) {
    match level {
        Level::Debug => tracing::debug!(target: TARGET, plugin, "{line}"),
        _ => tracing::trace!(target: TARGET, plugin, "{line}"),
    }
}

/// The target of plugins' lines in the log.
const TARGET: &str = "plugin";

/// How many lines of a plugin are in the log: [`LINES_LOGGED_MAX`] in each [`LINES_LOGGED_EVERY`].
#[derive(Debug, Default)]
struct Rate {
    /// When the present time began.
    since: Option<Instant>,
    /// Lines in it that were logged.
    logged: usize,
    /// Lines that were not, and were not told yet.
    left_out: u64,
}

impl Rate {
    /// Takes one more line. `None`: it is left out. Else it is to be logged, behind the number of those before it
    /// that were left out.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let is_over = |since| now.saturating_duration_since(since) >= LINES_LOGGED_EVERY;
        if self.since.is_none_or(is_over) {
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged >= LINES_LOGGED_MAX {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        Some(mem::take(&mut self.left_out))
    }
}

/// Makes lines of what one process prints.
#[derive(Debug)]
pub(crate) struct Printing {
    lines: Arc<Lines>,
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
}

impl Printing {
    pub(crate) fn new(lines: &Arc<Lines>) -> Self {
        Self { lines: Arc::clone(lines), stdout: Mutex::default(), stderr: Mutex::default() }
    }

    pub(crate) fn take(&self, printed: &Printed) {
        match printed {
            Printed::Log(line) => {
                self.lines.add(line.level, &format!("{} ", word(line.level)), &logged(line));
            }
            Printed::Stdout(bytes) => self.cut(&self.stdout, bytes),
            Printed::Stderr(bytes) => self.cut(&self.stderr, bytes),
        }
    }

    /// Bytes come in any pieces. What is beyond the longest line is dropped.
    fn cut(&self, held: &Mutex<Vec<u8>>, bytes: &[u8]) {
        let mut held = locked(held);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(held.len());
            held.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") {
                self.lines.add(Level::Info, "", &String::from_utf8_lossy(&held));
                held.clear();
            }
        }
    }
}

impl Drop for Printing {
    /// What was left out of the log is told at the end of a process, where no line follows.
    fn drop(&mut self) {
        let left_out = mem::take(&mut locked(&self.lines.rate).left_out);
        self.lines.tell_left_out(left_out);
    }
}

fn is_logged(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(target: TARGET, tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(target: TARGET, tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: TARGET, tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: TARGET, tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: TARGET, tracing::Level::ERROR),
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Trace => "TRACE",
        Level::Debug => "DEBUG",
        Level::Info => "INFO",
        Level::Warn => "WARN",
        Level::Error => "ERROR",
    }
}

/// A line of a log, in one line, without its level.
fn logged(line: &Line) -> String {
    let module = line.module.as_deref().map_or_else(String::new, |module| format!("{module}: "));
    let mut text = format!("{module}{}", line.message);
    if !line.fields.is_empty() {
        text.push(' ');
        text.push_str(&serde_json::to_string(&line.fields).unwrap_or_default());
    }
    text
}

fn one_line(text: &str) -> String {
    let plain = |sign: char| if sign.is_control() { ' ' } else { sign };
    let mut line: String = text.trim_end().chars().map(plain).collect();
    line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
    line
}

#[cfg(test)]
mod tests {
    use serde_json::Map;
    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };

    use super::*;

    /// What is logged: level, target and fields.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);

    struct Fields(String);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.push_str(&format!(" {field}={value:?}"));
        }
    }

    impl Subscriber for Told {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let metadata = event.metadata();
            let mut fields = Fields(format!("{} {}:", metadata.level(), metadata.target()));
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    /// Has everything in the log, also where other tests log at the same time, with nobody who listens: a place that
    /// they reach first would stay silent.
    fn listening(lines: &Lines, told: &Told) {
        for level in [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error] {
            lines.log(level, "first");
        }
        lines.tell_left_out(1);
        tracing::callsite::rebuild_interest_cache();
        *locked(&lines.rate) = Rate::default();
        told.0.lock().unwrap().clear();
    }

    /// They were in `flexcore plugin logs` alone.
    #[test]
    fn lines_are_in_the_log_with_their_plugin_and_level() {
        let told = Told::default();
        tracing::subscriber::with_default(told.clone(), || {
            let lines = Arc::new(Lines::of("greeter"));
            listening(&lines, &told);
            let printing = Printing::new(&lines);
            printing.take(&line("mind\nthat"));
            printing.take(&Printed::Stdout("plain\n".into()));
            assert_eq!(lines.all(), ["WARN mind that", "plain"]);
        });
        let told = told.0.lock().unwrap();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("WARN plugin:") && told[1].starts_with("INFO plugin:"));
        for (told, message) in told.iter().zip(["message=mind that", "message=plain"]) {
            assert!(told.contains("plugin=\"greeter\"") && told.contains(message), "{told}");
        }
    }

    #[test]
    fn a_plugin_does_not_flood_the_log() {
        let told = Told::default();
        tracing::subscriber::with_default(told.clone(), || {
            let lines = Arc::new(Lines::of("greeter"));
            listening(&lines, &told);
            let printing = Printing::new(&lines);
            // All within one such time, unless the machine stood still.
            let began = Instant::now();
            for _ in 0..LINES_LOGGED_MAX + 7 {
                printing.take(&line("again"));
            }
            assert!(began.elapsed() < LINES_LOGGED_EVERY);
        });
        let told = told.0.lock().unwrap();
        assert_eq!(told.len(), LINES_LOGGED_MAX + 1);
        assert!(told[LINES_LOGGED_MAX].contains("7 lines left out"), "{}", told[LINES_LOGGED_MAX]);
    }

    #[test]
    fn lines_that_were_left_out_are_counted_until_there_is_room() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        for _ in 0..LINES_LOGGED_MAX {
            assert_eq!(rate.admit(now), Some(0));
        }
        assert_eq!([rate.admit(now), rate.admit(now)], [None, None]);
        assert_eq!(rate.admit(now + LINES_LOGGED_EVERY), Some(2));
        assert_eq!(rate.admit(now + LINES_LOGGED_EVERY), Some(0));
    }

    fn line(message: &str) -> Printed {
        let message = message.to_owned();
        Printed::Log(Line { level: Level::Warn, message, module: None, fields: Map::new() })
    }

    #[test]
    fn the_last_lines_are_kept() {
        let lines = Arc::new(Lines::of("test"));
        let printing = Printing::new(&lines);
        for number in 0..LINES_MAX + 3 {
            printing.take(&line(&number.to_string()));
        }
        let all = lines.all();
        assert_eq!(all.len(), LINES_MAX);
        assert_eq!(all.first().map(String::as_str), Some("WARN 3"));
    }

    #[test]
    fn printed_bytes_become_lines() {
        let lines = Arc::new(Lines::of("test"));
        let printing = Printing::new(&lines);
        for piece in ["one\ntw", "o\n\n", "three"] {
            printing.take(&Printed::Stdout(piece.into()));
        }
        printing.take(&Printed::Stderr("fo\u{7}ur\n".into()));
        assert_eq!(lines.all(), ["one", "two", "fo ur"]);
    }

    #[test]
    fn a_line_is_cut_and_stays_one() {
        let lines = Arc::new(Lines::of("test"));
        let printing = Printing::new(&lines);
        printing.take(&line(&"é".repeat(LINE_BYTES_MAX)));
        printing.take(&line("a\nb"));
        let endless = vec![b'x'; LINE_BYTES_MAX];
        for _ in 0..3 {
            printing.take(&Printed::Stdout(endless.clone().into()));
        }
        printing.take(&Printed::Stdout("\n".into()));
        let all = lines.all();
        assert!(all[0].len() <= LINE_BYTES_MAX && all[0].ends_with('é'));
        assert_eq!(all[1], "WARN a b");
        assert_eq!(all[2].len(), LINE_BYTES_MAX);
    }
}
