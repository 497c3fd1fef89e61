//! FLEX_DEAD: what could not be processed, kept to be looked at and requeued; and FLEX_OUTCOMES:
//! rejections of asynchronous commands, for those who ask.

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_domain::{AggregateKey, CommandId, Outcome, command::header};

use crate::{Error, EventStore, load, topology, unavailable};

impl EventStore {
    /// Puts a message aside. `kind` is `command` or `projection.<read model>`; `reason` becomes one
    /// line. Returns when the broker has it.
    pub async fn bury(
        &self,
        kind: &str,
        reason: &str,
        subject: &str,
        headers: Option<&HeaderMap>,
        body: Bytes,
    ) -> Result<(), Error> {
        let mut all = HeaderMap::new();
        for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
            let name: &str = name.as_ref();
            let brokers = name.starts_with("Nats-") && name != header::COMMAND_ID;
            if let (false, Some(value)) = (brokers, values.last()) {
                // The id moves to another header, or the broker would take a second burial of the
                // same id for a repetition of the first.
                let name = if name == header::COMMAND_ID { header::OWN_COMMAND_ID } else { name };
                all.insert(name, value.as_str());
            }
        }
        all.insert(header::DEAD_REASON, one_line(reason));
        all.insert(header::DEAD_SUBJECT, one_line(subject));
        let sent = self.jetstream.publish_with_headers(format!("dead.{kind}"), all, body).await;
        sent.map_err(unavailable)?.await.map_err(unavailable)?;
        let kind = kind.split('.').next().unwrap_or_default().to_owned();
        metrics::counter!("flexcore_dead_total", "kind" => kind).increment(1);
        Ok(())
    }

    /// Keeps what came of an asynchronous command that left nothing in the log. `sequence` is its own
    /// in the queue.
    pub async fn save_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(outcome).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        headers.insert(QUEUE_SEQUENCE, sequence.to_string());
        let subject = outcome_subject(key, id);
        let sent = self.jetstream.publish_with_headers(subject, headers, body.into()).await;
        sent.map_err(unavailable)?.await.map_err(unavailable)?;
        Ok(())
    }

    /// What [`Self::save_outcome`] kept; `None` when nothing, or no longer.
    pub async fn outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
    ) -> Result<Option<Outcome>, Error> {
        Ok(self.kept(key, id).await?.map(|(_, outcome)| outcome))
    }

    /// Whether the command that the queue has at this sequence has an outcome there. One of an
    /// earlier command of the same id does not count: that one was put aside and requeued, or sent
    /// again.
    pub async fn has_outcome(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
    ) -> Result<bool, Error> {
        Ok(self.kept(key, id).await?.is_some_and(|(of, _)| of >= sequence))
    }

    /// The last outcome under this id, with its command's sequence in the queue.
    async fn kept(
        &self,
        key: &AggregateKey,
        id: &CommandId,
    ) -> Result<Option<(u64, Outcome)>, Error> {
        let to = format!("$JS.API.DIRECT.GET.{}.{}", topology::OUTCOMES, outcome_subject(key, id));
        let mut replies = self.inbox.request(to, None, Bytes::new()).await?;
        let message = replies.next().await?;
        match message.status.map(|status| status.as_u16()) {
            None => {
                let sequence = load::number(&message, QUEUE_SEQUENCE).unwrap_or(0);
                let outcome = serde_json::from_slice(&message.payload).ok();
                Ok(outcome.map(|outcome| (sequence, outcome)))
            }
            Some(404) => Ok(None),
            Some(status) => Err(unavailable(format!("direct get answered {status}"))),
        }
    }
}

/// Header of an outcome: its command's sequence in the queue.
const QUEUE_SEQUENCE: &str = "Flexcore-Queue-Sequence";

fn outcome_subject(key: &AggregateKey, id: &CommandId) -> String {
    format!("outcome.{}.{id}", key.subject_part())
}

/// Longest reason, in characters: it is read in a list.
const REASON_CHARS_MAX: usize = 400;

/// Header values hold no line breaks.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect()
}
