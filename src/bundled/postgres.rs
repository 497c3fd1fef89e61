//! The plugin `postgres`: it runs one statement in a tenant's own database, in a transaction of its own.

mod bridge;
mod connections;
mod failed;
mod frames;
mod rows;
mod security;
mod statement;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use flexcore_sdk::{Call, Failure, Function, Plugin};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::time::timeout;

use self::{
    connections::{Database, Lease},
    failed::{Trouble, unknown_outcome},
    rows::Found,
    statement::{PARAMETERS_MAX, SQL_BYTES_MAX},
};

/// Time that is left for telling that there was no answer. 100 ms: later than the caller's time nobody
/// hears of it.
const MARGIN: Duration = Duration::from_millis(100);

/// The plugin.
pub(crate) fn plugin() -> Plugin {
    let query = Function::new("query", |call: Call<Input>| run(call, false))
        .summary("Runs a statement that only reads, and returns its rows.")
        .input_schema(input_schema())
        .output_schema(output_schema())
        .idempotent();
    let execute = Function::new("execute", |call: Call<Input>| run(call, true))
        .summary("Runs select, insert, update, delete, merge or values, each call anew.")
        .input_schema(input_schema())
        .output_schema(output_schema());
    Plugin::new("postgres", env!("CARGO_PKG_VERSION"))
        .summary("Runs statements in a Postgres.")
        .configured_by(connections::schema(), Database::new)
        .function(query)
        .function(execute)
}

fn input_schema() -> Value {
    json!({
        "type": "object",
        "required": ["sql"],
        "additionalProperties": false,
        "properties": {
            "sql": {
                "type": "string",
                "maxLength": SQL_BYTES_MAX,
                "description": "One statement: select, insert, update, delete, merge or values.",
            },
            "parameters": {
                "type": "array",
                "maxItems": PARAMETERS_MAX,
                "description": "Values of $1, $2 …, which Postgres reads as whatever the statement \
                    needs there; objects and lists as JSON.",
            },
        },
    })
}

fn output_schema() -> Value {
    json!({
        "type": "object",
        "required": ["rows", "rows_affected"],
        "properties": {
            "rows": {
                "type": "array",
                "items": { "type": "object" },
                "description": "Values by their columns. What JSON cannot hold exactly is text: numeric, \
                    large bigint, NaN; so is all but numbers, booleans and JSON, as Postgres writes it.",
            },
            "rows_affected": { "type": "integer" },
        },
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    sql: String,
    #[serde(default)]
    parameters: Vec<Box<RawValue>>,
}

async fn run(call: Call<Input>, writes: bool) -> Result<Found, Failure> {
    let database = call.configured::<Database>()?;
    let prepare = statement::prepare(&call.input.sql)?;
    let execute = statement::execute(&call.input.parameters)?;
    let within = call.remaining().saturating_sub(MARGIN);
    let begin = statement::begin(writes, within);
    let is_committing = AtomicBool::new(false);
    let work = async {
        let mut lease = database.begin(call.tenant(), &begin).await?;
        let found = lease.found(&prepare, execute).await;
        if writes {
            commit(lease, found, &is_committing).await
        } else {
            take_back(lease, found).await
        }
    };
    timeout(within, work).await.unwrap_or_else(|_| {
        // The connection is closed by now, and the database takes back what was not committed.
        if writes && is_committing.load(Ordering::Relaxed) {
            return Err(unknown_outcome("the database did not answer in time"));
        }
        Err(Failure::passing("late", format!("the statement did not end within {within:?}")))
    })
}

/// Takes back even what succeeded: some functions write in a transaction that only reads, such as
/// `pg_notify`, and those of large objects before Postgres 16. A connection that does not do it is closed,
/// which takes it back, too.
async fn take_back(mut lease: Lease, found: Result<Found, Trouble>) -> Result<Found, Failure> {
    let is_left = found.as_ref().err().is_none_or(Trouble::leaves_a_connection);
    let found = found.map_err(|trouble| lease.explained(trouble));
    if is_left && lease.run("rollback").await.is_ok() {
        lease.keep();
    }
    found
}

/// Commits, or takes back. A connection of which anything else is left is closed.
async fn commit(
    mut lease: Lease,
    found: Result<Found, Trouble>,
    is_committing: &AtomicBool,
) -> Result<Found, Failure> {
    match found {
        Ok(found) => {
            is_committing.store(true, Ordering::Relaxed);
            lease.run("commit").await.map_err(Trouble::while_committing)?;
            lease.keep();
            Ok(found)
        }
        Err(trouble) => take_back(lease, Err(trouble)).await,
    }
}
