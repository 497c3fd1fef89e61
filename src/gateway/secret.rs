//! The secret that senders are sealed with: how a gateway hears that there is another one.

use std::sync::Arc;

use flexcore_domain::{Outcome, WRONG_SEAL};
use flexcore_eventstore as eventstore;
use tokio::time::sleep;

use crate::shared::Shared;

/// Reads it now and then, until the gateway drains: a gateway that only stores commands hears nothing of
/// their seals.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let every = shared.settings.secret_every;
    while shared.shutdown.run_until_cancelled(sleep(every)).await.is_some() {
        note(shared.store.follow_secret().await);
    }
}

/// Where a worker says that the seal does not fit, the secret here may be old: it is read again for the next
/// command.
pub(crate) async fn heed(shared: &Shared, outcome: &Outcome) {
    let (Outcome::Unavailable { message: said } | Outcome::Dead { reason: said }) = outcome else {
        return;
    };
    if said == WRONG_SEAL {
        note(shared.store.read_secret_again().await);
    }
}

fn note(read: Result<(), eventstore::Error>) {
    if let Err(error) = read {
        tracing::debug!(%error, "the secret that seals senders cannot be read again");
    }
}
