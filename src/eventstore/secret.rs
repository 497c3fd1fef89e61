//! The secret that gateways and workers share. It lies in a bucket that nobody needs to read who only
//! publishes commands.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishErrorKind, stream::LastRawMessageErrorKind},
};
use flexcore_domain::Secret;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Error, EventStore, REQUEST_TIMEOUT, topology, unavailable};

/// Beside the slots, whose names are numbers.
const SUBJECT: &str = "$KV.flex_queue.secret";
/// Before the broker is asked again: a stream that was just made may have no leader yet.
const PAUSE: Duration = Duration::from_millis(100);

/// The secret of this installation; the first process to ask makes it. Fails when the broker is away.
pub(crate) async fn open(jetstream: &jetstream::Context) -> Result<Secret, Error> {
    let end = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let error = match read(jetstream).await {
            Ok(Some(secret)) => return Ok(secret),
            Ok(None) => write(jetstream).await.err(),
            Err(error) => Some(error),
        };
        match error {
            Some(error) if !error.is_passing() || Instant::now() > end => return Err(error),
            Some(_) => tokio::time::sleep(PAUSE).await,
            None => {}
        }
    }
}

async fn read(jetstream: &jetstream::Context) -> Result<Option<Secret>, Error> {
    let bucket = jetstream.get_stream_no_info(topology::PROGRESS).await.map_err(unavailable)?;
    let message = match bucket.get_last_raw_message_by_subject(SUBJECT).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(unavailable(error)),
    };
    let secret = std::str::from_utf8(&message.payload).ok().and_then(Secret::parse);
    let advice = "delete it, and start gateways and workers again";
    secret
        .map(Some)
        .ok_or_else(|| Error::Misconfigured(format!("{SUBJECT} is no secret: {advice}")))
}

/// Writes a new one, unless another process has: that one holds.
async fn write(jetstream: &jetstream::Context) -> Result<(), Error> {
    let made = Secret::from(*Uuid::new_v4().as_bytes()).to_string();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    let sent = jetstream.publish_with_headers(SUBJECT, headers, made.into()).await;
    match sent.map_err(unavailable)?.await {
        Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
            Err(unavailable(error))
        }
        _ => Ok(()),
    }
}

impl EventStore {
    /// The secret that gateways and workers share; `None` on a handle that was attached.
    #[must_use]
    pub fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }
}
