//! The part of the contract that says which index a query uses.

use serde_json::{Map, Value, json};

use super::{TIMEOUT, parameter_ref, rows_responses};
use crate::schema::name_schema;

/// The paths that explain queries.
pub(super) fn paths(paths: &mut Map<String, Value>) {
    let explained = json!({
        "type": "object",
        "required": ["explain"],
        "properties": {"explain": {"type": "array", "items": {
            "type": "object",
            "required": ["read_model", "index", "says"],
            "properties": {
                "read_model": name_schema(),
                "index": {"type": ["string", "null"], "description":
                    "As it is declared, or key. Null: every row of the tenant may be read."},
                "says": {"type": "string", "description":
                    "The same for a person, and what to declare."},
            },
        }}},
    });
    for (path, place, summary) in [
        (
            "/v1/query/{read_model}/explain",
            "read_model",
            "The index that finds the rows of this query string; the same parameters",
        ),
        (
            "/v1/queries/{name}/explain",
            "name",
            "The indexes that a named query uses with the rows that exist now",
        ),
    ] {
        let mut responses = rows_responses(&explained);
        responses["200"]["description"] = json!("The indexes, without any row.");
        let operation = json!({"get": {
            "operationId": format!("explain_{place}"),
            "summary": summary,
            "parameters": [
                {"name": place, "in": "path", "required": true, "schema": name_schema()},
                parameter_ref(TIMEOUT),
            ],
            "responses": responses,
        }});
        paths.insert(path.to_owned(), operation);
    }
}
