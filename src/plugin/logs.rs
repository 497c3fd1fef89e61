//! A plugin's standard error, as log lines. go-plugin's own loggers print a JSON object a line;
//! everything else is text, with its level in front or none. Whatever a plugin prints becomes a
//! line of bounded size; nothing here fails.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::limits::{LOG_DEPTH_MAX, LOG_FIELDS_MAX, LOG_LINE_BYTES_MAX, SHOWN_CHARACTERS_MAX};

/// How urgent a line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Steps of a calculation.
    Trace,
    /// For whoever looks for a fault; also all lines that do not say their level.
    #[default]
    Debug,
    /// Something that an operator may want to know.
    Info,
    /// Something that is not as it should be.
    Warn,
    /// Something failed.
    Error,
}

/// A line of a plugin's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its level; that of text without one is `Debug`.
    pub level: Level,
    /// Its text, of at most [`LOG_LINE_BYTES_MAX`]. Line ends in it are possible; other control
    /// characters have been replaced.
    pub message: String,
    /// The part of the plugin that it comes from, with the same limit.
    pub module: Option<String>,
    /// All else that a structured line says, at most [`LOG_FIELDS_MAX`] fields. They are the
    /// plugin's: names and texts may be anything.
    pub fields: Map<String, Value>,
}

/// Which part of a printed line some bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// The first piece of a line that is too long for one entry.
    First,
    Later,
}

/// Cuts a stream of bytes into lines, and lines that are too long into pieces of
/// [`LOG_LINE_BYTES_MAX`]. It holds one piece at most.
#[derive(Default)]
pub(crate) struct Split {
    held: Vec<u8>,
    /// The line that is being read has had a piece already.
    in_pieces: bool,
}

impl Split {
    /// Takes more of the stream, and hands on every line and piece that is complete, without its
    /// line end. Empty lines are left out.
    pub(crate) fn push(&mut self, mut chunk: &[u8], mut each: impl FnMut(&[u8], Part)) {
        while let Some(first) = chunk.first() {
            if *first == b'\n' {
                chunk = &chunk[1..];
                self.end(&mut each);
            } else if self.held.len() == LOG_LINE_BYTES_MAX {
                let part = if self.in_pieces { Part::Later } else { Part::First };
                each(&self.held, part);
                self.in_pieces = true;
                self.held.clear();
            } else {
                let end = chunk.iter().position(|byte| *byte == b'\n').unwrap_or(chunk.len());
                let (taken, rest) = chunk.split_at(end.min(LOG_LINE_BYTES_MAX - self.held.len()));
                self.held.extend_from_slice(taken);
                chunk = rest;
            }
        }
    }

    /// Hands on what is held: the line ends here, or the stream does.
    pub(crate) fn end(&mut self, mut each: impl FnMut(&[u8], Part)) {
        if !self.held.is_empty() {
            each(&self.held, if self.in_pieces { Part::Later } else { Part::Whole });
        }
        self.held.clear();
        self.in_pieces = false;
    }
}

/// Reads lines one after the other; what came before matters.
#[derive(Default)]
pub(crate) struct Lines {
    /// A Go program has begun to print why it dies: all text is an error from then on.
    panicking: bool,
    /// The level of the line whose pieces are being read.
    level: Level,
}

impl Lines {
    /// What a line or piece says.
    pub(crate) fn line(&mut self, bytes: &[u8], part: Part) -> Line {
        let structured = if part == Part::Whole { structured(bytes) } else { None };
        let line = structured.unwrap_or_else(|| {
            let text = String::from_utf8_lossy(bytes);
            if part == Part::Later { plain(self.level, &text) } else { self.text(&text) }
        });
        self.level = line.level;
        line
    }

    /// Text, perhaps with its level in front.
    fn text(&mut self, text: &str) -> Line {
        self.panicking |= text.starts_with("panic: ") || text.starts_with("fatal error: ");
        for level in [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error] {
            if let Some(rest) = text.strip_prefix(level.prefix()) {
                return plain(level, rest.trim_start());
            }
        }
        plain(if self.panicking { Level::Error } else { Level::default() }, text)
    }
}

impl Level {
    fn prefix(self) -> &'static str {
        match self {
            Self::Trace => "[TRACE]",
            Self::Debug => "[DEBUG]",
            Self::Info => "[INFO]",
            Self::Warn => "[WARN]",
            Self::Error => "[ERROR]",
        }
    }

    /// The level of a structured line; one that nobody knows is like none.
    fn named(name: Option<&Value>) -> Self {
        match name.and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
            Some("trace") => Self::Trace,
            Some("info") => Self::Info,
            Some("warn") => Self::Warn,
            Some("error") => Self::Error,
            _ => Self::default(),
        }
    }
}

fn plain(level: Level, text: &str) -> Line {
    Line { level, message: bounded(text), module: None, fields: Map::new() }
}

/// Text for a line, without what would harm its reader. What is put in place of control characters,
/// and of bytes that are no text, may be longer than these.
fn bounded(text: &str) -> String {
    let mut text = clean(text.trim_end());
    text.truncate(text.floor_char_boundary(LOG_LINE_BYTES_MAX));
    text
}

/// Control characters, such as those that move a terminal's cursor, are replaced.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// A plugin's text within an error, or within a line of the host's own log: short, and on one line
/// that runs in one direction.
pub(crate) fn shown(text: &str) -> String {
    let shown = |c: char| match c {
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().take(SHOWN_CHARACTERS_MAX).map(shown).collect()
}

/// What a line says that is a JSON object of go-plugin's loggers. Another object, such as one of
/// another logger, stays text: nothing of it is lost then.
fn structured(bytes: &[u8]) -> Option<Line> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let entry = (&mut json).deserialize_map(EntryVisitor).ok()?;
    json.end().ok()?;
    if entry.message.is_none() && entry.level.is_none() {
        return None;
    }
    let message = match entry.message {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => bounded(&text),
        Some(other) => bounded(&other.to_string()),
    };
    let module = entry.module.as_ref().and_then(Value::as_str).map(bounded);
    Some(Line { level: Level::named(entry.level.as_ref()), message, module, fields: entry.fields })
}

/// A structured line as it was printed.
#[derive(Default)]
struct Entry {
    level: Option<Value>,
    message: Option<Value>,
    module: Option<Value>,
    fields: Map<String, Value>,
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let mut entry = Entry::default();
        // The object itself is the first level.
        let below = Bounded { depth: LOG_DEPTH_MAX - 1 };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "@level" => entry.level = Some(map.next_value_seed(below)?),
                "@message" => entry.message = Some(map.next_value_seed(below)?),
                "@module" => entry.module = Some(map.next_value_seed(below)?),
                _ if entry.fields.len() < LOG_FIELDS_MAX => {
                    entry.fields.insert(key, map.next_value_seed(below)?);
                }
                // Nothing is kept, and it does not recurse.
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(entry)
    }
}

/// Reads a JSON value of at most this depth. serde_json's own way of reading a [`Value`] has a
/// limit of 128, begins to count anew in an object that poses as one of its raw values, and so can
/// be made to use up a thread's stack.
#[derive(Clone, Copy)]
struct Bounded {
    depth: usize,
}

impl Bounded {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth }),
            None => Err(E::custom("too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Bounded {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let below = self.below::<A::Error>()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(below)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let below = self.below::<A::Error>()?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            values.insert(key, map.next_value_seed(below)?);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests;
