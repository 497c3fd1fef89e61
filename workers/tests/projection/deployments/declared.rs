//! An application that changes at random, and the rows that its read models have by the events alone.

use std::fmt::Write as _;

use serde_json::Map;

use super::{
    Random,
    events::{Data, EVENTS, HUNDREDFOLD_MAX, Happened, UPCASTS, UPCASTS_MAX, Upcast},
};
use crate::*;

/// The read models.
const MODELS: [&str; 2] = ["sums", "marks"];
/// Names of columns beside the key's.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Aggregates: few, so that each has many events.
const ACCOUNTS: u64 = 8;

/// A type, an operation, and the value as a declaration has it.
type Way = (&'static str, &'static str, &'static str);

/// Uses of an event by a column.
const WAYS: [Way; 25] = [
    ("integer", "add", "$.amount"),
    ("integer", "add", "1"),
    ("integer", "max", "$.amount"),
    ("integer", "min", "$.amount"),
    ("integer", "set", "$version"),
    ("integer", "set", "null"),
    ("number", "add", "$.amount"),
    ("number", "add", "0.5"),
    ("number", "min", "$version"),
    ("number", "set", "$.amount"),
    ("text", "set", "$.note"),
    ("text", "max", "$.note"),
    ("text", "min", "$.note"),
    ("text", "max", "$id"),
    ("text", "set", "$time"),
    ("text", "set", "'$$5'"),
    ("boolean", "set", "$.flag"),
    ("boolean", "set", "true"),
    ("date", "set", "$.day"),
    ("date", "min", "$.day"),
    ("date", "max", "$time"),
    ("date", "set", "'2014-05-06'"),
    ("timestamp", "set", "$.at"),
    ("timestamp", "max", "$.at"),
    ("timestamp", "min", "$time"),
];
const TYPES: [&str; 6] = ["integer", "number", "text", "boolean", "date", "timestamp"];

/// A key: each column with its name, its type and its value.
type Key = &'static [(&'static str, &'static str, &'static str)];

/// The keys that a read model may have.
const KEYS: [Key; 6] = [
    &[("team", "text", "$.group")],
    &[("owner", "text", "$id")],
    &[("team", "text", "$.group"), ("owner", "text", "$id")],
    &[("on_day", "date", "$.day")],
    &[("flag", "boolean", "$.flag"), ("team", "text", "$.group")],
    &[("owner", "text", "$id"), ("moment", "timestamp", "$.at")],
];

/// What an event does to a row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Nothing,
    Fold,
    Delete,
}

/// A column beside the key's.
#[derive(Debug)]
struct Cells {
    name: &'static str,
    column_type: &'static str,
    /// By event.
    ways: [Option<Way>; 2],
}

impl Cells {
    fn any(name: &'static str, random: &mut Random) -> Self {
        let column_type = random.of(&TYPES);
        let mut cells = Self { name, column_type, ways: [None; 2] };
        cells.use_otherwise(random);
        cells
    }

    fn use_otherwise(&mut self, random: &mut Random) {
        let fitting = |(column_type, ..): &&Way| *column_type == self.column_type;
        let fitting: Vec<Way> = WAYS.iter().filter(fitting).copied().collect();
        for way in &mut self.ways {
            *way = if random.below(4) > 0 { Some(random.of(&fitting)) } else { None };
        }
    }
}

/// A read model.
#[derive(Debug)]
struct Model {
    key: Key,
    /// Never empty.
    columns: Vec<Cells>,
    /// By event; not all of them nothing.
    effects: [Effect; 2],
    /// Takes effect where the key allows it.
    shared: bool,
    /// Columns, each with whether it descends.
    indexes: Vec<Vec<(&'static str, bool)>>,
}

impl Model {
    fn any(random: &mut Random) -> Self {
        let columns = vec![Cells::any(NAMES[0], random), Cells::any(NAMES[1], random)];
        let effects = [Effect::Fold, random.of(&[Effect::Nothing, Effect::Fold, Effect::Delete])];
        let (key, shared) = (random.of(&KEYS), random.below(2) == 0);
        let mut model = Self { key, columns, effects, shared, indexes: Vec::new() };
        model.index_otherwise(random);
        model.mend();
        model
    }

    /// Makes it another read model, and says how.
    fn change(&mut self, random: &mut Random) -> String {
        let at = random.below(self.columns.len() as u64) as usize;
        let fresh = NAMES.into_iter().find(|name| self.columns.iter().all(|c| c.name != *name));
        match (random.below(14), fresh) {
            (0..=2, Some(fresh)) => self.columns.push(Cells::any(fresh, random)),
            (3, Some(fresh)) => self.columns[at].name = fresh,
            (4, _) if self.columns.len() > 1 => {
                self.columns.remove(at);
            }
            (5 | 6, _) => self.columns[at] = Cells::any(self.columns[at].name, random),
            (7 | 8, _) => self.key = random.of(&KEYS),
            (9, _) => self.shared = !self.shared,
            (10, _) => {
                let event = random.below(2) as usize;
                self.effects[event] = random.of(&[Effect::Nothing, Effect::Fold, Effect::Delete]);
            }
            (11 | 12, _) => self.index_otherwise(random),
            _ => self.columns[at].use_otherwise(random),
        }
        self.mend();
        format!("{self:?}")
    }

    fn names(&self) -> Vec<&'static str> {
        let own = self.columns.iter().map(|column| column.name);
        self.key.iter().map(|(name, ..)| *name).chain(own).collect()
    }

    fn index_otherwise(&mut self, random: &mut Random) {
        let names = self.names();
        self.indexes.clear();
        for _ in 0..random.below(4) {
            let (first, second) = (random.of(&names), random.of(&names));
            let mut index = vec![(first, random.below(2) == 0)];
            if second != first {
                index.push((second, random.below(2) == 0));
            }
            self.indexes.push(index);
        }
    }

    /// Drops what may not be declared any more.
    fn mend(&mut self) {
        if self.effects == [Effect::Nothing; 2] {
            self.effects[0] = Effect::Fold;
        }
        let (names, key, mut seen) = (self.names(), self.key, Vec::new());
        self.indexes.retain(|index| {
            let is_there = index.iter().all(|(name, _)| names.contains(name));
            let mut of_key = index.iter().zip(key);
            let is_of_key = index.len() <= key.len()
                && of_key.all(|((name, descends), (key, ..))| !descends && name == key);
            let is_new = !seen.contains(index);
            seen.push(index.clone());
            is_there && !is_of_key && is_new
        });
    }

    /// The rules for it: rows that are shared belong to one aggregate each.
    fn is_shared(&self) -> bool {
        self.shared && self.key.iter().any(|(_, _, of)| *of == "$id")
    }

    fn write(&self, name: &str, text: &mut String) {
        let key = self.key.iter().map(|(name, column_type, _)| (*name, *column_type));
        let own = self.columns.iter().map(|column| (column.name, column.column_type));
        let columns = joined(key.chain(own).map(|(name, of)| format!("{name}: {of}")));
        let key = joined(self.key.iter().map(|(name, ..)| (*name).to_owned()));
        let shared = self.is_shared();
        writeln!(text, "---\nread_model: {name}\nshared: {shared}").unwrap();
        writeln!(text, "columns: {{ {columns} }}\nkey: [{key}]").unwrap();
        let indexes = self.indexes.iter().map(|index| {
            let sign = |descends| if descends { "-" } else { "" };
            let index = index.iter().map(|(name, descends)| format!("{}{name}", sign(*descends)));
            format!("[{}]", joined(index))
        });
        writeln!(text, "indexes: [{}]\non:", joined(indexes)).unwrap();
        for (event, effect) in self.effects.iter().enumerate() {
            if *effect == Effect::Nothing {
                continue;
            }
            let key = joined(self.key.iter().map(|(name, _, of)| format!("{name}: {of}")));
            writeln!(text, "  account.{}:\n    key: {{ {key} }}", EVENTS[event]).unwrap();
            if *effect == Effect::Delete {
                text.push_str("    delete: true\n");
                continue;
            }
            for operation in ["set", "add", "min", "max"] {
                let of = |column: &Cells| {
                    let way = column.ways[event].filter(|(_, own, _)| *own == operation);
                    way.map(|(.., of)| format!("{}: {of}", column.name))
                };
                let those = joined(self.columns.iter().filter_map(of));
                if !those.is_empty() {
                    writeln!(text, "    {operation}: {{ {those} }}").unwrap();
                }
            }
        }
        let all = joined(self.names().into_iter().map(str::to_owned));
        writeln!(text, "---\nquery: all_{name}\nreads: [{name}]").unwrap();
        writeln!(text, "sql: select {all} from rm.{name}").unwrap();
    }

    /// A new row.
    fn row(&self, key: Vec<(&str, Value)>) -> Map<String, Value> {
        let key = key.into_iter().map(|(name, value)| (name.to_owned(), value));
        key.chain(self.columns.iter().map(|c| (c.name.to_owned(), Value::Null))).collect()
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// The deployment.
pub(super) struct Declared {
    /// By [`MODELS`]; `None`: it is not declared.
    models: [Option<Model>; 2],
    /// From each version of an event to the next, by [`EVENTS`].
    upcasts: [Vec<Upcast>; 2],
}

impl Declared {
    pub(super) fn any(random: &mut Random) -> Self {
        let models = [Some(Model::any(random)), Some(Model::any(random))];
        Self { models, upcasts: [Vec::new(), Vec::new()] }
    }

    /// Makes it another deployment, and says how: a read model changes, goes or comes back, or an
    /// event has another version.
    pub(super) fn change(&mut self, random: &mut Random) -> String {
        let which = random.below(2) as usize;
        if random.below(4) == 0 && self.upcasts[which].len() < UPCASTS_MAX {
            let upcast = self.upcast(which, random);
            return format!("{}: {upcast}", EVENTS[which]);
        }
        let name = MODELS[which];
        let Some(model) = &mut self.models[which] else {
            let model = Model::any(random);
            let said = format!("{name} is back: {model:?}");
            self.models[which] = Some(model);
            return said;
        };
        if random.below(8) == 0 {
            self.models[which] = None;
            return format!("{name} is gone");
        }
        format!("{name}: {}", model.change(random))
    }

    fn upcast(&mut self, event: usize, random: &mut Random) -> &'static str {
        let upcasts = &mut self.upcasts[event];
        let hundredfold = upcasts.iter().filter(|(text, _)| *text == UPCASTS[0].0).count();
        let first = usize::from(hundredfold >= HUNDREDFOLD_MAX);
        let upcast = random.of(&UPCASTS[first..]);
        upcasts.push(upcast);
        upcast.0
    }

    pub(super) fn application(&self) -> Application {
        let mut text =
            "aggregate: account\ncommands:\n  pay: { decide: '() => []' }\nevents:\n".to_owned();
        for (event, upcasts) in EVENTS.iter().zip(&self.upcasts) {
            let version = 1 + upcasts.len();
            let evolve = "data: { type: object }\n    evolve: (state) => state";
            writeln!(text, "  {event}:\n    version: {version}\n    {evolve}").unwrap();
            if !upcasts.is_empty() {
                text.push_str("    upcast:\n");
            }
            for (from, (upcast, _)) in (1..).zip(upcasts) {
                writeln!(text, "      {from}: \"(data) => {upcast}\"").unwrap();
            }
        }
        for (name, model) in MODELS.iter().zip(&self.models) {
            if let Some(model) = model {
                model.write(name, &mut text);
            }
        }
        let files = vec![SourceFile { path: "bank.yaml".to_owned(), text: text.clone() }];
        let read = Application::read(name("bank"), files);
        read.unwrap_or_else(|problems| panic!("{problems:?} in\n{text}"))
    }

    /// An aggregate to be paid.
    pub(super) fn account(random: &mut Random) -> String {
        format!("p{}", random.below(ACCOUNTS))
    }

    /// An event of that aggregate. A worker that has not heard of the deployment yet records by its own
    /// catalog, in an older version.
    pub(super) fn event(
        &self,
        (id, nth): (&str, u64),
        minutes: u64,
        random: &mut Random,
    ) -> Happened {
        let event = usize::from(random.below(4) == 0);
        let newest = 1 + self.upcasts[event].len() as u64;
        let version = if random.below(4) == 0 { 1 + random.below(newest) } else { newest };
        let version = u32::try_from(version).unwrap();
        Happened { event, version, id: id.to_owned(), nth, minutes, data: Data::any(random) }
    }

    /// The rows of a read model in the order of its key, as the events say, by nothing that the
    /// projection is made of.
    pub(super) fn rows_of(&self, name: &str, log: &[Happened]) -> Vec<Value> {
        let which = MODELS.iter().position(|known| *known == name).unwrap();
        let Some(model) = &self.models[which] else { return Vec::new() };
        let mut rows: BTreeMap<Vec<String>, Map<String, Value>> = BTreeMap::new();
        for happened in log {
            let mut data = happened.data.clone();
            let upcasts = self.upcasts[happened.event].iter().skip(happened.version as usize - 1);
            upcasts.for_each(|(_, upcast)| upcast(&mut data));
            let key = model.key.iter();
            let key = key.map(|(name, kind, of)| (*name, happened.value(kind, of, &data)));
            let key: Vec<(&str, Value)> = key.collect();
            let text =
                |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let place: Vec<String> = key.iter().map(|(_, value)| text(value)).collect();
            match model.effects[happened.event] {
                Effect::Nothing => {}
                Effect::Delete => drop(rows.remove(&place)),
                Effect::Fold => {
                    let row = rows.entry(place).or_insert_with(|| model.row(key));
                    for column in &model.columns {
                        let Some((kind, operation, of)) = column.ways[happened.event] else {
                            continue;
                        };
                        let old = row[column.name].take();
                        let new = happened.value(kind, of, &data);
                        row[column.name] = folded(operation, old, new);
                    }
                }
            }
        }
        rows.into_values().map(Value::Object).collect()
    }
}

/// A cell after an operation.
fn folded(operation: &str, old: Value, new: Value) -> Value {
    if operation == "set" {
        return new;
    }
    if new.is_null() {
        return old;
    }
    if old.is_null() {
        return new;
    }
    // Dates and times are texts of one length each.
    let is_less = match (old.as_str(), new.as_str()) {
        (Some(old), Some(new)) => old < new,
        _ => old.as_f64() < new.as_f64(),
    };
    match operation {
        "add" => json!(old.as_f64().unwrap() + new.as_f64().unwrap()),
        "max" if is_less => new,
        "min" if !is_less => new,
        _ => old,
    }
}
