//! FLEX_DEAD keeps messages that could not be processed, to be looked at and requeued.
//! FLEX_OUTCOMES keeps outcomes of asynchronous commands that left nothing in the log.

use async_nats::{
    HeaderMap,
    jetstream::{message::StreamMessage, stream::LastRawMessageErrorKind},
};
use bytes::Bytes;
use flexcore_domain::{AggregateKey, CommandId, Outcome};

use crate::{Error, EventStore, aside, kept, subjects, topology, unavailable};

impl EventStore {
    /// Puts a message aside. `kind` is `command` or `projection.<read model>.<slot>`; `reason`
    /// becomes one line. A message that is too large is cut, and headers say so. Returns when the
    /// broker has it.
    pub async fn bury(
        &self,
        kind: &str,
        reason: &str,
        subject: &str,
        headers: Option<&HeaderMap>,
        body: Bytes,
    ) -> Result<(), Error> {
        let bytes_max = self.client.max_payload();
        let (all, body) = aside::fitted(reason, subject, headers, body, bytes_max);
        let bytes = body.len();
        let to = kept::dead_subject(kind, subject, bytes);
        self.acknowledged.store(to, all, body).await?;
        self.wrote(topology::DEAD, subjects::tenant(subject), bytes);
        let kind = kind.split('.').next().unwrap_or_default().to_owned();
        metrics::counter!("flexcore_dead_total", "kind" => kind).increment(1);
        Ok(())
    }

    /// Keeps the outcome of an asynchronous command that left nothing in the log, long texts in it
    /// cut. `sequence` is its own in the queue.
    pub async fn save_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(&outcome.clone().shortened()).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        headers.insert(QUEUE_SEQUENCE, sequence.to_string());
        let bytes = body.len();
        self.acknowledged.store(outcome_subject(key, id), headers, body.into()).await?;
        self.wrote(topology::OUTCOMES, Some(key.tenant().clone()), bytes);
        Ok(())
    }

    /// The outcome that [`Self::save_outcome`] kept; `None` when nothing, or no longer.
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
