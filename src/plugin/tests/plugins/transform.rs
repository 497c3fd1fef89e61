//! A plugin for tests, written in Rust: `flexcore.lab.v1.Transform`, as the Go and the Python one
//! have it, and ways to fail. `Apply` answers with the payload in upper case; some ids do more:
//!
//! | id | what it does first |
//! | --- | --- |
//! | `crash` | exits with status 7 |
//! | `panic` | prints what a Go program prints when it panics, and exits with status 2 |
//! | `log` | a structured line on the standard error, and a line each through `GRPCStdio` |
//! | `hang` | never answers |
//! | `sleep:MS` | waits |
//! | `loop` | never answers, and uses a processor; then the plugin has to be killed |
//! | `big`, `large:BYTES` | answers with so many bytes (`big`: 16 MiB) of `x` |
//! | `stdout:BYTES` | prints so many bytes to the real standard output |
//! | `memory:MIB` | takes so much memory and keeps it |
//! | `fork:N` | starts N processes that sleep, half of them in own sessions; answers with PIDs |
//! | `delete-socket` | removes the sockets in its folder |
//! | `version` | answers with the version that was agreed on, as `note` |
//! | `serve` | serves itself through the broker, as version 100; `note` is the number |
//!
//! With the argument `--tcp` it listens at a port; `bare.rs` says what `--bare` is.

use std::{
    convert::Infallible,
    fs,
    future::pending,
    io::{self, Write as _},
    os::unix::fs::FileTypeExt as _,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio as Standard, exit},
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use flexcore_plugin::{Accepted, Broker, Cookie, Network, Serve, Stdio, serve};
use futures::{StreamExt as _, stream::BoxStream};
use prost::Message as _;
use serde_json::json;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http, http::uri::PathAndQuery},
    server::{NamedService, StreamingService, UnaryService},
    service::Routes,
};
use tonic_prost::ProstCodec;

mod bare;
mod lab;

use lab::{
    ADD, APPLY, APPLY_STREAM, AddRequest, AddResponse, TRANSFORM, TransformRequest,
    TransformResponse, descriptors,
};

const MIB: usize = 1024 * 1024;

/// What tests send is smaller.
const REQUEST_BYTES_MAX: usize = 64 * MIB;

/// A process of `fork` ends by itself some time after the tests.
const CHILD_SLEEP: Duration = Duration::from_secs(300);

/// The first argument of a process of `fork`.
const SLEEP: &str = "--sleep";

/// Its second argument, if it leaves the plugin's process group.
const APART: &str = "apart";

/// The first argument of a plugin that listens at a port.
const TCP: &str = "--tcp";

/// The first argument of a plugin without our library, and the second if it hangs at its end.
const BARE: &str = "--bare";
const HANGS: &str = "hangs";

/// The version that `serve` serves: no host agrees on it.
const SERVED_VERSION: u32 = 100;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (first, second) = (arguments.next(), arguments.next());
    let second = second.as_deref();
    let ran = match first.as_deref() {
        Some(SLEEP) => return sleep(second == Some(APART)),
        Some(BARE) => bare::run(second == Some(HANGS)).map_err(|error| error.to_string()),
        Some(TCP) => plugin(Network::Tcp).map_err(|error| error.to_string()),
        _ => plugin(Network::Unix).map_err(|error| error.to_string()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn plugin(network: Network) -> Result<(), flexcore_plugin::Error> {
    let routes = |version| move |broker, stdio| Routes::new(Transform { broker, stdio, version });
    let cookie = Cookie { key: "FLEXCORE_PLUGIN".into(), value: "flexcore-lab-7f3a".into() };
    let mut plugin = Serve::new(cookie)
        .version(1, routes(1))
        .version(2, routes(2))
        .descriptors(descriptors().encode_to_vec(), &[TRANSFORM]);
    plugin.network = network;
    serve(plugin).await
}

/// A process of `fork`.
fn sleep(apart: bool) -> ExitCode {
    if apart && rustix::process::setsid().is_err() {
        return ExitCode::FAILURE;
    }
    std::thread::sleep(CHILD_SLEEP);
    ExitCode::SUCCESS
}

#[derive(Clone)]
struct Transform {
    broker: Broker,
    stdio: Stdio,
    version: u32,
}

impl Transform {
    async fn apply(&self, request: TransformRequest) -> Result<TransformResponse, Status> {
        let TransformRequest { id, payload, callback_id } = request;
        let (word, number) = id.split_once(':').unwrap_or((id.as_str(), ""));
        let number: usize = number.parse().unwrap_or_default();
        let (mut payload, mut note) = (Bytes::from(payload.to_ascii_uppercase()), String::new());
        match word {
            "hang" => pending().await,
            "sleep" => tokio::time::sleep(Duration::from_millis(number as u64)).await,
            "big" => payload = vec![b'x'; 16 * MIB].into(),
            "large" => payload = vec![b'x'; number].into(),
            "log" => self.log().await?,
            "stdout" => flood(number).await?,
            "fork" => payload = fork(number)?.into(),
            "delete-socket" => note = format!("{} removed", delete_sockets()?),
            "version" => note = self.version.to_string(),
            "serve" => note = self.serve_itself().await?.to_string(),
            _ => end(word, number),
        }
        if callback_id != 0 {
            note = format!("host says {}", self.add(callback_id).await?);
        }
        Ok(TransformResponse { id, payload, note })
    }

    /// One line as hclog writes it, and one for each of the host's streams.
    async fn log(&self) -> Result<(), Status> {
        let line = json!({
            "@level": "info",
            "@message": "structured hello",
            "@module": "transform",
            "id": "log",
            "n": 42,
        });
        writeln!(io::stderr(), "{line}").map_err(failed)?;
        self.stdio.stdout("hello on plugin stdout\n").await.map_err(failed)?;
        self.stdio.stderr("hello on plugin stderr\n").await.map_err(failed)
    }

    /// Until the process ends.
    async fn serve_itself(&self) -> Result<u32, Status> {
        static KEPT: Mutex<Vec<Accepted>> = Mutex::new(Vec::new());
        let id = self.broker.next_id();
        let routes = Routes::new(Self { version: SERVED_VERSION, ..self.clone() });
        let accepted = self.broker.accept(id, routes).await.map_err(failed)?;
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(accepted);
        Ok(id)
    }

    async fn add(&self, callback: u32) -> Result<i64, Status> {
        let host = self.broker.dial(callback).await.map_err(failed)?;
        let mut grpc = tonic::client::Grpc::new(host);
        grpc.ready().await.map_err(failed)?;
        let path = PathAndQuery::from_static(ADD);
        let codec = ProstCodec::<AddRequest, AddResponse>::default();
        let answer = grpc.unary(Request::new(AddRequest { a: 40, b: 2 }), path, codec).await?;
        Ok(answer.into_inner().sum)
    }
}

/// What does not answer, or harms the process. Any other word is an ordinary id.
fn end(word: &str, number: usize) {
    match word {
        "crash" => exit(7),
        "panic" => {
            let _ = writeln!(
                io::stderr(),
                "panic: boom from plugin\n\ngoroutine 34 [running]:\nmain.main()"
            );
            exit(2)
        }
        "loop" => loop {
            std::hint::spin_loop();
        },
        "memory" => {
            static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
            // Written to, so that the system has to give it.
            let taken = (0..number).map(|_| vec![1; MIB]);
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
        }
        _ => {}
    }
}

async fn flood(bytes: usize) -> Result<(), Status> {
    let print = move || {
        let mut stdout = io::stdout().lock();
        let piece = [b'y'; 64 * 1024];
        let mut left = bytes;
        while left > 0 {
            let length = left.min(piece.len());
            stdout.write_all(&piece[..length])?;
            left -= length;
        }
        stdout.flush()
    };
    tokio::task::spawn_blocking(print).await.map_err(failed)?.map_err(failed)
}

/// Starts processes that outlive this one, and returns their numbers, with commas between.
fn fork(processes: usize) -> Result<String, Status> {
    static KEPT: Mutex<Vec<Child>> = Mutex::new(Vec::new());
    let start = |number: usize| -> io::Result<String> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(SLEEP).stdin(Standard::null());
        if number % 2 == 1 {
            command.arg(APART);
        }
        let child = command.spawn()?;
        let id = child.id().to_string();
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        Ok(id)
    };
    let started: io::Result<Vec<String>> = (0..processes).map(start).collect();
    Ok(started.map_err(failed)?.join(","))
}

fn delete_sockets() -> Result<usize, Status> {
    let folder = std::env::var_os("PLUGIN_UNIX_SOCKET_DIR");
    let folder = folder.map_or_else(std::env::temp_dir, PathBuf::from);
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_socket() {
            fs::remove_file(entry.path()).map_err(failed)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

impl NamedService for Transform {
    const NAME: &'static str = TRANSFORM;
}

impl Service<http::Request<Body>> for Transform {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<TransformResponse, TransformRequest>::default();
            let mut grpc =
                tonic::server::Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX);
            Ok(match request.uri().path() {
                APPLY => grpc.unary(Apply(own), request).await,
                APPLY_STREAM => grpc.streaming(ApplyStream(own), request).await,
                other => Status::unimplemented(other).into_http(),
            })
        })
    }
}

struct Apply(Transform);

impl UnaryService<TransformRequest> for Apply {
    type Response = TransformResponse;
    type Future = BoxFuture<Response<TransformResponse>, Status>;

    fn call(&mut self, request: Request<TransformRequest>) -> Self::Future {
        let own = self.0.clone();
        Box::pin(async move { own.apply(request.into_inner()).await.map(Response::new) })
    }
}

struct ApplyStream(Transform);

type Answers = BoxStream<'static, Result<TransformResponse, Status>>;

impl StreamingService<TransformRequest> for ApplyStream {
    type Response = TransformResponse;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<TransformRequest>>) -> Self::Future {
        let own = self.0.clone();
        let answers = request.into_inner().then(move |request| {
            let own = own.clone();
            async move { own.apply(request?).await }
        });
        let answers: Answers = answers.boxed();
        Box::pin(async move { Ok(Response::new(answers)) })
    }
}
