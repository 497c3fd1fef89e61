//! A gateway on a real broker, a worker that answers as its commands are called, and a client that
//! sends bytes as they are.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[path = "../../../fixture.rs"]
mod fixture;

use async_nats::Message;
use flexcore_auth::{Grant, Issuer, SigningKey, Verifier};
use flexcore_cluster::{Member, Owners, WorkKind};
use flexcore_domain::{
    ActorName, Outcome, Position, StateReply, Tenant, Violation, WRONG_SEAL, command::header,
};
use flexcore_eventstore::{EventStore, Profile, headers::QUEUE_SEQUENCE};
use flexcore_gateway::{Listeners, Parts, Settings};
use flexcore_readmodel::ReadModels;
use flexcore_servers::{Options, Servers, Sync, Want};
use futures::StreamExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) const COMMANDS: WorkKind = WorkKind { name: "command", places: 64, heading: "slots" };

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().0);

pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) store: EventStore,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<Result<(), flexcore_gateway::Error>>,
    pub(crate) servers: Servers,
}

fn cache() -> PathBuf {
    flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"))
}

/// A gateway with a broker and a worker, and no Postgres behind its address.
pub(crate) async fn start(settings: Settings) -> Gateway {
    start_on(settings, Want::Nats).await
}

/// A gateway with a worker, on these servers; their Postgres is migrated and has no read model.
pub(crate) async fn start_on(settings: Settings, want: Want) -> Gateway {
    let options = Options { sync: Sync::Lazy, want, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let how = flexcore_eventstore::Settings {
        profile: Profile::Relaxed,
        replicas: 1,
        monitor_urls: vec![],
    };
    let store = EventStore::open(client, how).await.unwrap();
    let worker = async_nats::connect(servers.nats_url()).await.unwrap();
    let membership = flexcore_cluster::Settings::new("stand-in", "worker", [COMMANDS]);
    let member = Member::join(&worker, membership).await.unwrap();
    let owners = Owners::of(COMMANDS, store.client(), &member);
    tokio::spawn(serve(member));
    tokio::spawn(work(worker));
    let nowhere = || "postgres://nobody:nothing@127.0.0.1:1/none".to_owned();
    let url = servers.postgres_url().unwrap_or_else(nowhere);
    let read_models =
        ReadModels::connect(&url, flexcore_readmodel::Settings::default()).await.unwrap();
    if servers.postgres.is_some() {
        read_models.migrate().await.unwrap();
    }
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = http.local_addr().unwrap();
    let (catalog_sender, catalog) = watch::channel(Arc::new(fixture::catalog()));
    let shutdown = CancellationToken::new();
    let verifier = Verifier::new(vec![KEY.public().clone()], "flexcore", "flexcore");
    let parts = Parts {
        store: store.clone(),
        owners,
        read_models,
        catalog,
        plugins: flexcore_eventstore::plugins::watch(&store).await.unwrap(),
        verifier: Arc::new(verifier),
        settings,
        metrics: Arc::new(|| "# metrics\n".to_owned()),
    };
    let stop = shutdown.clone();
    let served = tokio::spawn(async move {
        let _deployed = catalog_sender;
        flexcore_gateway::serve(Listeners { http, metrics: None }, parts, stop).await
    });
    let gateway = Gateway { address, store, shutdown, served, servers };
    while gateway.get("/v1/commands/c?aggregate=flight&id=ready").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway
}

pub(crate) fn settings() -> Settings {
    Settings { requests_per_second: NonZeroU32::new(100_000).unwrap(), ..Settings::default() }
}

pub(crate) fn token(tenant: &str, lifetime: Duration) -> String {
    let grant = Grant {
        tenant: Tenant::parse(tenant).unwrap(),
        subject: ActorName::parse("alice").unwrap(),
        lifetime,
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Issuer::new(KEY.clone(), "flexcore", "flexcore").mint(&grant, now_s).unwrap()
}

static TOKEN: LazyLock<String> = LazyLock::new(|| token("acme", Duration::from_secs(3600)));

pub(crate) fn bearer() -> String {
    format!("Authorization: Bearer {}\r\n", *TOKEN)
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, v)| v).next()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is a whole problem document of this kind.
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["type"], format!("/problems/{code}"), "{self:?}");
        assert_eq!(document["status"], status);
        let trace = self.header("traceparent").unwrap();
        assert_eq!(document["trace_id"], trace[3..35]);
        document
    }
}

impl Gateway {
    /// Sends these bytes and reads until the gateway closes.
    pub(crate) async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The gateway may answer and close before it has read everything.
        let _ = stream.write_all(request).await;
        read(&mut stream).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{headers}\r\n{body}"
        );
        self.raw(request.as_bytes()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &bearer(), "").await
    }

    pub(crate) async fn command(&self, name: &str, more: &str, body: &str) -> Answer {
        let headers = format!("{}Content-Type: application/json\r\n{more}", bearer());
        self.send("POST", &format!("/v1/commands/flight/UA1/{name}"), &headers, body).await
    }
}

pub(crate) async fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes));
    let _ = reading.await.expect("the gateway did not close the connection");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Serves what it is given, and has left at once what it is to leave.
pub(crate) async fn serve(member: Member) {
    let mut assigned = member.assigned();
    loop {
        let now = assigned.borrow_and_update().clone();
        let places = now.of(COMMANDS).into_keys().collect();
        member.report(COMMANDS, now.followed, places);
        if assigned.changed().await.is_err() {
            return;
        }
    }
}

/// Answers what the command's name says.
async fn work(client: async_nats::Client) {
    let requests = client.subscribe("req.>").await.unwrap();
    let states = client.subscribe("get.>").await.unwrap();
    let outcomes = client.subscribe("out.>").await.unwrap();
    let mut all = futures::stream::select_all([requests, states, outcomes]);
    while let Some(message) = all.next().await {
        let Some(reply) = message.reply.clone() else { continue };
        let Some(body) = reply_to(&message) else { continue };
        client.publish(reply, body.to_string().into()).await.unwrap();
    }
}

fn reply_to(message: &Message) -> Option<Value> {
    let field = |name: &str| message.headers.as_ref()?.get(name).map(|v| v.as_str().to_owned());
    let subject = message.subject.as_str();
    let last = subject.rsplit('.').next().unwrap();
    if subject.starts_with("get.") {
        let version = field(header::AT_VERSION).map_or(3, |v| v.parse::<u64>().unwrap().min(3));
        let found = |v| StateReply::Found { version: v, state: raw("{\"a\":1}") };
        let reply = if last == "missing" { StateReply::NotFound } else { found(version) };
        return Some(serde_json::to_value(reply).unwrap());
    }
    if subject.starts_with("out.") {
        let outcome = match last {
            "silent" => return None,
            "pending" => Outcome::Pending,
            "gone" => Outcome::Unknown,
            "dead" => Outcome::Dead { reason: "why".to_owned() },
            // The stored command that is asked for, if the question names one.
            _ => accepted(field(QUEUE_SEQUENCE).map_or(1, |v| v.parse().unwrap())),
        };
        return Some(serde_json::to_value(outcome).unwrap());
    }
    outcome(last, &field).map(|outcome| serde_json::to_value(outcome).unwrap())
}

fn accepted(version: u64) -> Outcome {
    let slot = flexcore_domain::Slot::new(7).unwrap();
    Outcome::Accepted { version, position: Some(Position { slot, sequence: 42 }), replayed: false }
}

fn outcome(command: &str, field: &impl Fn(&str) -> Option<String>) -> Option<Outcome> {
    let known = vec!["depart".to_owned()];
    Some(match command {
        "depart" => {
            assert_eq!(field(header::ACTOR).as_deref(), Some("alice"));
            assert!(field(header::ACTOR_SEAL).is_some());
            assert!(field(header::TRACEPARENT).is_some() && field(header::COMMAND_ID).is_some());
            let expected: u64 = field(header::EXPECTED_VERSION).map_or(0, |v| v.parse().unwrap());
            accepted(expected.saturating_add(1))
        }
        "reject" => Outcome::Rejected { code: "gone".to_owned(), message: "It left.".to_owned() },
        "invalid" => Outcome::InvalidPayload {
            violations: vec![Violation { field: "/a".to_owned(), reason: "missing".to_owned() }],
        },
        "unknown_kind" => Outcome::UnknownAggregate { known },
        "unknown" => Outcome::UnknownCommand { known },
        "conflict" => Outcome::Conflict { version: 5 },
        "mismatch" => Outcome::IdMismatch,
        "faulty" => Outcome::Faulty { message: "it threw".to_owned() },
        "overloaded" => Outcome::Overloaded { retry_after_s: 3 },
        "full" => Outcome::NoRoom { message: "secret disk".to_owned() },
        "unavailable" => Outcome::Unavailable { message: "secret host".to_owned() },
        "wrong_seal" => Outcome::Unavailable { message: WRONG_SEAL.to_owned() },
        _ => return None,
    })
}

fn raw(text: &str) -> Box<serde_json::value::RawValue> {
    serde_json::value::RawValue::from_string(text.to_owned()).unwrap()
}
