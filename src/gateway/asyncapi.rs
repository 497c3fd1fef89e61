//! The AsyncAPI 3 document: the subjects that clients publish commands to, and the events that come
//! of them, made from what is deployed.

use flexcore_definition::{AggregateDefinition, Catalog};
use flexcore_domain::{
    ActorName, AggregateId, CommandId, Provenance, SLOTS, Tenant,
    command::header,
    commit::{BATCH, STRUCTURED},
};
use flexcore_eventstore as eventstore;
use serde_json::{Map, Value, json};

use crate::{
    openapi::pretty,
    schema::{text, whole},
};

/// The contract over NATS as an AsyncAPI 3 document. Same catalog, same text.
#[must_use]
pub fn document(catalog: &Catalog) -> String {
    pretty(&value(catalog))
}

pub(crate) fn value(catalog: &Catalog) -> Value {
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for aggregate in catalog.applications.values().flat_map(|app| app.aggregates.values()) {
        commands(aggregate, &mut channels, &mut operations, &mut messages);
        events(aggregate, &mut channels, &mut operations, &mut messages);
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "FlexCore",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Commands over NATS JetStream. An acknowledged publication will be \
                            processed; its outcome is at GET /v1/commands/{command_id}.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    })
}

fn commands(
    aggregate: &AggregateDefinition,
    channels: &mut Map<String, Value>,
    operations: &mut Map<String, Value>,
    messages: &mut Map<String, Value>,
) {
    for (name, command) in &aggregate.commands {
        let key = format!("{}_{name}", aggregate.name);
        channels.insert(
            key.clone(),
            json!({
                "address": eventstore::commands::command_address(&aggregate.name, name),
                "parameters": parameters(),
                "messages": {(name.as_str()): message_ref(&key)},
            }),
        );
        operations.insert(
            key.clone(),
            json!({
                "action": "receive",
                "channel": {"$ref": format!("#/channels/{key}")},
                "summary": command.description,
            }),
        );
        messages.insert(
            key,
            json!({
                "summary": command.description,
                "headers": command_headers(),
                "payload": command.payload.json,
            }),
        );
    }
}

fn events(
    aggregate: &AggregateDefinition,
    channels: &mut Map<String, Value>,
    operations: &mut Map<String, Value>,
    messages: &mut Map<String, Value>,
) {
    let channel = format!("{}_events", aggregate.name);
    let mut of_channel = Map::new();
    for (name, event) in &aggregate.events {
        let key = format!("{}_event_{name}", aggregate.name);
        of_channel.insert(name.to_string(), message_ref(&key));
        let described = json!({
            "contentType": STRUCTURED,
            "payload": cloud_event(&format!("{}.{name}", aggregate.name), event.version,
                &event.data.json),
        });
        messages.insert(key, described);
    }
    channels.insert(
        channel.clone(),
        json!({
            "address": eventstore::address(&aggregate.name),
            "description": format!(
                "One message is one commit: a single CloudEvent, or a batch ({BATCH}) of what one \
                 command produced."
            ),
            "parameters": with_slot(parameters()),
            "messages": of_channel,
        }),
    );
    operations.insert(
        channel.clone(),
        json!({
            "action": "send",
            "channel": {"$ref": format!("#/channels/{channel}")},
            "summary": format!("What happened to one {}", aggregate.name),
        }),
    );
}

fn message_ref(key: &str) -> Value {
    json!({"$ref": format!("#/components/messages/{key}")})
}

fn parameters() -> Value {
    json!({
        "tenant": {"description": Tenant::RULE},
        "id": {"description": format!("The aggregate's id, {}", AggregateId::RULE)},
    })
}

fn with_slot(mut parameters: Value) -> Value {
    let slots = format!("The aggregate's slot, 0 to {}", SLOTS - 1);
    parameters["slot"] = json!({"description": slots});
    parameters
}

fn command_headers() -> Value {
    let id = text(CommandId::RULE);
    let mut headers = json!({
        "type": "object",
        "description": "Each is given once: a command with two of one name is put aside.",
        "anyOf": [{"required": [header::OWN_COMMAND_ID]}, {"required": [header::COMMAND_ID]}],
        "properties": {
            (header::OWN_COMMAND_ID): {
                "type": "string",
                "pattern": whole(CommandId::RULE),
                "description": "The command's id: the same command again has the same. It counts \
                                within its aggregate.",
            },
            (header::COMMAND_ID): {
                "type": "string",
                "pattern": whole(CommandId::RULE),
                "description": "The command's id where Flexcore-Command-Id is absent. Every message \
                                is stored, also where the broker has seen the id before; but an \
                                atomic batch in which it stands twice is refused.",
            },
            (header::ACTOR): {
                "type": "string",
                "pattern": whole(ActorName::RULE),
                "description": "Who sends it. Recorded as nats:… since nobody vouches for it; \
                                nats where it is absent.",
            },
            (header::EXPECTED_VERSION): {"type": "string", "pattern": "^[0-9]+$"},
        },
    });
    for name in Provenance::IDS {
        headers["properties"][name] = id.clone();
    }
    headers["properties"][header::TRACEPARENT] = json!({"type": "string"});
    headers
}

fn cloud_event(kind: &str, version: u32, data: &Value) -> Value {
    json!({
        "type": "object",
        "required": [
            "specversion", "id", "source", "type", "subject", "time", "tenant", "sequence",
            "dataversion", "commandid", "commandhash", "actor", "data",
        ],
        "properties": {
            "specversion": {"const": "1.0"},
            "type": {"const": kind},
            "sequence": {"type": "integer", "description": "The aggregate's version with it."},
            "dataversion": {"const": version},
            "commandhash": {
                "type": "string",
                "pattern": "^[0-9a-f]{32}$",
                "description": "First half of the SHA-256 over the command's name, a zero byte and \
                                its payload as canonical JSON (RFC 8785).",
            },
            "data": data,
        },
    })
}
