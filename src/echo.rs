//! What a plugin prints, on standard error while it runs: each line with the plugin's name in front.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use flexcore_operations::dead::printable;
use flexcore_plugin::{Level, Line, Printed};
use serde_json::{Map, Value};

use crate::out;

/// Bytes of a line without an end that are held back. 64 KiB: as the longest line of a plugin's log.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// Prints what a plugin prints.
pub(crate) struct Echo {
    /// The plugin's, in front of each line.
    name: String,
    /// The beginnings of lines.
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
}

impl Echo {
    pub(crate) fn new(file: &Path) -> Self {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
        Self { name: printable(&name), stdout: Mutex::default(), stderr: Mutex::default() }
    }

    pub(crate) fn take(&self, printed: Printed) {
        say(&self.lines(printed));
    }

    /// Prints what is left of lines without an end.
    pub(crate) fn end(&self) {
        for held in [&self.stdout, &self.stderr] {
            let rest = std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner));
            say(&self.named(&String::from_utf8_lossy(&rest)));
        }
    }

    /// The lines that are complete with this.
    fn lines(&self, printed: Printed) -> String {
        match printed {
            Printed::Log(line) => self.named(&logged(&line)),
            Printed::Stdout(bytes) => self.named(&complete(&self.stdout, &bytes)),
            Printed::Stderr(bytes) => self.named(&complete(&self.stderr, &bytes)),
        }
    }

    fn named(&self, text: &str) -> String {
        let lines = text.lines().map(|line| format!("{}: {}", self.name, printable(line)));
        lines.collect::<Vec<String>>().join("\n")
    }
}

fn say(lines: &str) {
    if !lines.is_empty() {
        out::note(lines);
    }
}

/// Adds to what is held, and takes out of it what is to be printed.
fn complete(held: &Mutex<Vec<u8>>, bytes: &[u8]) -> String {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    held.extend_from_slice(bytes);
    let end = match held.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        None if held.len() > HELD_BYTES_MAX => held.len(),
        None => 0,
    };
    let complete: Vec<u8> = held.drain(..end).collect();
    String::from_utf8_lossy(&complete).into_owned()
}

/// A line of a log. Text without a level has the lowest but one, so that one is not named.
fn logged(line: &Line) -> String {
    let level = match line.level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "info: ",
        Level::Debug => "",
        Level::Trace => "trace: ",
    };
    let module = line.module.as_ref().map(|module| format!("{module}: ")).unwrap_or_default();
    // Those with the sign are go-plugin's own, such as the time.
    let own = line.fields.iter().filter(|(key, _)| !key.starts_with('@'));
    let own: Map<String, Value> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    let fields = if own.is_empty() { String::new() } else { format!(" {}", Value::Object(own)) };
    format!("{level}{module}{}{fields}", line.message)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn log(level: Level, message: &str, fields: Value) -> Printed {
        let fields = fields.as_object().cloned().unwrap_or_default();
        Printed::Log(Line { level, message: message.to_owned(), module: None, fields })
    }

    #[test]
    fn each_line_has_the_plugins_name_in_front() {
        let echo = Echo::new(Path::new("/opt/plugins/x"));
        let fields = json!({"@timestamp": "now", "n": 42});
        let said = echo.lines(log(Level::Warn, "low\ndisk", fields));
        assert_eq!(said, "x: warning: low\nx: disk {\"n\":42}");
        assert_eq!(echo.lines(log(Level::Debug, "a\u{1b}[2Jb", json!({}))), "x: a [2Jb");
    }

    #[test]
    fn pieces_become_lines_and_a_line_that_does_not_end_is_not_kept_for_ever() {
        let echo = Echo::new(Path::new("x"));
        let stdout = |bytes: &[u8]| echo.lines(Printed::Stdout(Bytes::copy_from_slice(bytes)));
        assert_eq!(stdout(b"one"), "");
        assert_eq!(echo.lines(Printed::Stderr(Bytes::from_static(b"other\n"))), "x: other");
        assert_eq!(stdout(b" line\nand\nan"), "x: one line\nx: and");
        assert_eq!(stdout(b"other\r\n"), "x: another");
        let long = vec![b'y'; HELD_BYTES_MAX];
        assert_eq!(stdout(&long), "");
        assert_eq!(stdout(b"z").len(), "x: ".len() + HELD_BYTES_MAX + 1);
    }
}
