//! A bucket: a stream `KV_<bucket>` that keeps the last message of each key. Reads ask the stream's leader,
//! and a write may have a condition, so that of two writers one wins.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        stream::{LastRawMessageError, LastRawMessageErrorKind},
    },
};
use bytes::Bytes;

use crate::acknowledged::{Acknowledged, Unstored, expect_last, expect_last_on};

/// The header with the time after which the broker frees a message's key.
pub const TTL: &str = "Nats-TTL";

/// A time as FlexCore writes it into [`TTL`].
fn seconds(ttl: &str) -> Option<Duration> {
    ttl.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

/// The condition for storing a write.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// The key whose last message is looked at; not always the one that is written.
    pub key: &'a str,
    /// Its sequence; 0: there is none.
    pub sequence: u64,
}

/// The subject of a key of the bucket that this stream holds.
#[must_use]
pub fn subject(stream: &str, key: &str) -> String {
    let bucket = stream.strip_prefix("KV_").unwrap_or(stream);
    format!("$KV.{bucket}.{key}")
}

/// A key's last message.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its stream sequence.
    pub sequence: u64,
    /// `None`: the key was deleted, and the message says so.
    pub value: Option<Bytes>,
    /// The time after which the broker frees the key; `None`: it does not.
    pub ttl: Option<Duration>,
}

/// A bucket; cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    /// The stream that holds it.
    pub stream: &'static str,
    /// Where the leader is asked.
    pub jetstream: jetstream::Context,
    /// Where keys are written.
    pub acknowledged: Acknowledged,
}

impl Bucket {
    /// A key's last message; `None`: there is none. Fails when the leader does not answer, and when there
    /// is no such stream.
    #[boxed::async_recursion]
    pub async fn read(&self, key: &str) -> Result<Option<Entry>, LastRawMessageError> {
        let stream = self.jetstream.get_stream_no_info(self.stream).await;
        let stream = stream.map_err(|error| {
            LastRawMessageError::with_source(LastRawMessageErrorKind::Other, error)
        })?;
        match stream.get_last_raw_message_by_subject(&subject(self.stream, key)).await {
            Ok(message) => {
                // Marks of a deletion have a header or, if the broker makes them, no value.
                let deleted =
                    message.headers.get("KV-Operation").is_some() || message.payload.is_empty();
                let value = (!deleted).then_some(message.payload);
                let ttl = message.headers.get(TTL).and_then(|ttl| seconds(ttl.as_str()));
                Ok(Some(Entry { sequence: message.sequence, value, ttl }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a key if the condition holds. Returns the message's sequence; fails like
    /// [`Acknowledged::store`].
    pub async fn write(
        &self,
        key: &str,
        mut headers: HeaderMap,
        value: Bytes,
        condition: Option<Condition<'_>>,
    ) -> Result<u64, Unstored> {
        match condition {
            Some(on) if on.key == key => expect_last(&mut headers, on.sequence),
            Some(on) => expect_last_on(&mut headers, &subject(self.stream, on.key), on.sequence),
            None => {}
        }
        self.acknowledged.store(subject(self.stream, key), headers, value).await
    }
}
