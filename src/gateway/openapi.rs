//! The OpenAPI 3.1 document, made from what is deployed: each command with the schema of its
//! payload, each read model with typed filters, each query with its parameters.

mod explain;
mod plugins;

use flexcore_definition::{
    Catalog, ColumnType, Parameter, QueryDefinition, ReadModelDefinition,
    taken::{CURSOR, FIELDS, LIMIT, MIN_POSITION, SORT, WAIT_MS},
};
use flexcore_domain::{
    CommandId, command::header as field, commit::BATCH, limits::PAYLOAD_BYTES_MAX,
};
use flexcore_resilience::HEADER as TIMEOUT;
use serde_json::{Map, Value, json};

use crate::{
    limits::{EVENTS_PAGE_DEFAULT, EVENTS_PAGE_MAX, WAIT_DEFAULT, WAIT_MAX},
    problems::{self, ProblemKind},
    schema::{id_schema, name_schema, nullable, sentence, text},
};

/// The contract over HTTP as an OpenAPI 3.1 document. Same catalog, same text.
#[must_use]
pub fn document(catalog: &Catalog) -> String {
    pretty(&value(catalog))
}

pub(crate) fn value(catalog: &Catalog) -> Value {
    let mut paths = Map::new();
    commands(catalog, &mut paths);
    aggregates(catalog, &mut paths);
    for model in catalog.applications.values().flat_map(|app| app.read_models.values()) {
        paths.insert(format!("/v1/query/{}", model.name), read_model(model));
    }
    for query in catalog.applications.values().flat_map(|app| app.queries.values()) {
        paths.insert(format!("/v1/queries/{}", query.name), named_query(query));
    }
    explain::paths(&mut paths);
    plugins::paths(&mut paths);
    paths.insert("/v1/events".to_owned(), events());
    paths.insert("/v1/cluster".to_owned(), cluster());
    open_paths(&mut paths);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "FlexCore",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Commands, states, events and queries of the deployed applications, and \
                            calls of installed plugins. The tenant is the token's.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "at+jwt"},
            },
            "parameters": shared_parameters(),
            "schemas": shared_schemas(),
            "responses": problem_responses(),
        },
    })
}

/// A document as it is served and compared: indented, with a line break at its end.
pub(crate) fn pretty(document: &Value) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("BUG: JSON serialises");
    text.push('\n');
    text
}

fn commands(catalog: &Catalog, paths: &mut Map<String, Value>) {
    for aggregate in catalog.applications.values().flat_map(|app| app.aggregates.values()) {
        for (name, command) in &aggregate.commands {
            let path = format!("/v1/commands/{}/{{id}}/{name}", aggregate.name);
            let operation = json!({
                "operationId": format!("{}_{name}", aggregate.name),
                "tags": [aggregate.name],
                "summary": command.description,
                "description": format!("The payload has at most {PAYLOAD_BYTES_MAX} bytes."),
                "parameters": [
                    parameter_ref("id"), parameter_ref("Idempotency-Key"),
                    parameter_ref("If-Match"), parameter_ref("Prefer"),
                    parameter_ref(field::CORRELATION_ID),
                    parameter_ref(field::CAUSATION_ID), parameter_ref(TIMEOUT),
                ],
                "requestBody": {
                    "required": true,
                    "content": {"application/json": {"schema": command.payload.json}},
                },
                "responses": responses(
                    &[
                        ("200", "Recorded, or nothing to record.", "Accepted"),
                        ("202", "Stored; will be processed.", "Outcome"),
                    ],
                    &[
                        &problems::MALFORMED_JSON, &problems::NOT_FOUND, &problems::REQUEST_TIMEOUT,
                        &problems::REJECTED, &problems::VERSION_MISMATCH,
                        &problems::PAYLOAD_TOO_LARGE, &problems::UNSUPPORTED_MEDIA_TYPE,
                        &problems::INVALID_PAYLOAD, &problems::STORAGE_FULL,
                    ],
                ),
            });
            paths.insert(path, json!({"post": operation}));
        }
    }
    let operation = json!({
        "operationId": "outcome",
        "summary": "The outcome of a command that was sent before",
        "parameters": [
            {
                "name": "command_id", "in": "path", "required": true,
                "schema": text(CommandId::RULE),
            },
            query("aggregate", true, &name_schema(), "The aggregate's kind."),
            query("id", true, &id_schema(), "The aggregate's id."),
            parameter_ref(TIMEOUT),
        ],
        "responses": responses(
            &[
                ("200", "Known.", "Outcome"),
                ("202", "Stored, and not processed yet.", "Outcome"),
            ],
            &[&problems::BAD_REQUEST, &problems::NO_OUTCOME],
        ),
    });
    paths.insert("/v1/commands/{command_id}".to_owned(), json!({"get": operation}));
}

fn aggregates(catalog: &Catalog, paths: &mut Map<String, Value>) {
    for aggregate in catalog.applications.values().flat_map(|app| app.aggregates.values()) {
        let name = &aggregate.name;
        let version = json!({"type": "integer", "minimum": 1});
        let state = json!({
            "operationId": format!("{name}_state"),
            "tags": [name],
            "summary": aggregate.description,
            "parameters": [
                parameter_ref("id"), parameter_ref("If-None-Match"),
                parameter_ref(TIMEOUT),
                query("at_version", false, &version, "The state as it was at this version."),
            ],
            "responses": responses(
                &[("200", "The state; ETag is the version.", "Aggregate"), ("304", "Unchanged.", "")],
                &[&problems::BAD_REQUEST, &problems::NOT_FOUND, &problems::FAULTY_DECIDER],
            ),
        });
        paths.insert(format!("/v1/aggregates/{name}/{{id}}"), json!({"get": state}));
        let after = json!({"type": "integer", "minimum": 0, "default": 0});
        let limit = json!({
            "type": "integer", "minimum": 1, "maximum": EVENTS_PAGE_MAX,
            "default": EVENTS_PAGE_DEFAULT,
        });
        let events = json!({
            "operationId": format!("{name}_events"),
            "tags": [name],
            "summary": format!("The events of one {name}, as a CloudEvents batch"),
            "parameters": [
                parameter_ref("id"), parameter_ref(TIMEOUT),
                query("after_version", false, &after, "Events after this version."),
                query("limit", false, &limit, "Most events; Link has the address of the next ones."),
            ],
            "responses": responses(
                &[("200", "The events, in order.", "CloudEvents")],
                &[&problems::BAD_REQUEST, &problems::NOT_FOUND],
            ),
        });
        paths.insert(format!("/v1/aggregates/{name}/{{id}}/events"), json!({"get": events}));
    }
}

fn read_model(model: &ReadModelDefinition) -> Value {
    let names: Vec<&str> = model.columns.iter().map(|column| column.name.as_str()).collect();
    let listed = names.join(", ");
    let mut parameters: Vec<Value> = Vec::new();
    for column in &model.columns {
        let about = format!(
            "{} Plain or after an operator: eq. ne. lt. lte. gt. gte. in. is.null is.not_null{}",
            sentence(column.column_type),
            if column.column_type == ColumnType::Text { " prefix." } else { "" }
        );
        let mut filter = query(column.name.as_str(), false, &json!({"type": "string"}), &about);
        filter["x-column-type"] = column.column_type.json_schema();
        parameters.push(filter);
    }
    let text = json!({"type": "string"});
    let limit = json!({
        "type": "integer", "minimum": 1, "maximum": flexcore_readmodel::select::LIMIT_MAX,
        "default": flexcore_readmodel::select::LIMIT_DEFAULT,
    });
    parameters.extend([
        query(FIELDS, false, &text, &format!("Columns, with commas between, of: {listed}.")),
        query(SORT, false, &text, "Columns, with commas between; minus before one: descending."),
        query(LIMIT, false, &limit, "Most rows."),
        query(CURSOR, false, &text, "next_cursor of the page before."),
        parameter_ref(MIN_POSITION),
        parameter_ref(WAIT_MS),
        parameter_ref(TIMEOUT),
    ]);
    let columns = model.columns.iter();
    let row: Map<String, Value> =
        columns.map(|c| (c.name.to_string(), nullable(c.column_type.json_schema()))).collect();
    let page = json!({
        "type": "object",
        "required": ["rows"],
        "properties": {
            "rows": {"type": "array", "items": {"type": "object", "properties": row}},
            "next_cursor": {"type": "string", "description": "Absent: there are no more rows."},
        },
    });
    json!({"get": {
        "operationId": format!("query_{}", model.name),
        "summary": model.description,
        "parameters": parameters,
        "responses": rows_responses(&page),
    }})
}

fn named_query(definition: &QueryDefinition) -> Value {
    let parameter = |parameter: &Parameter| {
        let mut schema = parameter.column_type.json_schema();
        if let Some(default) = &parameter.default {
            schema["default"] = default.clone();
        }
        let required = parameter.default.is_none();
        query(parameter.name.as_str(), required, &schema, &sentence(parameter.column_type))
    };
    let mut parameters: Vec<Value> = definition.parameters.iter().map(parameter).collect();
    let waits = [MIN_POSITION, WAIT_MS, TIMEOUT];
    parameters.extend(waits.map(parameter_ref));
    let rows = json!({
        "type": "object",
        "required": ["rows"],
        "properties": {"rows": {"type": "array", "items": {"type": "object"}}},
    });
    json!({"get": {
        "operationId": format!("queries_{}", definition.name),
        "summary": definition.description,
        "parameters": parameters,
        "responses": rows_responses(&rows),
    }})
}

fn rows_responses(schema: &Value) -> Value {
    let kinds = [&problems::BAD_REQUEST, &problems::FAULTY_QUERY, &problems::QUERY_TIMEOUT];
    let mut responses = responses(&[], &kinds);
    responses["200"] = json!({
        "description": "The rows.",
        "content": {"application/json": {"schema": schema}},
    });
    responses
}

fn events() -> Value {
    let position = json!({"type": "string"});
    json!({"get": {
        "operationId": "events",
        "summary": "The tenant's events as they are recorded, as server-sent events",
        "description": "The id of an event is its position; an id without an event says how far \
                        the stream is, at its beginning and where nothing was for this client. A \
                        comment every 15 s says that the stream lives; the event unreadable stands \
                        where the log is damaged, and closed says why the stream ends.",
        "parameters": [
            query("aggregate", false, &name_schema(), "Only events of this kind of aggregate."),
            query("after", false, &position, "As Last-Event-ID, for those who cannot set it."),
            {
                "name": "Last-Event-ID", "in": "header", "required": false, "schema": position,
                "description": "Go on after this event; else from now on.",
            },
        ],
        "responses": {
            "200": {
                "description": "The stream.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }})
}

fn cluster() -> Value {
    let mut responses = responses(&[], &[&problems::FORBIDDEN, &problems::UNAVAILABLE]);
    responses["200"] = json!({
        "description": "Members, leader and epoch, slots by owner, lag by projection, servers.",
        "content": {"application/json": {"schema": {"type": "object", "required": [
            "leader", "epoch", "members", "unowned", "projections", "nats", "postgres",
        ]}}},
    });
    let summary = "The cluster; for tokens of the platform's own tenant";
    json!({"get": {"operationId": "cluster", "summary": summary, "responses": responses}})
}

/// Paths that need no token.
fn open_paths(paths: &mut Map<String, Value>) {
    let json_type = "application/json";
    let list = [
        ("/", "index", "Where things are", json_type),
        ("/openapi.json", "openapi", "This document", json_type),
        ("/asyncapi.json", "asyncapi", "The contract over NATS", json_type),
        ("/problems/{code}", "problem", "Advice on a kind of problem", "text/markdown"),
        ("/.well-known/jwks.json", "jwks", "The keys that sign tokens", json_type),
        ("/livez", "livez", "Whether the process answers", json_type),
        (
            "/readyz",
            "readyz",
            "Says if the broker answers (503: it does not), and what is missing",
            json_type,
        ),
        ("/startupz", "startupz", "Says if everything needed has answered once", json_type),
        ("/metrics", "metrics", "Metrics in Prometheus' format", "text/plain"),
    ];
    for (path, id, summary, media_type) in list {
        let mut operation = json!({
            "operationId": id,
            "summary": summary,
            "security": [],
            "responses": {
                "200": {"description": summary, "content": {(media_type): {}}},
                "default": {"$ref": "#/components/responses/Problem"},
            },
        });
        if path.contains('{') {
            let code = json!({"name": "code", "in": "path", "required": true,
                "schema": {"type": "string"}});
            operation["parameters"] = json!([code]);
        }
        paths.insert(path.to_owned(), json!({"get": operation}));
    }
}

/// Answers by status: those that succeed with their schemas, then the problems, then the problems
/// that any request may meet.
fn responses(successes: &[(&str, &str, &str)], kinds: &[&ProblemKind]) -> Value {
    let mut responses = Map::new();
    for (status, description, schema) in successes {
        let mut response = json!({"description": description});
        if !schema.is_empty() {
            let media_type = match *schema {
                "CloudEvents" => BATCH,
                _ => "application/json",
            };
            let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
            response["content"] = json!({media_type: {"schema": schema}});
        }
        responses.insert((*status).to_owned(), response);
    }
    let always = [&problems::UNAUTHENTICATED, &problems::RATE_LIMITED, &problems::OVERLOADED];
    for kind in kinds.iter().copied().chain(always) {
        let status = kind.status.as_u16().to_string();
        let response = json!({"$ref": format!("#/components/responses/Problem{status}")});
        responses.insert(status, response);
    }
    responses.insert("default".to_owned(), json!({"$ref": "#/components/responses/Problem"}));
    Value::Object(responses)
}

fn problem_responses() -> Value {
    let content = json!({
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
    });
    let mut responses = Map::new();
    for kind in problems::ALL {
        let name = format!("Problem{}", kind.status.as_u16());
        let same: Vec<String> = problems::ALL
            .iter()
            .filter(|other| other.status == kind.status)
            .map(|other| format!("/problems/{}", other.code))
            .collect();
        let response = json!({"description": same.join(", "), "content": content});
        responses.insert(name, response);
    }
    let response = json!({"description": "Any other problem", "content": content});
    responses.insert("Problem".to_owned(), response);
    Value::Object(responses)
}

fn shared_parameters() -> Value {
    let header = |name: &str, schema: Value, about: &str| {
        json!({"name": name, "in": "header", "required": false, "schema": schema,
            "description": about})
    };
    let command_id = text(&format!("\"?{}\"?", CommandId::RULE));
    let text = json!({"type": "string"});
    let wait = json!({
        "type": "integer", "minimum": 0, "maximum": WAIT_MAX.as_millis() as u64,
        "default": WAIT_DEFAULT.as_millis() as u64,
    });
    json!({
        "id": {"name": "id", "in": "path", "required": true, "schema": id_schema()},
        "Idempotency-Key": header("Idempotency-Key", command_id.clone(),
            "Makes the command, or the call of a plugin, the same one when it is sent again. Without one, \
             one is made and answered."),
        "If-Match": header("If-Match", json!({"type": "string", "pattern": "^\"[0-9]+\"$"}),
            "The version that the aggregate must have, as its ETag; \"0\": it must not exist yet."),
        "If-None-Match": header("If-None-Match", text.clone(), "Answer 304 at this version."),
        "Prefer": header("Prefer", text.clone(),
            "respond-async: store the command and answer 202; with wait=N look N seconds, 30 at most, \
             for the outcome first."),
        (field::CORRELATION_ID): header(field::CORRELATION_ID, command_id.clone(),
            "What the command belongs to."),
        (field::CAUSATION_ID): header(field::CAUSATION_ID, command_id,
            "What caused the command."),
        (TIMEOUT): header(TIMEOUT, json!({"type": "integer", "minimum": 1}),
            "How long the client waits, in milliseconds; more than 15000 (queries, and calls of \
             plugins: 45000) counts as that. Work that has not begun by then never begins. A worker \
             works on a waiting client's command for 8000 at most. With Prefer: respond-async it \
             bounds the storing only."),
        MIN_POSITION: query(MIN_POSITION, false, &text,
            "Answer from this position or later (repeatable, or with commas between)."),
        WAIT_MS: query(WAIT_MS, false, &wait, "How long to wait for min_position."),
    })
}

fn shared_schemas() -> Value {
    let position = json!({"type": "string", "description": "Opaque: pass it on unchanged."});
    json!({
        "Accepted": {
            "type": "object",
            "required": ["version", "position", "command_id", "replayed"],
            "properties": {
                "version": {"type": "integer", "description": "The aggregate's, after it."},
                "position": nullable(position),
                "command_id": {"type": "string"},
                "replayed": {"type": "boolean", "description": "It was accepted before."},
            },
        },
        "Outcome": {
            "type": "object",
            "required": ["command_id", "status"],
            "properties": {
                "command_id": {"type": "string"},
                "status": {"enum": [
                    "accepted", "rejected", "invalid_payload", "unknown_aggregate",
                    "unknown_command", "conflict", "id_mismatch", "faulty", "pending", "dead",
                ]},
            },
        },
        "Aggregate": {
            "type": "object",
            "required": ["aggregate", "id", "version", "state"],
            "properties": {
                "aggregate": {"type": "string"},
                "id": {"type": "string"},
                "version": {"type": "integer"},
                "state": {},
            },
        },
        "CloudEvents": {"type": "array", "items": {"type": "object", "required": [
            "specversion", "id", "source", "type", "subject", "time", "tenant", "sequence", "data",
        ]}},
        "Problem": {
            "type": "object",
            "required": ["type", "title", "status"],
            "properties": {
                "type": {"type": "string", "format": "uri-reference"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "trace_id": {"type": "string"},
                "code": {"type": "string", "description": "Of a rejection, or a plugin's failure."},
                "details": {"description": "Of a plugin's failure: more for programs."},
                "version": {"type": "integer", "description": "The aggregate's."},
                "known": {"type": "array", "items": {"type": "string"}},
                "errors": {"type": "array", "items": {
                    "type": "object",
                    "required": ["field", "reason"],
                    "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
                }},
            },
        },
    })
}

fn parameter_ref(name: &str) -> Value {
    json!({"$ref": format!("#/components/parameters/{name}")})
}

fn query(name: &str, required: bool, schema: &Value, about: &str) -> Value {
    json!({"name": name, "in": "query", "required": required, "schema": schema,
        "description": about})
}
