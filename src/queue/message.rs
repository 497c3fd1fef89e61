//! Messages of the queue, also those that a client of the broker cannot read. Publishers may
//! choose headers and subjects byte for byte: a line that is no header makes the client
//! drop its connection, a carriage return within a value ends it for good, and a status in the first line
//! is taken for the broker's own word. Asked for one by one they come as JSON.

use std::{str::FromStr as _, time::Duration};

use async_nats::{
    HeaderMap, HeaderName, HeaderValue,
    datetime::{DateTime, parse_rfc3339},
    jetstream::{self, consumer::pull},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use serde::Deserialize;
use tokio::time::Instant;

use flexcore_broker::{Error, leader::NOT_FOUND, unavailable};

/// Messages that are asked for one by one before a consumer is tried again.
const SINGLY_MAX: u64 = 64;
/// Time for which they are asked for one by one after one that cannot be read: more may follow.
const SINGLY_FOR: Duration = Duration::from_secs(60);
/// Time between questions for another one.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A message of the queue.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Its subject in the queue. Text that is not UTF-8 is replaced.
    pub subject: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its body.
    pub payload: Bytes,
    /// Stream sequence.
    pub sequence: u64,
    /// When the broker stored it, in milliseconds since 1970-01-01 UTC.
    pub stored_ms: i64,
    /// Its number among those that the reader was handed, from 1.
    pub number: u64,
    /// Why its headers cannot be read; they are left out then.
    pub malformed: Option<&'static str>,
}

/// Says which message it is. A sequence alone does not: a queue that was made anew counts from 1 again, and an
/// older copy goes on with sequences that others had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Stream sequence.
    pub sequence: u64,
    /// When the broker stored it, in milliseconds since 1970-01-01 UTC.
    pub stored_ms: i64,
}

impl Queued {
    /// Which message it is.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { sequence: self.sequence, stored_ms: self.stored_ms }
    }

    /// True if a client drops the connection over which it comes, or ends: its subject may do that, too.
    fn ends_connections(&self) -> bool {
        let is_odd = |c: char| c.is_whitespace() || c == char::REPLACEMENT_CHARACTER;
        self.malformed.is_some() || self.subject.contains(is_odd)
    }

    /// Of a consumer. Fails with the connection's error.
    fn of(message: Result<jetstream::Message, pull::MessagesError>) -> Result<Self, Error> {
        let message = message.map_err(unavailable)?;
        let info = message.info().map_err(unavailable)?;
        let (sequence, number) = (info.stream_sequence, info.consumer_sequence);
        let stored_ms = milliseconds(info.published);
        let jetstream::Message { message, .. } = message;
        Ok(Self {
            subject: message.subject.to_string(),
            headers: message.headers,
            payload: message.payload,
            sequence,
            stored_ms,
            number,
            malformed: None,
        })
    }
}

/// The messages that a consumer hands out.
pub(crate) fn pulled(messages: pull::Stream) -> impl Stream<Item = Result<Queued, Error>> + Send {
    messages.map(Queued::of)
}

/// The next messages on these subjects after a sequence, asked for one by one: some, or where one of
/// them cannot be read, all that come for a while. Then it ends.
pub(crate) fn singly(
    jetstream: jetstream::Context,
    stream: &'static str,
    subjects: String,
    after: u64,
) -> impl Stream<Item = Result<Queued, Error>> + Send {
    let begin = (after, 0, None::<Instant>);
    futures::stream::try_unfold(begin, move |(after, number, until)| {
        let (jetstream, subjects) = (jetstream.clone(), subjects.clone());
        async move {
            let goes_on = || match until {
                Some(until) => Instant::now() < until,
                None => number < SINGLY_MAX,
            };
            while goes_on() {
                let Some(next) = next_on(&jetstream, stream, &subjects, after).await? else {
                    if until.is_none() {
                        break;
                    }
                    tokio::time::sleep(ASK_EVERY).await;
                    continue;
                };
                let met = next.ends_connections().then(|| Instant::now() + SINGLY_FOR);
                let next = Queued { number: number + 1, ..next };
                let then = (next.sequence, next.number, met.or(until));
                return Ok(Some((next, then)));
            }
            Ok(None)
        }
    })
}

/// The broker's answer.
#[derive(Deserialize)]
struct ApiAnswer {
    message: Option<Stored>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    time: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The first message of the queue on these subjects after this sequence, as the stream's leader has it.
pub(crate) async fn next_on(
    jetstream: &jetstream::Context,
    stream: &str,
    subjects: &str,
    after: u64,
) -> Result<Option<Queued>, Error> {
    let asked = serde_json::json!({ "seq": after + 1, "next_by_subj": subjects });
    let subject = format!("STREAM.MSG.GET.{stream}");
    let answer: ApiAnswer = jetstream.request(subject, &asked).await.map_err(unavailable)?;
    match answer {
        ApiAnswer { message: Some(stored), .. } => Ok(Some(read(stored)?)),
        ApiAnswer { error: Some(refused), .. } if refused.err_code == NOT_FOUND => Ok(None),
        ApiAnswer { error: Some(refused), .. } => Err(unavailable(refused.description)),
        ApiAnswer { .. } => Err(unavailable("an answer without a message")),
    }
}

fn read(stored: Stored) -> Result<Queued, Error> {
    let bytes = |text: String| STANDARD.decode(text).map_err(unavailable);
    let (headers, malformed) = match headers(&bytes(stored.hdrs)?) {
        Ok(headers) => (headers, None),
        Err(why) => (None, Some(why)),
    };
    Ok(Queued {
        subject: stored.subject,
        headers,
        payload: bytes(stored.data)?.into(),
        sequence: stored.seq,
        stored_ms: milliseconds(parse_rfc3339(&stored.time).map_err(unavailable)?),
        number: 0,
        malformed,
    })
}

fn milliseconds(time: DateTime) -> i64 {
    time.unix_timestamp() * 1_000 + i64::from(time.millisecond())
}

/// Headers as they were published. Fails with why they cannot be read.
fn headers(bytes: &[u8]) -> Result<Option<HeaderMap>, &'static str> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "its headers are not UTF-8")?;
    let mut lines = text.lines().peekable();
    match lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) {
        Some(status) if status.trim().is_empty() => {}
        Some(_) => return Err("its headers carry a status, which only the broker's may"),
        None => return Err("its headers do not begin with NATS/1.0"),
    }
    let mut headers = HeaderMap::new();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or("one of its headers has no colon")?;
        // As a client does it, which ends over a carriage return that is left.
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        let name =
            HeaderName::from_str(name).map_err(|_| "one of its headers has no proper name")?;
        let value = HeaderValue::from_str(value.trim_end());
        headers.append(name, value.map_err(|_| "one of its headers has no proper value")?);
    }
    Ok(Some(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of many had the connection made anew.
    #[test]
    fn a_message_that_ends_connections_is_known_by_headers_or_subject() {
        let stored = |subject: &str, headers: &[u8]| {
            let (subject, hdrs) = (subject.to_owned(), STANDARD.encode(headers));
            let time = "2026-01-01T00:00:00.5Z".to_owned();
            read(Stored { subject, seq: 1, time, hdrs, data: String::new() }).unwrap()
        };
        assert!(!stored("a.b", b"NATS/1.0\r\nA: b\r\n\r\n").ends_connections());
        assert!(stored("a.b", b"NATS/1.0\r\nA: b\rC: d\r\n\r\n").ends_connections());
        for subject in ["a.\u{2003}b", "a.\u{fffd}"] {
            assert!(stored(subject, b"").ends_connections(), "{subject}");
        }
        assert_eq!(stored("a.b", b"").stored_ms, 1_767_225_600_500);
    }

    #[test]
    fn headers_are_read_as_a_client_reads_them_or_not_at_all() {
        let good = b"NATS/1.0\r\nA: b\r\nNats-Msg-Id:c-1 \r\nLong: d\r\n e\r\nA: f\r\n\r\n";
        let read = headers(good).unwrap().unwrap();
        let all =
            |name: &str| read.get_all(name).map(|value| value.to_string()).collect::<Vec<_>>();
        assert_eq!(
            (all("A"), all("Nats-Msg-Id")),
            (vec!["b".into(), "f".into()], vec!["c-1".into()])
        );
        assert_eq!(all("Long"), ["d e"]);
        assert!(headers(b"").unwrap().is_none());
        for (bytes, why) in [
            (&b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n"[..], "UTF-8"),
            (b"NATS/1.0\r\nno colon\r\n\r\n", "colon"),
            (b"NATS/1.0 404 No Messages\r\n\r\n", "status"),
            (b"NATS/1.0 100\r\nA: b\r\n\r\n", "status"),
            (b"HTTP/1.1\r\n\r\n", "NATS/1.0"),
            (b"NATS/1.0\r\n\xc3\xa9: b\r\n\r\n", "name"),
            (b"NATS/1.0\r\na b: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\nA: b\rC: d\r\n\r\n", "value"),
            (b"NATS/1.0\r\nA:\r\n\rb\r\n\r\n", "value"),
        ] {
            let found = headers(bytes).unwrap_err();
            assert!(found.contains(why), "{bytes:?}: {found}");
        }
    }
}
