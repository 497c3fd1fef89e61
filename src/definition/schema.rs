//! JSON Schemas: draft 2020-12, referring only to themselves, compiled.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    FileLine, Schema,
    notes::Notes,
    problem::did_you_mean,
    yaml::{Data, Node},
};

/// Largest schema as JSON text, in bytes: every worker compiles it and the API's documents show it.
pub(super) const BYTES_MAX: usize = 64 * 1024;
/// References that are followed on one step of a path, so that a circle of them ends.
const REFERENCES_MAX: usize = 8;
/// The only dialect.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Compiles a schema; `None` and notes when it is none.
pub(super) fn read(node: &Node, notes: &mut Notes) -> Option<Schema> {
    if !matches!(node.data, Data::Map(_)) {
        return notes
            .add(node.line, format!("a JSON Schema must be a map, and is {}", node.describe()));
    }
    let json = node.json();
    let size = json.to_string().len();
    if size > BYTES_MAX {
        let message = format!("a schema of {size} bytes; at most {BYTES_MAX} are accepted");
        return notes.add(node.line, message);
    }
    if !stays_inside(node, notes) {
        return None;
    }
    match options().build(&json) {
        Ok(validator) => {
            Some(Schema { json, place: notes.place(node.line), validator: Arc::new(validator) })
        }
        Err(error) => {
            let pointer = error.instance_path().as_str();
            let at = if pointer.is_empty() { String::new() } else { format!(" at {pointer}") };
            let message: String = error.to_string().chars().take(300).collect();
            let message = format!("not a JSON Schema (draft 2020-12){at}: {message}");
            notes.add(node.line_at(pointer), message)
        }
    }
}

/// The schema of empty content: only `{}` matches.
pub(super) fn empty(place: FileLine) -> Schema {
    let json = json!({"type": "object", "additionalProperties": false});
    let validator = options().build(&json).expect("BUG: this schema is valid");
    Schema { json, place, validator: Arc::new(validator) }
}

fn options() -> jsonschema::ValidationOptions<'static> {
    jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        // Authors who write `format: date-time` mean it.
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        // Patterns that take linear time for every payload: no look-around, no back-references.
        .with_pattern_options(jsonschema::PatternOptions::regex())
}

/// Checks that no reference leaves the schema, and that no other dialect is asked for.
fn stays_inside(node: &Node, notes: &mut Notes) -> bool {
    let mut inside = true;
    match &node.data {
        Data::Scalar(_) => {}
        Data::List(nodes) => {
            for node in nodes {
                inside &= stays_inside(node, notes);
            }
        }
        Data::Map(entries) => {
            for (key, value) in entries {
                let text = match &value.data {
                    Data::Scalar(Value::String(text)) => Some(text.as_str()),
                    _ => None,
                };
                let wrong = match (key.text.as_str(), text) {
                    ("$ref" | "$dynamicRef", Some(target)) if !target.starts_with('#') => {
                        Some("a schema refers only to its own parts, as in `#/$defs/minutes`")
                    }
                    ("$schema", Some(draft)) if draft != DRAFT => {
                        Some("only draft 2020-12 is read")
                    }
                    ("$id", Some(_)) => Some("a schema has no address here; leave out `$id`"),
                    _ => None,
                };
                inside &= match wrong {
                    Some(message) => notes.add::<()>(key.line, message).is_some(),
                    None => stays_inside(value, notes),
                };
            }
        }
    }
    inside
}

/// A schema's statement about a path into its values.
pub(super) enum Found<'s> {
    /// Nothing.
    Unknown,
    /// There is no such property; the text says which there are.
    Missing(String),
    /// The types that the value may have (none: any), and whether it is always there.
    Property { types: Vec<&'s str>, always: bool },
}

/// Looks a path up in a schema.
pub(super) fn find<'s>(root: &'s Value, path: &[String]) -> Found<'s> {
    let (mut schema, mut always) = (root, true);
    for step in path {
        schema = resolve(schema, root);
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return Found::Unknown;
        };
        let Some(next) = properties.get(step) else {
            let hint = did_you_mean(step, properties.keys().map(String::as_str));
            let known: Vec<&str> = properties.keys().map(String::as_str).collect();
            let known = known.join(", ");
            return Found::Missing(format!("the event has no `{step}`{hint}; it has {known}"));
        };
        let required = schema.get("required").and_then(Value::as_array);
        always &= required.is_some_and(|names| names.iter().any(|name| name == step.as_str()));
        let types = types(resolve(schema, root));
        always &= !types.contains(&"null");
        schema = next;
    }
    Found::Property { types: types(resolve(schema, root)), always }
}

/// The schema itself, or what its `$ref` names.
fn resolve<'s>(schema: &'s Value, root: &'s Value) -> &'s Value {
    let mut schema = schema;
    for _ in 0..REFERENCES_MAX {
        let target = schema.get("$ref").and_then(Value::as_str);
        match target.and_then(|target| root.pointer(target.strip_prefix('#')?)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}
