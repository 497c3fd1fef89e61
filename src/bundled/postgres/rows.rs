//! Rows as JSON.

use std::collections::BTreeSet;

use flexcore_sdk::Failure;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{Column as _, Row as _, TypeInfo as _, ValueRef as _, postgres::PgRow};

use super::failed::Trouble;
use crate::depth::{DEPTH_MAX, depth};

/// Most rows of one call. 10,000: a page.
const ROWS_MAX: usize = 10_000;
/// Their JSON, in bytes. 900 KiB: it fits into the 960 KiB that a worker hands on.
const JSON_BYTES_MAX: usize = 900 * 1024;
/// Largest whole number, up and down, that every reader of JSON has exactly.
const INTEGER_EXACT_MAX: u64 = (1 << 53) - 1;

/// What came of a statement.
#[derive(Serialize)]
pub(super) struct Found {
    rows: Box<RawValue>,
    rows_affected: u64,
}

/// Rows that come one by one.
#[derive(Default)]
pub(super) struct Rows {
    /// Names as JSON, with their types.
    columns: Vec<(String, String)>,
    json: String,
    count: usize,
}

impl Rows {
    /// Takes a row. Fails where there are too many or too much of them.
    pub(super) fn add(&mut self, row: &PgRow) -> Result<(), Trouble> {
        if self.count == 0 {
            self.columns = columns(row)?;
        }
        if self.count == ROWS_MAX {
            return Err(too_large(&format!("more than {ROWS_MAX} rows")));
        }
        self.json.push_str(if self.count == 0 { "{" } else { ",{" });
        self.count += 1;
        for (index, (name, of)) in self.columns.iter().enumerate() {
            let value = row.try_get_raw(index)?;
            if index > 0 {
                self.json.push(',');
            }
            self.json.push_str(name);
            self.json.push(':');
            if value.is_null() {
                self.json.push_str("null");
            } else {
                let text = value.as_str().map_err(sqlx::Error::Decode)?;
                self.json.push_str(&told(text, of));
            }
            if self.json.len() > JSON_BYTES_MAX {
                return Err(too_large(&format!("more than {JSON_BYTES_MAX} bytes of JSON")));
            }
        }
        self.json.push('}');
        Ok(())
    }

    /// All of them.
    pub(super) fn found(self, rows_affected: u64) -> Result<Found, Trouble> {
        let rows = RawValue::from_string(format!("[{}]", self.json)).map_err(|error| {
            Trouble::Unread(Failure::new("broken_answer", format!("the rows are no JSON: {error}")))
        })?;
        Ok(Found { rows, rows_affected })
    }
}

fn columns(row: &PgRow) -> Result<Vec<(String, String)>, Trouble> {
    let mut names = BTreeSet::new();
    let mut columns = Vec::new();
    for column in row.columns() {
        if !names.insert(column.name()) {
            let name = column.name();
            let message = format!("two columns are called {name:?}: name one of them with `as`");
            return Err(Trouble::Unread(Failure::new("duplicate_column", message)));
        }
        columns.push((quoted(column.name()), column.type_info().name().to_owned()));
    }
    Ok(columns)
}

fn too_large(why: &str) -> Trouble {
    let message = format!("{why}: read them in parts, by a key and `limit`");
    Trouble::Unread(Failure::new("too_large", message))
}

/// A value that Postgres has written. Whatever a database says of a value's type, it is JSON.
fn told(text: &str, of: &str) -> String {
    match of {
        "BOOL" if text == "t" => "true".to_owned(),
        "BOOL" if text == "f" => "false".to_owned(),
        "INT2" | "INT4" | "INT8" | "OID" => whole(text).unwrap_or_else(|| quoted(text)),
        // Not a number, and endless ones, have no JSON.
        "FLOAT4" | "FLOAT8" if serde_json::from_str::<f64>(text).is_ok() => text.to_owned(),
        "JSON" | "JSONB" if is_json(text) => text.to_owned(),
        _ => quoted(text),
    }
}

fn whole(text: &str) -> Option<String> {
    let number: i64 = text.parse().ok()?;
    (number.unsigned_abs() <= INTEGER_EXACT_MAX).then(|| number.to_string())
}

fn is_json(text: &str) -> bool {
    depth(text) <= DEPTH_MAX && serde_json::from_str::<&RawValue>(text).is_ok()
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_exact_or_a_text() {
        for (text, of, json) in [
            ("t", "BOOL", "true"),
            ("f", "BOOL", "false"),
            ("?", "BOOL", r#""?""#),
            ("-32768", "INT2", "-32768"),
            ("9007199254740991", "INT8", "9007199254740991"),
            ("9007199254740992", "INT8", r#""9007199254740992""#),
            ("-9223372036854775808", "INT8", r#""-9223372036854775808""#),
            (r#"1,"a":2"#, "INT4", r#""1,\"a\":2""#),
            ("0.1", "FLOAT8", "0.1"),
            ("1e+20", "FLOAT8", "1e+20"),
            ("NaN", "FLOAT8", r#""NaN""#),
            ("-Infinity", "FLOAT4", r#""-Infinity""#),
            ("12.50", "NUMERIC", r#""12.50""#),
            (r#"{"a": 1.0}"#, "JSONB", r#"{"a": 1.0}"#),
            ("}", "JSON", r#""}""#),
            ("2026-01-01 00:00:00+00", "TIMESTAMPTZ", r#""2026-01-01 00:00:00+00""#),
            ("\"\n", "TEXT", r#""\"\n""#),
        ] {
            assert_eq!(told(text, of), json, "{text} {of}");
        }
        let deep = format!("{}{}", "[".repeat(DEPTH_MAX + 1), "]".repeat(DEPTH_MAX + 1));
        assert_eq!(told(&deep, "JSON"), format!("\"{deep}\""));
    }
}
