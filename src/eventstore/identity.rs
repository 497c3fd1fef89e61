//! The log's identity, different from every other log's. It is made with the stream and kept in its
//! metadata, where backups keep it as well. Rows and the other streams name it.

use std::collections::HashMap;

use async_nats::jetstream::{
    self,
    stream::{Config, Info},
};
use flexcore_domain::Hash;
use uuid::Uuid;

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
