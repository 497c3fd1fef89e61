//! The time that deciders are told. A host's clock that is ahead would leave its mark in the log: an
//! aggregate's time never goes back, so that it would stand still until all clocks have caught up.
//! Therefore the broker's clock bounds it. A clock that is behind does no lasting harm.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use flexcore_eventstore::EventStore;
use tokio_util::sync::CancellationToken;

/// The most that a time may be ahead of the broker's clock, in milliseconds. Clocks that are set by
/// a time server differ by less, and an aggregate that stands still for a minute is no lasting
/// harm.
const AHEAD_MS_MAX: i64 = 60_000;
/// Time between questions to the broker for its time. In between it goes on by this host's steady
/// clock.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// From this difference on the log says that clocks differ, in milliseconds.
const SAID_FROM_MS: u64 = 10_000;

/// This host's clock, no further ahead of the broker's than a minute. Cheap to clone.
#[derive(Clone)]
pub(super) struct Clock {
    own: fn() -> i64,
    broker: Arc<Mutex<Option<Seen>>>,
}

/// The broker's time at a moment.
#[derive(Clone, Copy)]
struct Seen {
    time_ms: i64,
    at: Instant,
}

impl Clock {
    /// This clock, with no bound yet.
    pub(super) fn new(own: fn() -> i64) -> Self {
        Self { own, broker: Arc::default() }
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub(super) fn now_ms(&self) -> i64 {
        let seen = *self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        bounded((self.own)(), seen, Instant::now())
    }

    /// Asks the broker. Without an answer its last answer still counts.
    pub(super) async fn look(&self, store: &EventStore, said: &mut bool) {
        let time_ms = match store.broker_time_ms().await {
            Ok(time_ms) => time_ms,
            Err(error) => return tracing::debug!(%error, "the broker's time is not known"),
        };
        let seen = Seen { time_ms, at: Instant::now() };
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        let ahead_ms = (self.own)().saturating_sub(time_ms);
        metrics::gauge!("flexcore_clock_ahead_seconds").set(ahead_ms as f64 / 1_000.0);
        let differ = ahead_ms.unsigned_abs() >= SAID_FROM_MS;
        if differ && !*said {
            tracing::warn!(ahead_ms, "this host's clock and the broker's differ: set them");
        }
        *said = differ;
    }

    /// Asks the broker now and then, until the token is cancelled.
    pub(super) async fn follow(self, store: EventStore, stop: CancellationToken) {
        let mut said = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => self.look(&store, &mut said).await,
            }
        }
    }
}

fn bounded(own_ms: i64, seen: Option<Seen>, now: Instant) -> i64 {
    let Some(Seen { time_ms, at }) = seen else { return own_ms };
    let since = now.saturating_duration_since(at).as_millis();
    let since_ms = i64::try_from(since).unwrap_or(i64::MAX);
    own_ms.min(time_ms.saturating_add(since_ms).saturating_add(AHEAD_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_bounded_by_the_brokers() {
        let at = Instant::now();
        let seen = Some(Seen { time_ms: 1_000_000, at });
        let now = at + Duration::from_millis(500);
        for (own, told) in [
            (1_000_500, 1_000_500),
            (0, 0),
            (i64::MIN, i64::MIN),
            (1_060_500, 1_060_500),
            (1_060_501, 1_060_500),
            (i64::MAX, 1_060_500),
        ] {
            assert_eq!(bounded(own, seen, now), told, "{own}");
            assert_eq!(bounded(own, None, now), own, "nothing is known of the broker's");
        }
    }
}
