//! The last lines that a plugin printed or logged.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use flexcore_plugin::{Level, Line, Printed};

use crate::{
    limits::{LINE_BYTES_MAX, LINES_MAX},
    locked::locked,
};

/// The last [`LINES_MAX`] lines, each cut to [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<VecDeque<String>>);

impl Lines {
    /// The oldest first.
    pub(crate) fn all(&self) -> Vec<String> {
        locked(&self.0).iter().cloned().collect()
    }

    fn add(&self, text: &str) {
        let line = one_line(text);
        if line.is_empty() {
            return;
        }
        let mut lines = locked(&self.0);
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
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
            Printed::Log(line) => self.lines.add(&logged(line)),
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
                self.lines.add(&String::from_utf8_lossy(&held));
                held.clear();
            }
        }
    }
}

/// A line of a log, in one line.
fn logged(line: &Line) -> String {
    let level = match line.level {
        Level::Trace => "TRACE",
        Level::Debug => "DEBUG",
        Level::Info => "INFO",
        Level::Warn => "WARN",
        Level::Error => "ERROR",
    };
    let module = line.module.as_deref().map_or_else(String::new, |module| format!("{module}: "));
    let mut text = format!("{level} {module}{}", line.message);
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

    use super::*;

    fn line(message: &str) -> Printed {
        let message = message.to_owned();
        Printed::Log(Line { level: Level::Warn, message, module: None, fields: Map::new() })
    }

    #[test]
    fn the_last_lines_are_kept() {
        let lines = Arc::new(Lines::default());
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
        let lines = Arc::new(Lines::default());
        let printing = Printing::new(&lines);
        for piece in ["one\ntw", "o\n\n", "three"] {
            printing.take(&Printed::Stdout(piece.into()));
        }
        printing.take(&Printed::Stderr("four\u{7}\n".into()));
        assert_eq!(lines.all(), ["one", "two", "four "]);
    }

    #[test]
    fn a_line_is_cut_and_stays_one() {
        let lines = Arc::new(Lines::default());
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
