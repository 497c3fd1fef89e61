//! A gateway and a command worker in this process, loaded from another one.

use std::time::Duration;

use flexcore_auth::{Issuer, SigningKey};
use flexcore_domain::{ActorName, Tenant};
use flexcore_installation::{Installation, Roles, tokens};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    Run,
    client::{self, ClientArgs, Report},
    counter::{self, tenant},
    rig::Rig,
};

/// Before each measurement: connections are made, aggregates are met.
const WARM_UP: Duration = Duration::from_millis(1_000);
/// Lifetime of the token: longer than any bench.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);

fn mint(issuer: &Issuer, tenant: &Tenant) -> anyhow::Result<String> {
    tokens::mint(issuer, tenant, &ActorName::parse("bench")?, TOKEN_LIFETIME)
}

/// A gateway and a command worker in this process.
pub(crate) struct Gateway {
    installation: Installation,
    roles: Roles,
    stop: CancellationToken,
    pub(crate) authority: String,
    pub(crate) token: String,
    issuer: Issuer,
    loads: std::sync::atomic::AtomicU64,
}

impl Gateway {
    pub(crate) async fn start(run: &Run<'_>, rig: &Rig) -> anyhow::Result<Self> {
        let installation = rig.installation().await?;
        let stop = CancellationToken::new();
        let mut roles = Roles::new(stop.clone());
        roles.commands(&installation, flexcore_workers::command::Settings::default());
        counter::deploy(&rig.store).await?;
        let (key, _) = SigningKey::generate();
        let verifier = tokens::verifier(vec![key.public().clone()]);
        let issuer = tokens::issuer(key);
        let token = mint(&issuer, &tenant())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let authority = listener.local_addr()?.to_string();
        roles.gateway(&installation, listener, None, verifier, run.settings.metrics.clone());
        Ok(Self { installation, roles, stop, authority, token, issuer, loads: 0.into() })
    }

    /// A token of another tenant.
    pub(crate) fn token_of(&self, tenant: &Tenant) -> anyhow::Result<String> {
        mint(&self.issuer, tenant)
    }

    /// Has a child process flood it as another tenant, until so long after a measurement's beginning.
    pub(crate) async fn flood(
        &self,
        run: &Run<'_>,
        token: &str,
        lasting: Duration,
        change: impl FnOnce(ClientArgs) -> ClientArgs,
    ) -> anyhow::Result<client::Child> {
        let lasting_ms = u64::try_from(lasting.as_millis())?;
        let args = change(ClientArgs { lasting_ms, ..self.args(run, "f") });
        client::spawn(&args, token).await
    }

    /// The same arguments for every load, but for aggregates of its own.
    fn args(&self, run: &Run<'_>, prefix: &str) -> ClientArgs {
        let load = self.loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ClientArgs {
            authority: self.authority.clone(),
            connections: 1,
            lasting_ms: u64::try_from(run.measure().as_millis()).unwrap_or(u64::MAX),
            warm_up_ms: 0,
            prefix: format!("{prefix}{load}"),
            every_ms: 0,
            stored: false,
            nats: None,
            get: None,
        }
    }

    /// Has a child process load it, with aggregates of its own.
    pub(crate) async fn load(
        &self,
        run: &Run<'_>,
        rig: &mut Rig,
        connections: u64,
        get: Option<&str>,
    ) -> anyhow::Result<Report> {
        let get = get.map(str::to_owned);
        self.load_as(run, rig, |args| ClientArgs { connections, get, ..args }).await
    }

    /// The same, with other arguments.
    pub(crate) async fn load_as(
        &self,
        run: &Run<'_>,
        rig: &mut Rig,
        change: impl FnOnce(ClientArgs) -> ClientArgs,
    ) -> anyhow::Result<Report> {
        let warm_up = if run.quick { WARM_UP / 10 } else { WARM_UP };
        let warm_up_ms = u64::try_from(warm_up.as_millis())?;
        let args = change(ClientArgs { warm_up_ms, ..self.args(run, "l") });
        let child = client::spawn(&args, &self.token).await?;
        self.loaded(rig, &args, child).await
    }

    /// The result of a load that has begun.
    async fn loaded(
        &self,
        rig: &mut Rig,
        args: &ClientArgs,
        child: client::Child,
    ) -> anyhow::Result<Report> {
        if args.get.is_some() || args.connections == 1 {
            // Not what the figure's use of processors is about.
            return child.report().await;
        }
        let report = rig.meter.during(child.report()).await?;
        rig.meter.add("load_generator", report.processor_s);
        Ok(report)
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.roles.ended().await?;
        self.installation.read_models.close().await;
        Ok(())
    }
}
