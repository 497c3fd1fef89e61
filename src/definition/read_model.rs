//! Reading a read model: its columns, its key, and what each event does to a row.

use std::{collections::BTreeMap, sync::Arc};

use flexcore_domain::{AggregateName, EventName, Hash, Name};
use serde_json::{Value, json};

use super::{
    AggregateDefinition, Column, ColumnType, EventDefinition, Expression, Followed, Operation,
    ReadModelDefinition, RowChange, Transform,
    documents::{AGGREGATE, Declared},
    expression,
    fields::{Fields, entries},
    index,
    notes::Notes,
    problem::did_you_mean,
    taken, transform,
    yaml::{Data, Key, Node},
};

/// Most columns: a row must stay far below the 8 kB page of Postgres.
pub(super) const COLUMNS_MAX: usize = 100;
/// Most key columns, all of them in the primary key's index.
pub(super) const KEY_COLUMNS_MAX: usize = 8;
/// Most events that one read model follows.
pub(super) const EVENTS_MAX: usize = 256;

pub(super) fn read(
    node: &Node,
    declared: &Declared<'_>,
    notes: &mut Notes,
) -> Option<ReadModelDefinition> {
    let words = ["read_model", "description", "columns", "key", "shared", "indexes", "on"];
    let fields = Fields::of(node, "a read model", &words, notes)?;
    let name = fields.required("read_model", notes)?;
    let text = notes.text(name, "a read model's name")?;
    if taken::is_of_a_version(text) {
        let message = "names that end in _v and a number are those of versions".to_owned();
        notes.add::<()>(name.line, message);
    }
    let name = notes.name(Name::parse, text, name.line);
    let description = fields.text_or_empty("description", notes);
    let columns = fields.required("columns", notes).and_then(|node| columns(node, notes));
    let (key_node, on) = (fields.required("key", notes), fields.required("on", notes));
    let columns = columns?;
    let key = key(key_node?, &columns, notes)?;
    let indexes = fields.get("indexes").map(|node| index::read(node, &columns, &key, notes));
    let shape = Shape { columns: &columns, key: &key };
    let on = changes(on?, &shape, declared, notes)?;
    let shared = shared(fields.get("shared"), &shape, &on, notes)?;
    let followed = followed(&on, declared);
    let fingerprint = fingerprint(&columns, &key, &on, &followed, shared);
    let place = notes.place(node.line);
    let name = name?;
    Some(ReadModelDefinition {
        name,
        description,
        place,
        columns,
        key,
        indexes: indexes.unwrap_or_default(),
        on,
        followed,
        shared,
        fingerprint,
    })
}

fn columns(node: &Node, notes: &mut Notes) -> Option<Vec<Column>> {
    let entries = entries(node, "`columns`", notes)?;
    if entries.is_empty() || entries.len() > COLUMNS_MAX {
        return notes.add(node.line, format!("a read model has 1 to {COLUMNS_MAX} columns"));
    }
    let mut columns = Vec::with_capacity(entries.len());
    for (key, node) in entries {
        if taken::is_no_column(&key.text) {
            let message = format!("`{}` is taken; choose another name for the column", key.text);
            notes.add::<()>(key.line, message);
        }
        let name = notes.name(Name::parse, &key.text, key.line);
        if let (Some(column_type), Some(name)) = (ColumnType::read(node, notes), name) {
            columns.push(Column { name, column_type });
        }
    }
    // With a column missing here, its every use would be a problem, too.
    (columns.len() == entries.len()).then_some(columns)
}

fn key(node: &Node, columns: &[Column], notes: &mut Notes) -> Option<Vec<Name>> {
    let Data::List(nodes) = &node.data else {
        return notes.add(
            node.line,
            format!("`key` must be a list of columns, and is {}", node.describe()),
        );
    };
    if nodes.is_empty() || nodes.len() > KEY_COLUMNS_MAX {
        return notes.add(node.line, format!("`key` has 1 to {KEY_COLUMNS_MAX} columns"));
    }
    let mut key: Vec<Name> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(name) = notes.text(node, "a key column") else { continue };
        match columns.iter().find(|column| column.name.as_str() == name) {
            None => unknown_column(node.line, name, columns, notes),
            Some(column) if key.contains(&column.name) => {
                notes.add::<()>(node.line, format!("`{name}` is in the key twice"));
            }
            Some(column) => key.push(column.name.clone()),
        }
    }
    Some(key)
}

fn unknown_column(line: usize, name: &str, columns: &[Column], notes: &mut Notes) {
    let hint = did_you_mean(name, columns.iter().map(|column| column.name.as_str()));
    notes.add::<()>(line, format!("`columns` has no `{name}`{hint}"));
}

/// True if several workers may keep the rows. They are divided by aggregate, so that each row has
/// to belong to one.
fn shared(node: Option<&Node>, shape: &Shape<'_>, on: &Changes, notes: &mut Notes) -> Option<bool> {
    let Some(node) = node else { return Some(false) };
    let Data::Scalar(Value::Bool(shared)) = &node.data else {
        return notes.add(node.line, "`shared` is true or false");
    };
    if *shared && let Some(reason) = shape.mixes(on) {
        let message = format!("`shared` divides the rows by aggregate, and {reason}");
        notes.add::<()>(node.line, message);
    }
    Some(*shared)
}

type Changes = BTreeMap<(AggregateName, EventName), RowChange>;

fn changes(
    node: &Node,
    shape: &Shape<'_>,
    declared: &Declared<'_>,
    notes: &mut Notes,
) -> Option<Changes> {
    let entries = entries(node, "`on`", notes)?;
    if entries.is_empty() || entries.len() > EVENTS_MAX {
        return notes.add(node.line, format!("`on` has 1 to {EVENTS_MAX} events"));
    }
    let mut changes = BTreeMap::new();
    for (key, node) in entries {
        let Some((event, data)) = named(key, declared, notes) else { continue };
        if let Some(change) = shape.change(node, data, notes) {
            changes.insert(event, change);
        }
    }
    Some(changes)
}

/// The event that a key of `on` names, and the schema of its data.
fn named<'a>(
    key: &Key,
    declared: &Declared<'a>,
    notes: &mut Notes,
) -> Option<((AggregateName, EventName), &'a Value)> {
    let Some((aggregate, event)) = key.text.split_once('.') else {
        let message = format!("`{}` is no event; write it as in `flight.departed`", key.text);
        return notes.add(key.line, message);
    };
    let aggregates = declared.aggregates;
    let Some((aggregate, definition)) = aggregates.get_key_value(aggregate) else {
        if declared.documents.declare(AGGREGATE, aggregate) {
            return None;
        }
        let hint = did_you_mean(aggregate, aggregates.keys().map(AggregateName::as_str));
        return notes.add(key.line, format!("there is no aggregate `{aggregate}`{hint}"));
    };
    let Some((event, definition)) = definition.events.get_key_value(event) else {
        if declared.documents.declare_event(aggregate.as_str(), event) {
            return None;
        }
        let hint = did_you_mean(event, definition.events.keys().map(EventName::as_str));
        return notes
            .add(key.line, format!("aggregate `{aggregate}` has no event `{event}`{hint}"));
    };
    Some(((aggregate.clone(), event.clone()), &definition.data.json))
}

/// The rules for a change.
struct Shape<'a> {
    columns: &'a [Column],
    key: &'a [Name],
}

type Operations = Vec<(Name, Operation, Expression)>;

impl Shape<'_> {
    /// Why several aggregates may fold into one row; `None`: they cannot. Their ids are told apart by text
    /// alone, since `7` and `007` are one number.
    fn mixes(&self, on: &Changes) -> Option<String> {
        let (first, last) = (on.keys().next()?, on.keys().next_back()?);
        if first.0 != last.0 {
            return Some(format!("`{}` and `{}` may have a row in common", first.0, last.0));
        }
        let is_id = |(at, name): (usize, &Name)| {
            let column = self.columns.iter().find(|column| column.name == *name);
            column.is_some_and(|column| column.column_type == ColumnType::Text)
                && on.values().all(|change| change.key.get(at) == Some(&Expression::Id))
        };
        let apart = self.key.iter().enumerate().any(is_id);
        (!apart).then(|| "no text column of the key is `$id` in every change".to_owned())
    }

    fn change(&self, node: &Node, data: &Value, notes: &mut Notes) -> Option<RowChange> {
        let known = ["transform", "key", "set", "add", "min", "max", "delete"];
        let fields = Fields::of(node, "a row change", &known, notes)?;
        let transform = fields.get("transform").map(|node| transform::read(node, notes));
        // Nothing is known of what a plugin returns: the rows themselves are checked.
        let unknown = Value::Null;
        let data = if transform.is_some() { &unknown } else { data };
        let key = fields.required("key", notes).and_then(|node| self.key(node, data, notes));
        let delete = match fields.get("delete").map(|node| &node.data) {
            None => false,
            Some(Data::Scalar(Value::Bool(delete))) => *delete,
            Some(_) => return notes.add(node.line_at("/delete"), "`delete` is true or false"),
        };
        let mut operations = Operations::new();
        for operation in [Operation::Set, Operation::Add, Operation::Min, Operation::Max] {
            let word = operation.as_str();
            let Some(node) = fields.get(word) else { continue };
            if delete {
                notes.add::<()>(node.line, format!("`delete` and `{word}` exclude each other"));
            }
            for (column, value) in entries(node, &format!("`{word}`"), notes).unwrap_or_default() {
                self.operation(operation, (column, value), data, &mut operations, notes);
            }
        }
        let transform = match transform {
            // Where it is mistaken, that is noted.
            Some(read) => Some(read?),
            None => None,
        };
        Some(RowChange { transform, key: key?, delete, operations })
    }

    /// A value for each key column.
    fn key(&self, node: &Node, data: &Value, notes: &mut Notes) -> Option<Vec<Expression>> {
        let names: Vec<&str> = self.key.iter().map(Name::as_str).collect();
        let fields = Fields::of(node, "the key", &names, notes)?;
        let mut values = Vec::with_capacity(self.key.len());
        for name in names {
            let Some(value) = fields.required(name, notes) else { continue };
            let Some(read) = expression::read(value, notes) else { continue };
            if let Some(column) = self.columns.iter().find(|column| column.name.as_str() == name) {
                expression::check(
                    &read,
                    (name, column.column_type),
                    true,
                    data,
                    (value.line, notes),
                );
            }
            values.push(read);
        }
        Some(values)
    }

    fn operation(
        &self,
        operation: Operation,
        (key, value): (&Key, &Node),
        data: &Value,
        operations: &mut Operations,
        notes: &mut Notes,
    ) {
        let word = operation.as_str();
        let known = self.columns.iter().find(|known| known.name.as_str() == key.text);
        let Some(Column { name, column_type }) = known else {
            return unknown_column(key.line, &key.text, self.columns, notes);
        };
        if self.key.contains(name) {
            notes.add::<()>(key.line, format!("`{name}` is part of the key and can't change"));
        }
        if operations.iter().any(|(other, ..)| other == name) {
            notes.add::<()>(key.line, format!("`{name}` has two operations in one change"));
        }
        if !column_type.allows(operation) {
            let name = column_type.as_str();
            notes.add::<()>(key.line, format!("`{word}` does not work on a {name} column"));
        }
        let Some(read) = expression::read(value, notes) else { return };
        if operation != Operation::Set && read == Expression::Literal(Value::Null) {
            notes.add::<()>(value.line, format!("`{word}` of null does nothing"));
        }
        expression::check(&read, (name.as_str(), *column_type), false, data, (value.line, notes));
        operations.push((name.clone(), operation, read));
    }
}

impl Operation {
    /// The word that declares it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Add => "add",
            Self::Min => "min",
            Self::Max => "max",
        }
    }
}

/// The events of a read model, as they are declared beside it.
fn followed(
    on: &Changes,
    declared: &Declared<'_>,
) -> BTreeMap<(AggregateName, EventName), Followed> {
    let follow = |(aggregate, event): &(AggregateName, EventName)| {
        let definition = declared.aggregates.get(aggregate)?;
        let followed = Followed::new(definition, event, definition.events.get(event)?);
        Some(((aggregate.clone(), event.clone()), followed))
    };
    on.keys().filter_map(follow).collect()
}

impl Followed {
    fn new(aggregate: &AggregateDefinition, name: &EventName, event: &EventDefinition) -> Self {
        let mut text = vec![json!([aggregate.name, name, event.version])];
        text.extend(event.upcast.iter().map(|(from, function)| json!([from, function.source])));
        if !event.upcast.is_empty() {
            // The result of an upcast is held to the schema.
            text.push(event.data.json.clone());
        }
        let fingerprint = Hash::chain(&Hash::ZERO, Value::Array(text).to_string().as_bytes());
        let declared = Arc::new(AggregateDefinition {
            commands: BTreeMap::new(),
            events: BTreeMap::from([(name.clone(), event.clone())]),
            ..aggregate.clone()
        });
        Self { version: event.version, fingerprint, declared }
    }
}

/// Raised when the same declaration would give other rows than before: when the fold, a column's type
/// or the engine that runs `upcast` changes. It builds every read model of every installation anew.
const FOLD_FORMAT: u32 = 3;

/// SHA-256 over what decides on the rows.
fn fingerprint(
    columns: &[Column],
    key: &[Name],
    on: &Changes,
    followed: &BTreeMap<(AggregateName, EventName), Followed>,
    shared: bool,
) -> String {
    let columns: Vec<Value> = columns.iter().map(|c| json!([c.name, c.column_type])).collect();
    let changes: Vec<Value> = on
        .iter()
        .map(|((aggregate, event), change)| {
            let key: Vec<Value> = change.key.iter().map(canonical).collect();
            let mut operations: Vec<_> = change.operations.iter().collect();
            operations.sort_by(|a, b| a.0.cmp(&b.0));
            let operations: Vec<Value> = operations
                .into_iter()
                .map(|(name, operation, value)| json!([name, operation.as_str(), canonical(value)]))
                .collect();
            match &change.transform {
                None => json!([aggregate, event, key, change.delete, operations]),
                Some(Transform { plugin, function, version, .. }) => {
                    let transform = json!([plugin, function, version]);
                    json!([aggregate, event, key, change.delete, operations, transform])
                }
            }
        })
        .collect();
    let followed: Vec<String> =
        followed.values().map(|followed| followed.fingerprint.to_string()).collect();
    let mut text = vec![json!(FOLD_FORMAT), json!(columns), json!(key), json!(changes)];
    text.push(json!(followed));
    if shared {
        // Rows and checkpoints of one version are divided in one way.
        text.push(json!("shared"));
    }
    Hash::chain(&Hash::ZERO, Value::Array(text).to_string().as_bytes()).to_string()
}

fn canonical(expression: &Expression) -> Value {
    match expression {
        Expression::Literal(value) => json!(["literal", value]),
        Expression::Data(path) => json!(["data", path]),
        Expression::Id => json!(["id"]),
        Expression::Time => json!(["time"]),
        Expression::Version => json!(["version"]),
    }
}
