//! The secret that senders are sealed with: how a gateway hears that there is another one.

use std::sync::Arc;

use flexcore_domain::{Outcome, WRONG_SEAL};
use flexcore_eventstore as eventstore;
use tokio::time::sleep;

use crate::shared::Shared;

/// Reads it now and then, until the gateway drains: a gateway that only stores commands hears nothing of
/// their seals.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let (every, mut told) = (shared.settings.secret_every, false);
    while shared.shutdown.run_until_cancelled(sleep(every)).await.is_some() {
        told = note(shared.store.follow_secret().await, told);
    }
}

/// Where a worker says that the seal does not fit, the secret here may be old: it is read again for the next
/// command.
pub(crate) async fn heed(shared: &Shared, outcome: &Outcome) {
    let (Outcome::Unavailable { message: said } | Outcome::Dead { reason: said }) = outcome else {
        return;
    };
    if said == WRONG_SEAL {
        // The watch tells what does not pass.
        note(shared.store.read_secret_again().await, true);
    }
}

/// Tells people what does not pass by itself, once until it works again: meanwhile everything that is stored
/// here may be put aside. Returns whether they have been told.
fn note(read: Result<(), eventstore::Error>, told: bool) -> bool {
    let Err(error) = read else { return false };
    let is_news = !told && !error.is_passing();
    if is_news {
        tracing::warn!(%error, "the secret that seals senders cannot be read again");
    } else {
        tracing::debug!(%error, "the secret that seals senders cannot be read again");
    }
    told || is_news
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use flexcore_eventstore::Error;
    use tracing::{
        Event, Level, Metadata, Subscriber,
        span::{Attributes, Id, Record},
    };

    use super::*;

    /// The levels of what is logged.
    #[derive(Clone, Default)]
    struct Levels(Arc<Mutex<Vec<Level>>>);

    impl Subscriber for Levels {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    /// It was said at `debug` alone, and the gateway went on with a secret that no worker had.
    #[test]
    fn a_secret_that_is_none_is_told_once_until_it_works_again() {
        let away = || Err(Error::Unavailable("away".to_owned()));
        let wrong = || Err(Error::Misconfigured("it is no secret".to_owned()));
        let levels = Levels::default();
        tracing::subscriber::with_default(levels.clone(), || {
            let mut told = false;
            for read in [away(), wrong(), wrong(), away(), wrong(), Ok(()), wrong()] {
                told = note(read, told);
            }
        });
        let (warn, debug) = (Level::WARN, Level::DEBUG);
        let told = levels.0.lock().unwrap();
        assert_eq!(*told, [debug, warn, debug, debug, debug, warn]);
    }
}
