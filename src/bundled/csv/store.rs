//! An object store of NATS (its ADR-20): chunks of an object, and one record that says which these
//! are. Whoever writes has the record stored last, if the former one is still there: an object is
//! written as a whole or not at all, and two writers never lose what the other wrote.

use std::error::Error as _;

use async_nats::{
    HeaderMap,
    jetstream::{
        self, Context, ErrorCode,
        context::{PublishError, PublishErrorKind},
        message::StreamMessage,
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use flexcore_sdk::Failure;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    account::{Connected, too_large},
    bridge::Way,
};

/// Longest name of a bucket, in bytes.
pub(super) const BUCKET_BYTES_MAX: usize = 64;
/// Longest name of an object, in bytes: subjects are short.
pub(super) const OBJECT_BYTES_MAX: usize = 512;
/// Longest name under which chunks lie, in bytes; the broker's own tools give 22.
const NUID_BYTES_MAX: usize = 64;
/// Largest chunk that is taken, in bytes. 8 MiB: the broker's own advice for a message.
const CHUNK_BYTES_MAX: usize = 8 << 20;
/// What a record's digest begins with.
const DIGEST: &str = "SHA-256=";

/// What is said of an object, in the words of object stores.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) bucket: String,
    /// The name under which its chunks lie.
    #[serde(default)]
    pub(super) nuid: String,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default)]
    pub(super) chunks: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) deleted: bool,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) metadata: Map<String, Value>,
    /// All else that its owner says of it.
    #[serde(flatten)]
    pub(super) more: Map<String, Value>,
}

/// What the broker has of an object.
#[derive(Debug, Default)]
pub(super) struct Object {
    /// The stream sequence of its record; 0: there is none.
    pub(super) sequence: u64,
    /// `None`: it is not there, or was deleted.
    pub(super) record: Option<Record>,
}

/// One bucket of an object store.
pub(super) struct Bucket {
    context: Context,
    stream: Stream<()>,
    name: String,
    way: Way,
}

impl Bucket {
    pub(super) async fn open(connected: Connected, name: &str) -> Result<Self, Failure> {
        let Connected { context, way } = connected;
        let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if name.is_empty() || name.len() > BUCKET_BYTES_MAX || !name.bytes().all(is_sign) {
            let message = "the name of a bucket has letters, digits, - and _";
            return Err(Failure::new("bad_bucket", message));
        }
        let stream = context.get_stream_no_info(format!("OBJ_{name}")).await;
        let stream = stream.map_err(|error| Failure::new("bad_bucket", error))?;
        Ok(Self { context, stream, name: name.to_owned(), way })
    }

    /// The failure that a caller gets.
    pub(super) fn explained(&self, failure: Failure) -> Failure {
        if self.way.meter.is_over() { too_large() } else { failure }
    }

    /// Lets the broker send the answer to one more question.
    fn asks(&self) {
        self.way.meter.reset();
    }

    /// The last of an object, from the stream's leader.
    pub(super) async fn object(&self, name: &str) -> Result<Object, Failure> {
        let subject = self.record_subject(name)?;
        self.asks();
        let message = match self.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => message,
            Err(error) => {
                return match error.kind() {
                    LastRawMessageErrorKind::NoMessageFound => Ok(Object::default()),
                    LastRawMessageErrorKind::JetStream(error) => Err(self.refused(&error)),
                    _ => Err(away(&error)),
                };
            }
        };
        let mut record: Record = serde_json::from_slice(&message.payload)
            .map_err(|_| Failure::new("bad_object", "the object's record cannot be read"))?;
        // The broker keeps the time; some writers note it again.
        record.more.remove("mtime");
        let sequence = message.sequence;
        if record.deleted {
            return Ok(Object { sequence, record: None });
        }
        if record.more.get("options").and_then(|options| options.get("link")).is_some() {
            return Err(Failure::new("bad_object", "the object is a link: name what it leads to"));
        }
        // It becomes part of a subject.
        let is_name = record.nuid.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_name || record.nuid.is_empty() || record.nuid.len() > NUID_BYTES_MAX {
            return Err(Failure::new("bad_object", "the object's record cannot be read"));
        }
        Ok(Object { sequence, record: Some(record) })
    }

    /// The next chunk from this stream sequence on, and its own; `None`: there is none.
    pub(super) async fn chunk(
        &self,
        nuid: &str,
        from: u64,
    ) -> Result<Option<(u64, Bytes)>, Failure> {
        let subject = self.chunks_subject(nuid);
        self.asks();
        let found = self.stream.direct_get_next_for_subject(&subject, Some(from)).await;
        let message = match found {
            Ok(message) => Some(message),
            // The replica that was asked may lag behind, or the stream does not allow it.
            Err(_) => self.chunk_of_leader(&subject, from).await?,
        };
        let Some(message) = message else { return Ok(None) };
        if message.sequence < from || message.payload.len() > CHUNK_BYTES_MAX {
            return Err(Failure::new("bad_object", "the object's chunks cannot be read"));
        }
        Ok(Some((message.sequence, message.payload)))
    }

    async fn chunk_of_leader(
        &self,
        subject: &str,
        from: u64,
    ) -> Result<Option<StreamMessage>, Failure> {
        self.asks();
        let question = self.stream.raw_message_builder().sequence(from).next_by_subject(subject);
        match question.send().await {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(error) => Err(self.refused(&error)),
                _ => Err(away(&error)),
            },
        }
    }

    /// Stores a chunk that nobody sees before the record names it.
    pub(super) async fn write_chunk(&self, nuid: &str, bytes: Bytes) -> Result<(), Failure> {
        let subject = self.chunks_subject(nuid);
        self.asks();
        let sent = self.context.publish(subject, bytes).await;
        let sent = sent.map_err(|error| self.unwritten(&error))?;
        sent.await.map_err(|error| self.unwritten(&error))?;
        Ok(())
    }

    /// Stores a record if the last one is at this sequence.
    pub(super) async fn write_record(&self, record: &Record, last: u64) -> Result<(), Unwritten> {
        let wrong = |failure| Unwritten { failure, is_known: true };
        let subject = self.record_subject(&record.name).map_err(wrong)?;
        let body = serde_json::to_vec(record);
        let body = body.map_err(|error| wrong(Failure::new("bad_object", error)))?;
        let mut headers = HeaderMap::new();
        // The former one goes.
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-Expected-Last-Subject-Sequence", last.to_string());
        self.asks();
        let sent = self.context.publish_with_headers(subject, headers, body.into()).await;
        let sent = sent.map_err(|error| wrong(self.unwritten(&error)))?;
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) => {
                let unheard = [PublishErrorKind::TimedOut, PublishErrorKind::BrokenPipe];
                let is_known = !unheard.contains(&error.kind());
                Err(Unwritten { failure: self.unwritten(&error), is_known })
            }
        }
    }

    /// Frees the room of chunks. Where that fails they take room in vain.
    pub(super) async fn purge(&self, nuid: &str) {
        self.asks();
        let purged = self.stream.purge().filter(self.chunks_subject(nuid)).await;
        if let Err(error) = purged {
            let bucket = &self.name;
            tracing::warn!(%error, bucket, nuid, "parts of an object take room in vain");
        }
    }

    /// A record for an object that is to be written.
    pub(super) fn record(&self, name: &str) -> Record {
        Record { name: name.to_owned(), bucket: self.name.clone(), ..Record::default() }
    }

    fn record_subject(&self, object: &str) -> Result<String, Failure> {
        if object.is_empty() || object.len() > OBJECT_BYTES_MAX {
            let message = format!("the name of an object has 1 to {OBJECT_BYTES_MAX} bytes");
            return Err(Failure::new("bad_object", message));
        }
        Ok(format!("$O.{}.M.{}", self.name, URL_SAFE.encode(object)))
    }

    fn chunks_subject(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.name)
    }

    fn refused(&self, error: &jetstream::Error) -> Failure {
        match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => self.missing(),
            ErrorCode::INSUFFICIENT_RESOURCES | ErrorCode::STREAM_STORE_FAILED => {
                Failure::passing("no_room", format_args!("the object store has no room: {error}"))
            }
            // As in HTTP: the request is wrong, or something is away.
            _ if (400..500).contains(&error.code()) => Failure::new("store_refused", error),
            _ => Failure::passing("unavailable", error),
        }
    }

    fn unwritten(&self, error: &PublishError) -> Failure {
        match error.kind() {
            PublishErrorKind::StreamNotFound => self.missing(),
            PublishErrorKind::WrongLastSequence => {
                let message = "somebody else has written the object meanwhile";
                Failure::passing("changed_meanwhile", message)
            }
            PublishErrorKind::MaxPayloadExceeded => Failure::new("chunk_too_large", error),
            _ => {
                match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
                    Some(error) => self.refused(error),
                    None => away(error),
                }
            }
        }
    }

    fn missing(&self) -> Failure {
        let name = &self.name;
        let message = format!("there is no bucket {name}: make it with `nats object add {name}`");
        Failure::new("no_bucket", message)
    }
}

/// Why a record was not written, and whether that is known.
pub(super) struct Unwritten {
    pub(super) failure: Failure,
    pub(super) is_known: bool,
}

/// A digest, in the words of object stores.
pub(super) fn digest(hash: &[u8]) -> String {
    format!("{DIGEST}{}", URL_SAFE.encode(hash))
}

fn away(error: &dyn std::error::Error) -> Failure {
    Failure::passing("unavailable", format_args!("the object store: {error}"))
}
