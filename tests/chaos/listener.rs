//! A client that listens to a tenant's events, and goes on at another gateway where it was cut off.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use serde_json::Value;

use crate::{
    cluster::TENANTS,
    evidence::{Change, Commit},
    talk::Place,
};

/// The tenant whose events are read.
pub(crate) const TENANT: &str = TENANTS[0];
/// A stream that is silent for longer than its heartbeat is dead.
const SILENCE_MOST: Duration = Duration::from_secs(18);
/// A gateway that does not take a connection in this time is as good as away.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Before the next gateway is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// A commit as it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) sequence: u64,
    pub(crate) tenant: String,
    pub(crate) account: String,
    pub(crate) changes: Vec<Change>,
}

impl Heard {
    /// True if it is this commit of the log.
    pub(crate) fn is(&self, commit: &Commit) -> bool {
        self.sequence == commit.sequence
            && (&self.tenant, &self.account) == (&commit.tenant, &commit.account)
            && self.changes == commit.changes
    }

    /// Adds one of its events.
    fn add(&mut self, event: &Value) {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        (self.tenant, self.account) = (text("tenant"), text("subject"));
        let name = text("type");
        let name = name.strip_prefix("account.").unwrap_or(&name);
        self.changes.push(Change::of(name, &event["data"]));
    }
}

/// The client. Dropping it ends it.
pub(crate) struct Listener {
    heard: Arc<Mutex<Vec<Heard>>>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens from the log's beginning.
    pub(crate) fn start(place: &Place) -> Self {
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let gateways = place.gateways.clone();
        let (token, to) = (place.tokens[0].clone(), heard.clone());
        let task = tokio::spawn(async move {
            let mut last = "1-0-0".to_owned();
            for gateway in gateways.iter().cycle() {
                let _ended = listen(gateway, &token, &mut last, &to).await;
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
        Self { heard, task }
    }

    /// The commits that it heard, in order.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// The last stream sequence that it heard of.
    pub(crate) fn last(&self) -> Option<u64> {
        self.heard.lock().unwrap().last().map(|last| last.sequence)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens at a gateway until the stream ends.
async fn listen(
    gateway: &str,
    token: &str,
    last: &mut String,
    heard: &Mutex<Vec<Heard>>,
) -> Option<()> {
    let stream = timeout(CONNECT_WAIT, TcpStream::connect(gateway)).await.ok()?.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/v1/events")
        .header("host", gateway)
        .header("authorization", format!("Bearer {token}"))
        .header("last-event-id", last.as_str())
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = timeout(SILENCE_MOST, sender.send_request(request)).await.ok()?.ok()?;
    let mut body = answer.into_body();
    // A commit that is cut off comes again from its begin.
    let (mut rest, mut commit) = (String::new(), Heard::default());
    while let Ok(Some(Ok(frame))) = timeout(SILENCE_MOST, body.frame()).await {
        let Ok(bytes) = frame.into_data() else { continue };
        rest.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((message, after)) = rest.split_once("\n\n") {
            let field = |name| message.lines().find_map(|line| line.strip_prefix(name));
            if let (Some(_), Some(data)) = (field("event: account."), field("data: ")) {
                commit.add(&serde_json::from_str(data).ok()?);
            }
            // Only the last event of a commit has an id; a position may come alone, too.
            if let Some(id) = field("id: ") {
                id.clone_into(last);
                commit.sequence = id.rsplit('-').next().and_then(|text| text.parse().ok())?;
                let commit = std::mem::take(&mut commit);
                if !commit.changes.is_empty() {
                    heard.lock().unwrap().push(commit);
                }
            }
            rest = after.to_owned();
        }
    }
    connection.abort();
    None
}
