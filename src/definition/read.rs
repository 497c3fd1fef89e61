//! Reads an application: its files to documents, the documents to definitions, each checked against
//! those that it names.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::Arc,
};

use flexcore_domain::Name;

use super::{
    Application, FileLine, SourceFile, aggregate,
    documents::{AGGREGATE, Declared, Document, Documents, QUERY, READ_MODEL, first_line},
    notes::Notes,
    problem::{PROBLEMS_MAX, Problem},
    query, read_model,
    yaml::Node,
};

impl Application {
    /// Reads the files of an application's folder (without those of its tests and samples) and
    /// checks them. Fails with all problems that were found, by file and line.
    pub fn read(name: Name, files: Vec<SourceFile>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let documents = Documents::read(&files, &mut problems);
        let aggregates = gather(
            documents.of(AGGREGATE),
            aggregate::read,
            |it| (it.name.clone(), &it.place),
            &mut problems,
        );
        let declared = Declared { documents: &documents, aggregates: &aggregates };
        let read_models = gather(
            documents.of(READ_MODEL),
            |node, notes| read_model::read(node, &declared, notes),
            |it| (it.name.clone(), &it.place),
            &mut problems,
        );
        let queries = gather(
            documents.of(QUERY),
            |node, notes| query::read(node, &read_models, &documents, notes),
            |it| (it.name.clone(), &it.place),
            &mut problems,
        );
        if problems.is_empty() && aggregates.is_empty() {
            let message = "no file declares an aggregate".to_owned();
            problems.push(Problem { place: first_line(&files), message });
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

/// Reads documents; the second one of a name is a problem.
fn gather<'d, N: Ord + fmt::Display, T>(
    documents: impl Iterator<Item = &'d Document>,
    read: impl Fn(&Node, &mut Notes) -> Option<T>,
    name: impl Fn(&T) -> (N, &FileLine),
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
