//! The envelope: the events that one command produced, as one CloudEvents message of the log.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    command::{Provenance, header},
    hash::{CommandHash, Hash},
    names::{ActorName, AggregateKey, CommandId, EventName},
    trace::TraceParent,
};

/// One fact about an aggregate.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name, such as `departed`.
    pub event: EventName,
    /// The aggregate's version with it: 1 for the first event.
    pub version: u64,
    /// Version of the schema that its data follows.
    pub schema_version: u32,
    /// JSON.
    pub data: Box<RawValue>,
}

/// The events that one command produced: one message of the log, recorded whole or not at all.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The aggregate.
    pub key: AggregateKey,
    /// The command that produced it.
    pub command_id: CommandId,
    /// Hash of that command's name and payload.
    pub command_hash: CommandHash,
    /// Where that command comes from.
    pub provenance: Provenance,
    /// When it was decided, in milliseconds since 1970-01-01 UTC. Never before the aggregate's
    /// previous commit.
    pub time_ms: i64,
    /// The events, at least one, their versions following one another.
    pub events: Vec<Event>,
}

/// A message of the log that is no commit: corrupt, or written by something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a commit: {0}")]
pub struct InvalidCommit(pub String);

/// A commit as the log's message holds it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Headers, in order.
    pub headers: [(&'static str, String); 2],
    /// CloudEvents JSON: one event structured, several in the batch format.
    pub body: Vec<u8>,
    /// The commit's link in the hash chain.
    pub hash: Hash,
}

/// The last version that an aggregate can have: Postgres keeps versions as `bigint`, and what follows
/// has one more to count to.
const VERSION_MAX: u64 = i64::MAX as u64 - 1;

/// Media type of a commit with one event.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// Media type of a commit with several events.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// The CloudEvent of one event, field for field.
#[derive(Serialize, Deserialize)]
struct CloudEvent<'a> {
    specversion: &'a str,
    id: String,
    source: String,
    r#type: String,
    subject: &'a str,
    time: String,
    tenant: &'a str,
    sequence: u64,
    dataversion: u32,
    commandid: &'a str,
    commandhash: CommandHash,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlationid: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causationid: Option<&'a str>,
    actor: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Commit {
    /// The aggregate's version after this commit.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.events.last().map_or(0, |event| event.version)
    }

    /// The aggregate's version before this commit.
    #[must_use]
    pub fn version_before(&self) -> u64 {
        self.events.first().map_or(0, |event| event.version - 1)
    }

    /// When it was decided, RFC 3339 in UTC with milliseconds.
    #[must_use]
    pub fn time(&self) -> String {
        rfc3339(self.time_ms)
    }

    /// One of its events as CloudEvents JSON (structured).
    #[must_use]
    pub fn cloud_event(&self, event: &Event) -> String {
        serde_json::to_string(&self.wrap(event)).expect("BUG: a CloudEvent serialises")
    }

    /// The message of the log, chained to the aggregate's previous commit.
    #[must_use]
    pub fn encode(&self, previous: &Hash) -> Encoded {
        let wrapped: Vec<_> = self.events.iter().map(|event| self.wrap(event)).collect();
        let (content_type, body) = match wrapped.as_slice() {
            [one] => (STRUCTURED, serde_json::to_vec(one)),
            several => (BATCH, serde_json::to_vec(several)),
        };
        let body = body.expect("BUG: a CloudEvent serialises");
        let hash = Hash::chain(previous, &body);
        let headers = [("Content-Type", content_type.to_owned()), (header::HASH, hash.to_string())];
        Encoded { headers, body, hash }
    }

    /// Reads a message of the log. Fails when it is no commit of this aggregate.
    pub fn decode(key: AggregateKey, body: &[u8]) -> Result<Self, InvalidCommit> {
        let bad = |error: &dyn fmt::Display| InvalidCommit(error.to_string());
        let wrapped: Vec<CloudEvent<'_>> = if body.first() == Some(&b'[') {
            serde_json::from_slice(body).map_err(|e| bad(&e))?
        } else {
            vec![serde_json::from_slice(body).map_err(|e| bad(&e))?]
        };
        let first = wrapped.first().ok_or_else(|| bad(&"no events"))?;
        let prefix = format!("{}.", key.aggregate());
        let mut commit = Self {
            command_id: CommandId::parse(first.commandid).map_err(|e| bad(&e))?,
            command_hash: first.commandhash,
            provenance: Provenance {
                actor: ActorName::parse(first.actor).map_err(|e| bad(&e))?,
                correlation_id: optional(first.correlationid, CommandId::parse)?,
                causation_id: optional(first.causationid, CommandId::parse)?,
                traceparent: first.traceparent.and_then(|text| text.parse().ok()),
            },
            time_ms: parse_rfc3339(&first.time).ok_or_else(|| bad(&"time is not RFC 3339"))?,
            events: Vec::with_capacity(wrapped.len()),
            key,
        };
        for (nth, event) in (0..).zip(&wrapped) {
            let version = first.sequence.checked_add(nth).ok_or_else(|| bad(&"sequence"))?;
            let name = event.r#type.strip_prefix(&prefix).ok_or_else(|| bad(&"type"))?;
            let ours = event.tenant == commit.key.tenant().as_str()
                && event.subject == commit.key.id().as_str()
                && event.sequence == version
                && (1..=VERSION_MAX).contains(&version);
            if !ours {
                return Err(bad(&"tenant, subject or sequence contradict the message's subject"));
            }
            commit.events.push(Event {
                event: EventName::parse(name).map_err(|e| bad(&e))?,
                version,
                schema_version: event.dataversion,
                data: event.data.to_owned(),
            });
        }
        Ok(commit)
    }

    fn wrap<'a>(&'a self, event: &'a Event) -> CloudEvent<'a> {
        let Self { key, provenance, .. } = self;
        CloudEvent {
            specversion: "1.0",
            id: format!("{}-{}", key.id(), event.version),
            source: format!("/flexcore/{}/{}", key.tenant(), key.aggregate()),
            r#type: format!("{}.{}", key.aggregate(), event.event),
            subject: key.id().as_str(),
            time: self.time(),
            tenant: key.tenant().as_str(),
            sequence: event.version,
            dataversion: event.schema_version,
            commandid: self.command_id.as_str(),
            commandhash: self.command_hash,
            correlationid: provenance.correlation_id.as_ref().map(CommandId::as_str),
            causationid: provenance.causation_id.as_ref().map(CommandId::as_str),
            actor: provenance.actor.as_str(),
            traceparent: provenance.traceparent.as_ref().map(TraceParent::as_str),
            data: &event.data,
        }
    }
}

fn optional<T, E: fmt::Display>(
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, InvalidCommit> {
    text.map(|text| parse(text).map_err(|error| InvalidCommit(error.to_string()))).transpose()
}

/// Milliseconds since 1970-01-01 UTC as RFC 3339 with milliseconds; times beyond year 9999 are
/// clamped.
#[must_use]
pub fn rfc3339(time_ms: i64) -> String {
    let nanos = i128::from(time_ms.clamp(-62_135_596_800_000, 253_402_300_799_999)) * 1_000_000;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .expect("BUG: clamped to years 1 to 9999");
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

/// Reads RFC 3339 into milliseconds since 1970-01-01 UTC; `None` when it is something else.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let time =
        time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{AggregateId, AggregateName, Tenant};

    fn commit(events: usize) -> Commit {
        let data = RawValue::from_string(r#"{"a":1,"b":"ü"}"#.to_owned()).unwrap();
        Commit {
            key: AggregateKey::new(
                Tenant::parse("acme").unwrap(),
                AggregateName::parse("flight").unwrap(),
                AggregateId::parse("UA1-20130101-EWR").unwrap(),
            ),
            command_id: CommandId::parse("c-1").unwrap(),
            command_hash: CommandHash::of("schedule", "{}"),
            provenance: Provenance {
                causation_id: Some(CommandId::parse("c-0").unwrap()),
                ..Provenance::of(ActorName::parse("alice").unwrap())
            },
            time_ms: 1_356_998_400_123,
            events: (0..events as u64)
                .map(|n| Event {
                    event: EventName::parse("scheduled").unwrap(),
                    version: n + 4,
                    schema_version: 2,
                    data: data.clone(),
                })
                .collect(),
        }
    }

    #[test]
    fn commits_round_trip_alone_and_in_batches() {
        for events in [1, 3] {
            let commit = commit(events);
            let encoded = commit.encode(&Hash::ZERO);
            assert_eq!(encoded.hash, Hash::chain(&Hash::ZERO, &encoded.body));
            let read = Commit::decode(commit.key.clone(), &encoded.body).unwrap();
            assert_eq!(read.command_hash, commit.command_hash);
            assert_eq!(read.encode(&Hash::ZERO).body, encoded.body);
            assert_eq!((read.version_before(), read.version()), (3, 3 + events as u64));
            assert_eq!(read.time(), "2013-01-01T00:00:00.123Z");
        }
    }

    #[test]
    fn a_flipped_bit_changes_the_link_or_is_refused() {
        let commit = commit(2);
        let encoded = commit.encode(&Hash::ZERO);
        for at in 0..encoded.body.len() {
            let mut body = encoded.body.clone();
            body[at] ^= 4;
            assert_ne!(Hash::chain(&Hash::ZERO, &body), encoded.hash);
        }
    }

    /// Anybody who can publish to the log can write one.
    #[test]
    fn versions_that_cannot_be_counted_on_from_are_refused() {
        let mut commit = commit(1);
        for (version, read) in [(0, false), (VERSION_MAX, true), (VERSION_MAX + 1, false)] {
            commit.events[0].version = version;
            let body = commit.encode(&Hash::ZERO).body;
            assert_eq!(Commit::decode(commit.key.clone(), &body).is_ok(), read, "{version}");
        }
        commit.events[0].version = u64::MAX;
        commit.events.push(commit.events[0].clone());
        let body = commit.encode(&Hash::ZERO).body;
        assert!(Commit::decode(commit.key.clone(), &body).is_err());
    }

    #[test]
    fn another_aggregates_message_is_refused() {
        let commit = commit(1);
        let body = commit.encode(&Hash::ZERO).body;
        let other = AggregateKey::new(
            Tenant::parse("other").unwrap(),
            commit.key.aggregate().clone(),
            commit.key.id().clone(),
        );
        assert!(Commit::decode(other, &body).is_err());
    }
}
