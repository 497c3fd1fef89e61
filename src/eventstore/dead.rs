//! FLEX_DEAD keeps messages that could not be processed, to be looked at and requeued.

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_broker::size::encoded_bytes;

use crate::{Error, EventStore, aside, kept, subjects, topology};

impl EventStore {
    /// Puts a message aside. `kind` is `command` or `projection.<read model>.<slot>`; `reason`
    /// becomes one line. A message that is too large is cut, and headers say so. Returns when the
    /// broker has it.
    #[boxed::async_recursion]
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
        let bytes = encoded_bytes(&all, body.len());
        let to = kept::dead_subject(kind, subject, bytes);
        self.acknowledged.store(to, all, body).await?;
        self.wrote(topology::DEAD, subjects::tenant(subject), bytes);
        let kind = kind.split('.').next().unwrap_or_default().to_owned();
        metrics::counter!("flexcore_dead_total", "kind" => kind).increment(1);
        Ok(())
    }
}
