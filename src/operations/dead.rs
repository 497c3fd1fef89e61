//! Dead letters: what could not be processed, to look at and to requeue.

use std::error::Error as _;

use async_nats::{
    HeaderMap,
    header::HeaderValue,
    jetstream::{
        self, ErrorCode,
        context::{PublishError, PublishErrorKind},
        message::StreamMessage,
        stream::{DirectGetErrorKind, RawMessageErrorKind, Stream},
    },
};
use flexcore_domain::command::header;
use flexcore_eventstore::{EventStore, commands::published_subject, topology};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::Error;

/// All dead letters of an installation.
pub struct Letters {
    store: EventStore,
    stream: Stream<()>,
}

/// A dead letter, as it was put aside.
pub struct Letter(StreamMessage);

impl Letters {
    /// Those beside this log. Asks the broker for nothing yet.
    #[boxed::async_recursion]
    pub async fn of(store: EventStore) -> Self {
        let stream = store.jetstream().get_stream_no_info(topology::DEAD).await;
        Self { stream: stream.expect("BUG: the stream has a valid name"), store }
    }

    /// The oldest one behind this number; `None`: there is none.
    #[boxed::async_recursion]
    pub async fn after(&self, number: u64) -> Result<Option<Letter>, Error> {
        let subjects = topology::DEAD_SUBJECTS;
        match self.stream.direct_get_next_for_subject(subjects, Some(number + 1)).await {
            Ok(dead) => Ok(Some(Letter(dead))),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::DeadUnread(error.into())),
        }
    }

    /// The one of this number. Fails when there is none.
    #[boxed::async_recursion]
    pub async fn get(&self, number: u64) -> Result<Letter, Error> {
        if !self.is_listed(number).await? {
            return Err(Error::NoLetter(number));
        }
        // Read from the leader the client library keeps the last of two values of a header alone.
        let source = match self.stream.direct_get(number).await {
            Ok(dead) => return Ok(Letter(dead)),
            Err(source) => source,
        };
        if self.is_listed(number).await? {
            return Err(Error::NotEverywhere { number, source });
        }
        Err(Error::TakenOff(number))
    }

    /// True if there is one of this number.
    // The leader is asked: another replica may lack the last ones, and still have requeued ones.
    async fn is_listed(&self, number: u64) -> Result<bool, Error> {
        match self.stream.get_raw_message(number).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(Error::DeadUnread(error.into())),
        }
    }

    /// Publishes a dead command to its first subject and takes it off the list. Fails when it is none,
    /// not whole, or too large for the queue.
    // A crash between the two has it sent twice. The command id that travels with it has it done once.
    #[boxed::async_recursion]
    pub async fn requeue(&self, number: u64) -> Result<(), Error> {
        let dead = self.get(number).await?;
        let subject = published_subject(&dead.subject()).ok_or(Error::NoCommand(number))?;
        dead.whole()?;
        let mut headers = HeaderMap::new();
        for (name, values) in dead.headers() {
            if ![header::DEAD_REASON, header::DEAD_SUBJECT].contains(&name) {
                values.iter().for_each(|value| headers.append(name, value.as_str()));
            }
        }
        // One that came without an id would be put aside again.
        if headers.get(header::OWN_COMMAND_ID).is_none() {
            headers.insert(header::COMMAND_ID, dead.made_id());
        }
        let jetstream = self.store.jetstream();
        let refused = |error: PublishError, or: fn(PublishError) -> Error| {
            if is_too_large(&error) { Error::TooLarge(number) } else { or(error) }
        };
        let sent = jetstream.publish_with_headers(subject, headers, dead.0.payload).await;
        let sent = sent.map_err(|error| refused(error, Error::NotSent))?;
        sent.await.map_err(|error| refused(error, Error::NotRequeued))?;
        let failed = match self.stream.delete_message(number).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(Error::TakenOff(number)),
            Err(failed) => failed,
        };
        // What is not there cannot be deleted either.
        match self.is_listed(number).await {
            Ok(false) => Err(Error::TakenOff(number)),
            _ => Err(Error::StillListed(failed)),
        }
    }
}

impl Letter {
    /// Its number in the list.
    pub fn number(&self) -> u64 {
        self.0.sequence
    }

    /// When it was put aside, RFC 3339, to the second.
    pub fn since(&self) -> String {
        let time = self.0.time.replace_nanosecond(0).unwrap_or(self.0.time);
        time.format(&Rfc3339).unwrap_or_default()
    }

    /// The id with which it is requeued if it has none. Numbers begin anew with the list, when the stream is
    /// deleted and made anew.
    fn made_id(&self) -> String {
        format!("requeue:{}:{}", self.since(), self.number())
    }

    /// Its kind: `command`, or `projection.<read model>.<slot>`.
    pub fn kind(&self) -> String {
        // Its subject has the tenant and the size behind the first word.
        let parts: Vec<&str> = self.0.subject.split('.').skip(1).collect();
        match parts[..] {
            [kind, _tenant, size, ref rest @ ..] if size.starts_with('k') => {
                [&[kind], rest].concat().join(".")
            }
            _ => parts.join("."),
        }
    }

    /// True if it is of a kind: `command` or `projection`.
    pub fn is_of(&self, kind: &str) -> bool {
        self.0.subject.split('.').nth(1) == Some(kind)
    }

    /// The subject that it first came with.
    pub fn subject(&self) -> String {
        self.header(header::DEAD_SUBJECT)
    }

    /// Why it was put aside.
    pub fn reason(&self) -> String {
        self.header(header::DEAD_REASON)
    }

    /// Its own headers, without those that the broker adds.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[HeaderValue])> {
        let own = self.0.headers.iter().map(|(name, values)| (name.as_ref(), values.as_slice()));
        own.filter(|(name, _): &(&str, _)| !name.starts_with("Nats-"))
    }

    /// Its body, as text for a terminal.
    pub fn body(&self) -> String {
        printable(&String::from_utf8_lossy(&self.0.payload))
    }

    /// All of it. A header that was given more than once is a list.
    pub fn as_json(&self) -> Value {
        let header = |(name, values): (&str, &[HeaderValue])| {
            let all: Vec<&str> = values.iter().map(HeaderValue::as_str).collect();
            (name.to_owned(), if let [one] = all[..] { json!(one) } else { json!(all) })
        };
        let headers: serde_json::Map<String, Value> = self.headers().map(header).collect();
        let text = String::from_utf8_lossy(&self.0.payload);
        json!({
            "number": self.number(),
            "time": self.since(),
            "kind": self.kind(),
            "subject": self.subject(),
            "reason": self.reason(),
            "headers": headers,
            "body": serde_json::from_str(&text).unwrap_or(Value::String(text.into_owned())),
        })
    }

    fn header(&self, name: &str) -> String {
        let value = self.0.headers.get(name);
        value.map(|value| printable(value.as_str())).unwrap_or_default()
    }

    /// Fails when not all of the message was kept: a part of it is another command.
    fn whole(&self) -> Result<(), Error> {
        let (number, bytes) = (self.number(), self.header(header::DEAD_BODY_BYTES));
        if !bytes.is_empty() {
            return Err(Error::NotWhole(format!(
                "{number} cannot be requeued: its body had {bytes} bytes, too many to be kept; send the \
                 command again from where it came, in parts"
            )));
        }
        let left_out = self.header(header::DEAD_HEADERS_LEFT_OUT);
        if !left_out.is_empty() {
            return Err(Error::NotWhole(format!(
                "{number} cannot be requeued: {left_out} of its headers had no room; send the command \
                 again from where it came, with fewer"
            )));
        }
        Ok(())
    }
}

/// True if the message was refused for its size, and would be each time.
fn is_too_large(error: &PublishError) -> bool {
    let answer = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    match answer.map(jetstream::Error::error_code) {
        Some(code) => {
            [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM]
                .contains(&code)
        }
        None => error.kind() == PublishErrorKind::MaxPayloadExceeded,
    }
}

/// Text that a stranger wrote must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use flexcore_domain::CommandId;
    use time::{Duration, OffsetDateTime};

    use super::*;

    /// The second one was taken for the first, sent again.
    #[test]
    fn two_letters_without_an_id_that_have_one_number_get_two_ids() {
        let of = |seconds| {
            let time = OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds);
            let (subject, headers) = ("dead.command".into(), HeaderMap::new());
            let letter = StreamMessage { subject, sequence: 7, headers, payload: "".into(), time };
            Letter(letter).made_id()
        };
        assert_eq!(of(0), "requeue:1970-01-01T00:00:00Z:7");
        assert_ne!(of(0), of(3));
        assert!(CommandId::parse(&of(3)).is_ok());
    }
}
