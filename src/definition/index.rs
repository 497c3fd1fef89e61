//! Reading the secondary indexes of a read model.

use std::fmt;

use flexcore_domain::Name;

use super::{
    Column, ColumnType,
    notes::Notes,
    problem::did_you_mean,
    yaml::{Data, Node},
};

/// Most indexes of a read model: every row that is written is written to each of them.
pub const INDEXES_MAX: usize = 8;
/// Most columns of an index, the key's that follow by themselves not counted.
pub const INDEX_COLUMNS_MAX: usize = 4;
/// Most text columns of an index beside the key's. An entry of a Postgres index has 2,704 bytes: the key
/// takes 2,000 of them, the tenant 40.
pub const INDEX_TEXTS_MAX: usize = 2;
/// Longest text that stands in an index, in bytes. A row with a longer one is found by an index of its
/// own kind.
pub const INDEX_TEXT_BYTES_MAX: usize = 255;

/// A secondary index of a read model. Displays as it is declared: `[customer, -placed_at]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Index {
    /// Its columns, each with whether it descends. The tenant stands before them, and the rest of
    /// the key after them.
    pub columns: Vec<(Name, bool)>,
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (at, (name, descends)) in self.columns.iter().enumerate() {
            let (comma, minus) = (if at > 0 { ", " } else { "" }, if *descends { "-" } else { "" });
            write!(f, "{comma}{minus}{name}")?;
        }
        f.write_str("]")
    }
}

impl Index {
    /// True if every column is one of these.
    #[must_use]
    pub fn fits(&self, columns: &[Column]) -> bool {
        self.columns.iter().all(|(name, _)| columns.iter().any(|column| column.name == *name))
    }
}

/// The indexes that a node lists, those that are right. Each is a column, or a list of columns.
pub(super) fn read(node: &Node, columns: &[Column], key: &[Name], notes: &mut Notes) -> Vec<Index> {
    let Data::List(nodes) = &node.data else {
        let message = format!("`indexes` must be a list, and is {}", node.describe());
        notes.add::<()>(node.line, message);
        return Vec::new();
    };
    if nodes.len() > INDEXES_MAX {
        let message = format!("a read model has at most {INDEXES_MAX} indexes");
        notes.add::<()>(node.line, message);
        return Vec::new();
    }
    let mut indexes: Vec<Index> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(index) = one(node, columns, key, notes) else { continue };
        if indexes.contains(&index) {
            notes.add::<()>(node.line, format!("index {index} is declared twice"));
        } else {
            indexes.push(index);
        }
    }
    indexes
}

fn one(node: &Node, columns: &[Column], key: &[Name], notes: &mut Notes) -> Option<Index> {
    let nodes = match &node.data {
        Data::List(nodes) => nodes.as_slice(),
        _ => std::slice::from_ref(node),
    };
    if nodes.is_empty() || nodes.len() > INDEX_COLUMNS_MAX {
        return notes.add(node.line, format!("an index has 1 to {INDEX_COLUMNS_MAX} columns"));
    }
    let (mut found, mut texts) = (Vec::<(Name, bool)>::with_capacity(nodes.len()), 0);
    for node in nodes {
        let text = notes.text(node, "a column of an index")?;
        let (name, descends) = match text.strip_prefix('-') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let Some(column) = columns.iter().find(|column| column.name.as_str() == name) else {
            let hint = did_you_mean(name, columns.iter().map(|column| column.name.as_str()));
            return notes.add(node.line, format!("`columns` has no `{name}`{hint}"));
        };
        if found.iter().any(|(other, _)| *other == column.name) {
            return notes.add(node.line, format!("`{name}` is in the index twice"));
        }
        texts += usize::from(column.column_type == ColumnType::Text && !key.contains(&column.name));
        found.push((column.name.clone(), descends));
    }
    if texts > INDEX_TEXTS_MAX {
        let message =
            format!("an index has at most {INDEX_TEXTS_MAX} text columns beside the key's");
        return notes.add(node.line, message);
    }
    let index = Index { columns: found };
    let is_of_key = index.columns.len() <= key.len()
        && index.columns.iter().zip(key).all(|((name, descends), key)| !descends && name == key);
    if is_of_key {
        return notes.add(node.line, format!("the key has an index that does for {index}"));
    }
    Some(index)
}
