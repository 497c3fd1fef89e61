//! The log's end, and a check that rows were folded from this log.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, jetstream::stream};
use flexcore_domain::{
    Hash,
    log::{LogEnd, LogMarks},
};

use crate::{Error, EventStore, identity, topology, unavailable};

impl EventStore {
    /// The log's identity and its end. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn log(&self) -> Result<LogEnd, Error> {
        let stream = self.jetstream.get_stream(topology::EVENTS).await.map_err(unavailable)?;
        let info = stream.cached_info();
        Ok(LogEnd { identity: identity::of_log(info), last_sequence: info.state.last_sequence })
    }

    /// Checks that rows with these marks were folded from this log; returns its identity and its end.
    /// Fails with [`Error::OtherLog`] when they were not, and when the broker is away. A leader that
    /// was deposed and does not know yet ends earlier than it should, for a second or so.
    #[boxed::async_recursion]
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

fn is_no_message(error: &stream::RawMessageError) -> bool {
    matches!(error.kind(), stream::RawMessageErrorKind::NoMessageFound)
}

fn hash_of(headers: &HeaderMap) -> Option<Hash> {
    Hash::parse(headers.get(flexcore_domain::command::header::HASH)?.as_str())
}
