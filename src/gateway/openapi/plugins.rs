//! The part of the contract about installed plugins: the same whichever are installed, since they come and
//! go without a deployment. `GET /v1/plugins/{plugin}` has the schemas of one.

use flexcore_domain::{
    Name, limits::PLUGIN_FILE_BYTES_MAX, plugin::INPUT_BYTES_MAX,
    plugin_configuration::CONFIGURATION_BYTES_MAX,
};
use serde_json::{Map, Value, json};

use super::{TIMEOUT, parameter_ref, query, responses};
use crate::{
    limits::UPLOADS_MAX,
    problems,
    schema::{nullable, text},
};

/// The paths of plugins.
pub(super) fn paths(paths: &mut Map<String, Value>) {
    paths.insert("/v1/plugins".to_owned(), list());
    let mut of_one = Map::new();
    for (method, operation) in
        [("get", show()), ("put", install()), ("post", act()), ("delete", remove())]
    {
        of_one.insert(method.to_owned(), operation);
    }
    paths.insert("/v1/plugins/{plugin}".to_owned(), Value::Object(of_one));
    paths.insert("/v1/plugin-logs/{plugin}".to_owned(), logs());
    paths.insert("/v1/plugin-configurations/{plugin}".to_owned(), configuration());
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
    json!({
        "operationId": "plugin",
        "summary": "An installed plugin and its functions",
        "parameters": [name(), parameter_ref(TIMEOUT)],
        "responses": responses,
    })
}

/// Said of what only tokens of the platform's tenant may do.
const MANAGES: &str = "For tokens of the platform's own tenant.";

fn install() -> Value {
    let kinds = [
        &problems::BAD_REQUEST,
        &problems::FORBIDDEN,
        &problems::REQUEST_TIMEOUT,
        &problems::PLUGIN_CHANGED,
        &problems::PAYLOAD_TOO_LARGE,
        &problems::UNSUPPORTED_MEDIA_TYPE,
        &problems::INVALID_MANIFEST,
        &problems::STORAGE_FULL,
    ];
    let mut responses = responses(&[], &kinds);
    let text = json!({"type": "string"});
    let installed = json!({
        "type": "object",
        "required": ["name", "number", "former_version", "is_new", "is_restarted", "sha256", "bytes",
            "picked_up_ms"],
        "properties": {
            "name": text,
            "number": {"type": "integer", "description": "Of the installation in force."},
            "former_version": nullable(text.clone()),
            "is_new": {"type": "boolean", "description": "false: the same was in force already."},
            "is_restarted": {"type": "boolean"},
            "sha256": text,
            "bytes": {"type": "integer"},
            "picked_up_ms": nullable(json!({"type": "integer", "description":
                "Until a worker had taken it up; null: none has, or none is there."})),
            "trouble": {"type": "string", "description": "Why no worker runs it."},
            "warnings": {"type": "array", "items": text, "description":
                "Read models that stand still now, as they name the version before; or whose rows may \
                 differ from a rebuild's."},
        },
    });
    responses["200"] = answer("It is installed, and in force.", &installed);
    let form = json!({
        "type": "object",
        "required": ["manifest", "file"],
        "properties": {
            "manifest": {"type": "string", "description": "The text of its plugin.yaml."},
            "file": {"type": "string", "description": "Its executable.",
                "contentMediaType": "application/octet-stream"},
        },
    });
    json!({
        "operationId": "install_plugin",
        "summary": "Installs a plugin, or another version of it",
        "description": format!("{MANAGES} The file has at most {PLUGIN_FILE_BYTES_MAX} bytes. A gateway \
            takes {UPLOADS_MAX} at a time, and does not try it: workers do, and trouble is what they say."),
        "parameters": [name()],
        "requestBody": {"required": true, "content": {"multipart/form-data": {"schema": form}}},
        "responses": responses,
    })
}

fn act() -> Value {
    let kinds = [
        &problems::MALFORMED_JSON,
        &problems::FORBIDDEN,
        &problems::UNKNOWN_PLUGIN,
        &problems::REQUEST_TIMEOUT,
        &problems::PLUGIN_CHANGED,
        &problems::PAYLOAD_TOO_LARGE,
        &problems::UNSUPPORTED_MEDIA_TYPE,
    ];
    let mut responses = responses(&[], &kinds);
    let restarted = json!({
        "type": "object",
        "required": ["name", "number"],
        "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
    });
    responses["200"] = answer("Every worker starts it anew.", &restarted);
    let deed = json!({
        "type": "object",
        "required": ["do"],
        "additionalProperties": false,
        "properties": {"do": {"enum": ["restart"]}},
    });
    json!({
        "operationId": "restart_plugin",
        "summary": "Starts a plugin anew on every worker; calls go on meanwhile",
        "description": MANAGES,
        "parameters": [name()],
        "requestBody": {"required": true, "content": {"application/json": {"schema": deed}}},
        "responses": responses,
    })
}

fn remove() -> Value {
    let kinds = [
        &problems::BAD_REQUEST,
        &problems::FORBIDDEN,
        &problems::UNKNOWN_PLUGIN,
        &problems::PLUGIN_NEEDED,
    ];
    let mut responses = responses(&[], &kinds);
    let removed = json!({
        "type": "object",
        "required": ["name", "removed"],
        "properties": {"name": {"type": "string"}, "removed": {"const": true}},
    });
    responses["200"] =
        answer("Every worker ends it, and its tenants' configurations are deleted.", &removed);
    let force = query(
        "force",
        false,
        &json!({"type": "boolean", "default": false}),
        "Also while applications need it: commands are answered 503 then, and read models stand still.",
    );
    json!({
        "operationId": "remove_plugin",
        "summary": "Takes a plugin out of the installation",
        "description": MANAGES,
        "parameters": [name(), force],
        "responses": responses,
    })
}

fn logs() -> Value {
    let kinds = [
        &problems::BAD_REQUEST,
        &problems::FORBIDDEN,
        &problems::UNKNOWN_PLUGIN,
        &problems::UNAVAILABLE,
    ];
    let mut responses = responses(&[], &kinds);
    let lines = json!({
        "type": "object",
        "required": ["lines"],
        "properties": {"lines": {"type": "array", "items": {"type": "string"}}},
    });
    responses["200"] = answer("One worker's lines behind another's.", &lines);
    json!({"get": {
        "operationId": "plugin_log",
        "summary": "The last lines that a plugin has printed or logged",
        "description": MANAGES,
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

/// What a tenant may do with its configuration of a plugin.
fn configuration() -> Value {
    let look = json!({
        "type": "object",
        "required": ["schema", "schema_too_large", "configuration", "unfit"],
        "properties": {
            "schema": {"description":
                "JSON Schema of the configuration; null: the plugin takes none, or it is too large."},
            "schema_too_large": {"type": "boolean", "description": "It is too large to be shown."},
            "configuration": {"description": "With its secrets masked; null: there is none."},
            "unfit": nullable(json!({"type": "string", "description":
                "Why it does not fit the plugin's schema."})),
        },
    });
    let always = [&problems::BAD_REQUEST, &problems::UNKNOWN_PLUGIN, &problems::UNAVAILABLE];
    let mut shown = responses(&[], &always);
    shown["200"] = answer("The configuration.", &look);
    let mut set = responses(
        &[],
        &[
            &problems::BAD_REQUEST,
            &problems::UNKNOWN_PLUGIN,
            &problems::REQUEST_TIMEOUT,
            &problems::PAYLOAD_TOO_LARGE,
            &problems::UNSUPPORTED_MEDIA_TYPE,
            &problems::INVALID_INPUT,
            &problems::UNAVAILABLE,
        ],
    );
    set["200"] = answer("It is stored, and given to the plugin.", &look);
    let mut removed = responses(&[], &always);
    removed["204"] = json!({"description": "There is none any more."});
    let operation = |id: &str, summary: &str, responses: Value| {
        json!({
            "operationId": id,
            "summary": summary,
            "parameters": [name(), parameter_ref(TIMEOUT)],
            "responses": responses,
        })
    };
    let about = "The configuration that a plugin has for the tenant";
    let mut of_set = operation("configure_plugin", "Configures a plugin for the tenant", set);
    of_set["description"] = json!(format!(
        "It has at most {CONFIGURATION_BYTES_MAX} bytes, and fits the plugin's schema."
    ));
    of_set["requestBody"] =
        json!({"required": true, "content": {"application/json": {"schema": {}}}});
    json!({
        "get": operation("plugin_configuration", about, shown),
        "put": of_set,
        "delete": operation("unconfigure_plugin", "Takes it away", removed),
    })
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
