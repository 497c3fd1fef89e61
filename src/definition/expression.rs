//! Where the values of a row come from: `$.path`, `$id`, `$time`, `$version`, or themselves.

use serde_json::Value;

use super::{
    Cell, ColumnType, Expression,
    notes::Notes,
    schema::{self, Found},
    yaml::{Data, Node},
};

/// Most steps of a path.
pub(super) const PATH_STEPS_MAX: usize = 16;

pub(super) fn read(node: &Node, notes: &mut Notes) -> Option<Expression> {
    let value = match &node.data {
        Data::Scalar(value) => value,
        _ => {
            let message =
                format!("a value is `$.path` or a literal, and this is {}", node.describe());
            return notes.add(node.line, message);
        }
    };
    let Some(text) = value.as_str().and_then(|text| text.strip_prefix('$')) else {
        return Some(Expression::Literal(value.clone()));
    };
    match text {
        "id" => Some(Expression::Id),
        "time" => Some(Expression::Time),
        "version" => Some(Expression::Version),
        _ if text.starts_with('$') => Some(Expression::Literal(Value::String(text.to_owned()))),
        _ => path(text, node.line, notes),
    }
}

fn path(text: &str, line: usize, notes: &mut Notes) -> Option<Expression> {
    let steps: Option<Vec<String>> =
        text.strip_prefix('.').map(|path| path.split('.').map(str::to_owned).collect());
    match steps {
        Some(steps) if steps.len() <= PATH_STEPS_MAX && !steps.iter().any(String::is_empty) => {
            Some(Expression::Data(steps))
        }
        _ => notes.add(
            line,
            format!(
                "`${text}` is none of `$.field`, `$id`, `$time`, `$version`; \
                 a text that begins with a dollar is written `$${text}`"
            ),
        ),
    }
}

/// Checks an expression against the column that it goes to and the schema of the data that it is taken from.
pub(super) fn check(
    expression: &Expression,
    (column, column_type): (&str, ColumnType),
    in_key: bool,
    data: &Value,
    (line, notes): (usize, &mut Notes),
) {
    let wanted = column_type.describe();
    let fits = match expression {
        Expression::Literal(Value::Null) if in_key => {
            notes.add::<()>(line, format!("key column `{column}` can't be null"));
            true
        }
        Expression::Literal(value) => Cell::from_json(column_type, value).is_some(),
        Expression::Id => column_type == ColumnType::Text,
        Expression::Time => Cell::from_unix_ms(column_type, 0).is_some(),
        Expression::Version => Cell::from_version(column_type, 1).is_some(),
        Expression::Data(path) => match schema::find(data, path) {
            Found::Unknown => true,
            Found::Missing(message) => {
                notes.add::<()>(line, format!("`$.{}`: {message}", path.join(".")));
                true
            }
            Found::Property { types, always } => {
                if in_key && (!always || types.contains(&"null")) {
                    let message = format!(
                        "`$.{}` may be absent or null by the event's schema, and \
                         column `{column}` is part of the key",
                        path.join(".")
                    );
                    notes.add::<()>(line, message);
                }
                types.iter().all(|name| *name == "null" || column_type.takes(name))
            }
        },
    };
    if !fits {
        notes.add::<()>(line, format!("column `{column}` takes {wanted}, and this is none"));
    }
}
