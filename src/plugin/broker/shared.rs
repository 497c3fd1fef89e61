//! The broker's state, as its tasks and callers share it.

use std::{
    pin::pin,
    sync::{Mutex, PoisonError},
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout, timeout_at},
};

use super::state::{BrokerState, Due};
use crate::{Error, limits::BROKER_WAIT, wire::ConnInfo};

/// A state, and a bell that rings when it has changed.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<BrokerState>,
    changed: Notify,
}

impl Shared {
    /// Looks at the state, or changes it in a way that nobody waits for.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut BrokerState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state and wakes whoever waits for that.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut BrokerState) -> T) -> T {
        let changed = self.with(change);
        self.changed.notify_waiters();
        changed
    }

    /// Takes a message of the other side.
    pub(super) fn take(&self, info: ConnInfo) {
        self.change(|state| state.take(info, Instant::now()));
    }

    /// Looks again after each change, until there is something. The caller bounds the time.
    pub(super) async fn until<T>(&self, mut look: impl FnMut(&mut BrokerState) -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            // A change between the look and the wait is noticed, too.
            changed.as_mut().enable();
            if let Some(found) = self.with(&mut look) {
                return found;
            }
            changed.await;
        }
    }

    /// The next knock of the other side that can be answered: never `Later` or `Nothing`.
    pub(super) async fn due(&self) -> Due {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.with(|state| state.due(Instant::now())) {
                Due::Nothing => changed.await,
                Due::Later(at) => _ = timeout_at(at, changed).await,
                due => return due,
            }
        }
    }

    /// Fails if there is no exchange with the other side any more.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.with(|state| state.ended()).map_or(Ok(()), |reason| Err(Error::Broker(reason)))
    }

    /// Sends a message to the other side, which may read slowly.
    pub(super) async fn send(
        &self,
        outgoing: &mpsc::Sender<ConnInfo>,
        info: ConnInfo,
    ) -> Result<(), Error> {
        match timeout(BROKER_WAIT, outgoing.send(info)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => {
                let reason = self.with(|state| state.ended());
                Err(Error::Broker(reason.unwrap_or_else(|| "it has ended".to_owned())))
            }
            Err(_) => Err(Error::Late { what: "a message to the broker", limit: BROKER_WAIT }),
        }
    }
}
