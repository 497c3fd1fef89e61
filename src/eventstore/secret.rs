//! The secret that gateways and workers share, in a bucket of its own: nobody needs to read it who only
//! publishes commands, and no repair of another stream takes it away.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use async_nats::HeaderMap;
use flexcore_broker::bucket::{Bucket, Condition};
use flexcore_domain::Secret;
use tokio::{sync::Mutex, time::Instant};
use uuid::Uuid;

use crate::{Error, EventStore, REQUEST_TIMEOUT, topology, unavailable};

/// Where it lies: stream and key.
const PLACE: (&str, &str) = (topology::SECRETS, "seal");
/// Where earlier versions made it, and read it yet: beside the slots, whose names are numbers.
const FORMER: (&str, &str) = (topology::PROGRESS, "secret");
/// Before the broker is asked again: a stream that was just made may have no leader yet.
const PAUSE: Duration = Duration::from_millis(100);

/// Least time between two questions for another secret: anybody may send wrong seals.
const AGAIN_EVERY: Duration = Duration::from_secs(1);
/// Least time between two lines in the log about a seal that fits none.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The secret as this process has it.
pub(crate) struct Held {
    now: RwLock<Secret>,
    looks: Mutex<Looks>,
}

/// When another one was looked for, and when the log was told that there is none.
#[derive(Default)]
struct Looks {
    last: Option<Instant>,
    told: Option<Instant>,
}

impl Held {
    pub(crate) fn new(secret: Secret) -> Self {
        Self { now: RwLock::new(secret), looks: Mutex::default() }
    }

    fn now(&self) -> Secret {
        *self.now.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The secret of this installation; the first process to ask makes it. Fails when the broker is away.
pub(crate) async fn open(store: &EventStore) -> Result<Secret, Error> {
    let end = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match read_or_make(store).await {
            Err(error) if error.is_passing() && Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn read_or_make(store: &EventStore) -> Result<Secret, Error> {
    let (secret, sequence) = read(store, PLACE).await?;
    if let Some(secret) = secret {
        return Ok(secret);
    }
    // Processes of an earlier version go on with theirs. Not after a deletion: that is to end it.
    let former = if sequence == 0 { read(store, FORMER).await?.0 } else { None };
    let made = former.unwrap_or_else(|| Secret::from(*Uuid::new_v4().as_bytes()));
    let (bucket, (_, key)) = (store.bucket(PLACE.0), PLACE);
    let (body, condition) = (made.to_string().into(), Some(Condition { key, sequence }));
    match bucket.write(key, HeaderMap::new(), body, condition).await {
        Err(error) if !error.is_conflict() => Err(error.into()),
        // What stands there holds, whichever process wrote it.
        _ => read(store, PLACE).await?.0.ok_or_else(|| unavailable("the secret was just deleted")),
    }
}

/// The secret in a place, and the sequence there. No secret: it was deleted; or, with sequence 0, there
/// was none.
async fn read(
    store: &EventStore,
    (stream, key): (&'static str, &str),
) -> Result<(Option<Secret>, u64), Error> {
    let Some(entry) = store.bucket(stream).read(key).await.map_err(unavailable)? else {
        return Ok((None, 0));
    };
    let Some(value) = entry.value else { return Ok((None, entry.sequence)) };
    let secret = str::from_utf8(&value).ok().and_then(Secret::parse).ok_or_else(|| {
        let advice = "delete it, and start gateways and workers again";
        Error::Misconfigured(format!("{key} in the stream {stream} is no secret: {advice}"))
    })?;
    Ok((Some(secret), entry.sequence))
}

impl EventStore {
    fn bucket(&self, stream: &'static str) -> Bucket {
        let (jetstream, acknowledged) = (self.jetstream.clone(), self.acknowledged.clone());
        Bucket { stream, jetstream, acknowledged }
    }

    /// The secret that gateways and workers share; `None` on a handle that was attached.
    #[must_use]
    pub fn secret(&self) -> Option<Secret> {
        self.secret.as_ref().map(|held| held.now())
    }

    /// Reads the secret again, since a seal does not fit it: another process may have made another one.
    /// Within a second of the last time nothing is read. A secret that was deleted goes on until there is
    /// another. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn read_secret_again(&self) -> Result<(), Error> {
        let Some(held) = &self.secret else { return Ok(()) };
        let mut looks = held.looks.lock().await;
        if !is_due(looks.last, Instant::now(), AGAIN_EVERY) {
            return Ok(());
        }
        let is_new = self.read_secret(held, &mut looks).await?;
        let now = Instant::now();
        if !is_new && is_due(looks.told, now, TOLD_EVERY) {
            looks.told = Some(now);
            tracing::error!(
                "the seal of a command does not fit the secret: a gateway or a worker goes on \
                 with another one, and should be started again, or somebody forges seals"
            );
        }
        Ok(())
    }

    /// Reads the secret again, since whoever only stores commands hears nothing of their seals. A secret
    /// that was deleted goes on until there is another. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn follow_secret(&self) -> Result<(), Error> {
        let Some(held) = &self.secret else { return Ok(()) };
        let mut looks = held.looks.lock().await;
        self.read_secret(held, &mut looks).await.map(drop)
    }

    /// Returns true if it is another one now.
    async fn read_secret(&self, held: &Held, looks: &mut Looks) -> Result<bool, Error> {
        let found = read(self, PLACE).await;
        // Also of one that failed: those who wait behind it would each wait as long.
        looks.last = Some(Instant::now());
        match found?.0 {
            Some(secret) if secret != held.now() => {
                *held.now.write().unwrap_or_else(PoisonError::into_inner) = secret;
                tracing::warn!("the secret that seals senders is another one now");
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn is_due(last: Option<Instant>, now: Instant, every: Duration) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_once_a_second_at_most() {
        let now = Instant::now();
        assert!(is_due(None, now, AGAIN_EVERY));
        assert!(!is_due(Some(now), now + AGAIN_EVERY / 2, AGAIN_EVERY));
        assert!(is_due(Some(now), now + AGAIN_EVERY, AGAIN_EVERY));
    }
}
