//! Reading a named query: its read models, its parameters, its statement.

use std::{collections::BTreeMap, sync::Arc};

use flexcore_domain::Name;
use serde_json::Value;

use super::{
    Cell, ColumnType, Parameter, QueryDefinition, ReadModelDefinition,
    documents::{Documents, READ_MODEL},
    fields::{Fields, entries},
    notes::Notes,
    problem::did_you_mean,
    sql, taken,
    yaml::{Data, Node},
};

/// Most parameters of a query.
pub(super) const PARAMETERS_MAX: usize = 32;
/// Longest statement, in bytes.
pub(super) const SQL_BYTES_MAX: usize = 32 * 1024;
/// Most read models that a query may read: it waits for the checkpoints of all of them.
pub(super) const READS_MAX: usize = 16;

pub(super) type ReadModels = BTreeMap<Name, Arc<ReadModelDefinition>>;

pub(super) fn read(
    node: &Node,
    models: &ReadModels,
    documents: &Documents,
    notes: &mut Notes,
) -> Option<QueryDefinition> {
    let words = ["query", "description", "reads", "parameters", "sql"];
    let fields = Fields::of(node, "a query", &words, notes)?;
    let name = fields.required("query", notes)?;
    let text = notes.text(name, "a query's name")?;
    let name = notes.name(Name::parse, text, name.line);
    let description = fields.text_or_empty("description", notes);
    let reads =
        fields.required("reads", notes).and_then(|node| reads(node, models, documents, notes));
    let declared = match fields.get("parameters") {
        Some(node) => parameters(node, notes),
        None => Some(Vec::new()),
    };
    let sql_node = fields.required("sql", notes)?;
    let statement = notes.text(sql_node, "`sql`")?.trim_end();
    let (reads, declared) = (reads?, declared?);
    if statement.len() > SQL_BYTES_MAX {
        let size = statement.len();
        let message = format!("a statement of {size} bytes; at most {SQL_BYTES_MAX} are accepted");
        return notes.add(sql_node.line, message);
    }
    check_statement((statement, sql_node.text_line), &reads, &declared, notes);
    let parameters = declared.into_iter().map(|(parameter, _)| parameter).collect();
    let (place, sql) = (notes.place(node.line), statement.to_owned());
    let fingerprints = reads.iter().map(|name| models[name].fingerprint.clone()).collect();
    let (name, sql_line) = (name?, sql_node.text_line);
    Some(QueryDefinition {
        name,
        description,
        place,
        sql,
        sql_line,
        reads,
        fingerprints,
        parameters,
    })
}

fn reads(
    node: &Node,
    models: &ReadModels,
    documents: &Documents,
    notes: &mut Notes,
) -> Option<Vec<Name>> {
    let Data::List(nodes) = &node.data else {
        let message = format!("`reads` must be a list of read models, and is {}", node.describe());
        return notes.add(node.line, message);
    };
    if nodes.is_empty() || nodes.len() > READS_MAX {
        return notes.add(node.line, format!("`reads` has 1 to {READS_MAX} read models"));
    }
    let mut reads: Vec<Name> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(name) = notes.text(node, "a read model") else { continue };
        match models.get_key_value(name) {
            None if documents.declare(READ_MODEL, name) => return None,
            None => {
                let hint = did_you_mean(name, models.keys().map(Name::as_str));
                notes.add::<()>(node.line, format!("there is no read model `{name}`{hint}"));
            }
            Some((name, _)) if reads.contains(name) => {
                notes.add::<()>(node.line, format!("`{name}` is in `reads` twice"));
            }
            Some((name, _)) => reads.push(name.clone()),
        }
    }
    (reads.len() == nodes.len()).then_some(reads)
}

/// The parameters, each with its line.
fn parameters(node: &Node, notes: &mut Notes) -> Option<Vec<(Parameter, usize)>> {
    let entries = entries(node, "`parameters`", notes)?;
    if entries.len() > PARAMETERS_MAX {
        return notes.add(node.line, format!("a query has at most {PARAMETERS_MAX} parameters"));
    }
    let mut parameters = Vec::with_capacity(entries.len());
    for (key, node) in entries {
        if taken::is_no_parameter(&key.text) {
            let message = format!("`{}` is taken; choose another name", key.text);
            notes.add::<()>(key.line, message);
        }
        let name = notes.name(Name::parse, &key.text, key.line);
        let parameter = parameter(&key.text, node, notes);
        if let (Some(name), Some((column_type, default))) = (name, parameter) {
            parameters.push((Parameter { name, column_type, default }, key.line));
        }
    }
    (parameters.len() == entries.len()).then_some(parameters)
}

/// The type and default of a parameter: `integer`, or `{ type: integer, default: 0 }`.
fn parameter(name: &str, node: &Node, notes: &mut Notes) -> Option<(ColumnType, Option<Value>)> {
    if let Data::Scalar(_) = node.data {
        return Some((ColumnType::read(node, notes)?, None));
    }
    let what = format!("parameter `{name}`");
    let fields = Fields::of(node, what, &["type", "default"], notes)?;
    let column_type = ColumnType::read(fields.required("type", notes)?, notes)?;
    let Some(default) = fields.get("default") else { return Some((column_type, None)) };
    let value = default.json();
    if Cell::from_json(column_type, &value).is_none() {
        notes.add::<()>(default.line, format!("the default must be {}", column_type.describe()));
    }
    Some((column_type, Some(value)))
}

/// Holds a statement to what its query declares.
fn check_statement(
    (statement, first_line): (&str, usize),
    reads: &[Name],
    parameters: &[(Parameter, usize)],
    notes: &mut Notes,
) {
    let names = match sql::read(statement) {
        Ok(names) => names,
        Err((line, message)) => {
            notes.add::<()>(first_line + line, message);
            return;
        }
    };
    let declared = || parameters.iter().map(|(parameter, _)| parameter.name.as_str());
    for (name, line) in &names.parameters {
        if !declared().any(|known| known == *name) {
            let hint = did_you_mean(name, declared());
            notes.add::<()>(first_line + line, format!("`parameters` has no `{name}`{hint}"));
        }
    }
    for (parameter, line) in parameters {
        let name = parameter.name.as_str();
        if !names.parameters.iter().any(|(used, _)| *used == name) {
            notes.add::<()>(*line, format!("the statement does not use `:{name}`"));
        }
    }
    for (name, line) in &names.read_models {
        if !reads.iter().any(|read| read.as_str() == *name) {
            notes.add::<()>(first_line + line, format!("`reads` does not name `{name}`"));
        }
    }
    for read in reads {
        if !names.read_models.iter().any(|(name, _)| *name == read.as_str()) {
            let message = format!("`reads` names `{read}`, but the statement has no `rm.{read}`");
            notes.add::<()>(first_line, message);
        }
    }
}
