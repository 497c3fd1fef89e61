//! The roles that serve from an open installation until they are told to stop.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use flexcore_auth::Verifier;
use flexcore_cluster::{Guard, Owners};
use flexcore_gateway as gateway;
use flexcore_http::{
    Response,
    health::{self, Missing, RenderMetrics},
};
use flexcore_workers as workers;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::Installation;

/// Roles that run until the token is cancelled.
pub struct Roles {
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Roles {
    /// None yet.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tasks: JoinSet::new() }
    }

    /// The gateway on this listener, and `/metrics` on another when one is given.
    pub fn gateway(
        &mut self,
        installation: &Installation,
        http: TcpListener,
        metrics_apart: Option<TcpListener>,
        verifier: Verifier,
        metrics: RenderMetrics,
    ) {
        let parts = gateway::Parts {
            store: installation.store.clone(),
            owners: Owners::of(
                workers::COMMANDS,
                installation.store.client(),
                &installation.member,
            ),
            read_models: installation.read_models.clone(),
            catalog: installation.catalog.clone(),
            plugins: installation.plugins.clone(),
            verifier: Arc::new(verifier),
            settings: gateway::Settings::default(),
            metrics,
        };
        let listeners = gateway::Listeners { http, metrics: metrics_apart };
        let stop = self.stop.clone();
        let (mut deployed, mut installed) =
            (installation.catalog.clone(), installation.plugins.clone());
        self.tasks.spawn(async move {
            let deployments = async { while deployed.changed().await.is_ok() {} };
            let installations = async { while installed.changed().await.is_ok() {} };
            tokio::select! {
                served = gateway::serve(listeners, parts, stop) => {
                    served.context("the gateway stopped")
                }
                () = deployments => bail!("deployments are not followed any more"),
                () = installations => bail!("what is installed is not followed any more"),
            }
        });
    }

    /// The command worker.
    pub fn commands(&mut self, installation: &Installation, settings: workers::command::Settings) {
        let Installation { store, catalog, member, .. } = installation.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let running = workers::command::run(store, catalog, member, settings, stop);
            running.await.context("the command worker stopped")
        });
    }

    /// The projection worker.
    pub fn projections(&mut self, installation: &Installation) {
        let Installation { store, read_models, catalog, member, .. } = installation.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let settings = workers::projection::Settings::default();
            let running =
                workers::projection::run(store, read_models, catalog, member, settings, stop);
            running.await.context("the projection worker stopped")
        });
    }

    /// The plugin worker. The plugins' files are kept in this folder.
    pub fn plugins(&mut self, installation: &Installation, files: PathBuf) {
        let Installation { store, plugins, member, .. } = installation.clone();
        let settings = workers::plugin::Settings {
            folder: files,
            member: member.id().to_string(),
            guard: workers::plugin::GUARD.into(),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let running = workers::plugin::run(store, plugins, settings, stop);
            running.await.context("the plugin worker stopped")
        });
    }

    /// Resigns at the stop, so that other members take over while this process drains.
    pub fn resignation(&mut self, installation: &Installation) {
        let (member, stop) = (installation.member.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            stop.cancelled().await;
            member.resign();
            Ok(())
        });
    }

    /// `/metrics` and health of a process without a gateway.
    pub fn metrics(
        &mut self,
        installation: &Installation,
        listener: TcpListener,
        render: RenderMetrics,
    ) {
        let (guard, stop) = (installation.member.guard(), self.stop.clone());
        let ready = move || std::future::ready(readiness(&guard));
        self.tasks.spawn(async move {
            health::serve(listener, render, ready, stop).await;
            Ok(())
        });
    }

    /// Waits until every role has ended. A role that fails stops the others, and is what this
    /// fails with.
    #[boxed::async_recursion]
    pub async fn ended(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("a role panicked").and_then(|inner| inner);
            if let Err(error) = ended {
                self.stop.cancel();
                result = result.and(Err(error));
            }
        }
        result
    }
}

/// A process without a gateway is ready while it is a member.
fn readiness(guard: &Guard) -> Response<String> {
    let why = "no member: the broker does not answer".into();
    let missing = (!guard.holds()).then_some(Missing { what: "nats", why });
    health::ready(missing.as_slice(), false)
}

/// Cancels the token at SIGTERM or SIGINT.
pub fn stop_at_signals(stop: &CancellationToken) -> anyhow::Result<JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = stop.clone();
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("draining");
        stop.cancel();
    }))
}

/// Listens on this address. Fails when it is taken, and says so.
#[boxed::async_recursion]
pub async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
