//! A plugin for tests of the plugin worker, and its guard. Its functions:
//!
//! | function | what it does |
//! | --- | --- |
//! | `greet` | answers with `{"text": …}` for `{"name": …}`, and says on whose behalf |
//! | `version` | answers with its first argument; may be repeated |
//! | `locate` | takes an event of an account, adds its first argument to the group, and makes ten of one; or fails |
//! | `crash` | ends the process |
//!
//! With the argument `ends` it ends at once, with status 3; with `hangs` it does not say anything for minutes.

use std::{
    io::{self, Write as _},
    process::{ExitCode, exit},
    time::Duration,
};

use flexcore_plugin::{
    contract::{
        self, CallRequest, CallResponse, CallResult, ConfigureRequest, DecideRequest,
        DecideResponse, Description, Failure, Function, Messages, Serving, StreamRequest,
        StreamResponse,
    },
    guard, serve,
};
use futures::stream;
use serde_json::{Value, json};
use tonic::Status;

fn main() -> ExitCode {
    if let Some(code) = guard::entered() {
        return code;
    }
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "ends" {
        say("no luck today");
        return ExitCode::from(3);
    }
    if argument == "hangs" {
        std::thread::park_timeout(Duration::from_secs(600));
    }
    match run(argument) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Nobody is left to be told where this fails.
fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

#[tokio::main]
async fn run(argument: String) -> Result<(), flexcore_plugin::Error> {
    serve(contract::plugin(Lab { argument })).await
}

/// What becomes of an event that says `{"group": …, "amount": …}`. One that is paid `nowhere` has no place.
fn located(input: &[u8], argument: &str) -> Result<Value, Failure> {
    let input: Value = serde_json::from_slice(input).unwrap_or_default();
    let (group, amount) = (&input["data"]["group"], &input["data"]["amount"]);
    let is_whole = input["aggregate"] == "account" && input["event"] == "paid";
    match (group.as_str(), amount.as_i64()) {
        (Some(group), Some(amount)) if is_whole => {
            Ok(json!({"group": format!("{group}-{argument}"), "amount": amount * 10}))
        }
        _ if amount == "a list" => Ok(json!([1])),
        _ => Err(Failure::new("no_place", "It was paid nowhere.")),
    }
}

#[derive(Clone)]
struct Lab {
    argument: String,
}

impl Serving for Lab {
    fn describe(&self) -> Description {
        let function = |name: &str| Function { name: name.to_owned(), ..Function::default() };
        let schema = json!({
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        });
        let greet = Function { input_schema: schema.to_string(), ..function("greet") };
        let version = Function { idempotent: true, ..function("version") };
        Description {
            name: "greeter".to_owned(),
            version: self.argument.clone(),
            functions: vec![greet, version, function("locate"), function("crash")],
            ..Description::default()
        }
    }

    async fn configure(&self, _: ConfigureRequest) -> Result<(), Failure> {
        Ok(())
    }

    async fn call(&self, request: CallRequest) -> Result<CallResponse, Status> {
        let CallRequest { context, function, input } = request;
        let output = match &*function {
            "greet" => {
                let input: Value = serde_json::from_slice(&input).unwrap_or_default();
                let context = context.unwrap_or_default();
                let name = input["name"].as_str().unwrap_or_default();
                say(&format!("[INFO] greeting {name}"));
                if name.is_empty() {
                    let failure = Failure::new("no_name", "Nobody can be greeted.");
                    return Ok(CallResponse { result: Some(CallResult::Failure(failure)) });
                }
                let text = format!("Hello, {name}!");
                json!({"text": text, "for": context.tenant, "by": context.actor})
            }
            "version" => json!(self.argument),
            "locate" => match located(&input, &self.argument) {
                Ok(output) => output,
                Err(failure) => {
                    return Ok(CallResponse { result: Some(CallResult::Failure(failure)) });
                }
            },
            "crash" => exit(7),
            other => return Err(Status::not_found(format!("there is no {other}"))),
        };
        let output = CallResult::Output(output.to_string().into());
        Ok(CallResponse { result: Some(output) })
    }

    fn stream(&self, _: Messages<StreamRequest>) -> Messages<StreamResponse> {
        Messages::new(stream::empty())
    }

    fn decide(&self, _: Messages<DecideRequest>) -> Messages<DecideResponse> {
        Messages::new(stream::empty())
    }
}
