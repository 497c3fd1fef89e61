//! A service that is served for the other side.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::Routes;

use super::shared::Shared;
use crate::{
    connection::{self, Calls},
    identity::Tls,
    limits::{BROKER_CONNECTIONS_MAX, SERVE_ACCEPT_PAUSE},
    transport::{BoxIo, Listener},
};

/// A service that the other side can dial until this is dropped. Then its calls under way end, too,
/// and its socket is removed.
#[must_use = "the service ends when this is dropped"]
pub struct Accepted {
    id: u32,
    shared: Arc<Shared>,
    _serving: AbortOnDropHandle<()>,
}

/// What is served.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) tls: Option<Tls>,
    pub(super) routes: Routes,
    pub(super) calls: Calls,
}

/// The place where a service's connections come from.
pub(super) enum Source {
    Listener(Listener),
    /// Streams of a multiplexed connection.
    Streams(mpsc::Receiver<BoxIo>),
}

impl Accepted {
    /// `id` is in the state already.
    pub(super) fn new(id: u32, shared: Arc<Shared>, source: Source, offer: Offer) -> Self {
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(source, offer)));
        Self { id, shared, _serving: serving }
    }

    /// The number under which the other side dials it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.shared.change(|state| state.stop_serving(self.id));
    }
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Source {
    /// The next connection; none when there will be no more.
    async fn next(&mut self) -> Option<BoxIo> {
        match self {
            Self::Streams(streams) => streams.recv().await,
            Self::Listener(listener) => loop {
                match listener.accept().await {
                    Ok(io) => return Some(io),
                    Err(error) => {
                        tracing::debug!(%error, "cannot take a connection to a broker's service");
                        sleep(SERVE_ACCEPT_PAUSE).await;
                    }
                }
            },
        }
    }
}

/// Serves every connection, so many at once. Others wait where they came from.
async fn serve(mut source: Source, offer: Offer) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = open.join_next() => {}
            io = source.next(), if open.len() < BROKER_CONNECTIONS_MAX => match io {
                Some(io) => _ = open.spawn(serve_one(io, offer.clone())),
                None => break,
            },
        }
    }
    while open.join_next().await.is_some() {}
}

async fn serve_one(io: BoxIo, Offer { tls, routes, calls }: Offer) {
    // It has no gentle end: whoever drops `Accepted` ends the calls, too.
    let stop = CancellationToken::new();
    let served = connection::serve_secured(io, tls.as_ref(), routes, stop, calls);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection to a broker's service failed");
    }
}
