//! The gateway: commands, states, events and queries over HTTP, for those who hold a token.
//!
//! `router` lists every route with the permission that it needs, `request` is what every request goes
//! through, `error` is the one place that knows status codes, `listen` the accept loop with its timers
//! and caps.

mod admission;
mod asyncapi;
mod connections;
#[cfg(feature = "defects")]
mod defects;
mod error;
mod extract;
#[cfg(test)]
mod fixture;
mod form;
mod former;
mod frames;
mod installed;
pub mod limits;
mod listen;
mod openapi;
mod postgres;
mod problems;
mod question;
mod readiness;
mod request;
mod route;
mod router;
mod routes;
mod schema;
mod secret;
mod shared;
mod strangers;

use std::sync::Arc;

use flexcore_auth::Verifier;
use flexcore_cluster::Owners;
use flexcore_definition::Catalog;
use flexcore_eventstore::{EventStore, plugins::InstalledPlugins};
use flexcore_http::health::{self, RenderMetrics};
use flexcore_readmodel::ReadModels;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub use error::Error;

pub use asyncapi::document as asyncapi;
pub use openapi::document as openapi;

/// What the gateway works with.
pub struct Parts {
    /// The log, and the connection over which workers are asked.
    pub store: EventStore,
    /// Who owns which slot.
    pub owners: Owners,
    /// What queries read.
    pub read_models: ReadModels,
    /// What is deployed.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// What is installed.
    pub plugins: watch::Receiver<Arc<InstalledPlugins>>,
    /// Accepts tokens.
    pub verifier: Arc<Verifier>,
    /// How it serves.
    pub settings: Settings,
    /// For `/metrics`.
    pub metrics: RenderMetrics,
}

/// How the gateway serves. The defaults are those of [`limits`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests a second of one tenant, and as a burst.
    pub requests_per_second: std::num::NonZeroU32,
    /// Requests a second of all together who send no good token, and as a burst.
    pub strangers_per_second: std::num::NonZeroU32,
    /// Requests of theirs under way at once.
    pub strangers_max: usize,
    /// Connections at once, of which the first tenant has a half for its requests.
    pub connections_max: usize,
    /// Commands under way at once, of which the first tenant has a half.
    pub commands_max: usize,
    /// Between two looks at the secret that seals senders.
    pub secret_every: std::time::Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            requests_per_second: std::num::NonZeroU32::new(limits::REQUESTS_PER_SECOND)
                .expect("BUG: the default rate is not zero"),
            strangers_per_second: std::num::NonZeroU32::new(limits::STRANGERS_PER_SECOND)
                .expect("BUG: the default rate is not zero"),
            strangers_max: limits::STRANGERS_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            commands_max: limits::COMMANDS_MAX,
            secret_every: limits::SECRET_EVERY,
        }
    }
}

/// Where the gateway listens.
pub struct Listeners {
    /// For clients.
    pub http: TcpListener,
    /// For `/metrics` and health alone; `None`: they are on `http`, where health always is.
    pub metrics: Option<TcpListener>,
}

/// Serves until `shutdown` is cancelled, then drains: readiness turns false, a moment later no more
/// connections are taken, streams end, requests under way are finished. Fails when the listener is
/// of no use.
#[boxed::async_recursion]
pub async fn serve(
    listeners: Listeners,
    parts: Parts,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let apart = listeners.metrics.is_some();
    let shared = shared::Shared::new(parts, shutdown.clone(), apart);
    // Until the gateway has drained.
    let drained = CancellationToken::new();
    let _drained = drained.clone().drop_guard();
    if let Some(listener) = listeners.metrics {
        let (render, shared) = (shared.metrics.clone(), shared.clone());
        let ready = move || routes::health::readiness(shared.clone());
        tokio::spawn(health::serve(listener, render, ready, drained));
    }
    tokio::spawn(routes::health::watch(shared.clone()));
    tokio::spawn(secret::watch(shared.clone()));
    let router = router::of(shared.clone());
    listen::run(listeners.http, router, shared, shutdown).await
}
