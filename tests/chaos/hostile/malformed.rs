//! Commands that no client library would send, published byte for byte: no client can read their headers, or
//! their subject.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpStream, tcp::OwnedReadHalf},
    time::{sleep, timeout},
};

use super::{Done, TENANT};

/// Time between two rounds, and longest wait in one: for a connection, and for the answers.
const EVERY: Duration = Duration::from_secs(1);
const ROUND_MOST: Duration = Duration::from_secs(5);

/// Not UTF-8; no colon; no proper name; and what a broker alone says.
const HEADERS: [&[u8]; 6] = [
    b"NATS/1.0\r\nNats-Msg-Id: a\r\nX: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\nNats-Msg-Id: b\r\n\r\n",
    b"NATS/1.0\r\n\xc3\xa9: x\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
];
/// Where the broker says what it has stored.
const ANSWERS: &[u8] = b"_INBOX.malformed";
const PROPER: &[u8] = b"NATS/1.0\r\nNats-Msg-Id: c\r\n\r\n";

/// Publishes them again and again, at one broker after the other.
pub(super) async fn publish(nats: Vec<String>, done: Arc<Done>) {
    for url in nats.iter().cycle() {
        // One that is away has its turn again.
        drop(round(url, &done.malformed).await);
        sleep(EVERY).await;
    }
}

/// Publishes each once, and counts those that the broker says it has stored, within a time. Fails if it cannot
/// be reached, or refuses one.
async fn round(url: &str, stored: &AtomicU64) -> io::Result<()> {
    let stream = timeout(ROUND_MOST, TcpStream::connect(url.trim_start_matches("nats://")));
    let (reader, mut writer) = stream.await??.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await?;
    writer.write_all(&[&b"SUB "[..], ANSWERS, b" 1\r\n"].concat()).await?;
    for headers in HEADERS {
        writer.write_all(&message(b"blob.one.put", headers)).await?;
    }
    // The broker may be too busy to store all in time.
    if let Ok(counted) = timeout(ROUND_MOST, count(&mut lines, stored)).await {
        counted?;
    }
    // The subject is the broker's to refuse.
    writer.write_all(&message(b"blob.\xff\xfe.put", PROPER)).await
}

/// Counts messages as stored until there is an answer to each.
async fn count(lines: &mut Lines<BufReader<OwnedReadHalf>>, stored: &AtomicU64) -> io::Result<()> {
    let mut answers = 0;
    while answers < HEADERS.len() {
        let line = lines.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.starts_with("-ERR") {
            return Err(io::Error::other(line));
        }
        if let Some(is_stored) = is_stored(&line) {
            answers += 1;
            stored.fetch_add(u64::from(is_stored), Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Whether a message was stored, by a line that answers it.
fn is_stored(line: &str) -> Option<bool> {
    let answer: Value = serde_json::from_str(line).ok()?;
    let is_new = answer["seq"].as_u64() > Some(0) && answer["duplicate"] != true;
    Some(is_new && answer["error"].is_null())
}

/// A command with these headers, as it goes over the wire.
fn message(subject: &[u8], headers: &[u8]) -> Vec<u8> {
    let body = b"{}";
    let begin = format!("HPUB cmd.{TENANT}.");
    let sizes = format!(" {} {}\r\n", headers.len(), headers.len() + body.len());
    [begin.as_bytes(), subject, b" ", ANSWERS, sizes.as_bytes(), headers, body, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    #[test]
    fn a_message_says_its_sizes() {
        let told = message(b"blob.one.put", PROPER);
        let expected =
            b"HPUB cmd.demo.blob.one.put _INBOX.malformed 28 30\r\nNATS/1.0\r\nNats-Msg-Id: c\r\n\r\n{}\r\n";
        assert_eq!(told, expected);
    }

    /// The outcome of a round at a broker that says this, and how many it has stored.
    async fn at_broker(says: &'static [u8]) -> (bool, u64) {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", broker.local_addr().unwrap());
        let answering = tokio::spawn(async move {
            let (mut stream, _) = broker.accept().await.unwrap();
            stream.write_all(says).await.unwrap();
            // Until the round has ended.
            drop(stream.read_to_end(&mut Vec::new()).await);
        });
        let stored = AtomicU64::new(0);
        let is_ok = round(&url, &stored).await.is_ok();
        answering.await.unwrap();
        (is_ok, stored.into_inner())
    }

    #[tokio::test]
    async fn those_are_counted_that_a_broker_has_stored() {
        let all = b"INFO {}\r\nPING\r\n\
            MSG _INBOX.malformed 1 26\r\n{\"stream\":\"S\", \"seq\":7}\r\n\
            MSG _INBOX.malformed 1 44\r\n{\"stream\":\"S\", \"seq\":7, \"duplicate\": true}\r\n\
            {\"error\":{\"code\":503},\"stream\":\"S\",\"seq\":0}\r\n\
            {\"stream\":\"S\", \"seq\":8}\r\n{\"stream\":\"S\", \"seq\":9}\r\n{\"stream\":\"S\", \"seq\":10}\r\n";
        assert_eq!(at_broker(all).await, (true, 4));
        let read_and_refused = b"INFO {}\r\n-ERR 'Unknown Protocol Operation'\r\nPONG\r\n";
        assert_eq!(at_broker(read_and_refused).await, (false, 0));
    }
}
