//! The secret that gateways and workers share, in a bucket of its own: nobody needs to read it who only
//! publishes commands, and no repair of another stream takes it away.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishErrorKind, stream::LastRawMessageErrorKind},
};
use flexcore_domain::Secret;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Error, EventStore, REQUEST_TIMEOUT, topology, unavailable};

/// Where it lies: stream and subject.
const PLACE: (&str, &str) = (topology::SECRETS, "$KV.flex_secrets.seal");
/// Where earlier versions made it, and read it yet: beside the slots, whose names are numbers.
const FORMER: (&str, &str) = (topology::PROGRESS, "$KV.flex_queue.secret");
/// Before the broker is asked again: a stream that was just made may have no leader yet.
const PAUSE: Duration = Duration::from_millis(100);

/// The last message of a place.
struct Last {
    /// 0: there is none.
    sequence: u64,
    /// `None`: there is none, or it was deleted.
    secret: Option<Secret>,
}

/// The secret of this installation; the first process to ask makes it. Fails when the broker is away.
pub(crate) async fn open(jetstream: &jetstream::Context) -> Result<Secret, Error> {
    let end = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match read_or_make(jetstream).await {
            Err(error) if error.is_passing() && Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn read_or_make(jetstream: &jetstream::Context) -> Result<Secret, Error> {
    let last = read(jetstream, PLACE).await?;
    if let Some(secret) = last.secret {
        return Ok(secret);
    }
    // Processes of an earlier version go on with theirs. Not after a deletion: that is to end it.
    let former = match last.sequence {
        0 => read(jetstream, FORMER).await?.secret,
        _ => None,
    };
    let made = former.unwrap_or_else(|| Secret::from(*Uuid::new_v4().as_bytes()));
    write(jetstream, &made, last.sequence).await?;
    // What stands there holds, whichever process wrote it.
    let last = read(jetstream, PLACE).await?;
    last.secret.ok_or_else(|| unavailable(format!("{} was just deleted", PLACE.1)))
}

async fn read(jetstream: &jetstream::Context, (stream, at): (&str, &str)) -> Result<Last, Error> {
    let bucket = jetstream.get_stream_no_info(stream).await.map_err(unavailable)?;
    let message = match bucket.get_last_raw_message_by_subject(at).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            return Ok(Last { sequence: 0, secret: None });
        }
        Err(error) => return Err(unavailable(error)),
    };
    let sequence = message.sequence;
    if message.payload.is_empty() {
        return Ok(Last { sequence, secret: None });
    }
    let secret = std::str::from_utf8(&message.payload).ok().and_then(Secret::parse);
    let advice = "delete it, and start gateways and workers again";
    let secret =
        secret.ok_or_else(|| Error::Misconfigured(format!("{at} is no secret: {advice}")))?;
    Ok(Last { sequence, secret: Some(secret) })
}

/// Writes it, unless another process has since this sequence.
async fn write(jetstream: &jetstream::Context, made: &Secret, last: u64) -> Result<(), Error> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", last.to_string());
    let sent = jetstream.publish_with_headers(PLACE.1, headers, made.to_string().into()).await;
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
