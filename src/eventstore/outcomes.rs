//! FLEX_OUTCOMES keeps outcomes of asynchronous commands that left nothing in the log.

use async_nats::{
    HeaderMap, HeaderValue,
    jetstream::{message::StreamMessage, stream::LastRawMessageErrorKind},
};
use flexcore_domain::{AggregateKey, CommandId, Outcome};
use flexcore_queue::Stamp;

use crate::{Error, EventStore, headers::QUEUE_SEQUENCE, topology, unavailable};

/// Header of an outcome: when its command was stored in the queue, in milliseconds since 1970-01-01 UTC.
const QUEUE_TIME: &str = "Flexcore-Queue-Time";

/// An outcome that is kept, and the stored command that it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptOutcome {
    /// What came of the command.
    pub outcome: Outcome,
    of: Of,
}

impl KeptOutcome {
    /// True if it is of this stored command, or of a later one of the same id. One of an earlier command does
    /// not count: that one was put aside and requeued, or sent again.
    #[must_use]
    pub fn covers(&self, stored: Stamp) -> bool {
        self.of.covers(stored)
    }

    /// The same for a command of which only the sequence is known.
    #[must_use]
    pub fn covers_sequence(&self, sequence: u64) -> bool {
        self.of.sequence.is_some_and(|of| of >= sequence)
    }
}

/// A command as its outcome names it. `None`: it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Of {
    sequence: Option<u64>,
    stored_ms: Option<i64>,
}

impl Of {
    fn read(headers: &HeaderMap) -> Self {
        let header = |name: &str| headers.get(name).map(HeaderValue::as_str);
        Self {
            sequence: header(QUEUE_SEQUENCE).and_then(|text| text.parse().ok()),
            stored_ms: header(QUEUE_TIME).and_then(|text| text.parse().ok()),
        }
    }

    /// What was stored before the command is of a queue that is gone, whatever its sequence. Outcomes of
    /// earlier versions do not say when.
    fn covers(self, stored: Stamp) -> bool {
        self.sequence.is_some_and(|of| of >= stored.sequence)
            && self.stored_ms.is_none_or(|of| of >= stored.stored_ms)
    }
}

impl EventStore {
    /// Keeps the outcome of an asynchronous command that left nothing in the log, with its texts cut:
    /// see [`Outcome::kept`]. `of` is its own message in the queue.
    #[boxed::async_recursion]
    pub async fn save_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        of: Stamp,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(&outcome.clone().kept()).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        headers.insert(QUEUE_SEQUENCE, of.sequence.to_string());
        headers.insert(QUEUE_TIME, of.stored_ms.to_string());
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
        Ok(self.kept_outcome(key, id).await?.map(|kept| kept.outcome))
    }

    /// The same, with the stored command that it is of.
    #[boxed::async_recursion]
    pub async fn kept_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
    ) -> Result<Option<KeptOutcome>, Error> {
        let kept = self.kept(key, id).await?;
        Ok(kept.and_then(|kept| {
            let outcome = serde_json::from_slice(&kept.payload).ok()?;
            Some(KeptOutcome { outcome, of: Of::read(&kept.headers) })
        }))
    }

    /// True if the command that this message of the queue is has an outcome there: see
    /// [`KeptOutcome::covers`].
    #[boxed::async_recursion]
    pub async fn has_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        stored: Stamp,
    ) -> Result<bool, Error> {
        let kept = self.kept(key, id).await?;
        Ok(kept.is_some_and(|kept| Of::read(&kept.headers).covers(stored)))
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

fn outcome_subject(key: &AggregateKey, id: &CommandId) -> String {
    format!("outcome.{}.{id}", key.subject_part())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)]) -> Of {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        Of::read(&map)
    }

    /// A command in a queue that was made anew was taken for one that had been refused in the former.
    #[test]
    fn an_outcome_counts_for_its_command_and_earlier_ones_of_the_same_queue() {
        let stored = |sequence, stored_ms| Stamp { sequence, stored_ms };
        let kept = of(&[(QUEUE_SEQUENCE, "22"), (QUEUE_TIME, "5000")]);
        assert!(kept.covers(stored(22, 5_000)) && kept.covers(stored(7, 4_000)));
        assert!(!kept.covers(stored(23, 6_000)), "sent again");
        assert!(!kept.covers(stored(1, 6_000)), "of a queue that was made anew");
        assert!(!kept.covers(stored(22, 6_000)), "of one from an older copy");
        let former = of(&[(QUEUE_SEQUENCE, "22")]);
        assert!(former.covers(stored(22, 5_000)) && !former.covers(stored(23, 6_000)));
        assert!(!of(&[]).covers(stored(1, 0)));
    }
}
