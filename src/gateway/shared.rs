//! What the requests of one gateway share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flexcore_auth::Verifier;
use flexcore_cluster::Owners;
use flexcore_definition::Catalog;
use flexcore_eventstore::{EventStore, commands::CommandPublisher};
use flexcore_http::health::RenderMetrics;
use flexcore_readmodel::ReadModels;
use flexcore_resilience::{Breaker, Policies, Retry};
use metrics::Histogram;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Parts, admission::Admission, former::Former, installed::InstalledSeen, readiness::Readiness,
    strangers::Strangers,
};

pub(crate) struct Shared {
    pub(crate) store: EventStore,
    pub(crate) owners: Owners,
    pub(crate) publisher: CommandPublisher,
    pub(crate) queue: Retry,
    pub(crate) read_models: ReadModels,
    /// Guards every read of `read_models`.
    pub(crate) postgres: Breaker,
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) metrics: RenderMetrics,
    /// `/metrics` has a port of its own.
    pub(crate) metrics_apart: bool,
    pub(crate) settings: crate::Settings,
    pub(crate) admission: Admission,
    pub(crate) strangers: Strangers,
    pub(crate) readiness: Readiness,
    pub(crate) documents: Documents,
    pub(crate) former: Former,
    pub(crate) installed: InstalledSeen,
    /// Cancelled when draining begins: readiness turns false, streams end.
    pub(crate) shutdown: CancellationToken,
    draining: AtomicBool,
    durations: RwLock<HashMap<(&'static str, &'static str, u16), Histogram>>,
}

impl Shared {
    pub(crate) fn new(parts: Parts, shutdown: CancellationToken, metrics_apart: bool) -> Arc<Self> {
        let policies = Policies::default();
        Arc::new(Self {
            admission: Admission::new(&parts.settings, parts.read_models.connections_max()),
            strangers: Strangers::new(&parts.settings),
            publisher: parts.store.command_publisher(),
            store: parts.store,
            owners: parts.owners,
            read_models: parts.read_models,
            postgres: Breaker::new("postgres", policies.postgres.breaker),
            queue: Retry::new("queue", &policies.queue),
            catalog: parts.catalog,
            verifier: parts.verifier,
            metrics: parts.metrics,
            metrics_apart,
            settings: parts.settings,
            readiness: Readiness::default(),
            documents: Documents::default(),
            former: Former::default(),
            installed: InstalledSeen::new(parts.plugins),
            shutdown,
            draining: AtomicBool::new(false),
            durations: RwLock::default(),
        })
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Counts an answered request. Routes and methods are known ones, so the table stays small.
    pub(crate) fn record(
        &self,
        method: &'static str,
        route: &'static str,
        status: u16,
        duration: Duration,
    ) {
        let key = (method, route, status);
        let known =
            self.durations.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let histogram = known.unwrap_or_else(|| {
            let made = metrics::histogram!(
                "http_server_request_duration_seconds",
                "method" => method, "route" => route, "status" => status.to_string()
            );
            let mut table = self.durations.write().unwrap_or_else(PoisonError::into_inner);
            table.entry(key).or_insert(made).clone()
        });
        histogram.record(duration.as_secs_f64());
    }
}

/// The contracts, kept until another deployment.
#[derive(Default)]
pub(crate) struct Documents {
    pub(crate) openapi: Derived<Bytes>,
    pub(crate) asyncapi: Derived<Bytes>,
}

/// A value computed from the catalog, kept until another deployment.
pub(crate) struct Derived<T>(Mutex<Option<(Arc<Catalog>, T)>>);

impl<T> Default for Derived<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Derived<T> {
    pub(crate) fn get(&self, catalog: Arc<Catalog>, compute: impl FnOnce(&Catalog) -> T) -> T {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, value)) = &*kept
            && Arc::ptr_eq(of, &catalog)
        {
            return value.clone();
        }
        let value = compute(&catalog);
        *kept = Some((catalog, value.clone()));
        value
    }
}
