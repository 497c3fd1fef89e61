//! Between cells of CSV and JSON.

use std::collections::{BTreeMap, HashSet};

use flexcore_sdk::Failure;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::layout::{COLUMNS_MAX, ROW_BYTES_MAX, at_row};

/// What a cell becomes. An empty cell of another type than text is null.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum CellType {
    Text,
    Number,
    Boolean,
}

/// Makes rows of cells.
pub(super) enum Named {
    /// Objects: for each column its name as JSON, and its type.
    Columns(Vec<(String, CellType)>),
    /// Arrays of texts.
    Not,
}

impl Named {
    /// By the header of an object, and the types that a caller asks for.
    pub(super) fn by(
        header: &[String],
        types: &BTreeMap<String, CellType>,
    ) -> Result<Self, Failure> {
        checked(header)?;
        if let Some(unknown) = types.keys().find(|name| !header.contains(name)) {
            let message = format!("the object has no column {unknown:?}");
            return Err(Failure::new("no_such_column", message));
        }
        let column = |name: &String| {
            let cell_type = types.get(name).copied().unwrap_or(CellType::Text);
            (Value::from(name.as_str()).to_string(), cell_type)
        };
        Ok(Self::Columns(header.iter().map(column).collect()))
    }

    /// One row as JSON.
    pub(super) fn row(&self, cells: &[String], row: u64) -> Result<Box<RawValue>, Failure> {
        let text = |cell: &String| Value::from(cell.as_str()).to_string();
        let json = match self {
            Self::Not => {
                format!("[{}]", cells.iter().map(text).collect::<Vec<_>>().join(","))
            }
            Self::Columns(columns) => {
                if cells.len() != columns.len() {
                    let (has, header) = (cells.len(), columns.len());
                    let what = format!("it has {has} cells, and the header has {header}");
                    return Err(at_row("uneven_row", row, &what));
                }
                let mut members = Vec::with_capacity(cells.len());
                for ((name, cell_type), cell) in columns.iter().zip(cells) {
                    let value = match cell_type {
                        CellType::Text => text(cell),
                        _ => typed(cell, *cell_type).ok_or_else(|| {
                            let what = format!("the cell of {name} is not of its type");
                            at_row("wrong_type", row, &what)
                        })?,
                    };
                    members.push(format!("{name}:{value}"));
                }
                format!("{{{}}}", members.join(","))
            }
        };
        RawValue::from_string(json).map_err(|error| at_row("bad_row", row, &error.to_string()))
    }
}

fn typed(cell: &str, cell_type: CellType) -> Option<String> {
    let cell = cell.trim();
    let is_right = match cell_type {
        _ if cell.is_empty() => return Some("null".to_owned()),
        CellType::Text => true,
        CellType::Boolean => matches!(cell, "true" | "false"),
        CellType::Number => {
            let begins = cell.starts_with(|c: char| c == '-' || c.is_ascii_digit());
            // Kept as it is written, however many digits it has.
            begins && serde_json::from_str::<&RawValue>(cell).is_ok()
        }
    };
    is_right.then(|| cell.to_owned())
}

/// Columns have names that differ.
pub(super) fn checked(columns: &[String]) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    if columns.is_empty() || columns.len() > COLUMNS_MAX {
        let message = format!("rows have 1 to {COLUMNS_MAX} columns");
        return Err(Failure::new("bad_columns", message));
    }
    match columns.iter().find(|name| !seen.insert(name.as_str())) {
        Some(twice) => {
            Err(Failure::new("bad_columns", format!("the column {twice:?} is there twice")))
        }
        None => Ok(()),
    }
}

/// Adds a row of CSV to a text: an object's members by these columns, or an array's items.
pub(super) fn add_row(
    text: &mut Vec<u8>,
    row: &Value,
    columns: &[String],
    delimiter: u8,
    number: u64,
) -> Result<(), Failure> {
    let mut cells = Vec::new();
    match row {
        Value::Array(items) if columns.is_empty() || items.len() == columns.len() => {
            for item in items {
                cells.push(cell(item, number)?);
            }
        }
        Value::Object(members) if !columns.is_empty() => {
            let mut known = 0;
            for column in columns {
                let item = members.get(column);
                known += usize::from(item.is_some());
                cells.push(cell(item.unwrap_or(&Value::Null), number)?);
            }
            if known < members.len() {
                let unknown = members.keys().find(|name| !columns.contains(name));
                let what = format!("there is no column {:?}", unknown.map_or("", String::as_str));
                return Err(at_row("no_such_column", number, &what));
            }
        }
        Value::Array(_) => {
            let what = "it has another number of cells than there are columns";
            return Err(at_row("uneven_row", number, what));
        }
        _ => {
            let what = "it is an array, or an object where there are columns";
            return Err(at_row("bad_row", number, what));
        }
    }
    if cells.is_empty() || cells.len() > COLUMNS_MAX {
        return Err(at_row("bad_row", number, &format!("it has 1 to {COLUMNS_MAX} cells")));
    }
    let before = text.len();
    add_cells(text, &cells, delimiter);
    if text.len() - before > ROW_BYTES_MAX {
        let what = format!("it is longer than {} KiB", ROW_BYTES_MAX >> 10);
        return Err(at_row("row_too_long", number, &what));
    }
    Ok(())
}

/// Adds a line of CSV, with quotes where a cell needs them.
pub(super) fn add_cells(text: &mut Vec<u8>, cells: &[String], delimiter: u8) {
    for (index, cell) in cells.iter().enumerate() {
        if index > 0 {
            text.push(delimiter);
        }
        let sign = |byte: u8| byte == delimiter || matches!(byte, b'"' | b'\r' | b'\n');
        // An empty line would be no row.
        if cell.bytes().any(sign) || cells.len() == 1 && cell.is_empty() {
            text.push(b'"');
            text.extend_from_slice(cell.replace('"', "\"\"").as_bytes());
            text.push(b'"');
        } else {
            text.extend_from_slice(cell.as_bytes());
        }
    }
    text.push(b'\n');
}

fn cell(value: &Value, row: u64) -> Result<String, Failure> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Array(_) | Value::Object(_) => {
            Err(at_row("bad_cell", row, "a cell is a text, a number, true, false or null"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn cells_are_text_unless_another_type_is_asked_for() {
        let header = texts(&["id", "n\"x", "ok"]);
        let plain = Named::by(&header, &BTreeMap::new()).unwrap();
        let row = plain.row(&texts(&["007", "1.50", "true"]), 1).unwrap();
        assert_eq!(row.get(), r#"{"id":"007","n\"x":"1.50","ok":"true"}"#);
        let types = [("n\"x", CellType::Number), ("ok", CellType::Boolean)];
        let types = BTreeMap::from(types.map(|(name, cell_type)| (name.to_owned(), cell_type)));
        let by_type = Named::by(&header, &types).unwrap();
        let row = by_type.row(&texts(&["007", " 123456789012345678901.50", "false"]), 1).unwrap();
        assert_eq!(row.get(), r#"{"id":"007","n\"x":123456789012345678901.50,"ok":false}"#);
        let row = by_type.row(&texts(&["", "", ""]), 1).unwrap();
        assert_eq!(row.get(), r#"{"id":"","n\"x":null,"ok":null}"#);
        for wrong in [
            ["", "007", "true"],
            ["", "1,5", ""],
            ["", "null", ""],
            ["", "[1]", ""],
            ["", "1", "yes"],
            ["", "\"1\"", ""],
            ["", "1}", ""],
        ] {
            assert_eq!(by_type.row(&texts(&wrong), 9).unwrap_err().code, "wrong_type", "{wrong:?}");
        }
        let failure = plain.row(&texts(&["1"]), 9).unwrap_err();
        assert_eq!(failure.code, "uneven_row");
        assert!(failure.message.contains("row 9"));
        assert_eq!(Named::Not.row(&texts(&["a", "\u{1}"]), 1).unwrap().get(), r#"["a","\u0001"]"#);
    }

    #[test]
    fn headers_that_cannot_name_columns_are_refused() {
        let none = BTreeMap::new();
        for (header, code) in [(texts(&["a", "a"]), "bad_columns"), (vec![], "bad_columns")] {
            assert_eq!(Named::by(&header, &none).err().unwrap().code, code);
        }
        let types = BTreeMap::from([("b".to_owned(), CellType::Number)]);
        assert_eq!(Named::by(&texts(&["a"]), &types).err().unwrap().code, "no_such_column");
    }

    #[test]
    fn rows_are_written_by_column() {
        let columns = texts(&["a", "b"]);
        let written = |row: Value| {
            let mut text = Vec::new();
            add_row(&mut text, &row, &columns, b';', 1).map(|()| String::from_utf8(text).unwrap())
        };
        assert_eq!(written(json!({ "b": 1.5, "a": "x;y" })).unwrap(), "\"x;y\";1.5\n");
        assert_eq!(written(json!({ "a": "say \"hi\"" })).unwrap(), "\"say \"\"hi\"\"\";\n");
        assert_eq!(written(json!([true, null])).unwrap(), "true;\n");
        assert_eq!(written(json!({ "a": "1\n2", "b": "x,y" })).unwrap(), "\"1\n2\";x,y\n");
        for (row, code) in [
            (json!({ "c": 1 }), "no_such_column"),
            (json!([1]), "uneven_row"),
            (json!({ "a": [1] }), "bad_cell"),
            (json!("x"), "bad_row"),
            (json!({ "a": "x".repeat(ROW_BYTES_MAX) }), "row_too_long"),
        ] {
            assert_eq!(written(row).unwrap_err().code, code);
        }
        let mut text = Vec::new();
        add_row(&mut text, &json!([""]), &[], b',', 1).unwrap();
        assert_eq!(text, b"\"\"\n", "a row, though its only cell is empty");
        assert_eq!(add_row(&mut text, &json!([]), &[], b',', 1).unwrap_err().code, "bad_row");
        assert_eq!(add_row(&mut text, &json!({}), &[], b',', 1).unwrap_err().code, "bad_row");
    }
}
