//! The servers' monitoring, over HTTP.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Error, REQUEST_TIMEOUT};

/// A server's general state. Fails with [`Error::Unavailable`] when the server does not answer.
pub async fn varz(url: &str) -> Result<serde_json::Value, Error> {
    monitored(url, "varz").await
}

/// A page of a server's monitoring, such as `healthz`. Fails with [`Error::Unavailable`] when the server
/// does not answer.
pub async fn monitored(url: &str, page: &str) -> Result<serde_json::Value, Error> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let bad =
        |error: &dyn std::fmt::Display| Error::Unavailable(format!("monitoring at {url}: {error}"));
    let ask = async {
        let mut stream = TcpStream::connect(host).await?;
        let request = format!("GET /{page} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(1 << 20).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, ask)
        .await
        .map_err(|error| bad(&error))?
        .map_err(|error| bad(&error))?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
    serde_json::from_slice(&answer[body..]).map_err(|error| bad(&error))
}
