//! The bucket: reads from the stream's leader, and writes under a condition.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{
    HeaderMap,
    jetstream::{
        self, ErrorCode,
        context::PublishErrorKind,
        stream::{Config, LastRawMessageErrorKind, StorageType, Stream},
    },
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, STREAM, lease::Written, unavailable};

const PREFIX: &str = "$KV.flex_cluster.";
pub(crate) const LEADER: &str = "leader";
pub(crate) const MAP: &str = "map";

/// Longest wait for one answer; with short leases it is shorter, see [`Bucket::open`].
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Records that are read at a time: a round trip for each in turn would delay the leader's renewals.
const READS_AT_ONCE: usize = 16;

/// A key's last message.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    /// `None`: the key was deleted, and the message says so.
    pub(crate) value: Option<Bytes>,
}

impl Entry {
    /// The key's value; `None` when it is deleted, or of another version.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.value.as_ref()?).ok()
    }
}

/// The condition for storing a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition<'a> {
    /// The key whose last message is looked at; not always the one that is written.
    pub(crate) key: &'a str,
    /// Its sequence; 0: there is none.
    pub(crate) sequence: u64,
}

#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) client: async_nats::Client,
    jetstream: jetstream::Context,
    stream: Stream<()>,
    timeout: Duration,
    /// Copies, when it has to be made; `None`: it is not to be made.
    replicas: Option<usize>,
}

impl Bucket {
    /// The bucket; made when it is missing. Fails when one that is there has other settings. No
    /// answer is waited for longer than `timeout`, so that several fit between a renewal and the lease's
    /// end.
    pub(crate) async fn open(
        client: &async_nats::Client,
        replicas: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let timeout = timeout.min(REQUEST_TIMEOUT);
        let bucket = Self::with(client, timeout, Some(replicas)).await?;
        match bucket.stream.get_info().await {
            Ok(info) => check(&config(replicas), &info.config)?,
            Err(_) => bucket.create(replicas).await?,
        }
        Ok(bucket)
    }

    /// The bucket as it is, for tools.
    pub(crate) async fn attach(client: &async_nats::Client) -> Result<Self, Error> {
        Self::with(client, REQUEST_TIMEOUT, None).await
    }

    async fn with(
        client: &async_nats::Client,
        timeout: Duration,
        replicas: Option<usize>,
    ) -> Result<Self, Error> {
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(timeout)
            .ack_timeout(timeout)
            .build(client.clone());
        let stream = jetstream.get_stream_no_info(STREAM).await.map_err(unavailable)?;
        Ok(Self { client: client.clone(), jetstream, stream, timeout, replicas })
    }

    async fn create(&self, replicas: usize) -> Result<(), Error> {
        let created = self.jetstream.create_stream(config(replicas)).await;
        // Another process may have been first, with another first sequence.
        if let Err(error) = created
            && self.stream.get_info().await.is_err()
        {
            return Err(unavailable(error));
        }
        Ok(())
    }

    /// Removes every key. Sequences go on from where they were.
    pub(crate) async fn clear(&self) -> Result<(), Error> {
        self.stream.purge().await.map(|_| ()).map_err(unavailable)
    }

    /// A key's last message. A bucket that is gone is made anew: nobody else would.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<Entry>, Error> {
        let subject = format!("{PREFIX}{key}");
        match self.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => {
                // Marks of a deletion have a header or, if the broker makes them, no value.
                let deleted =
                    message.headers.get("KV-Operation").is_some() || message.payload.is_empty();
                let value = (!deleted).then_some(message.payload);
                Ok(Some(Entry { sequence: message.sequence, value }))
            }
            Err(error) => match (error.kind(), self.replicas) {
                (LastRawMessageErrorKind::NoMessageFound, _) => Ok(None),
                (LastRawMessageErrorKind::JetStream(cause), Some(replicas))
                    if cause.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    tracing::warn!("the cluster's bucket is gone: it is made anew");
                    self.create(replicas).await.map(|()| None)
                }
                _ => Err(unavailable(error)),
            },
        }
    }

    /// The keys below a prefix such as `member`, without it, with what they hold. Those that were
    /// deleted are not among them. Fails when all of it takes longer than one answer may.
    pub(crate) async fn entries(&self, prefix: &str) -> Result<Vec<(String, Entry)>, Error> {
        let start = format!("{PREFIX}{prefix}.");
        let all = async {
            let info =
                self.stream.info_with_subjects(format!("{start}>")).await.map_err(unavailable)?;
            let subjects: Vec<(String, usize)> = info.try_collect().await.map_err(unavailable)?;
            let mut reads = Vec::new();
            for (subject, _) in subjects {
                let name = subject.strip_prefix(&start).unwrap_or_default().to_owned();
                reads.push(self.clone().named(prefix.to_owned(), name));
            }
            let mut reads = futures::stream::iter(reads).buffered(READS_AT_ONCE);
            let mut entries = Vec::new();
            while let Some(entry) = reads.try_next().await? {
                entries.extend(entry.filter(|(_, entry)| entry.value.is_some()));
            }
            Ok(entries)
        };
        tokio::time::timeout(self.timeout, all).await.map_err(unavailable)?
    }

    async fn named(self, prefix: String, name: String) -> Result<Option<(String, Entry)>, Error> {
        let entry = self.read(&format!("{prefix}.{name}")).await?;
        Ok(entry.map(|entry| (name, entry)))
    }

    /// Writes a key if the condition holds. With a time to live the broker frees it after that.
    pub(crate) async fn write(
        &self,
        key: &str,
        value: &impl Serialize,
        condition: Option<Condition<'_>>,
        ttl: Option<Duration>,
    ) -> Written {
        let value = serde_json::to_vec(value).expect("BUG: records serialise");
        self.publish(key, HeaderMap::new(), value.into(), condition, ttl).await
    }

    /// Deletes a key if it is still at this sequence. The mark of it goes by itself.
    pub(crate) async fn delete(&self, key: &str, condition: Option<Condition<'_>>) -> Written {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        self.publish(key, headers, Bytes::new(), condition, Some(Duration::from_secs(1))).await
    }

    async fn publish(
        &self,
        key: &str,
        mut headers: HeaderMap,
        value: Bytes,
        condition: Option<Condition<'_>>,
        ttl: Option<Duration>,
    ) -> Written {
        if let Some(Condition { key: on, sequence }) = condition {
            headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
            if on != key {
                let subject = format!("{PREFIX}{on}");
                headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject);
            }
        }
        if let Some(ttl) = ttl {
            headers.insert("Nats-TTL", format!("{}s", ttl.as_secs()));
        }
        let subject = format!("{PREFIX}{key}");
        let sent = self.jetstream.publish_with_headers(subject, headers, value).await;
        let stored = match sent {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(acknowledged) => Written::Stored(acknowledged.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Written::Refused,
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                tracing::error!(key, %error, "a record of the cluster is larger than a message");
                Written::Unknown
            }
            Err(error) => {
                tracing::debug!(key, %error, "a write to the cluster's bucket has no answer");
                Written::Unknown
            }
        }
    }
}

/// True if a bucket that somebody else made can hold leases.
fn check(wanted: &Config, found: &Config) -> Result<(), Error> {
    let settings = |config: &Config| {
        [
            ("replicas", config.num_replicas.to_string()),
            ("storage", format!("{:?}", config.storage)),
            ("max_msgs_per_subject", config.max_messages_per_subject.to_string()),
            ("allow_msg_ttl", config.allow_message_ttl.to_string()),
            ("allow_direct", config.allow_direct.to_string()),
        ]
    };
    for ((what, wanted), (_, found)) in settings(wanted).into_iter().zip(settings(found)) {
        if wanted != found {
            return Err(Error::Misconfigured { what, wanted, found });
        }
    }
    Ok(())
}

fn config(replicas: usize) -> Config {
    // Epochs are sequences of this stream, and are kept elsewhere. Should the stream be lost, its
    // successor has to begin above them: milliseconds grow faster than records are written.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{PREFIX}>")],
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages_per_subject: 1,
        allow_message_ttl: true,
        // A replica that is behind must not answer.
        allow_direct: false,
        first_sequence: u64::try_from(now.as_millis()).ok(),
        ..Config::default()
    }
}
