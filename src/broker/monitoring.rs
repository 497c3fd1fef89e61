//! The servers' monitoring, over HTTP.

use std::fmt::Display;

use flexcore_http::{Bytes, Limits, Request, StatusCode, ask};
use serde_json::Value;

use crate::{Error, REQUEST_TIMEOUT, unavailable};

/// What is read of a page: what a server says of itself has some kilobytes.
const LIMITS: Limits = Limits { within: REQUEST_TIMEOUT, bytes_max: 1 << 20 };

/// A server's general state. Fails with [`Error::Unavailable`] when the server does not tell it.
#[boxed::async_recursion]
pub async fn varz(url: &str) -> Result<Value, Error> {
    page(url, "/varz", |status| status.is_success()).await
}

/// A server's health, also when it says that something is wrong. Fails with [`Error::Unavailable`] when
/// the server does not tell it.
#[boxed::async_recursion]
pub async fn healthz(url: &str) -> Result<Value, Error> {
    page(url, "/healthz", |status| status.is_success() || status.is_server_error()).await
}

async fn page(url: &str, path: &str, is_told: fn(StatusCode) -> bool) -> Result<Value, Error> {
    let failed = |error: &dyn Display| unavailable(format!("monitoring at {url}: {error}"));
    let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let request = Request::get(path).body(Bytes::new()).map_err(|error| failed(&error))?;
    let answer = ask(authority, request, LIMITS).await.map_err(|error| failed(&error))?;
    if !is_told(answer.status()) {
        return Err(failed(&answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// The address of a server that answers everything with this status.
    async fn server(status: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let body = r#"{"error": "no space left on device"}"#;
                let says =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(says.as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn a_server_that_is_not_well_tells_its_health_and_no_state() {
        let well = server("200 OK").await;
        assert!(varz(&well).await.is_ok() && healthz(&well).await.is_ok());
        let ill = server("503 Service Unavailable").await;
        assert_eq!(healthz(&ill).await.unwrap()["error"], "no space left on device");
        let error = varz(&ill).await.unwrap_err().to_string();
        assert!(error.contains(&ill) && error.contains("503"), "{error}");
        let other = server("404 Not Found").await;
        assert!(varz(&other).await.is_err() && healthz(&other).await.is_err());
    }
}
