//! A client of the gateway: whole requests over one kept connection, and raw bytes for hostile ones.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Mutex,
};

use super::PATIENCE;

/// A request without an answer after this time has failed: the gateway gives up sooner.
const ANSWER_WAIT: Duration = Duration::from_secs(40);

type Connection = http1::SendRequest<Full<Bytes>>;

/// A client with a token. Requests go one after another over one connection.
#[derive(Debug)]
pub(crate) struct Http {
    authority: String,
    token: String,
    connection: Mutex<Option<Connection>>,
}

/// The answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Http {
    pub(crate) fn new(url: &str, token: &str) -> Self {
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { authority, token: token.to_owned(), connection: Mutex::new(None) }
    }

    /// Another connection of the same bearer.
    pub(crate) fn another(&self) -> Self {
        Self::new(&self.authority, &self.token)
    }

    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Sends a request. Fails when no answer came: then the outcome is unknown.
    pub(crate) async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("host", &self.authority);
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let exchange = async {
            let mut connection = self.connection.lock().await;
            let mut open = match connection.take() {
                Some(open) if !open.is_closed() => open,
                _ => connect(&self.authority).await?,
            };
            open.ready().await.map_err(|error| error.to_string())?;
            let answer = open.send_request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            *connection = Some(open);
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(ANSWER_WAIT, exchange).await.map_err(|_| "no answer".to_owned())?
    }

    /// Sends a request that must be answered.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let answered = self.try_send(method, path, headers, body).await;
        answered.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// A command on an account, with further headers.
    pub(crate) async fn command(
        &self,
        id: &str,
        command: &str,
        headers: &[(&str, &str)],
        payload: impl Into<Bytes>,
    ) -> Answer {
        let path = format!("/v1/commands/account/{id}/{command}");
        let json = [("content-type", "application/json")];
        self.send("POST", &path, &[&json, headers].concat(), payload).await
    }

    /// Rows of a read model or named query.
    pub(crate) async fn rows(&self, path: &str) -> Vec<Value> {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()["rows"].as_array().unwrap().clone()
    }
}

async fn connect(authority: &str) -> Result<Connection, String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect(authority).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends these very bytes and reads until the server closes; `Connection: close` must be in them.
pub(crate) async fn raw(authority: &str, bytes: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(authority).await.unwrap();
        let (mut from, mut to) = stream.split();
        // The server may answer and close before it has read a request that is too long.
        let (_, read) = tokio::join!(to.write_all(bytes), async {
            let mut answer = Vec::new();
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut chunk).await {
                answer.extend_from_slice(&chunk[..count]);
            }
            answer
        });
        read
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let shown = bytes[..bytes.len().min(200)].escape_ascii();
    let end = end.unwrap_or_else(|| panic!("no HTTP in the answer to {shown}: {answer:?}"));
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.parse::<hyper::header::HeaderName>().unwrap(), value.parse().unwrap())
    });
    Answer { status, headers: headers.collect(), body: answer[end + 4..].to_vec().into() }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.to_str().unwrap()
    }

    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The problem document of an error: of this status and code, in its standard shape, and
    /// telling nothing of our insides.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let document = self.json();
        assert_eq!(document["type"], json!(format!("/problems/{code}")), "{document}");
        assert_eq!(document["status"], json!(status), "{document}");
        for member in ["title", "detail"] {
            assert!(document[member].as_str().is_some_and(|text| !text.is_empty()), "{document}");
        }
        let trace = document["trace_id"].as_str().unwrap_or_default();
        assert!(trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()), "{document}");
        let text = document.to_string();
        for inside in ["sqlx", "panicked", ".rs:", "/src/", "SELECT", "stack backtrace"] {
            assert!(!text.contains(inside), "{inside} in {text}");
        }
        document
    }
}
