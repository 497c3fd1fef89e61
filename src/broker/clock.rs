//! The broker's clock.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, timeout_at};

use crate::{Error, inbox::Inbox, unavailable};

/// Longest wait for an answer: one that comes later says less about now.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The broker's answer about a stream; other fields do not matter here.
#[derive(Deserialize)]
struct Info {
    /// When it says so.
    ts: Option<String>,
}

impl Inbox {
    /// The clock of a broker's server, in milliseconds since 1970-01-01 UTC: of the server that
    /// leads this stream. Fails with [`Error::Unavailable`] when none answers at once.
    #[boxed::async_recursion]
    pub async fn time_ms(&self, stream: &str) -> Result<i64, Error> {
        let to = format!("$JS.API.STREAM.INFO.{stream}");
        let until = Instant::now() + ANSWER_MAX;
        let mut replies = self.request(to, None, Bytes::new()).await?;
        let reply = timeout_at(until, replies.next()).await.map_err(unavailable)??;
        let info: Info = serde_json::from_slice(&reply.payload).map_err(unavailable)?;
        let time = info.ts.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
        let time_ms = time.map(|time| time.unix_timestamp_nanos() / 1_000_000);
        let time_ms = time_ms.and_then(|ms| i64::try_from(ms).ok());
        time_ms.ok_or_else(|| unavailable("the broker does not tell its time"))
    }
}
