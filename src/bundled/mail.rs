//! The plugin `mail`: sends a message through a tenant's own mail server.

mod account;
mod message;
mod smtp;
mod stuffed;

use std::time::Duration;

use flexcore_sdk::{Call, Failure, Function, Plugin};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::{
    account::{Account, Settings},
    message::Message,
};

/// Time of a call that is kept for saying what came of it. 200 ms.
const SPARE: Duration = Duration::from_millis(200);

/// Sends mail.
pub(crate) fn plugin() -> Plugin {
    let send = Function::new("send", send)
        .summary(
            "Sends a message to all of its recipients or, where the server refuses one of them, to \
             none.",
        )
        .input_schema(message_schema())
        .output_schema(sent_schema());
    Plugin::new("mail", env!("CARGO_PKG_VERSION"))
        .summary("Sends mail through a mail server.")
        .configured_by::<Settings, Account>(settings_schema(), Account::new)
        .function(send)
}

/// What became of a message.
#[derive(Serialize)]
struct Sent {
    /// The same for each attempt of one call: receivers can tell duplicates by it.
    message_id: String,
    /// Those that the server has taken.
    recipients: usize,
    /// The server's last words.
    answer: String,
}

/// It is not idempotent: few servers drop a message that they have had already. A failure that may
/// pass means that nothing was sent.
async fn send(call: Call<Message>) -> Result<Sent, Failure> {
    let account = call.configured::<Account>()?;
    let ends = Instant::now() + call.remaining().saturating_sub(SPARE);
    let tenant = call.tenant().to_owned();
    let id = message::id(&tenant, call.idempotency_key(), account.domain());
    let written = call.input.written(&account, &id)?;
    let answer = smtp::deliver(&tenant, &account, &written, ends).await?;
    let recipients = written.recipients.len();
    tracing::info!(message_id = id, recipients, "sent");
    Ok(Sent { message_id: id, recipients, answer })
}

fn settings_schema() -> Value {
    json!({
        "type": "object",
        "required": ["host", "senders"],
        "additionalProperties": false,
        "properties": {
            "host": { "type": "string", "minLength": 1, "maxLength": 253 },
            "port": { "type": "integer", "minimum": 1, "maximum": 65535 },
            "tls": {
                "enum": ["starttls", "implicit", "none"],
                "description": "starttls unless said otherwise: without TLS nothing is sent. The \
                                port is 587, 465 or 25 then.",
            },
            "user": { "type": "string", "minLength": 1, "maxLength": 1024 },
            "password": { "type": "string", "maxLength": 1024, "writeOnly": true },
            "senders": {
                "description": "Addresses, or `@example.com` for all of a domain.",
                "type": "array",
                "minItems": 1,
                "maxItems": account::SENDERS_MAX,
                "items": {
                    "type": "string",
                    "pattern": "^[!-?A-~]*@[!-?A-~]+$",
                    "maxLength": account::SENDER_BYTES_MAX,
                },
            },
            "authorities": {
                "description": "Certificates in PEM: these alone are trusted then.",
                "type": "string",
            },
            "networks": { "type": "array", "items": { "type": "string" } },
        },
    })
}

fn message_schema() -> Value {
    let address = json!({ "type": "string", "minLength": 3, "maxLength": 1000 });
    let addresses = json!({
        "type": "array", "maxItems": message::RECIPIENTS_MAX, "items": address,
    });
    json!({
        "type": "object",
        "required": ["from", "to", "subject"],
        "additionalProperties": false,
        "anyOf": [{ "required": ["text"] }, { "required": ["html"] }],
        "properties": {
            "from": address,
            "reply_to": address,
            "to": addresses,
            "cc": addresses,
            "bcc": addresses,
            "subject": { "type": "string", "maxLength": message::SUBJECT_CHARACTERS_MAX },
            "text": { "type": "string" },
            "html": { "type": "string" },
            "attachments": {
                "type": "array",
                "maxItems": message::ATTACHMENTS_MAX,
                "items": {
                    "type": "object",
                    "required": ["name", "content"],
                    "additionalProperties": false,
                    "properties": {
                        "name": { "type": "string", "minLength": 1, "maxLength": 255 },
                        "type": { "type": "string", "maxLength": 255 },
                        "content": { "type": "string", "contentEncoding": "base64" },
                    },
                },
            },
        },
    })
}

fn sent_schema() -> Value {
    json!({
        "type": "object",
        "required": ["message_id", "recipients", "answer"],
        "properties": {
            "message_id": { "type": "string" },
            "recipients": { "type": "integer", "minimum": 1 },
            "answer": { "type": "string" },
        },
    })
}
