//! A client of the gateways: whole requests over kept connections, with a deadline each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::Instant};

/// A node that does not take a connection in this part of the time is as good as away: there must be
/// time left for another.
const CONNECT_PART: u32 = 6;
/// Idle connections that are kept to one node.
const IDLE_MAX: usize = 512;

/// Time for which an idle connection is kept. A gateway closes one after 5 s (`HEADERS_TIMEOUT`
/// among its limits), and a request at that moment is lost: clients have to be the first to let go.
const IDLE_FOR: Duration = Duration::from_secs(4);

type Connection = http1::SendRequest<Full<Bytes>>;

/// A connection and since when it is idle.
type Idle = (Connection, Instant);

/// Connections that are free, by address.
#[derive(Clone, Default)]
pub(crate) struct Client {
    idle: Arc<Mutex<HashMap<String, Vec<Idle>>>>,
}

/// The request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) token: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

/// The answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Not even a connection: nothing was sent.
    Connect(String),
    /// The connection broke before the answer.
    Broken(String),
    /// The deadline passed.
    Timeout,
}

impl Ask {
    pub(crate) fn get(path: impl Into<String>, token: &str) -> Self {
        let (path, token) = (path.into(), token.to_owned());
        Self { method: "GET", path, token, headers: Vec::new(), body: String::new() }
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Client {
    /// Sends the request to `HOST:PORT` and gives the answer, or the reason why none came `within`
    /// the time.
    pub(crate) async fn send(
        &self,
        authority: &str,
        ask: &Ask,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let deadline = Instant::now() + within;
        loop {
            let kept = self.take(authority);
            let was_kept = kept.is_some();
            let mut open = match kept {
                Some(open) => open,
                None => connect(authority, within).await?,
            };
            let exchange = exchange(&mut open, request(authority, ask));
            let answered = tokio::time::timeout_at(deadline, exchange).await;
            match answered.map_err(|_| Failure::Timeout)? {
                // The other end closed it for having been idle, before anything was written.
                Err(NoAnswer::NotWritten(_)) if was_kept => {}
                Err(NoAnswer::NotWritten(why) | NoAnswer::Broken(why)) => {
                    return Err(Failure::Broken(why));
                }
                Ok(answer) => {
                    self.give_back(authority, open);
                    return Ok(answer);
                }
            }
        }
    }

    fn take(&self, authority: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap();
        let free = idle.get_mut(authority)?;
        while let Some((open, since)) = free.pop() {
            if !open.is_closed() && since.elapsed() < IDLE_FOR {
                return Some(open);
            }
        }
        None
    }

    fn give_back(&self, authority: &str, open: Connection) {
        let mut idle = self.idle.lock().unwrap();
        let free = idle.entry(authority.to_owned()).or_default();
        if free.len() < IDLE_MAX && !open.is_closed() {
            free.push((open, Instant::now()));
        }
    }

    /// Closes idle connections.
    pub(crate) fn close(&self) {
        self.idle.lock().unwrap().clear();
    }
}

/// Why a connection gave no answer.
enum NoAnswer {
    /// Of the request not a byte was written.
    NotWritten(String),
    Broken(String),
}

async fn exchange(
    open: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<Answer, NoAnswer> {
    open.ready().await.map_err(|error| NoAnswer::NotWritten(error.to_string()))?;
    let sent = open.try_send_request(request).await;
    let answer = sent.map_err(|mut error| match error.take_message() {
        Some(_) => NoAnswer::NotWritten(error.error().to_string()),
        None => NoAnswer::Broken(error.error().to_string()),
    })?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| NoAnswer::Broken(error.to_string()))?;
    let (status, headers) = (head.status.as_u16(), head.headers);
    Ok(Answer { status, headers, body: body.to_bytes() })
}

fn request(authority: &str, ask: &Ask) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(ask.method).uri(&ask.path);
    request = request.header("host", authority);
    if !ask.token.is_empty() {
        request = request.header("authorization", format!("Bearer {}", ask.token));
    }
    if !ask.body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in &ask.headers {
        request = request.header(*name, value);
    }
    request.body(Full::new(Bytes::from(ask.body.clone()))).unwrap()
}

async fn connect(authority: &str, within: Duration) -> Result<Connection, Failure> {
    let text = |error: &dyn std::fmt::Display| Failure::Connect(error.to_string());
    let stream = tokio::time::timeout(within / CONNECT_PART, TcpStream::connect(authority));
    let stream = stream.await.map_err(|error| text(&error))?.map_err(|error| text(&error))?;
    stream.set_nodelay(true).map_err(|error| text(&error))?;
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| text(&error))?;
    tokio::spawn(connection);
    Ok(sender)
}
