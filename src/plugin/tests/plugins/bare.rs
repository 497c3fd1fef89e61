//! A plugin without our library, for what that does not do: `--bare ends` or `--bare hangs`.
//!
//! It is well. Each time that it is told to end, it says so on its standard error; `ends` then
//! answers, and ends a little later, while `hangs` never answers and has to be ended. Through its
//! broker it announces itself once more, as the service 7, at a port. Nothing else is there.

use std::{
    convert::Infallible,
    env,
    future::{Ready, pending, ready},
    io::{self, Write as _},
    path::PathBuf,
    process::exit,
    time::Duration,
};

use futures::{StreamExt as _, stream, stream::BoxStream};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, http},
    server::{Grpc, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

/// The number of the service at the port.
const ANNOUNCED: u32 = 7;

/// Long enough for a host that tells it twice to have done so.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// A message without fields, or whose fields nobody looks at.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Nothing {}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `plugin.ConnInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct Announcement {
    #[prost(uint32, tag = "1")]
    service_id: u32,
    #[prost(string, tag = "2")]
    network: String,
    #[prost(string, tag = "3")]
    address: String,
}

#[tokio::main]
pub(crate) async fn run(hangs: bool) -> io::Result<()> {
    let folder = env::var_os("PLUGIN_UNIX_SOCKET_DIR").map_or_else(env::temp_dir, PathBuf::from);
    let socket = folder.join("bare");
    let listener = UnixListener::bind(&socket)?;
    let port = TcpListener::bind("127.0.0.1:0").await?;
    let bare = Bare { hangs, address: port.local_addr()?.to_string() };
    let mut stdout = io::stdout();
    writeln!(stdout, "1|1|unix|{}|grpc|", socket.display())?;
    stdout.flush()?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                tokio::spawn(serve(accepted?.0, bare.clone()));
            }
            accepted = port.accept() => {
                tokio::spawn(serve(accepted?.0, bare.clone()));
            }
        }
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, bare: Bare) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let bare = bare.clone();
        async move { Ok::<_, Infallible>(bare.answer(request.map(Body::new)).await) }
    });
    let builder = http2::Builder::new(TokioExecutor::new());
    // However the connection ends: its host has no use for a word about it.
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

#[derive(Clone)]
struct Bare {
    hangs: bool,
    /// The port's.
    address: String,
}

impl Bare {
    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            "/grpc.health.v1.Health/Check" => {
                let codec = ProstCodec::<Health, Nothing>::default();
                Grpc::new(codec).unary(Check, request).await
            }
            "/plugin.GRPCController/Shutdown" => {
                let codec = ProstCodec::<Nothing, Nothing>::default();
                Grpc::new(codec).unary(Shutdown { hangs: self.hangs }, request).await
            }
            "/plugin.GRPCBroker/StartStream" => {
                let codec = ProstCodec::<Announcement, Nothing>::default();
                Grpc::new(codec).streaming(StartStream { address: self.address }, request).await
            }
            _ => Status::unimplemented("a bare plugin has nothing").into_http(),
        }
    }
}

struct Check;

impl UnaryService<Nothing> for Check {
    type Response = Health;
    type Future = Ready<Result<Response<Health>, Status>>;

    fn call(&mut self, _: Request<Nothing>) -> Self::Future {
        ready(Ok(Response::new(Health { status: 1 })))
    }
}

struct Shutdown {
    hangs: bool,
}

impl UnaryService<Nothing> for Shutdown {
    type Response = Nothing;
    type Future = BoxFuture<Response<Nothing>, Status>;

    fn call(&mut self, _: Request<Nothing>) -> Self::Future {
        let hangs = self.hangs;
        Box::pin(async move {
            let _ = writeln!(io::stderr(), "told to end");
            if hangs {
                pending::<()>().await;
            }
            tokio::spawn(end_soon());
            Ok(Response::new(Nothing {}))
        })
    }
}

async fn end_soon() {
    tokio::time::sleep(LAST_WAIT).await;
    exit(0)
}

struct StartStream {
    address: String,
}

impl StreamingService<Nothing> for StartStream {
    type Response = Announcement;
    type ResponseStream = BoxStream<'static, Result<Announcement, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Streaming<Nothing>>) -> Self::Future {
        let (network, address) = ("tcp".to_owned(), self.address.clone());
        let announcement = Announcement { service_id: ANNOUNCED, network, address };
        // The host keeps it open for as long as it runs.
        let answers = stream::iter([Ok(announcement)]).chain(stream::pending());
        ready(Ok(Response::new(answers.boxed())))
    }
}
