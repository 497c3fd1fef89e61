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
//! | `bad` | answers with a status, although it is described |
//!
//! With the argument `ends` it ends at once, with status 3; with `described` it tells a method by
//! reflection.

use std::{
    fs,
    io::{self, Write as _},
    process::{ExitCode, exit},
    time::Duration,
};

use bytes::Bytes;
use flexcore_plugin::{
    contract::{
        self, CallRequest, CallResponse, CallResult, ConfigureRequest, DecideRequest,
        DecideResponse, Description, Failure, Function, Messages, SERVICE, Serving, StreamRequest,
        StreamResponse,
    },
    guard, serve,
};
use futures::stream;
use tonic::Status;

/// Functions that may be repeated, and others.
const IDEMPOTENT: [&str; 4] = ["echo", "pid", "crash_once", "nap"];
const OTHERS: [&str; 6] = ["version", "sleep", "fail", "print", "crash", "bad"];

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
    let mut plugin = contract::plugin(Lab { argument });
    if is_described {
        plugin = plugin.descriptors(descriptors(), &[SERVICE]);
    }
    serve(plugin).await
}

#[derive(Clone)]
struct Lab {
    argument: String,
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
            functions: IDEMPOTENT.iter().chain(&OTHERS).map(function).collect(),
            ..Description::default()
        }
    }

    async fn configure(&self, _: ConfigureRequest) -> Result<(), Failure> {
        Ok(())
    }

    async fn call(&self, request: CallRequest) -> Result<CallResponse, Status> {
        let CallRequest { function, input, .. } = request;
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
            "print" => {
                say("[WARN] something was printed");
                "null".into()
            }
            "crash" => exit(7),
            "crash_once" => {
                let path = text(&input).trim_matches('"').to_owned();
                if !fs::exists(&path).map_err(failed)? {
                    fs::write(&path, "").map_err(failed)?;
                    exit(7);
                }
                "\"again\"".into()
            }
            other => return Err(Status::not_found(format!("there is no {other}"))),
        };
        Ok(CallResponse { result: Some(CallResult::Output(output)) })
    }

    fn stream(&self, _: Messages<StreamRequest>) -> Messages<StreamResponse> {
        Messages::new(stream::empty())
    }

    fn decide(&self, _: Messages<DecideRequest>) -> Messages<DecideResponse> {
        Messages::new(stream::empty())
    }
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
