//! The log's identity, different from every other log's. It is made with the stream and kept in its
//! metadata, where backups keep it as well. Rows and the other streams name it.

use std::collections::{BTreeMap, HashMap};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        stream::{Config, Info},
    },
};
use flexcore_domain::{
    Hash,
    log::{LogEnd, LogMarks},
};
use uuid::Uuid;

use crate::{Error, EventStore, topology, unavailable};

/// Under this name the metadata of a stream name the log.
const KEY: &str = "flexcore-log";

/// An identity for a log that is made now.
pub(crate) fn fresh() -> String {
    Uuid::new_v4().simple().to_string()
}

/// A stream's metadata that name this log.
pub(crate) fn metadata(identity: &str) -> HashMap<String, String> {
    HashMap::from([(KEY.to_owned(), identity.to_owned())])
}

/// The log that a stream names.
pub(crate) fn named(config: &Config) -> Option<&str> {
    config.metadata.get(KEY).map(String::as_str)
}

/// The log's identity. One that was made before logs had any has that of its first moment, which is the
/// same whoever asks.
pub(crate) fn of_log(info: &Info) -> String {
    named(&info.config).map_or_else(
        || {
            let moment = info.created.unix_timestamp_nanos().to_string();
            Hash::chain(&Hash::ZERO, moment.as_bytes()).to_string()[..32].to_owned()
        },
        str::to_owned,
    )
}

/// Has a stream name the log, that named none. Tried again at the next start when it fails.
pub(crate) async fn write(jetstream: &jetstream::Context, mut config: Config, identity: &str) {
    config.metadata.insert(KEY.to_owned(), identity.to_owned());
    if let Err(error) = jetstream.update_stream(&config).await {
        tracing::warn!(stream = config.name, %error, "the stream cannot be marked as this log's yet");
    }
}

impl EventStore {
    /// The log's identity and its end. Fails when the broker is away.
    pub async fn log(&self) -> Result<LogEnd, Error> {
        let stream = self.jetstream.get_stream(topology::EVENTS).await.map_err(unavailable)?;
        let info = stream.cached_info();
        Ok(LogEnd { identity: of_log(info), last_sequence: info.state.last_sequence })
    }

    /// Checks that rows with these marks were folded from this log; returns its identity and its end.
    /// Fails with [`Error::OtherLog`] when they were not, and when the broker is away. A leader that
    /// was deposed and does not know yet ends earlier than it should, for a second or so.
    pub async fn recognise(&self, marks: &LogMarks) -> Result<LogEnd, Error> {
        let end = self.log().await?;
        let mut found = BTreeMap::new();
        for place in marks.places(&end) {
            found.extend(self.hash_at(place).await?.map(|hash| (place, hash)));
        }
        marks.judge(&end, &found)?;
        Ok(end)
    }

    /// Link in the hash chain of the commit at this stream sequence; `None`: the log has none there.
    pub(crate) async fn hash_at(&self, sequence: u64) -> Result<Option<Hash>, Error> {
        let stream = self.jetstream.get_stream_no_info(topology::EVENTS).await;
        match stream.map_err(unavailable)?.get_raw_message(sequence).await {
            Ok(message) => Ok(hash_of(&message.headers)),
            Err(error) if is_no_message(&error) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }
}

fn is_no_message(error: &jetstream::stream::RawMessageError) -> bool {
    matches!(error.kind(), jetstream::stream::RawMessageErrorKind::NoMessageFound)
}

fn hash_of(headers: &HeaderMap) -> Option<Hash> {
    Hash::parse(headers.get(flexcore_domain::command::header::HASH)?.as_str())
}
