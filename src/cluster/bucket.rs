//! The bucket: reads from the stream's leader, and writes under a condition.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::PublishErrorKind,
        stream::{Config, LastRawMessageErrorKind, StorageType, Stream},
    },
};
use bytes::Bytes;
use futures::TryStreamExt;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, STREAM, lease::Written, unavailable};

const PREFIX: &str = "$KV.flex_cluster.";
pub(crate) const LEADER: &str = "leader";
pub(crate) const MAP: &str = "map";

/// Longest wait for one answer: several fit between a renewal and the end of the lease.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A key's last message.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    /// `None`: the key was deleted, and the message says so.
    pub(crate) value: Option<Bytes>,
}

impl Entry {
    /// What it says; `None` when it is deleted, or of another version.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.value.as_ref()?).ok()
    }
}

/// What must hold for a write to be stored.
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
}

impl Bucket {
    /// The bucket; made when it is missing.
    pub(crate) async fn open(client: &async_nats::Client, replicas: usize) -> Result<Self, Error> {
        let (jetstream, stream) = handles(client).await?;
        if stream.get_info().await.is_err() {
            let created = jetstream.create_stream(config(replicas)).await;
            // Another process may have been first, with another first sequence.
            if let Err(error) = created
                && stream.get_info().await.is_err()
            {
                return Err(unavailable(error));
            }
        }
        Ok(Self { client: client.clone(), jetstream, stream })
    }

    /// The bucket as it is, for tools.
    pub(crate) async fn attach(client: &async_nats::Client) -> Result<Self, Error> {
        let (jetstream, stream) = handles(client).await?;
        Ok(Self { client: client.clone(), jetstream, stream })
    }

    /// Removes every key. Sequences go on from where they were.
    pub(crate) async fn clear(&self) -> Result<(), Error> {
        self.stream.purge().await.map(|_| ()).map_err(unavailable)
    }

    pub(crate) async fn read(&self, key: &str) -> Result<Option<Entry>, Error> {
        let subject = format!("{PREFIX}{key}");
        match self.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => {
                let deleted = message.headers.get("KV-Operation").is_some();
                let value = (!deleted).then_some(message.payload);
                Ok(Some(Entry { sequence: message.sequence, value }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// The keys below a prefix such as `member`, without it.
    pub(crate) async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let start = format!("{PREFIX}{prefix}.");
        let info =
            self.stream.info_with_subjects(format!("{start}>")).await.map_err(unavailable)?;
        let subjects: Vec<(String, usize)> = info.try_collect().await.map_err(unavailable)?;
        let names = subjects.iter().filter_map(|(subject, _)| subject.strip_prefix(&start));
        Ok(names.map(str::to_owned).collect())
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
            Err(error) => {
                tracing::debug!(key, %error, "a write to the cluster's bucket has no answer");
                Written::Unknown
            }
        }
    }
}

async fn handles(client: &async_nats::Client) -> Result<(jetstream::Context, Stream<()>), Error> {
    let jetstream = jetstream::ContextBuilder::new()
        .timeout(REQUEST_TIMEOUT)
        .ack_timeout(REQUEST_TIMEOUT)
        .build(client.clone());
    let stream = jetstream.get_stream_no_info(STREAM).await.map_err(unavailable)?;
    Ok((jetstream, stream))
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
