//! The plugin `csv`: rows in and out of a tenant's own object store of NATS, as CSV or NDJSON.

mod account;
mod bridge;
mod cells;
mod cursor;
mod layout;
mod lines;
mod read;
mod source;
mod store;
mod write;

use std::time::Duration;

use flexcore_sdk::{Call, Failure, Function, Plugin};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::{
    account::{Account, Settings},
    read::{Asked, Page},
    store::Bucket,
    write::{Given, Kept},
};

/// Time of a call that is kept for saying what came of it, and for taking back what was half written.
/// 500 ms.
const SPARE: Duration = Duration::from_millis(500);

/// Reads and writes rows.
pub(crate) fn plugin() -> Plugin {
    let read = Function::new("read", read)
        .summary("Reads rows of an object, a page at a time.")
        .input_schema(read_schema())
        .output_schema(page_schema())
        .idempotent();
    let write = Function::new("write", write)
        .summary("Writes rows to an object, in its place or at its end.")
        .input_schema(write_schema())
        .output_schema(kept_schema())
        .idempotent();
    Plugin::new("csv", env!("CARGO_PKG_VERSION"))
        .summary("Reads and writes rows in an object store of NATS.")
        .configured_by::<Settings, Account>(settings_schema(), Account::new)
        .function(read)
        .function(write)
}

async fn read(call: Call<Asked>) -> Result<Page, Failure> {
    let within = call.remaining().saturating_sub(SPARE);
    let page = async {
        let account = call.configured::<Account>()?;
        let connected = account.connect(call.tenant()).await?;
        let bucket = Bucket::open(connected, &call.input.bucket).await?;
        let page = read::page(&bucket, &call.input).await;
        page.map_err(|failure| bucket.explained(failure))
    };
    timeout(within, page).await.map_err(|_| late())?
}

async fn write(call: Call<Given>) -> Result<Kept, Failure> {
    let within = call.remaining().saturating_sub(SPARE);
    let account = call.configured::<Account>()?;
    let opened = async {
        let connected = account.connect(call.tenant()).await?;
        Bucket::open(connected, &call.input.bucket).await
    };
    let bucket = timeout(within, opened).await.map_err(|_| late())??;
    let within = call.remaining().saturating_sub(SPARE);
    let kept = write::rows(&bucket, &call.input, call.idempotency_key(), within).await;
    kept.map_err(|failure| bucket.explained(failure))
}

/// The caller's time is over.
fn late() -> Failure {
    Failure::passing("late", "the object store did not answer in time")
}

fn settings_schema() -> Value {
    json!({
        "type": "object",
        "required": ["url"],
        "additionalProperties": false,
        "properties": {
            "url": {
                "description": "nats://HOST:PORT, or tls://HOST:PORT where nothing else is allowed; no \
                    user, password or token, which have places of their own.",
                "type": "string",
                // It is shown: what has a login in it is not even stored.
                "pattern": "^(nats|tls)://[^@]*$",
                "maxLength": 300,
            },
            "credentials": {
                "description": "The text of a file of credentials.",
                "type": "string",
                "writeOnly": true,
            },
            "user": { "type": "string" },
            "password": { "type": "string", "writeOnly": true },
            "token": { "type": "string", "writeOnly": true },
            "authorities": {
                "description": "Certificates in PEM: these alone are trusted then.",
                "type": "string",
            },
            "networks": { "type": "array", "items": { "type": "string" } },
        },
    })
}

/// Which object, and how it is written.
fn common() -> Value {
    json!({
        "bucket": { "type": "string", "minLength": 1, "maxLength": store::BUCKET_BYTES_MAX },
        "object": { "type": "string", "minLength": 1, "maxLength": store::OBJECT_BYTES_MAX },
        "format": { "enum": ["csv", "ndjson"], "description": "csv unless said otherwise." },
        "delimiter": { "type": "string", "minLength": 1, "maxLength": 1 },
        "header": {
            "type": "boolean",
            "description": "True unless said otherwise: the first row of CSV names the columns.",
        },
    })
}

/// A schema of an object with these properties, and the common ones.
fn with_common(required: &[&str], more: Value) -> Value {
    let mut properties = common();
    if let (Some(properties), Value::Object(more)) = (properties.as_object_mut(), more) {
        properties.extend(more);
    }
    json!({
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn read_schema() -> Value {
    with_common(
        &["bucket", "object"],
        json!({
            "limit": { "type": "integer", "minimum": 1, "maximum": read::ROWS_MAX },
            "cursor": { "type": "string", "description": "The former page's, for the next one." },
            "types": {
                "description": "Columns of CSV that are not to be text.",
                "type": "object",
                "additionalProperties": { "enum": ["text", "number", "boolean"] },
            },
        }),
    )
}

fn page_schema() -> Value {
    json!({
        "type": "object",
        "required": ["rows", "cursor"],
        "properties": {
            "rows": { "type": "array" },
            "cursor": {
                "type": ["string", "null"],
                "description": "For the next page; null: there is none. The last page may be empty.",
            },
        },
    })
}

fn write_schema() -> Value {
    with_common(
        &["bucket", "object", "rows"],
        json!({
            "rows": { "type": "array", "maxItems": write::ROWS_MAX },
            "columns": {
                "description": "Of CSV, in order; those of the first row unless said otherwise.",
                "type": "array",
                "minItems": 1,
                "maxItems": layout::COLUMNS_MAX,
                "items": { "type": "string" },
            },
            "append": { "type": "boolean", "description": "At the end of what is there." },
        }),
    )
}

fn kept_schema() -> Value {
    json!({
        "type": "object",
        "required": ["written", "size_bytes"],
        "properties": {
            "written": {
                "type": "boolean",
                "description": "False: an earlier attempt of this call has written it.",
            },
            "size_bytes": { "type": "integer", "minimum": 0 },
        },
    })
}
