//! A plugin of FlexCore.

use std::process::ExitCode;

use flexcore_sdk::{Call, Failure, Function, Plugin};
use serde::{Deserialize, Serialize};
use serde_json::json;

fn main() -> ExitCode {
    let greet = Function::new("greet", greet)
        .summary("Greets somebody.")
        .input_schema(json!({
            "type": "object",
            "required": ["name"],
            "properties": { "name": { "type": "string" } },
        }))
        .output_schema(json!({
            "type": "object",
            "required": ["text"],
            "properties": { "text": { "type": "string" } },
        }))
        .idempotent();
    let settings = json!({
        "type": "object",
        "required": ["greeting"],
        "properties": { "greeting": { "type": "string" } },
    });
    flexcore_sdk::run(
        Plugin::new("greeter", env!("CARGO_PKG_VERSION"))
            .summary("Greets people.")
            .configured::<Settings>(settings)
            .function(greet),
    )
}

/// What a tenant configures.
#[derive(Deserialize)]
struct Settings {
    greeting: String,
}

#[derive(Deserialize)]
struct Greeting {
    name: String,
}

#[derive(Serialize)]
struct Greeted {
    text: String,
}

async fn greet(call: Call<Greeting>) -> Result<Greeted, Failure> {
    let name = call.input.name.trim();
    if name.is_empty() {
        return Err(Failure::new("no_name", "Nobody can be greeted without a name."));
    }
    tracing::info!(name, "greeting");
    // It greets for tenants that have configured nothing, too.
    let greeting = match call.configured::<Settings>() {
        Ok(settings) => settings.greeting.clone(),
        Err(_) => "Hello".to_owned(),
    };
    Ok(Greeted { text: format!("{greeting}, {name}!") })
}
