//! A plugin for tests of the pool, and its guard. Its functions:
//!
//! | function | what it does |
//! | --- | --- |
//! | `echo` | answers with its input; may be repeated |
//! | `pid` | answers with its process's number; may be repeated |
//! | `version` | answers with its first argument |
//! | `sleep` | waits for so many milliseconds, and answers with its first argument |
//! | `nap` | as `sleep`; may be repeated |
//! | `fail` | fails for now |
//! | `print` | prints a line on standard error |
//! | `crash` | ends the process |
//! | `crash_once` | ends the process unless the file of this name is there, and makes it; may be repeated |
//! | `configuration` | answers with the tenant's configuration; null: it was never given one |
//! | `bad` | answers with a status, although it is described |
//!
//! It accepts every command, after what `decided` says of it.
//!
//! A configuration may say in `do` what comes of it: `fail`, `fail_for_now`, `crash`, or `crash_once` with the name of
//! that file in `once`. With `file` it adds a line to that file. With `wait_ms` it is taken up after so many
//! milliseconds, also when nobody waits for that any more.
//!
//! With the argument `ends` it ends at once, with status 3; with `described` it tells a method by
//! reflection.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    process::{ExitCode, exit},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flexcore_plugin::{
    contract::{
        self, CallRequest, CallResponse, CallResult, ConfigureRequest, DecideRequest,
        DecideResponse, Decision, DecisionResult, Description, Event, Events, Failure, Function,
        Messages, Question, SERVICE, Serving, StreamRequest, StreamResponse,
    },
    guard, serve,
};
use futures::{StreamExt as _, stream};
use tonic::Status;

/// Functions that may be repeated, and others.
const IDEMPOTENT: [&str; 4] = ["echo", "pid", "crash_once", "nap"];
const OTHERS: [&str; 7] = ["version", "sleep", "fail", "print", "crash", "configuration", "bad"];

fn main() -> ExitCode {
    if let Some(code) = guard::entered() {
        return code;
    }
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "ends" {
        say("no luck today");
        return ExitCode::from(3);
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
    let is_described = argument == "described";
    let mut plugin = contract::plugin(Lab { argument, configurations: Arc::default() });
    if is_described {
        plugin = plugin.descriptors(descriptors(), &[SERVICE]);
    }
    serve(plugin).await
}

#[derive(Clone)]
struct Lab {
    argument: String,
    /// By tenant.
    configurations: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl Serving for Lab {
    fn describe(&self) -> Description {
        let function = |name: &&str| Function {
            name: (*name).to_owned(),
            idempotent: IDEMPOTENT.contains(name),
            ..Function::default()
        };
        Description {
            name: "lab".to_owned(),
            version: self.argument.clone(),
            configuration_schema: "{}".to_owned(),
            decides: true,
            functions: IDEMPOTENT.iter().chain(&OTHERS).map(function).collect(),
            ..Description::default()
        }
    }

    async fn configure(&self, request: ConfigureRequest) -> Result<(), Failure> {
        let ConfigureRequest { tenant, configuration } = request;
        let said: serde_json::Value = serde_json::from_slice(&configuration).unwrap_or_default();
        if let Some(path) = said["file"].as_str() {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let written = file.and_then(|mut file| writeln!(file, "{tenant}"));
            written.map_err(|error| Failure::new("no_file", error))?;
        }
        let wait = Duration::from_millis(said["wait_ms"].as_u64().unwrap_or_default());
        let held = Arc::clone(&self.configurations);
        let taken_up = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert(tenant, configuration);
        });
        taken_up.await.map_err(|error| Failure::new("not_taken_up", error))?;
        match said["do"].as_str() {
            Some("fail") => Err(Failure::new("no_host", "as asked")),
            Some("fail_for_now") => Err(Failure::passing("no_network", "as asked")),
            Some("crash") => exit(7),
            Some("crash_once") => {
                let crashed = crash_once(&said["once"].to_string().into());
                crashed.map_err(|status| Failure::new("no_file", status.message()))
            }
            _ => Ok(()),
        }
    }

    async fn call(&self, request: CallRequest) -> Result<CallResponse, Status> {
        let CallRequest { function, input, context } = request;
        let version = || Bytes::from(format!("{:?}", self.argument));
        let output = match &*function {
            "echo" => input,
            "pid" => std::process::id().to_string().into(),
            "version" => version(),
            "sleep" | "nap" => {
                let ms = text(&input).parse().unwrap_or_default();
                tokio::time::sleep(Duration::from_millis(ms)).await;
                version()
            }
            "fail" => {
                let failure = Failure::passing("not_now", "as asked");
                return Ok(CallResponse { result: Some(CallResult::Failure(failure)) });
            }
            "configuration" => {
                let tenant = context.unwrap_or_default().tenant;
                let held = self.configurations.lock().unwrap_or_else(PoisonError::into_inner);
                held.get(&tenant).cloned().unwrap_or_else(|| "null".into())
            }
            "print" => {
                say("[WARN] something was printed");
                "null".into()
            }
            "crash" => exit(7),
            "crash_once" => {
                crash_once(&input)?;
                "\"again\"".into()
            }
            other => return Err(Status::not_found(format!("there is no {other}"))),
        };
        Ok(CallResponse { result: Some(CallResult::Output(output)) })
    }

    fn stream(&self, _: Messages<StreamRequest>) -> Messages<StreamResponse> {
        Messages::new(stream::empty())
    }

    fn decide(&self, requests: Messages<DecideRequest>) -> Messages<DecideResponse> {
        Messages::new(requests.then(|request| async move {
            let DecideRequest { number, questions } = request?;
            let mut decisions = Vec::new();
            for question in questions {
                decisions.push(Decision { result: Some(decided(question).await?) });
            }
            Ok(DecideResponse { number, decisions })
        }))
    }
}

/// On a command: `add`, `refuse`, `fail`, `nap`, `crash` or `crash_once`, which take what the functions of these
/// names take.
async fn decided(question: Question) -> Result<DecisionResult, Status> {
    let Question { command, payload, .. } = question;
    match &*command {
        "refuse" => return Ok(DecisionResult::Rejected(Failure::new("closed", "as asked"))),
        "fail" => return Ok(DecisionResult::Failure(Failure::passing("not_now", "as asked"))),
        "nap" => {
            let ms = text(&payload).parse().unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        "crash" => exit(7),
        "crash_once" => crash_once(&payload)?,
        _ => {}
    }
    let event = Event { event: "added".to_owned(), data: payload };
    Ok(DecisionResult::Events(Events { events: vec![event] }))
}

/// Ends the process unless the file of this name is there, and makes it.
fn crash_once(path: &Bytes) -> Result<(), Status> {
    let path = text(path).trim_matches('"').to_owned();
    if !fs::exists(&path).map_err(failed)? {
        fs::write(&path, "").map_err(failed)?;
        exit(7);
    }
    Ok(())
}

fn text(json: &Bytes) -> String {
    String::from_utf8_lossy(json).into_owned()
}

fn failed(error: io::Error) -> Status {
    Status::internal(error.to_string())
}

/// An encoded `google.protobuf.FileDescriptorSet` with the part of the contract that
/// `Describe` takes, by hand: the compiler of Protocol Buffers is not there for every test.
fn descriptors() -> Vec<u8> {
    // Its number is 1, it is optional, and a text.
    let name = field(2, &[field(1, b"name"), vec![24, 1, 32, 1, 40, 9]].concat());
    let asked = field(1, b"DescribeRequest");
    let told = [field(1, b"Description"), name].concat();
    let method = [
        field(1, b"Describe"),
        field(2, b".flexcore.plugin.v1.DescribeRequest"),
        field(3, b".flexcore.plugin.v1.Description"),
    ];
    let service = [field(1, b"Plugin"), field(2, &method.concat())].concat();
    let file = [
        field(1, b"lab.proto"),
        field(2, b"flexcore.plugin.v1"),
        field(4, &asked),
        field(4, &told),
        field(6, &service),
        field(12, b"proto3"),
    ];
    field(1, &file.concat())
}

/// A field of bytes: its number, its length, and these.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![(number << 3) | 2];
    let mut length = bytes.len();
    while length > 127 {
        encoded.push(u8::try_from(length % 128).unwrap_or_default() | 128);
        length /= 128;
    }
    encoded.push(u8::try_from(length).unwrap_or_default());
    encoded.extend_from_slice(bytes);
    encoded
}
