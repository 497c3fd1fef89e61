//! JSON Schemas of names and columns, for the documents that describe the interface.

use flexcore_definition::ColumnType;
use serde_json::{Value, json};

pub(crate) fn name_schema() -> Value {
    json!({"type": "string", "pattern": "^[a-z][a-z0-9_]{0,39}$"})
}

pub(crate) fn id_schema() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"})
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
