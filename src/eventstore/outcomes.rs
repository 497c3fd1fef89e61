//! FLEX_OUTCOMES keeps outcomes of asynchronous commands that left nothing in the log.

use async_nats::{
    HeaderMap,
    jetstream::{message::StreamMessage, stream::LastRawMessageErrorKind},
};
use flexcore_domain::{AggregateKey, CommandId, Outcome};

use crate::{Error, EventStore, topology, unavailable};

impl EventStore {
    /// Keeps the outcome of an asynchronous command that left nothing in the log, with its texts cut:
    /// see [`Outcome::kept`]. `sequence` is its own in the queue.
    #[boxed::async_recursion]
    pub async fn save_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(&outcome.clone().kept()).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        headers.insert(QUEUE_SEQUENCE, sequence.to_string());
        let bytes = body.len();
        self.acknowledged.store(outcome_subject(key, id), headers, body.into()).await?;
        self.wrote(topology::OUTCOMES, Some(key.tenant().clone()), bytes);
        Ok(())
    }

    /// The outcome that [`Self::save_outcome`] kept; `None` when nothing, or no longer.
    #[boxed::async_recursion]
    pub async fn outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
    ) -> Result<Option<Outcome>, Error> {
        let kept = self.kept(key, id).await?;
        Ok(kept.and_then(|kept| serde_json::from_slice(&kept.payload).ok()))
    }

    /// True if the command that the queue has at this sequence has an outcome there. One of an
    /// earlier command of the same id does not count: that one was put aside and requeued, or sent
    /// again.
    #[boxed::async_recursion]
    pub async fn has_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
    ) -> Result<bool, Error> {
        let kept = self.kept(key, id).await?;
        let of = kept.as_ref().and_then(|kept| kept.headers.get(QUEUE_SEQUENCE));
        Ok(of.and_then(|of| of.as_str().parse().ok()).is_some_and(|of: u64| of >= sequence))
    }

    /// The stream's leader is asked: another replica may not have the last ones yet.
    async fn kept(
        &self,
        key: &AggregateKey,
        id: &CommandId,
    ) -> Result<Option<StreamMessage>, Error> {
        let stream = self.jetstream.get_stream_no_info(topology::OUTCOMES).await;
        let stream = stream.map_err(unavailable)?;
        match stream.get_last_raw_message_by_subject(&outcome_subject(key, id)).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }
}

/// Header of an outcome: its command's sequence in the queue.
const QUEUE_SEQUENCE: &str = "Flexcore-Queue-Sequence";

fn outcome_subject(key: &AggregateKey, id: &CommandId) -> String {
    format!("outcome.{}.{id}", key.subject_part())
}
