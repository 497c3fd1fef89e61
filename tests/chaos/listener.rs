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

use crate::cluster::{Cluster, TENANTS};

/// Whose events are listened to.
pub(crate) const TENANT: &str = TENANTS[0];
/// A stream that is silent for longer than its heartbeat is dead.
const SILENCE_MOST: Duration = Duration::from_secs(18);
/// A gateway that does not take a connection in this time is as good as away.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Before the next gateway is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// The client. Dropping it ends it.
pub(crate) struct Listener {
    heard: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens from the log's beginning.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let heard: Arc<Mutex<Vec<u64>>> = Arc::default();
        let gateways: Vec<String> =
            (1..=cluster.shape.gateways).map(|n| cluster.gateway(n.into())).collect();
        let (token, to) = (cluster.tokens[0].clone(), heard.clone());
        let task = tokio::spawn(async move {
            let mut last = "1-0-0".to_owned();
            for gateway in gateways.iter().cycle() {
                let _ended = listen(gateway, &token, &mut last, &to).await;
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
        Self { heard, task }
    }

    /// The stream sequences of the commits that it heard, in order.
    pub(crate) fn heard(&self) -> Vec<u64> {
        self.heard.lock().unwrap().clone()
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
    heard: &Mutex<Vec<u64>>,
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
    let mut rest = String::new();
    while let Ok(Some(Ok(frame))) = timeout(SILENCE_MOST, body.frame()).await {
        let Ok(bytes) = frame.into_data() else { continue };
        rest.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((message, after)) = rest.split_once("\n\n") {
            // Only the last event of a commit has an id.
            if let Some(id) = message.lines().find_map(|line| line.strip_prefix("id: ")) {
                id.clone_into(last);
                let sequence = id.rsplit('-').next().and_then(|text| text.parse().ok())?;
                heard.lock().unwrap().push(sequence);
            }
            rest = after.to_owned();
        }
    }
    connection.abort();
    None
}
