//! The common part of `dev`, `demo`, `gateway`, `worker` and the benches: an open installation, and
//! the roles that serve from it until they are told to stop.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use flexcore_auth::Verifier;
use flexcore_cluster::{self as cluster, Kind, Member, Owners};
use flexcore_definition::Catalog;
use flexcore_domain::AggregateKey;
use flexcore_eventstore::{self as eventstore, EventStore, Profile};
use flexcore_gateway::{self as gateway, RenderMetrics};
use flexcore_readmodel::{self as readmodel, ReadModels};
use flexcore_resilience::Backoff;
use flexcore_workers as workers;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::metrics_http;

/// Where the servers are.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    /// URLs of the broker's servers.
    pub(crate) nats: Vec<String>,
    /// Where each server's monitoring answers.
    pub(crate) nats_monitors: Vec<String>,
    /// Copies of each stream.
    pub(crate) replicas: usize,
    pub(crate) postgres: String,
    /// The login for queries; `None`: one is made.
    pub(crate) postgres_query: Option<String>,
}

/// An installation: the log is open and checked, the read models are migrated, what is deployed is
/// followed.
#[derive(Clone)]
pub(crate) struct Installation {
    pub(crate) store: EventStore,
    pub(crate) read_models: ReadModels,
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    /// This process in the cluster.
    pub(crate) member: Member,
}

/// A cut connection is noticed after two of these; the client's own default takes minutes.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Between two tries to reach a server. The first moments of an outage look like many quick tries.
const RETRY: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
/// Requests that may wait inside the client: what the gateway and the lanes have under way.
const CLIENT_CAPACITY: usize = 65_536;
/// Longest wait for one server to take a connection: another one may.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to one of these servers, that comes back by itself, with backoff and jitter.
pub(crate) async fn connect(urls: &[String]) -> anyhow::Result<async_nats::Client> {
    async_nats::ConnectOptions::new()
        .name("flexcore")
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(CLIENT_CAPACITY)
        .reconnect_delay_callback(|tries| {
            let tries = u32::try_from(tries).unwrap_or(u32::MAX);
            RETRY.jittered(tries.saturating_add(1))
        })
        .connect(urls)
        .await
        .with_context(|| format!("no connection to the broker at {}", urls.join(", ")))
}

impl Installation {
    /// Opens once. Fails when a server is away or contradicts the profile.
    pub(crate) async fn open(
        endpoints: &Endpoints,
        profile: Profile,
        membership: &cluster::Settings,
    ) -> anyhow::Result<Self> {
        if profile == Profile::Relaxed {
            tracing::warn!(
                "profile relaxed: acknowledged commands may be lost in a power cut; use it for \
                 benches and data that may be lost"
            );
        }
        let client = connect(&endpoints.nats).await?;
        let settings = eventstore::Settings {
            profile,
            replicas: endpoints.replicas,
            monitor_urls: endpoints.nats_monitors.clone(),
        };
        let store = EventStore::open(client, settings).await?;
        let (pages, streams) = (connect(&endpoints.nats).await?, connect(&endpoints.nats).await?);
        let commands = connect(&endpoints.nats).await?;
        let store = store.read_over(&pages, &streams, &commands).await?;
        let query_url = endpoints.postgres_query.clone();
        let settings = readmodel::Settings { query_url, ..readmodel::Settings::default() };
        let read_models = ReadModels::connect(&endpoints.postgres, settings).await?;
        if profile == Profile::PowerLoss {
            read_models.check_durable().await?;
        }
        read_models.migrate().await.context("no read models")?;
        read_models.check_login().await.context("no queries")?;
        let catalog = eventstore::catalog::watch(&store).await?;
        let member = Member::join(store.client(), membership.clone()).await?;
        Ok(Self { store, read_models, catalog, member })
    }

    /// Opens as soon as the servers are there, saying meanwhile what is missing. Fails when the
    /// token is cancelled first, and when the servers contradict the profile: waiting mends that
    /// never.
    pub(crate) async fn open_when_there(
        endpoints: &Endpoints,
        profile: Profile,
        membership: &cluster::Settings,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut attempts = 0;
        loop {
            let error = match Self::open(endpoints, profile, membership).await {
                Ok(installation) => {
                    let (member, stop) = (installation.member.clone(), stop.clone());
                    tokio::spawn(async move {
                        stop.cancelled().await;
                        member.resign();
                    });
                    return Ok(installation);
                }
                Err(error) => error,
            };
            let log = error.downcast_ref::<eventstore::Error>();
            let rows = error.downcast_ref::<readmodel::Error>();
            let members = error.downcast_ref::<cluster::Error>();
            if log.is_some_and(|error| !error.is_passing())
                || members.is_some_and(|error| !error.is_passing())
                || matches!(rows, Some(readmodel::Error::Misconfigured(_)))
            {
                return Err(error);
            }
            tracing::warn!(error = format!("{error:#}"), "waiting for the servers");
            tokio::select! {
                () = stop.cancelled() => return Err(error),
                () = tokio::time::sleep(RETRY.jittered(attempts + 1)) => attempts += 1,
            }
        }
    }
}

/// Longest wait for a worker's answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

impl Installation {
    /// Asks the worker that owns the aggregate's slot; `question` makes subject and headers for the
    /// owner's epoch.
    pub(crate) async fn ask(
        &self,
        key: &AggregateKey,
        payload: bytes::Bytes,
        question: impl Fn(u64, Duration) -> (String, async_nats::HeaderMap),
    ) -> anyhow::Result<async_nats::Message> {
        let owners = Owners::of(self.store.client(), &self.member);
        let number = key.slot().number();
        let asked = owners.ask(Kind::Command, number, ANSWER_MAX, payload, question);
        let answer = asked.await.map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
        Ok(answer.message)
    }
}

/// Roles that run until the token is cancelled.
pub(crate) struct Roles {
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Roles {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { stop, tasks: JoinSet::new() }
    }

    /// The gateway on this listener, and `/metrics` on another when one is given.
    pub(crate) fn gateway(
        &mut self,
        installation: &Installation,
        http: TcpListener,
        metrics_apart: Option<TcpListener>,
        verifier: Verifier,
        metrics: RenderMetrics,
    ) {
        let state = gateway::State {
            store: installation.store.clone(),
            owners: Owners::of(installation.store.client(), &installation.member),
            read_models: installation.read_models.clone(),
            catalog: installation.catalog.clone(),
            verifier: Arc::new(verifier),
            settings: gateway::Settings::default(),
            metrics: Some(metrics),
        };
        let listeners = gateway::Listeners { http, metrics: metrics_apart };
        let (stop, mut deployed) = (self.stop.clone(), installation.catalog.clone());
        self.tasks.spawn(async move {
            let followed = async { while deployed.changed().await.is_ok() {} };
            tokio::select! {
                served = gateway::serve(listeners, state, stop) => {
                    served.context("the gateway stopped")
                }
                () = followed => bail!("deployments are not followed any more"),
            }
        });
    }

    /// The command worker.
    pub(crate) fn commands(
        &mut self,
        installation: &Installation,
        settings: workers::command::Settings,
    ) {
        let Installation { store, catalog, member, .. } = installation.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let running = workers::command::run(store, catalog, member, settings, stop);
            running.await.context("the command worker stopped")
        });
    }

    /// The projection worker.
    pub(crate) fn projections(&mut self, installation: &Installation) {
        let Installation { store, read_models, catalog, member } = installation.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let settings = workers::projection::Settings::default();
            let running =
                workers::projection::run(store, read_models, catalog, member, settings, stop);
            running.await.context("the projection worker stopped")
        });
    }

    /// `/metrics` and health of a process without a gateway: it is ready while it is a member.
    pub(crate) fn metrics(
        &mut self,
        installation: &Installation,
        listener: TcpListener,
        render: RenderMetrics,
    ) {
        let guard = installation.member.guard();
        self.tasks.spawn(metrics_http::serve(listener, render, guard, self.stop.clone()));
    }

    /// Waits until every role has ended. A role that fails stops the others, and is what this
    /// fails with.
    pub(crate) async fn ended(mut self) -> anyhow::Result<()> {
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

/// Cancels the token at SIGTERM or SIGINT.
pub(crate) fn stop_at_signals(stop: &CancellationToken) -> anyhow::Result<JoinHandle<()>> {
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
