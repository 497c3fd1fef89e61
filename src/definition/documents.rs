//! The documents of an application's files, before they are read as definitions.

use std::{collections::BTreeMap, sync::Arc};

use flexcore_domain::AggregateName;
use serde_json::Value;

use super::{
    AggregateDefinition, FileLine, Problem, SourceFile,
    notes::Notes,
    problem::did_you_mean,
    yaml::{self, Data, Node},
};

/// Most files of an application.
pub(super) const FILES_MAX: usize = 100;
/// Most text of an application, in bytes: it is deployed as one commit of the log, as JSON.
pub(super) const BYTES_MAX: usize = 512 * 1024;
/// Most documents of an application.
pub(super) const DOCUMENTS_MAX: usize = 500;

/// The first key of a document says what it declares.
pub(super) const AGGREGATE: &str = "aggregate";
pub(super) const READ_MODEL: &str = "read_model";
pub(super) const QUERY: &str = "query";

/// A document.
pub(super) struct Document {
    pub(super) file: Arc<str>,
    declares: &'static str,
    pub(super) node: Node,
}

/// The documents of an application, readable as definitions or not: a declaration with a mistake is
/// not reported a second time as missing.
pub(super) struct Documents(Vec<Document>);

/// The names that a read model may use.
pub(super) struct Declared<'a> {
    pub(super) documents: &'a Documents,
    pub(super) aggregates: &'a BTreeMap<AggregateName, Arc<AggregateDefinition>>,
}

impl Documents {
    /// Reads the files.
    pub(super) fn read(files: &[SourceFile], problems: &mut Vec<Problem>) -> Self {
        let mut found = Vec::new();
        let bytes: usize = files.iter().map(|file| file.text.len()).sum();
        if files.len() > FILES_MAX || bytes > BYTES_MAX {
            let count = files.len();
            let message = format!(
                "{count} files with {bytes} bytes; at most {FILES_MAX} with {BYTES_MAX} are accepted"
            );
            problems.push(Problem { place: first_line(files), message });
            return Self(found);
        }
        for file in files {
            found.extend(of_file(file, problems));
        }
        if found.len() > DOCUMENTS_MAX {
            let message =
                format!("{} documents; at most {DOCUMENTS_MAX} are accepted", found.len());
            problems.push(Problem { place: first_line(files), message });
            found.truncate(DOCUMENTS_MAX);
        }
        Self(found)
    }

    /// Those that declare aggregates, read models or queries.
    pub(super) fn of(&self, declares: &'static str) -> impl Iterator<Item = &Document> {
        self.0.iter().filter(move |document| document.declares == declares)
    }

    /// True if one declares this name.
    pub(super) fn declare(&self, what: &'static str, name: &str) -> bool {
        self.declared(what, name).is_some()
    }

    /// True if one declares this event.
    pub(super) fn declare_event(&self, aggregate: &str, event: &str) -> bool {
        let node = self.declared(AGGREGATE, aggregate);
        node.and_then(|node| node.get("events")?.get(event)).is_some()
    }

    fn declared(&self, what: &'static str, name: &str) -> Option<&Node> {
        let is_named = |document: &&Document| {
            let text = document.node.get(what).map(Node::json);
            text.as_ref().and_then(Value::as_str) == Some(name)
        };
        self.of(what).find(is_named).map(|document| &document.node)
    }
}

/// Where a problem of the whole application is reported.
pub(super) fn first_line(files: &[SourceFile]) -> FileLine {
    FileLine { file: files.first().map_or("", |file| file.path.as_str()).into(), line: 1 }
}

fn of_file(file: &SourceFile, problems: &mut Vec<Problem>) -> Vec<Document> {
    let path: Arc<str> = file.path.as_str().into();
    let mut notes = Notes::new(path.clone());
    let mut found = Vec::new();
    if !file.path.ends_with(".yaml") && !file.path.ends_with(".yml") {
        notes.add::<()>(1, "definitions are in files that end in .yaml or .yml");
    } else {
        match yaml::documents(&path, &file.text) {
            Ok(nodes) => found.extend(nodes.into_iter().filter_map(|node| {
                let declares = declares(&node, &mut notes)?;
                Some(Document { file: path.clone(), declares, node })
            })),
            Err(problem) => problems.push(problem),
        }
    }
    problems.extend(notes.problems);
    found
}

/// The declaration of a document.
fn declares(node: &Node, notes: &mut Notes) -> Option<&'static str> {
    const FIRST_KEYS: [&str; 3] = [AGGREGATE, READ_MODEL, QUERY];
    let first = match &node.data {
        Data::Map(entries) => entries.first().map(|(key, _)| key),
        _ => None,
    };
    let Some(first) = first else {
        let message = "a document begins with `aggregate:`, `read_model:` or `query:`";
        return notes.add(node.line, message);
    };
    FIRST_KEYS.into_iter().find(|key| *key == first.text).or_else(|| {
        let hint = did_you_mean(&first.text, FIRST_KEYS);
        let message = format!(
            "a document begins with `aggregate:`, `read_model:` or `query:`, not `{}`{hint}",
            first.text
        );
        notes.add(first.line, message)
    })
}
