//! JSON Schemas of names and columns, for the documents that describe the interface.

use flexcore_definition::ColumnKind;
use serde_json::{Value, json};

pub(crate) fn name_schema() -> Value {
    json!({"type": "string", "pattern": "^[a-z][a-z0-9_]{0,39}$"})
}

pub(crate) fn id_schema() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"})
}

pub(crate) fn column_schema(kind: ColumnKind) -> Value {
    match kind {
        ColumnKind::Text => json!({"type": "string"}),
        ColumnKind::Integer => json!({"type": "integer", "format": "int64"}),
        ColumnKind::Number => json!({"type": "number", "format": "double"}),
        ColumnKind::Boolean => json!({"type": "boolean"}),
        ColumnKind::Timestamp => json!({"type": "string", "format": "date-time"}),
        ColumnKind::Date => json!({"type": "string", "format": "date"}),
    }
}

pub(crate) fn kind_words(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text => "Text.",
        ColumnKind::Integer => "An integer.",
        ColumnKind::Number => "A number.",
        ColumnKind::Boolean => "true or false.",
        ColumnKind::Timestamp => "A time, RFC 3339.",
        ColumnKind::Date => "A date, YYYY-MM-DD.",
    }
}

pub(crate) fn nullable(mut schema: Value) -> Value {
    let kind = schema["type"].take();
    schema["type"] = json!([kind, "null"]);
    schema
}
