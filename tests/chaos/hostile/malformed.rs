//! Commands that no client library would send, published byte for byte: no client can read their headers, or
//! their subject.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{Done, TENANT};

/// Time between two rounds, and longest time for one.
const EVERY: Duration = Duration::from_secs(1);
const ROUND_MOST: Duration = Duration::from_secs(2);

/// Not UTF-8; no colon; no proper name; and what a broker alone says.
const HEADERS: [&[u8]; 6] = [
    b"NATS/1.0\r\nNats-Msg-Id: a\r\nX: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\nNats-Msg-Id: b\r\n\r\n",
    b"NATS/1.0\r\n\xc3\xa9: x\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
];
const PROPER: &[u8] = b"NATS/1.0\r\nNats-Msg-Id: c\r\n\r\n";

/// Publishes them again and again, at one broker after the other.
pub(super) async fn publish(nats: Vec<String>, done: Arc<Done>) {
    for url in nats.iter().cycle() {
        // One that is away has its turn again.
        if let Ok(Ok(())) = timeout(ROUND_MOST, round(url)).await {
            done.malformed.fetch_add(HEADERS.len() as u64, Ordering::Relaxed);
        }
        sleep(EVERY).await;
    }
}

/// Publishes each once. Returns when the broker has read them.
async fn round(url: &str) -> io::Result<()> {
    let stream = TcpStream::connect(url.trim_start_matches("nats://")).await?;
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    lines.next_line().await?;
    writer.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await?;
    for headers in HEADERS {
        writer.write_all(&message(b"blob.one.put", headers)).await?;
    }
    writer.write_all(b"PING\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        if line == "PONG" {
            // The subject is the broker's to refuse.
            return writer.write_all(&message(b"blob.\xff\xfe.put", PROPER)).await;
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// A command with these headers, as it goes over the wire.
fn message(subject: &[u8], headers: &[u8]) -> Vec<u8> {
    let body = b"{}";
    let begin = format!("HPUB cmd.{TENANT}.");
    let sizes = format!(" {} {}\r\n", headers.len(), headers.len() + body.len());
    [begin.as_bytes(), subject, sizes.as_bytes(), headers, body, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_its_sizes() {
        let told = message(b"blob.one.put", PROPER);
        let expected =
            b"HPUB cmd.demo.blob.one.put 28 30\r\nNATS/1.0\r\nNats-Msg-Id: c\r\n\r\n{}\r\n";
        assert_eq!(told, expected);
    }
}
