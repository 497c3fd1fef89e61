//! What the types of columns accept.

use serde_json::Value;
use time::{
    Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description,
};

use super::{ColumnKind, Operation};

/// A JSON number as a double, when it is no integer that a double cannot hold.
#[must_use]
pub fn exact_double(number: &serde_json::Number) -> Option<f64> {
    let double = number.as_f64()?;
    let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    // A double of that size is an integer, and 128 bits hold it.
    whole.is_none_or(|whole| double as i128 == whole).then_some(double)
}

impl ColumnKind {
    pub(super) const NAMES: [&'static str; 6] =
        ["text", "integer", "number", "boolean", "timestamp", "date"];

    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "text" => Self::Text,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            "timestamp" => Self::Timestamp,
            "date" => Self::Date,
            _ => return None,
        })
    }

    /// Its name in definitions.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Integer => "a whole number of 64 bits",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Timestamp => "a time such as \"2013-01-01T05:15:00Z\"",
            Self::Date => "a date such as \"2013-01-01\"",
        }
    }

    /// Whether a column of this kind can hold the JSON value. `null` always fits.
    pub(super) fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) | (Self::Boolean, Value::Bool(_)) => true,
            (Self::Number, Value::Number(number)) => exact_double(number).is_some(),
            // Postgres' text can't hold NUL.
            (Self::Text, Value::String(text)) => !text.contains('\0'),
            (Self::Integer, Value::Number(number)) => number.as_i64().is_some(),
            (Self::Timestamp, Value::String(text)) => OffsetDateTime::parse(text, &Rfc3339).is_ok(),
            (Self::Date, Value::String(text)) => {
                Date::parse(text, format_description!("[year]-[month]-[day]")).is_ok()
            }
            _ => false,
        }
    }

    /// Whether it takes values of a JSON Schema type.
    pub(super) fn takes(self, schema_type: &str) -> bool {
        match self {
            Self::Text | Self::Timestamp | Self::Date => schema_type == "string",
            Self::Integer => schema_type == "integer",
            Self::Number => matches!(schema_type, "integer" | "number"),
            Self::Boolean => schema_type == "boolean",
        }
    }

    /// Whether the operation makes sense on it.
    pub(super) fn allows(self, operation: Operation) -> bool {
        match operation {
            Operation::Set => true,
            Operation::Add => matches!(self, Self::Integer | Self::Number),
            Operation::Min | Operation::Max => self != Self::Boolean,
        }
    }
}
