//! YAML as a tree in which every key and value knows its line.

use std::{collections::HashSet, sync::Arc};

use flexcore_domain::json;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Number, Value};

use super::{FileLine, problem::Problem};

/// Deepest nesting: readable definitions have about ten levels, and the tree is walked recursively.
pub(super) const DEPTH_MAX: usize = 64;

/// A value.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub line: usize,
    /// Where its text begins: of a block the line below the `|`, blank or not.
    pub text_line: usize,
    /// Its value.
    pub data: Data,
}

/// The kinds of a value.
#[derive(Clone, Debug)]
pub enum Data {
    /// `null`, a boolean, a number or a text.
    Scalar(Value),
    /// Of values.
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a map, as it is written.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it stands.
    pub line: usize,
    /// As it is written.
    pub text: String,
}

impl Node {
    /// The value as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(nodes) => Value::Array(nodes.iter().map(Self::json).collect()),
            Data::Map(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.text.clone(), node.json()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// The line of what a JSON pointer points to, or of the nearest thing around it.
    #[must_use]
    pub fn line_at(&self, pointer: &str) -> usize {
        let (mut node, mut line) = (self, self.line);
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            let next = match &node.data {
                Data::Scalar(_) => None,
                Data::List(nodes) => {
                    let index = step.parse::<usize>().ok();
                    index.and_then(|index| nodes.get(index)).map(|node| (node.line, node))
                }
                Data::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key.text == step)
                    .map(|(key, node)| (key.line, node)),
            };
            let Some(found) = next else { return line };
            (line, node) = found;
        }
        line
    }

    /// The value of a key, when this is a map that has it.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|(key, _)| key.text == name).map(|e| &e.1),
            _ => None,
        }
    }

    /// Its kind, for messages.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match &self.data {
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
            Data::Scalar(Value::Null) => "nothing",
            Data::Scalar(Value::Bool(_)) => "a boolean",
            Data::Scalar(Value::Number(_)) => "a number",
            Data::Scalar(_) => "a text",
        }
    }
}

/// Reads the documents of a file, empty ones being left out. Fails where it is not YAML, uses what
/// is not supported here, or says the same key twice.
pub fn documents(file: &Arc<str>, text: &str) -> Result<Vec<Node>, Problem> {
    let at = |line: usize, message: &str| {
        Err(Problem { place: FileLine { file: file.clone(), line }, message: message.to_owned() })
    };
    let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
    let mut tree = Tree::default();
    while let Some(next) = parser.next_event() {
        let (event, span) = match next {
            Ok(next) => next,
            Err(error) => {
                return at(error.marker().line(), &format!("not valid YAML: {}", error.info()));
            }
        };
        if let Err(message) = tree.take(event, span.start) {
            return at(span.start.line(), &message);
        }
    }
    Ok(tree.documents)
}

/// The tree as far as it has been read.
#[derive(Default)]
struct Tree {
    documents: Vec<Node>,
    open: Vec<Open>,
}

/// A list or map that is still being read.
struct Open {
    line: usize,
    data: OpenData,
}

enum OpenData {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, seen: HashSet<String>, key: Option<Key> },
}

impl Tree {
    fn take(&mut self, event: Event<'_>, start: Marker) -> Result<(), String> {
        match event {
            Event::Alias(_) => Err("aliases are not supported: repeat what is meant".to_owned()),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => Err("tags are not supported".to_owned()),
            Event::Scalar(text, style, _, None) => self.scalar(&text, style, start.line()),
            Event::SequenceStart(..) => self.begin(start.line(), OpenData::List(Vec::new())),
            Event::MappingStart(..) => {
                let (entries, seen) = (Vec::new(), HashSet::new());
                self.begin(start.line(), OpenData::Map { entries, seen, key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Open { line, data } = self.open.pop().expect("BUG: an end without a start");
                let data = match data {
                    OpenData::List(nodes) => Data::List(nodes),
                    OpenData::Map { entries, .. } => Data::Map(entries),
                };
                self.put(Node { line, text_line: line, data });
                Ok(())
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, line: usize, data: OpenData) -> Result<(), String> {
        if let Some(Open { data: OpenData::Map { key: None, .. }, .. }) = self.open.last() {
            return Err("a key must be a word".to_owned());
        }
        if self.open.len() == DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.open.push(Open { line, data });
        Ok(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, line: usize) -> Result<(), String> {
        if let Some(Open { data: OpenData::Map { key: key @ None, seen, .. }, .. }) =
            self.open.last_mut()
        {
            if !seen.insert(text.to_owned()) {
                return Err(format!("`{text}` is here twice"));
            }
            *key = Some(Key { line, text: text.to_owned() });
            return Ok(());
        }
        let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        let value = match style {
            ScalarStyle::Plain => plain(text)?,
            _ => Value::String(text.to_owned()),
        };
        // The parser places a block at its first line that is not blank.
        let blank = text.bytes().take_while(|byte| *byte == b'\n').count();
        let text_line = if block { line.saturating_sub(blank).max(1) } else { line };
        self.put(Node { line, text_line, data: Data::Scalar(value) });
        Ok(())
    }

    fn put(&mut self, node: Node) {
        match self.open.last_mut().map(|open| &mut open.data) {
            Some(OpenData::List(nodes)) => nodes.push(node),
            Some(OpenData::Map { entries, key, .. }) => {
                entries.push((key.take().expect("BUG: a value without a key"), node));
            }
            None if matches!(node.data, Data::Scalar(Value::Null)) => {}
            None => self.documents.push(node),
        }
    }
}

/// The meaning of an unquoted text: YAML's core schema, numbers being those of JSON.
fn plain(text: &str) -> Result<Value, String> {
    let value = match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if looks_like_a_number(text) => {
            let number = text.strip_prefix('+').unwrap_or(text);
            let read: Result<Number, _> = serde_json::from_str(number);
            let read = read.map_err(|_| {
                format!("{text} looks like a number, but is none of JSON; quote it if it is a text")
            })?;
            if read.is_f64() && json::beyond_exact(number).is_some() {
                return Err(format!("{text} is more than 64 bits hold; quote it if it is a text"));
            }
            Value::Number(read)
        }
        _ => Value::String(text.to_owned()),
    };
    Ok(value)
}

/// Texts that YAML takes for a number, and texts that only look like one (`0x1f`, `.5`, `.inf`).
fn looks_like_a_number(text: &str) -> bool {
    let unsigned = text.trim_start_matches(['+', '-']);
    let special = [".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"].contains(&unsigned);
    let prefixed = (unsigned.starts_with("0x") || unsigned.starts_with("0o"))
        && unsigned[2..].bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.parse::<f64>().is_ok();
    special || prefixed || digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Node>, String> {
        documents(&"a.yaml".into(), text).map_err(|problem| problem.to_string())
    }

    #[test]
    fn values_know_their_lines() {
        let text =
            "\na: 1\nb:\n  - x\n  - c: |\n\n      one\n      two\n    d: 'y'\n---\ne: >-\n  f\n";
        let documents = read(text).unwrap();
        assert_eq!(documents.len(), 2);
        let json = serde_json::json!({"a": 1, "b": ["x", {"c": "\none\ntwo\n", "d": "y"}]});
        assert_eq!(documents[0].json(), json);
        let line = |pointer| documents[0].line_at(pointer);
        assert_eq!(
            ["", "/a", "/b", "/b/0", "/b/1/c", "/b/1/d", "/b/7"].map(line),
            [2, 2, 3, 4, 5, 9, 3]
        );
        let Data::Map(entries) = &documents[1].data else { panic!("a map") };
        assert_eq!((entries[0].0.line, entries[0].1.text_line), (11, 12));
        let documents = read("a: |\n\n\n  x\nb: |2 # c\n\n   x\n").unwrap();
        let Data::Map(entries) = &documents[0].data else { panic!("a map") };
        assert_eq!((entries[0].1.text_line, entries[1].1.text_line), (2, 6));
    }

    #[test]
    fn plain_texts_are_resolved() {
        let text = "[~, true, 1, -2.5, +3, 1e3, 'a', \"1\", no, on, 1.2.3, 2013-01-01, -x, e1]";
        let json = serde_json::json!([
            null,
            true,
            1,
            -2.5,
            3,
            1e3,
            "a",
            "1",
            "no",
            "on",
            "1.2.3",
            "2013-01-01",
            "-x",
            "e1"
        ]);
        assert_eq!(read(text).unwrap()[0].json(), json);
        let widest = "[9007199254740993, 18446744073709551615, -9223372036854775808, 1e300]";
        let json = serde_json::json!([9_007_199_254_740_993_u64, u64::MAX, i64::MIN, 1e300]);
        assert_eq!(read(widest).unwrap()[0].json(), json, "each as it is written");
        for text in ["18446744073709551616", "-9223372036854775809", "1000000000000000000000001"] {
            assert!(read(text).unwrap_err().contains("64 bits"), "{text}");
        }
        for text in ["0x1f", "0o17", ".5", "1.", ".inf", "-.nan", "007"] {
            assert!(read(text).unwrap_err().contains("quote it"), "{text}");
        }
    }

    #[test]
    fn hostile_files_are_refused() {
        for (text, message) in [
            ("a: [", "a.yaml:2: not valid YAML"),
            ("a: 1\nb:\n  c: 1\n  c: 2", "a.yaml:4: `c` is here twice"),
            ("a: &x 1\nb: *x", "a.yaml:2: aliases"),
            ("a: !!str 1", "a.yaml:1: tags"),
            ("? [a]\n: 1", "a.yaml:1: a key must be a word"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(message), "{text}: {error}");
        }
        assert!(read(&"- ".repeat(100_000)).unwrap_err().contains("nested deeper"));
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read(&"{a: ".repeat(1_000)).is_err());
    }
}
