//! Chunks of plugins' files that no record names, and that nobody deletes any more: of a file whose sender was
//! interrupted or never heard the last answer, and of a deleted one where the process died before they were
//! gone. Whoever sends the next file deletes them.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{LastRawMessageErrorKind, Stream},
};
use futures::TryStreamExt as _;

use crate::{
    Error, EventStore,
    files::{Record, chunks_subject},
    topology::{self, FILES_BUCKET},
    unavailable,
};

/// Longest time, in seconds, in which somebody may still be at work on what looks like nobody's: between two
/// chunks, between the last one and their record, and between the mark of a deleted file and the decision that
/// it is not needed. Each takes moments, and hosts' clocks differ.
const AT_WORK_S: i64 = 3_600;

impl EventStore {
    /// Deletes what is nobody's now. Where that fails it takes room until somebody else sends a file.
    pub(crate) async fn sweep_plugin_files(&self) {
        // A clock before 1970 says that everything is young.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Err(error) = self.purge_nobodys_chunks(now_s).await {
            tracing::warn!(%error, "parts of plugins' files may take room in vain");
        }
    }

    /// Deletes chunks that no file's record names and that are an hour old at this time, in seconds since
    /// 1970-01-01 UTC. The store of files has to be there. Fails with [`Error::Unavailable`].
    #[boxed::async_recursion]
    pub async fn purge_nobodys_chunks(&self, now_s: i64) -> Result<(), Error> {
        let stream = self.jetstream.get_stream_no_info(topology::FILES).await;
        let stream = stream.map_err(unavailable)?;
        // Chunks first: the records of all that are whole by then are read after them.
        let all = subjects(&stream, &chunks_subject("*")).await?;
        if all.is_empty() {
            return Ok(());
        }
        let Some(named) = named(&stream, now_s).await? else { return Ok(()) };
        for subject in all.into_iter().filter(|subject| !named.contains(subject)) {
            let Some(last) = last(&stream, &subject).await? else { continue };
            if is_young(&last, now_s) {
                continue;
            }
            stream.purge().filter(subject.as_str()).await.map_err(unavailable)?;
            tracing::info!(subject, "parts of a plugin's file are deleted, as nothing names them");
        }
        Ok(())
    }
}

/// The subjects of chunks that a record names. `None`: one cannot be read, and may name any.
async fn named<I>(stream: &Stream<I>, now_s: i64) -> Result<Option<BTreeSet<String>>, Error> {
    let mut named = BTreeSet::new();
    for subject in subjects(stream, &format!("$O.{FILES_BUCKET}.M.*")).await? {
        let Some(last) = last(stream, &subject).await? else { continue };
        let Ok(record) = serde_json::from_slice::<Record>(&last.payload) else { return Ok(None) };
        // The mark of a deleted file may still be taken back.
        if !record.deleted || is_young(&last, now_s) {
            named.insert(chunks_subject(&record.nuid));
        }
    }
    Ok(Some(named))
}

fn is_young(message: &StreamMessage, now_s: i64) -> bool {
    now_s.saturating_sub(message.time.unix_timestamp()) < AT_WORK_S
}

/// The subjects that fit this one and have messages.
async fn subjects<I>(stream: &Stream<I>, filter: &str) -> Result<Vec<String>, Error> {
    let found = stream.info_with_subjects(filter).await.map_err(unavailable)?;
    let found: Vec<(String, usize)> = found.try_collect().await.map_err(unavailable)?;
    Ok(found.into_iter().map(|(subject, _)| subject).collect())
}

/// The last message of a subject; `None`: it is gone meanwhile.
async fn last<I>(stream: &Stream<I>, subject: &str) -> Result<Option<StreamMessage>, Error> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}
