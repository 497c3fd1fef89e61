//! JSON Schemas of names and columns, for the documents that describe the interface.

use flexcore_definition::ColumnType;
use flexcore_domain::{AggregateId, Name};
use serde_json::{Value, json};

pub(crate) fn name_schema() -> Value {
    text(Name::RULE)
}

pub(crate) fn id_schema() -> Value {
    text(AggregateId::RULE)
}

/// A text that follows this rule.
pub(crate) fn text(rule: &str) -> Value {
    json!({"type": "string", "pattern": whole(rule)})
}

/// A rule for a text from its first character to its last, as a pattern of JSON Schema.
pub(crate) fn whole(rule: &str) -> String {
    format!("^{rule}$")
}

/// A value of a column as a sentence.
pub(crate) fn sentence(column_type: ColumnType) -> String {
    let (first, rest) = column_type.describe().split_at(1);
    format!("{}{rest}.", first.to_uppercase())
}

pub(crate) fn nullable(mut schema: Value) -> Value {
    let kind = schema["type"].take();
    schema["type"] = json!([kind, "null"]);
    schema
}
