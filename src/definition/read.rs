//! Reads an application: its files to documents, the documents to definitions, each checked against
//! those that it names.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::Arc,
};

use flexcore_domain::{AggregateName, Name};
use serde_json::Value;

use super::{
    AggregateDefinition, Application, Place, SourceFile, aggregate,
    problem::{Notes, Problem, did_you_mean},
    query, read_model,
    yaml::{self, Data, Node},
};

/// Most files of an application.
const FILES_MAX: usize = 100;
/// Most text of an application, in bytes: it is deployed as one commit of the log, as JSON.
const BYTES_MAX: usize = 512 * 1024;
/// Most documents of an application.
const DOCUMENTS_MAX: usize = 500;
/// Most problems that are reported: a person mends the first ones and reads again.
const PROBLEMS_MAX: usize = 100;

impl Application {
    /// Reads the files of an application's folder (without those of its tests and samples) and
    /// checks them. Fails with all problems that were found, by file and line.
    pub fn read(name: Name, files: Vec<SourceFile>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let documents = documents(&files, &mut problems);
        let aggregates = gather(
            of_kind(&documents, "aggregate"),
            aggregate::read,
            |it| (it.name.clone(), &it.place),
            &mut problems,
        );
        let known = Known { documents: &documents, aggregates: &aggregates };
        let read_models = gather(
            of_kind(&documents, "read_model"),
            |node, notes| read_model::read(node, &known, notes),
            |it| (it.name.clone(), &it.place),
            &mut problems,
        );
        let queries = gather(
            of_kind(&documents, "query"),
            |node, notes| query::read(node, &read_models, &known, notes),
            |it| (it.name.clone(), &it.place),
            &mut problems,
        );
        if problems.is_empty() && aggregates.is_empty() {
            let message = "no file declares an aggregate".to_owned();
            problems.push(Problem { place: anywhere(&files), message });
        }
        if problems.is_empty() {
            return Ok(Self { name, version: 0, files, aggregates, read_models, queries });
        }
        let place = |problem: &Problem| (problem.place.file.clone(), problem.place.line);
        problems.sort_by_key(place);
        problems.truncate(PROBLEMS_MAX);
        Err(problems)
    }
}

/// A document, and what it declares: its first key.
struct Document {
    file: Arc<str>,
    kind: &'static str,
    node: Node,
}

/// What other documents declare, whether it could be read or not: what is declared with a mistake
/// is not reported a second time as missing.
pub(super) struct Known<'a> {
    documents: &'a [Document],
    pub(super) aggregates: &'a BTreeMap<AggregateName, Arc<AggregateDefinition>>,
}

impl Known<'_> {
    pub(super) fn declares(&self, kind: &'static str, name: &str) -> bool {
        self.declared(kind, name).is_some()
    }

    pub(super) fn declares_event(&self, aggregate: &str, event: &str) -> bool {
        let node = self.declared("aggregate", aggregate);
        node.and_then(|node| node.get("events")?.get(event)).is_some()
    }

    fn declared(&self, kind: &'static str, name: &str) -> Option<&Node> {
        let named = |document: &&Document| {
            let text = document.node.get(kind).map(Node::json);
            text.as_ref().and_then(Value::as_str) == Some(name)
        };
        of_kind(self.documents, kind).find(named).map(|document| &document.node)
    }
}

fn of_kind<'d>(
    documents: &'d [Document],
    kind: &'static str,
) -> impl Iterator<Item = &'d Document> {
    documents.iter().filter(move |document| document.kind == kind)
}

fn anywhere(files: &[SourceFile]) -> Place {
    Place { file: files.first().map_or("", |file| file.path.as_str()).into(), line: 1 }
}

fn documents(files: &[SourceFile], problems: &mut Vec<Problem>) -> Vec<Document> {
    let mut found = Vec::new();
    let bytes: usize = files.iter().map(|file| file.text.len()).sum();
    if files.len() > FILES_MAX || bytes > BYTES_MAX {
        let count = files.len();
        let message = format!(
            "{count} files with {bytes} bytes; at most {FILES_MAX} with {BYTES_MAX} are accepted"
        );
        problems.push(Problem { place: anywhere(files), message });
        return found;
    }
    for file in files {
        let path: Arc<str> = file.path.as_str().into();
        let mut notes = Notes::new(path.clone());
        if !file.path.ends_with(".yaml") && !file.path.ends_with(".yml") {
            notes.add::<()>(1, "definitions are in files that end in .yaml or .yml");
        } else {
            match yaml::documents(&path, &file.text) {
                Ok(nodes) => found.extend(nodes.into_iter().filter_map(|node| {
                    let kind = kind(&node, &mut notes)?;
                    Some(Document { file: path.clone(), kind, node })
                })),
                Err(problem) => problems.push(problem),
            }
        }
        problems.extend(notes.problems);
    }
    if found.len() > DOCUMENTS_MAX {
        let message = format!("{} documents; at most {DOCUMENTS_MAX} are accepted", found.len());
        problems.push(Problem { place: anywhere(files), message });
        found.truncate(DOCUMENTS_MAX);
    }
    found
}

/// What a document declares.
fn kind(node: &Node, notes: &mut Notes) -> Option<&'static str> {
    const KINDS: [&str; 3] = ["aggregate", "read_model", "query"];
    let first = match &node.data {
        Data::Map(entries) => entries.first().map(|(key, _)| key),
        _ => None,
    };
    let Some(first) = first else {
        let message = "a document begins with `aggregate:`, `read_model:` or `query:`";
        return notes.add(node.line, message);
    };
    KINDS.into_iter().find(|kind| *kind == first.text).or_else(|| {
        let hint = did_you_mean(&first.text, KINDS);
        let message = format!(
            "a document begins with `aggregate:`, `read_model:` or `query:`, not `{}`{hint}",
            first.text
        );
        notes.add(first.line, message)
    })
}

/// Reads documents of one kind; the second one of a name is a problem.
fn gather<'d, N: Ord + fmt::Display, T>(
    documents: impl Iterator<Item = &'d Document>,
    read: impl Fn(&Node, &mut Notes) -> Option<T>,
    name: impl Fn(&T) -> (N, &Place),
    problems: &mut Vec<Problem>,
) -> BTreeMap<N, Arc<T>> {
    let mut gathered: BTreeMap<N, Arc<T>> = BTreeMap::new();
    for document in documents {
        let mut notes = Notes::new(document.file.clone());
        if let Some(read) = read(&document.node, &mut notes) {
            let (name_of, place) = name(&read);
            match gathered.entry(name_of) {
                Entry::Vacant(entry) => {
                    entry.insert(Arc::new(read));
                }
                Entry::Occupied(entry) => {
                    let first = name(entry.get()).1;
                    let message = format!("`{}` is declared twice, first in {first}", entry.key());
                    notes.add::<()>(place.line, message);
                }
            }
        }
        problems.extend(notes.problems);
    }
    gathered
}
