//! Our host, and calls of the plugin in Go through it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use flexcore_plugin::{Checked, Connection, Cookie, Plugin, Start};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Request, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    go_host::{PATIENCE, Programs},
    own::base,
    sampled::Sampled,
};
use crate::rig::Latencies;

/// The method of `lab.proto` that is called.
const APPLY: &str = "/flexcore.lab.v1.Transform/Apply";

/// The cookie of `shared.go`, and its version of which the host in Go speaks.
const COOKIE: (&str, &str) = ("FLEXCORE_PLUGIN", "flexcore-lab-7f3a");
const VERSION: u32 = 2;

/// `flexcore.lab.v1.TransformRequest`, the fields that are used.
#[derive(Clone, PartialEq, prost::Message)]
struct TransformRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes = "bytes", tag = "2")]
    payload: Bytes,
}

/// `flexcore.lab.v1.TransformResponse`, the fields that are used.
#[derive(Clone, PartialEq, prost::Message)]
struct TransformResponse {
    #[prost(bytes = "bytes", tag = "2")]
    payload: Bytes,
}

/// The plugin in Go, run by our host.
pub(crate) struct OurHost {
    plugin: Plugin,
}

impl OurHost {
    /// Starts the plugin.
    pub(crate) async fn start(programs: &Programs, tls: bool) -> anyhow::Result<Self> {
        let plugin = Plugin::start(transform(opened(programs)?, tls)).await?;
        Ok(Self { plugin })
    }

    /// This process, and that of its plugin.
    pub(crate) fn processes(&self) -> [u32; 2] {
        [std::process::id(), self.plugin.pid()]
    }

    /// Calls of so many bytes, by so many callers at once.
    pub(crate) async fn calls(
        &self,
        in_flight: usize,
        lasting: Duration,
        bytes: usize,
    ) -> anyhow::Result<Sampled> {
        let payload = payload(bytes);
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            let (connection, payload) = (self.plugin.connection().clone(), payload.clone());
            callers.spawn(calls(connection, payload, began + lasting));
        }
        let mut latencies = Latencies::default();
        let made = async {
            while let Some(made) = callers.join_next().await {
                latencies.append(made??);
            }
            anyhow::Ok(())
        };
        timeout(lasting + PATIENCE, made).await.context("the plugin does not answer")??;
        Sampled::since(began, latencies).context("no call was answered")
    }

    /// Ends the plugin.
    pub(crate) async fn stop(self) {
        self.plugin.stop().await;
    }
}

/// The plugin's file, opened and hashed: a host does that once, and not at each start.
pub(crate) fn opened(programs: &Programs) -> anyhow::Result<Checked> {
    Ok(Checked::open(&programs.plugin, None)?)
}

/// From the start of the plugin until its first answer, in microseconds; then it is ended.
pub(crate) async fn started(file: Checked, tls: bool, bytes: usize) -> anyhow::Result<f64> {
    let (plugin, took) = tokio::spawn(async move {
        let began = Instant::now();
        let plugin = Plugin::start(transform(file, tls)).await?;
        let (mut grpc, payload) = (plugin.connection().grpc(), payload(bytes));
        let called = timeout(PATIENCE, apply(&mut grpc, &payload)).await;
        called.context("the plugin does not answer")??;
        anyhow::Ok((plugin, began.elapsed()))
    })
    .await??;
    plugin.stop().await;
    Ok(took.as_secs_f64() * 1e6)
}

fn transform(file: Checked, tls: bool) -> Start {
    let (key, value) = COOKIE;
    Start {
        cookie: Cookie { key: key.to_owned(), value: value.to_owned() },
        versions: vec![VERSION],
        ..base(file, tls)
    }
}

fn payload(bytes: usize) -> Bytes {
    "a".repeat(bytes).into()
}

/// One call after the other.
async fn calls(
    connection: Connection,
    payload: Bytes,
    until: Instant,
) -> anyhow::Result<Latencies> {
    let mut grpc = connection.grpc();
    let mut latencies = Latencies::default();
    let mut sent = Instant::now();
    while sent < until {
        apply(&mut grpc, &payload).await?;
        let answered = Instant::now();
        latencies.add(answered - sent);
        sent = answered;
    }
    Ok(latencies)
}

async fn apply(grpc: &mut tonic::client::Grpc<Connection>, payload: &Bytes) -> anyhow::Result<()> {
    grpc.ready().await?;
    let request = TransformRequest { id: "bench".to_owned(), payload: payload.clone() };
    let path = PathAndQuery::from_static(APPLY);
    let codec = ProstCodec::<TransformRequest, TransformResponse>::default();
    let answer = grpc.unary(Request::new(request), path, codec).await?.into_inner();
    let (asked, answered) = (payload.len(), answer.payload.len());
    ensure!(asked == answered, "asked with {asked} bytes, answered with {answered}");
    Ok(())
}
