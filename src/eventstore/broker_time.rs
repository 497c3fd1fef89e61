//! The broker's clock.

use std::time::Duration;

use bytes::Bytes;
use flexcore_domain::commit::parse_rfc3339;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::{Error, EventStore, topology, unavailable};

/// Longest wait for an answer: one that comes later says less about now.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The broker's answer about a stream; other fields do not matter here.
#[derive(Deserialize)]
struct Info {
    /// When it says so.
    ts: Option<String>,
}

impl EventStore {
    /// The clock of a broker's server, in milliseconds since 1970-01-01 UTC: of the server that
    /// leads a small stream. Fails with [`Error::Unavailable`] when none answers at once.
    pub async fn broker_time_ms(&self) -> Result<i64, Error> {
        let to = format!("$JS.API.STREAM.INFO.{}", topology::QUEUE);
        let until = Instant::now() + ANSWER_MAX;
        let mut replies = self.inbox.request(to, None, Bytes::new()).await?;
        let reply = timeout_at(until, replies.next()).await.map_err(unavailable)??;
        let info: Info = serde_json::from_slice(&reply.payload).map_err(unavailable)?;
        let time = info.ts.as_deref().and_then(parse_rfc3339);
        time.ok_or_else(|| unavailable("the broker does not tell its time"))
    }
}
