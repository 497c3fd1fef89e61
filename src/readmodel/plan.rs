//! From events to changes: a read model's expressions, evaluated over each event's data.
//!
//! Only the fields that the expressions name are taken out of the JSON text; nothing else is built.
//! Every value is checked against its column here, so that SQL never sees one that does not fit.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use flexcore_definition::{
    Cell, Column, Expression, Followed, Operation, ReadModelDefinition, RowChange, Scalar,
    Transform,
};
use flexcore_domain::{AggregateName, Commit, Event, EventName, Hash, Name, Tenant};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{json, value::RawValue};

/// Longest key of a row, in bytes over all its columns: an entry of a Postgres index has 2,704.
pub const KEY_BYTES_MAX: usize = 2_000;

/// Most that an event may change of a row, in bytes of values: two of the largest messages of the log. A field that
/// several columns take counts with each, and a commit has 256 events.
pub const CHANGE_BYTES_MAX: usize = 2 << 20;

/// A read model's expressions, ready to evaluate.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The shape of the rows.
    pub(crate) layout: Arc<Layout>,
    rules: HashMap<AggregateName, HashMap<EventName, Rule>>,
    /// Lowest and highest schema version that the rules read: most events need no closer look.
    versions: (u32, u32),
    /// Some event goes through a plugin.
    is_transformed: bool,
}

/// The shape of a read model's rows.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The key's columns.
    pub(crate) key: Vec<Column>,
    /// The others, in the order of their declaration.
    pub(crate) columns: Vec<Column>,
}

/// The way in which a version reads an event.
#[derive(Debug)]
pub enum Reads<'a> {
    /// It changes no row.
    Nothing,
    /// Its data are what the rule was written for.
    AsItIs,
    /// Its data are older: they are brought to the version that the rule was written for, as the
    /// same deployment says.
    Upcast(&'a Followed),
    /// It is newer than what the rule was written for. Nobody can say what the rule would make of
    /// it: it is for a later version of the read model.
    TooNew,
}

/// A plugin's function that an event's data go through, once they are of the version that the rule was written
/// for. What it returns is read in their place.
#[derive(Clone, Debug)]
pub struct Transformed {
    /// The function.
    pub transform: Transform,
    /// The version of the event's schema that it gets; `None`: any.
    pub version: Option<u32>,
    /// SHA-256 over all that says what comes of an event: equal ones give the same data.
    pub fingerprint: Hash,
}

#[derive(Clone, Debug)]
struct Rule {
    /// The event as it was declared; `None`: any data will do.
    followed: Option<Followed>,
    transformed: Option<Transformed>,
    fields: Fields,
    key: Vec<Source>,
    delete: bool,
    operations: Vec<(usize, Operation, Source)>,
}

/// Where a value comes from.
#[derive(Clone, Debug)]
enum Source {
    Literal(Cell),
    /// The nth field that is taken out of the data.
    Data(usize),
    Id,
    Time,
    Version,
}

/// The effect of an event on one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub(crate) tenant: Tenant,
    pub(crate) key: Vec<Cell>,
    pub(crate) delete: bool,
    /// Column (of [`Layout::columns`]), operation, operand.
    pub(crate) operations: Vec<(usize, Operation, Cell)>,
}

/// Why an event cannot be applied, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

impl Plan {
    /// The plan of a read model.
    #[must_use]
    pub fn new(model: &ReadModelDefinition) -> Self {
        let find = |name: &Name| model.columns.iter().find(|column| column.name == *name);
        let key: Vec<Column> = model.key.iter().filter_map(find).cloned().collect();
        let columns: Vec<Column> = model
            .columns
            .iter()
            .filter(|column| !model.key.contains(&column.name))
            .cloned()
            .collect();
        let layout = Arc::new(Layout { key, columns });
        let mut rules: HashMap<_, HashMap<_, _>> = HashMap::new();
        for ((aggregate, event), change) in &model.on {
            let followed = model.followed.get(&(aggregate.clone(), event.clone()));
            let transformed = change.transform.as_ref();
            let transformed = transformed.map(|transform| Transformed::new(transform, followed));
            let followed = followed.cloned();
            let rule = Rule { followed, transformed, ..Rule::new(&layout, change) };
            rules.entry(aggregate.clone()).or_default().insert(event.clone(), rule);
        }
        let versions = || model.followed.values().map(|followed| followed.version);
        let versions = (versions().min().unwrap_or(u32::MAX), versions().max().unwrap_or(0));
        let is_transformed = model.on.values().any(|change| change.transform.is_some());
        Self { layout, rules, versions, is_transformed }
    }

    /// True if some event of this kind of aggregate changes rows.
    #[must_use]
    pub fn follows(&self, aggregate: &AggregateName) -> bool {
        self.rules.contains_key(aggregate)
    }

    /// The kinds of aggregates of which some event changes rows.
    pub fn aggregates(&self) -> impl Iterator<Item = &AggregateName> {
        self.rules.keys()
    }

    /// Says if an event may be too new for a rule, or else too old for one.
    #[must_use]
    pub fn may_differ(&self, event: &Event) -> (bool, bool) {
        (event.schema_version > self.versions.0, event.schema_version < self.versions.1)
    }

    /// The way in which the event is read.
    #[must_use]
    pub fn reads(&self, commit: &Commit, event: &Event) -> Reads<'_> {
        match self.rule(commit, event).map(|rule| &rule.followed) {
            None => Reads::Nothing,
            Some(Some(followed)) if event.schema_version < followed.version => {
                Reads::Upcast(followed)
            }
            Some(Some(followed)) if event.schema_version > followed.version => Reads::TooNew,
            Some(_) => Reads::AsItIs,
        }
    }

    /// True if some event goes through a plugin.
    #[must_use]
    pub fn is_transformed(&self) -> bool {
        self.is_transformed
    }

    /// What the event's data go through, brought to the version that [`Plan::reads`] says; `None`: nothing.
    #[must_use]
    pub fn transforms(&self, commit: &Commit, event: &Event) -> Option<&Transformed> {
        if !self.is_transformed {
            return None;
        }
        self.rule(commit, event)?.transformed.as_ref()
    }

    /// The effect of the event; `None`: nothing. `data` is the event's, of the schema that
    /// [`Plan::reads`] says, or what came of that where it [goes through a plugin](Plan::transforms). Fails
    /// when a value does not fit its column.
    pub fn change(
        &self,
        commit: &Commit,
        event: &Event,
        data: &RawValue,
    ) -> Result<Option<Change>, Unfit> {
        let Some(rule) = self.rule(commit, event) else { return Ok(None) };
        let mut taken: Vec<Field<'_>> = vec![Some(Scalar::Null); rule.fields.count];
        if rule.fields.count > 0 {
            let mut reader = serde_json::Deserializer::from_str(data.get());
            let seed = Take { node: &rule.fields.root, taken: &mut taken };
            seed.deserialize(&mut reader).map_err(|error| Unfit(format!("data: {error}")))?;
        }
        let get = |source: &Source, column: &Column| {
            let column_type = column.column_type;
            let cell = match source {
                Source::Literal(cell) => Some(cell.clone()),
                Source::Data(index) => {
                    let field = taken[*index].as_ref();
                    field.and_then(|field| Cell::from_scalar(column_type, field))
                }
                Source::Id => Cell::from_text(column_type, commit.key.id().as_str()),
                Source::Time => Cell::from_unix_ms(column_type, commit.time_ms),
                Source::Version => Cell::from_version(column_type, event.version),
            };
            cell.ok_or_else(|| {
                let wanted = column_type.describe();
                Unfit(format!("column {}: the value is not {wanted}", column.name))
            })
        };
        let layout = &self.layout;
        let key = rule.key.iter().zip(&layout.key);
        let key = key.map(|(source, column)| get(source, column)).collect::<Result<Vec<_>, _>>()?;
        check_key(&key, layout)?;
        let operations = rule.operations.iter().map(|(column, operation, source)| {
            Ok((*column, *operation, get(source, &layout.columns[*column])?))
        });
        let operations = operations.collect::<Result<Vec<_>, _>>()?;
        let tenant = commit.key.tenant().clone();
        let change = Change { tenant, key, delete: rule.delete, operations };
        match change.size_bytes() {
            ..=CHANGE_BYTES_MAX => Ok(Some(change)),
            bytes => {
                Err(Unfit(format!("it sets {bytes} bytes of its row; at most {CHANGE_BYTES_MAX}")))
            }
        }
    }

    fn rule(&self, commit: &Commit, event: &Event) -> Option<&Rule> {
        self.rules.get(commit.key.aggregate())?.get(&event.event)
    }
}

impl Transformed {
    fn new(transform: &Transform, followed: Option<&Followed>) -> Self {
        let Transform { plugin, function, version, .. } = transform;
        let text = json!([plugin, function, version]).to_string();
        let before = followed.map_or(Hash::ZERO, |followed| followed.fingerprint);
        Self {
            transform: transform.clone(),
            version: followed.map(|followed| followed.version),
            fingerprint: Hash::chain(&before, text.as_bytes()),
        }
    }
}

impl Change {
    /// The values that it brings to its row, and what it takes in memory, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let operands = self.operations.iter().map(|(_, _, operand)| operand);
        size_of::<Self>() + self.key.iter().chain(operands).map(size_bytes).sum::<usize>()
    }
}

/// A value's bytes, as it is sent to Postgres, and no less than it takes in memory beside a text.
pub(crate) fn size_bytes(cell: &Cell) -> usize {
    let text = if let Cell::Text(text) = cell { text.len() } else { 0 };
    size_of::<(usize, Operation, Cell)>() + text
}

fn check_key(key: &[Cell], layout: &Layout) -> Result<(), Unfit> {
    let mut bytes = 0;
    for (cell, column) in key.iter().zip(&layout.key) {
        match cell {
            Cell::Null => return Err(Unfit(format!("key column {}: no value", column.name))),
            Cell::Text(text) => bytes += text.len(),
            _ => bytes += 8,
        }
    }
    if bytes > KEY_BYTES_MAX {
        return Err(Unfit(format!("the key has {bytes} bytes; at most {KEY_BYTES_MAX}")));
    }
    Ok(())
}

impl Rule {
    fn new(layout: &Layout, change: &RowChange) -> Self {
        let mut fields = Fields::default();
        let mut source = |expression: &Expression, column_type| match expression {
            // A literal that does not fit is reported with every event, as a field would be.
            Expression::Literal(value) => match Cell::from_json(column_type, value) {
                Some(cell) => Source::Literal(cell),
                None => Source::Data(fields.never()),
            },
            Expression::Data(path) => Source::Data(fields.index(path)),
            Expression::Id => Source::Id,
            Expression::Time => Source::Time,
            Expression::Version => Source::Version,
        };
        let key = change.key.iter().zip(&layout.key);
        let key = key.map(|(expression, column)| source(expression, column.column_type)).collect();
        let mut operations = Vec::new();
        for (name, operation, expression) in &change.operations {
            let at = layout.columns.iter().position(|column| column.name == *name);
            if let Some(at) = at {
                operations.push((
                    at,
                    *operation,
                    source(expression, layout.columns[at].column_type),
                ));
            }
        }
        let (followed, transformed) = (None, None);
        Self { followed, transformed, fields, key, delete: change.delete, operations }
    }
}

/// The fields that a rule takes out of the data, as a tree of their paths.
#[derive(Clone, Debug, Default)]
struct Fields {
    root: Node,
    count: usize,
}

#[derive(Clone, Debug, Default)]
struct Node {
    index: Option<usize>,
    children: Vec<(String, Node)>,
}

impl Fields {
    fn index(&mut self, path: &[String]) -> usize {
        let mut node = &mut self.root;
        for name in path {
            let at = node.children.iter().position(|(known, _)| known == name);
            let at = at.unwrap_or_else(|| {
                node.children.push((name.clone(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[at].1;
        }
        *node.index.get_or_insert_with(|| {
            self.count += 1;
            self.count - 1
        })
    }

    /// The whole of the data, which no column can hold.
    fn never(&mut self) -> usize {
        self.index(&[])
    }
}

/// A field as it stands in the data; `None`: an array or an object, which no column can hold.
type Field<'a> = Option<Scalar<'a>>;

/// Walks the data along a node's children, keeping what its indices ask for.
struct Take<'n, 't, 'a> {
    node: &'n Node,
    taken: &'t mut Vec<Field<'a>>,
}

impl<'a> Take<'_, '_, 'a> {
    fn keep<E>(self, field: Field<'a>) -> Result<(), E> {
        if let Some(index) = self.node.index {
            self.taken[index] = field;
        }
        Ok(())
    }
}

impl<'a> DeserializeSeed<'a> for Take<'_, '_, 'a> {
    type Value = ();
    fn deserialize<D: de::Deserializer<'a>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Take<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.keep(Some(Scalar::Null))
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.keep(Some(Scalar::Boolean(value)))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.keep(Some(Scalar::Number(value.into())))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.keep(Some(Scalar::Number(value.into())))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.keep(serde_json::Number::from_f64(value).map(Scalar::Number))
    }
    fn visit_borrowed_str<E: de::Error>(self, value: &'a str) -> Result<(), E> {
        self.keep(Some(Scalar::Text(Cow::Borrowed(value))))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.keep(Some(Scalar::Text(Cow::Owned(value.to_owned()))))
    }
    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.keep(None)
    }
    fn visit_map<A: MapAccess<'a>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<Key<'a>>()? {
            let child = self.node.children.iter().find(|(known, _)| *known == name.0);
            match child {
                Some((_, node)) => fields.next_value_seed(Take { node, taken: self.taken })?,
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        self.keep(None)
    }
}

/// A field's name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use flexcore_definition::ColumnType;

    use super::*;

    /// A literal is there once, however many events set it.
    #[test]
    fn a_change_counts_its_texts_and_shares_its_literals() {
        let text = Cell::Text("x".repeat(7_000).into());
        let change = Change {
            tenant: Tenant::parse("a").unwrap(),
            key: vec![Cell::Integer(1)],
            delete: false,
            operations: vec![(0, Operation::Set, text.clone()), (1, Operation::Set, text.clone())],
        };
        assert!((14_000..15_000).contains(&change.size_bytes()), "{}", change.size_bytes());
        let (Cell::Text(one), Cell::Text(other)) = (&text, &change.operations[1].2) else {
            panic!("texts")
        };
        assert!(Arc::ptr_eq(one, other));
    }

    #[test]
    fn only_named_fields_are_taken() {
        let mut fields = Fields::default();
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let indices = ["a", "b.c", "b", "d.e.f", "gone"].map(|text| fields.index(&path(text)));
        assert_eq!(fields.index(&path("b.c")), indices[1]);
        let text = r#"{"x":[1,{"a":2}],"\u0061":"é\n","b":{"c":1.5,"y":{}},"d":{"e":7}}"#;
        let mut taken = vec![Some(Scalar::Null); fields.count];
        let mut reader = serde_json::Deserializer::from_str(text);
        Take { node: &fields.root, taken: &mut taken }.deserialize(&mut reader).unwrap();
        let cell =
            |index: usize, column_type| Cell::from_scalar(column_type, taken[index].as_ref()?);
        let cells = |column_type| indices.map(|index| cell(index, column_type));
        let texts = cells(ColumnType::Text);
        assert_eq!(texts[0], Some(Cell::Text("é\n".into())));
        assert_eq!(texts[2], None, "an object is no text");
        assert_eq!(texts[3], Some(Cell::Null), "a path through a number is absent");
        assert_eq!(texts[4], Some(Cell::Null));
        assert_eq!(cells(ColumnType::Number)[1], Some(Cell::Number(1.5)));
    }
}
