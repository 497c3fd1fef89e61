//! The roles that serve from an open installation until they are told to stop.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use flexcore_auth::Verifier;
use flexcore_cluster::Owners;
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

    /// Resigns at the stop, so that other members take over while this process drains. Fails, which stops
    /// the others, when a connection to the broker has ended for good.
    pub fn resignation(&mut self, installation: &Installation) {
        let (member, stop) = (installation.member.clone(), self.stop.clone());
        // A client also ends with the last of its handles.
        let (store, ended) = (installation.store.clone(), installation.ended.clone());
        self.tasks.spawn(async move {
            let stopped = until_stopped(&stop, first_of(ended)).await;
            drop(store);
            member.resign();
            stopped
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
        let commands = installation.store.command_queue().reading.clone();
        let ready = move || std::future::ready(readiness(guard.holds(), commands.is_away()));
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

/// Returns when one of these connections has ended for good.
async fn first_of([main, pages, streams]: [CancellationToken; 3]) {
    tokio::select! {
        () = main.cancelled() => {}
        () = pages.cancelled() => {}
        () = streams.cancelled() => {}
    }
}

/// Waits for the stop. Fails when a connection has ended first: the process would live on and hear nothing.
async fn until_stopped(
    stop: &CancellationToken,
    ended: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    match stop.run_until_cancelled(ended).await {
        None => Ok(()),
        Some(()) => bail!(
            "a connection to the broker has ended for good: a message came that its client cannot \
             read, from a login that may publish to FlexCore's own subjects. Start the process anew"
        ),
    }
}

/// A process without a gateway is ready while it is a member, and of use while it cannot read stored commands.
fn readiness(is_member: bool, is_unread: bool) -> Response<String> {
    let missing = |why: &'static str| Missing { what: "nats", why: why.into() };
    let no_member = (!is_member).then(|| missing("no member: the broker does not answer"));
    let unread = is_unread.then(|| missing("stored commands cannot be read"));
    let missing: Vec<Missing> = no_member.into_iter().chain(unread).collect();
    health::ready(&missing, is_member)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// It lived on, ready, and did nothing.
    #[tokio::test]
    async fn a_process_that_hears_nothing_any_more_ends_and_says_so() {
        let stop = CancellationToken::new();
        let ended = [(); 3].map(|()| CancellationToken::new());
        ended[2].cancel();
        let error = until_stopped(&stop, first_of(ended)).await.unwrap_err();
        assert!(error.to_string().contains("ended for good"), "{error}");
        stop.cancel();
        until_stopped(&stop, std::future::pending()).await.unwrap();
    }

    #[test]
    fn a_worker_that_cannot_read_stored_commands_says_so_and_is_of_use() {
        for (is_member, is_unread, status, said) in [
            (true, false, 200, "ready"),
            (true, true, 200, "stored commands cannot be read"),
            (false, false, 503, "no member"),
            (false, true, 503, "no member"),
        ] {
            let answer = readiness(is_member, is_unread);
            assert_eq!(answer.status().as_u16(), status);
            assert!(answer.body().contains(said), "{}", answer.body());
        }
    }
}
