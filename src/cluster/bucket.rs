//! The bucket: reads from the stream's leader, and writes under a condition.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{
    HeaderMap,
    jetstream::{
        self, ErrorCode,
        stream::{Config, LastRawMessageErrorKind, StorageType, Stream},
    },
};
use bytes::Bytes;
use flexcore_broker::{
    acknowledged::{Acknowledged, Unstored, unknown},
    bucket::{Bucket as Keys, Condition, Entry, TTL, subject},
};
use futures::{StreamExt, TryStreamExt};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, STREAM, lease::Written, unavailable};

pub(crate) const LEADER: &str = "leader";
pub(crate) const MAP: &str = "map";
/// Before a member's id: its record, and the wish to drain it.
pub(crate) const MEMBER: &str = "member";
pub(crate) const DRAIN: &str = "drain";

/// Longest wait for one answer; with short leases it is shorter, see [`Bucket::open`].
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Records that are read at a time: a round trip for each in turn would delay the leader's renewals.
const READS_AT_ONCE: usize = 16;

/// The value of a key's last message; `None` when the key is deleted, or the value of another version.
pub(crate) fn parsed<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    serde_json::from_slice(entry.value.as_ref()?).ok()
}

#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) client: async_nats::Client,
    keys: Keys,
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
        // A write that comes late meets its condition, and whoever leaves has no time for another one.
        let acknowledged = Acknowledged::open(client).await.map_err(unavailable)?.patient();
        let keys = Keys { stream: STREAM, jetstream, acknowledged };
        Ok(Self { client: client.clone(), keys, stream, timeout, replicas })
    }

    async fn create(&self, replicas: usize) -> Result<(), Error> {
        let created = self.keys.jetstream.create_stream(config(replicas)).await;
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
        let error = match self.keys.read(key).await {
            Ok(entry) => return Ok(entry),
            Err(error) => error,
        };
        match (error.kind(), self.replicas) {
            (LastRawMessageErrorKind::JetStream(cause), Some(replicas))
                if cause.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                tracing::warn!("the cluster's bucket is gone: it is made anew");
                self.create(replicas).await.map(|()| None)
            }
            _ => Err(unavailable(error)),
        }
    }

    /// The keys below a prefix such as `member`, without it, with what they hold. Those that were
    /// deleted are not among them. Fails when all of it takes longer than one answer may.
    pub(crate) async fn entries(&self, prefix: &str) -> Result<Vec<(String, Entry)>, Error> {
        let start = subject(STREAM, &format!("{prefix}."));
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
        if let Some(ttl) = ttl {
            headers.insert(TTL, format!("{}s", ttl.as_secs()));
        }
        let writing = self.keys.write(key, headers, value, condition);
        let written = tokio::time::timeout(self.timeout, writing).await;
        match written.unwrap_or_else(|_| Err(unknown("no answer in time"))) {
            Ok(sequence) => Written::Stored(sequence),
            Err(Unstored::Conflict) => Written::Refused,
            Err(Unstored::TooLarge(error)) => {
                tracing::error!(key, %error, "a record of the cluster is larger than a message");
                Written::Unknown
            }
            // Also `Busy`: an earlier write of our own may just be stored, so no lease ends by it.
            Err(error) => {
                tracing::debug!(key, ?error, "a write to the cluster's bucket has no answer");
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
        subjects: vec![subject(STREAM, ">")],
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
