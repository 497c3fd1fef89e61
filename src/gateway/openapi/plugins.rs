//! The part of the contract about installed plugins: the same whichever are installed, since they come and
//! go without a deployment. `GET /v1/plugins/{plugin}` has the schemas of one.

use flexcore_domain::{Name, plugin::INPUT_BYTES_MAX};
use serde_json::{Map, Value, json};

use super::{TIMEOUT, parameter_ref, responses};
use crate::{problems, schema::text};

/// The paths of plugins.
pub(super) fn paths(paths: &mut Map<String, Value>) {
    paths.insert("/v1/plugins".to_owned(), list());
    paths.insert("/v1/plugins/{plugin}".to_owned(), show());
    paths.insert("/v1/plugins/{plugin}/{function}".to_owned(), call());
}

fn list() -> Value {
    let plugins = json!({
        "type": "object",
        "required": ["plugins"],
        "properties": {"plugins": {"type": "array", "items": plugin()}},
    });
    let mut responses = responses(&[], &[&problems::BAD_REQUEST, &problems::UNAVAILABLE]);
    responses["200"] = answer("The plugins, without their functions.", &plugins);
    json!({"get": {
        "operationId": "plugins",
        "summary": "The installed plugins that the tenant may call",
        "parameters": [parameter_ref(TIMEOUT)],
        "responses": responses,
    }})
}

fn show() -> Value {
    let kinds = [&problems::BAD_REQUEST, &problems::UNKNOWN_PLUGIN, &problems::UNAVAILABLE];
    let mut responses = responses(&[], &kinds);
    responses["200"] = answer("The plugin.", &plugin());
    json!({"get": {
        "operationId": "plugin",
        "summary": "An installed plugin and its functions",
        "parameters": [name(), parameter_ref(TIMEOUT)],
        "responses": responses,
    }})
}

fn call() -> Value {
    let kinds = [
        &problems::MALFORMED_JSON,
        &problems::UNKNOWN_FUNCTION,
        &problems::REQUEST_TIMEOUT,
        &problems::PLUGIN_FAILED,
        &problems::PAYLOAD_TOO_LARGE,
        &problems::UNSUPPORTED_MEDIA_TYPE,
        &problems::INVALID_INPUT,
        &problems::PLUGIN_FAULTY,
        &problems::PLUGIN_TIMEOUT,
    ];
    let mut responses = responses(&[], &kinds);
    responses["200"] = answer("What the function returned.", &json!({}));
    let function = json!({
        "name": "function", "in": "path", "required": true,
        "schema": {"type": "string"},
        "description": "The function; of a foreign plugin the method, as package.Service/Method, encoded.",
    });
    json!({"post": {
        "operationId": "call_plugin",
        "summary": "Calls a function of an installed plugin",
        "description": format!("The input has at most {INPUT_BYTES_MAX} bytes."),
        "parameters": [
            name(), function, parameter_ref("Idempotency-Key"), parameter_ref(TIMEOUT),
        ],
        "requestBody": {"required": true, "content": {"application/json": {"schema": {}}}},
        "responses": responses,
    }})
}

fn answer(description: &str, schema: &Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

fn name() -> Value {
    json!({"name": "plugin", "in": "path", "required": true, "schema": text(Name::RULE)})
}

fn plugin() -> Value {
    let schema = json!({"description": "JSON Schema; null: any JSON."});
    let function = json!({
        "type": "object",
        "required": ["name", "summary", "input_schema", "output_schema", "idempotent"],
        "properties": {
            "name": {"type": "string"},
            "summary": {"type": "string"},
            "input_schema": schema,
            "output_schema": schema,
            "idempotent": {"type": "boolean", "description":
                "A call may be repeated under its Idempotency-Key."},
        },
    });
    json!({
        "type": "object",
        "required": ["name", "version", "number", "state"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "summary": {"type": "string"},
            "number": {"type": "integer", "description":
                "Of the installation or restart in force, from 1 on."},
            "state": {"type": "string", "description":
                "ready: a worker takes calls; away: no worker runs it."},
            "functions": {"type": "array", "items": function},
            "workers": {"type": "array", "items": {"type": "object"}, "description":
                "What each worker reports; for tokens of the platform's own tenant."},
        },
    })
}
