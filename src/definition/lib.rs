//! Definitions: an application as its authors declare it, read from YAML, checked, and deployed as
//! events of the log.

mod aggregate;
mod column;
mod compare;
mod documents;
mod expression;
mod fields;
mod index;
mod notes;
mod plugin;
mod problem;
mod query;
mod read;
mod read_model;
mod schema;
mod sql;
pub mod taken;
mod transform;
pub mod yaml;

#[cfg(test)]
mod read_tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
};

use flexcore_domain::{AggregateName, EventName, Hash, Name, PORTIONS};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    aggregate::{
        AggregateDefinition, CommandDefinition, Decide, DecidedByPlugin, EventDefinition, Function,
        FunctionId,
    },
    column::{Cell, Column, ColumnType, Scalar},
    compare::{Comparison, compare},
    index::{INDEX_COLUMNS_MAX, INDEX_TEXT_BYTES_MAX, INDEX_TEXTS_MAX, INDEXES_MAX, Index},
    plugin::{PLUGIN_CALL_S, PluginContract, PluginLimits, PluginManifest, PluginSandbox, Wish},
    problem::Problem,
    sql::with_parameters,
};

/// One file of an application's folder, as it was deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path inside the folder, with forward slashes.
    pub path: String,
    /// The file's text.
    pub text: String,
}

/// Where in the application's files something stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FileLine {
    /// Path inside the folder.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
}

impl fmt::Display for FileLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A JSON Schema, compiled.
#[derive(Clone, Debug)]
pub struct Schema {
    /// The schema itself.
    pub json: Value,
    /// Where it stands.
    pub place: FileLine,
    /// Checks values against it.
    pub validator: Arc<jsonschema::Validator>,
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        // The validator is made from the rest.
        self.json == other.json && self.place == other.place
    }
}

/// A whole application, checked.
#[derive(Clone, Debug)]
pub struct Application {
    /// Its name: that of its folder.
    pub name: Name,
    /// Deployed version, from 1; 0 when it was read from a folder.
    pub version: u32,
    /// The files that it was read from.
    pub files: Vec<SourceFile>,
    /// Its aggregates.
    pub aggregates: BTreeMap<AggregateName, Arc<AggregateDefinition>>,
    /// Its read models.
    pub read_models: BTreeMap<Name, Arc<ReadModelDefinition>>,
    /// Its named queries.
    pub queries: BTreeMap<Name, Arc<QueryDefinition>>,
}

/// A read model: rows that a projection keeps.
#[derive(Clone, Debug)]
pub struct ReadModelDefinition {
    /// Its name, and that of its view.
    pub name: Name,
    /// One sentence for the API's documents.
    pub description: String,
    /// Where it stands.
    pub place: FileLine,
    /// Its columns, key columns included, in the order of their declaration.
    pub columns: Vec<Column>,
    /// The columns that identify a row within its tenant; never empty, all declared.
    pub key: Vec<Name>,
    /// Its secondary indexes. They say nothing about the rows: they are made and dropped in place.
    pub indexes: Vec<Index>,
    /// The effect of each event on a row, by `(aggregate, event)`.
    pub on: BTreeMap<(AggregateName, EventName), RowChange>,
    /// The events of `on` as they were declared beside it.
    pub followed: BTreeMap<(AggregateName, EventName), Followed>,
    /// True if several workers may keep the rows, each those of some slots. Then every row belongs
    /// to one aggregate, and so to one slot.
    pub shared: bool,
    /// SHA-256 over everything that decides on the rows: columns, key, changes, and how older
    /// events are brought to the version that the changes read. Another one is another version.
    pub fingerprint: String,
}

impl ReadModelDefinition {
    /// Among how many owners it is divided, by slot.
    #[must_use]
    pub fn portions(&self) -> u16 {
        if self.shared { PORTIONS } else { 1 }
    }
}

/// An event as a read model's deployment declared it: its changes read data of this version.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Version of the event's schema.
    pub version: u32,
    /// SHA-256 over the event's name and what brings older data to this version: equal ones give
    /// the same data.
    pub fingerprint: Hash,
    /// The aggregate with this event alone, to run its upcasts.
    pub declared: Arc<AggregateDefinition>,
}

/// The effect of one event on the row that its key columns name.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// What the event's data go through first; `None`: they are read as they are.
    pub transform: Option<Transform>,
    /// A value for each key column, in the order of [`ReadModelDefinition::key`].
    pub key: Vec<Expression>,
    /// The row is deleted; there are no other operations then.
    pub delete: bool,
    /// Operations on the other columns, each column at most once.
    pub operations: Vec<(Name, Operation, Expression)>,
}

/// A plugin's function that stands between an event and its row: what it returns is read where the event's
/// data would be. The version stands for what it returns: with another one the rows may be others, and so
/// another version of the read model is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// The name under which the plugin is installed.
    pub plugin: Name,
    /// Its function.
    pub function: String,
    /// The version of the plugin that is asked, as its manifest has it. Another one is not.
    pub version: String,
    /// Where the plugin is named.
    pub place: FileLine,
}

/// The change of a column's value. A `null` operand leaves `add`, `min` and `max` as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The value itself.
    Set,
    /// The sum; an absent row counts as 0.
    Add,
    /// The smaller.
    Min,
    /// The larger.
    Max,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// The same for every event.
    Literal(Value),
    /// A path into the event's data, `$.a.b`; absent is `null`.
    Data(Vec<String>),
    /// `$id`: the aggregate's id.
    Id,
    /// `$time`: when the commit was decided.
    Time,
    /// `$version`: the aggregate's version with the event.
    Version,
}

/// A named query: one parametrised, read-only statement over read models.
#[derive(Clone, Debug)]
pub struct QueryDefinition {
    /// Its name.
    pub name: Name,
    /// One sentence for the API's documents.
    pub description: String,
    /// Where it stands.
    pub place: FileLine,
    /// The statement, `:name` standing for parameters.
    pub sql: String,
    /// The line of its file on which the statement begins.
    pub sql_line: usize,
    /// The read models that it reads, for waiting on their checkpoints.
    pub reads: Vec<Name>,
    /// Their fingerprints, as they are declared beside it.
    pub fingerprints: Vec<String>,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
}

/// A parameter of a named query.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub column_type: ColumnType,
    /// Its value when the caller gives none; `None`: the caller must.
    pub default: Option<Value>,
}

/// Deployments of an application that changed read models, the one in force with them, whose declarations
/// are remembered: what serves is seldom older, and each process would keep all that was ever deployed.
const DECLARED_MAX: usize = 16;

/// Everything that is deployed. A name of an aggregate, read model or query belongs to one
/// application; deploying it in a second one is refused.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By name.
    pub applications: BTreeMap<Name, Arc<Application>>,
    /// Read models as they are declared, and were in the last deployments that this process has followed,
    /// by fingerprint: a version that serves goes on being filled while its successor is built. Those that
    /// are not here are looked up in the log.
    pub declarations: BTreeMap<String, Arc<ReadModelDefinition>>,
    /// Applications whose last deployment this executable cannot read, and why: the one before it is
    /// in force here.
    pub unreadable: BTreeMap<Name, String>,
    /// Aggregates by name, and by application: each command looks for its own, and must not pay for the
    /// number of applications. An old log may have one name in two, of which the first counts.
    aggregates: BTreeMap<AggregateName, BTreeMap<Name, Arc<AggregateDefinition>>>,
    /// By application, the fingerprints of each deployment whose declarations are remembered, oldest first.
    declared: BTreeMap<Name, VecDeque<Arc<BTreeSet<String>>>>,
}

impl Application {
    /// The plugins that decide commands of it, each with the first place that names it.
    #[must_use]
    pub fn plugins(&self) -> BTreeMap<&Name, &FileLine> {
        let mut found: BTreeMap<&Name, &FileLine> = BTreeMap::new();
        for (_, by) in self.aggregates.values().flat_map(|it| it.decided_by_plugins()) {
            let first = found.entry(&by.plugin).or_insert(&by.place);
            if (&by.place.file, by.place.line) < (&first.file, first.line) {
                *first = &by.place;
            }
        }
        found
    }

    /// The transformations of its read models.
    pub fn transforms(&self) -> impl Iterator<Item = &Transform> {
        let changes = self.read_models.values().flat_map(|model| model.on.values());
        changes.filter_map(|change| change.transform.as_ref())
    }
}

impl Catalog {
    /// The aggregate of this name, in any application.
    #[must_use]
    pub fn aggregate(&self, name: &str) -> Option<&Arc<AggregateDefinition>> {
        self.aggregates.get(name)?.values().next()
    }

    /// The read model of this name, in any application.
    #[must_use]
    pub fn read_model(&self, name: &str) -> Option<&Arc<ReadModelDefinition>> {
        self.applications.values().find_map(|app| app.read_models.get(name))
    }

    /// The query of this name, in any application.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&Arc<QueryDefinition>> {
        self.applications.values().find_map(|app| app.queries.get(name))
    }

    /// The catalog with this application in place of its former version. Fails when a name of an
    /// aggregate, read model or query belongs to another application.
    pub fn with(&self, application: Application) -> Result<Self, Vec<Problem>> {
        let others = || self.applications.values().filter(|other| other.name != application.name);
        let mut problems = Vec::new();
        let mut taken = |what: &str, name: &str, owner: &Application, place: &FileLine| {
            let message = format!("{what} `{name}` belongs to application `{}`", owner.name);
            problems.push(Problem { place: place.clone(), message });
        };
        for (name, own) in &application.aggregates {
            if let Some(owner) = others().find(|other| other.aggregates.contains_key(name)) {
                taken("aggregate", name.as_str(), owner, &own.place);
            }
        }
        for (name, own) in &application.read_models {
            if let Some(owner) = others().find(|other| other.read_models.contains_key(name)) {
                taken("read model", name.as_str(), owner, &own.place);
            }
        }
        for (name, own) in &application.queries {
            if let Some(owner) = others().find(|other| other.queries.contains_key(name)) {
                taken("query", name.as_str(), owner, &own.place);
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut catalog = self.clone();
        catalog.put(application);
        Ok(catalog)
    }

    /// Puts an application, already checked against the others, in place of its former version. Aggregates
    /// that are as they were stay the same ones: workers keep what they have made of them.
    pub fn put(&mut self, mut application: Application) {
        let name = application.name.clone();
        let former = self.applications.get(&name).map(|former| former.aggregates.clone());
        for (aggregate, definition) in former.into_iter().flatten() {
            match application.aggregates.get_mut(&aggregate) {
                Some(now) if **now == *definition => *now = definition,
                Some(_) => {}
                None => self.forget(&aggregate, &name),
            }
        }
        for (aggregate, definition) in &application.aggregates {
            let of = self.aggregates.entry(aggregate.clone()).or_default();
            of.insert(name.clone(), definition.clone());
        }
        self.remember(&application);
        self.applications.insert(name, Arc::new(application));
    }

    fn remember(&mut self, application: &Application) {
        let mut now = BTreeSet::new();
        for model in application.read_models.values() {
            self.declarations.entry(model.fingerprint.clone()).or_insert_with(|| model.clone());
            now.insert(model.fingerprint.clone());
        }
        let declared = self.declared.entry(application.name.clone()).or_default();
        if declared.back().is_some_and(|last| **last == now) {
            return;
        }
        declared.push_back(Arc::new(now));
        if declared.len() > DECLARED_MAX
            && let Some(oldest) = declared.pop_front()
        {
            let is_later = |it: &&String| declared.iter().any(|later| later.contains(*it));
            for fingerprint in oldest.iter().filter(|it| !is_later(it)) {
                self.declarations.remove(fingerprint);
            }
        }
    }

    fn forget(&mut self, aggregate: &AggregateName, application: &Name) {
        if let Some(of) = self.aggregates.get_mut(aggregate) {
            of.remove(application);
            if of.is_empty() {
                self.aggregates.remove(aggregate);
            }
        }
    }
}
