//! `flexcore dev`: everything in one process, with its own nats-server and Postgres.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use flexcore_auth::{SigningKey, Verifier};
use flexcore_cluster::{self as cluster, Kind};
use flexcore_domain::{ActorName, Tenant};
use flexcore_eventstore::Profile;
use flexcore_servers::{Options, Servers, Sync};
use flexcore_telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    cli,
    config::{Config, Ready, write_private},
    out,
    serve::{Endpoints, Installation, Roles, connect, stop_at_signals},
    token,
};

/// The tenant that `dev` and `demo` mint a token for, unless another is given.
pub(crate) const TENANT: &str = "demo";
/// Lifetime of their token: a working day.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// A running installation with its own servers.
pub(crate) struct Dev {
    pub(crate) installation: Installation,
    pub(crate) ready: Ready,
    roles: Roles,
    servers: Servers,
    ready_files: Vec<PathBuf>,
}

pub(crate) async fn run(
    config: &Config,
    args: &cli::Dev,
    telemetry: &Telemetry,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let dev = Dev::start(config, telemetry, stop, args.ready_file.as_deref()).await?;
    if args.ready_file.is_none() || out::on_terminal() {
        let Ready { http, nats, postgres, tenant, token, .. } = &dev.ready;
        let mut table = out::table(["flexcore dev", "profile", &config.profile.to_string()]);
        table.add_row(["HTTP", http, "openapi.json, asyncapi.json, metrics"]);
        table.add_row(["NATS", nats, "publish to cmd.<tenant>.<aggregate>.<id>.<command>"]);
        table.add_row(["Postgres", postgres, "read models are views in schema rm"]);
        writeln!(out, "{table}\n\nTenant {tenant}, token:\n{token}\n")?;
        writeln!(out, "Next, in another terminal:\n  flexcore apply schemas/flights\n")?;
    }
    dev.serve().await
}

impl Dev {
    /// Starts the servers and every role. Fails when one of them can't be had.
    pub(crate) async fn start(
        config: &Config,
        telemetry: &Telemetry,
        stop: CancellationToken,
        ready_file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let options = Options {
            data: Some(config.data.clone()),
            sync: match config.profile {
                Profile::PowerLoss => Sync::Always,
                Profile::Relaxed => Sync::Lazy,
            },
            ..Options::new(&config.cache)
        };
        let servers = Servers::start(&options).await?;
        let endpoints = Endpoints {
            nats: vec![servers.nats_url()],
            nats_monitors: vec![servers.nats_monitor_url()],
            replicas: 1,
            postgres: servers.postgres_url().context("BUG: both servers were asked for")?,
            postgres_query: None,
        };
        let (key, key_path) = signing_key(config)?;
        // The broker is ours alone: members of an earlier run are gone, whatever their leases say.
        cluster::reset(&connect(&endpoints.nats).await?, endpoints.replicas).await?;
        let membership = config.membership("dev", Kind::ALL);
        let installation =
            Installation::open_when_there(&endpoints, config.profile, &membership, &stop).await?;
        let listener = TcpListener::bind(config.listen())
            .await
            .with_context(|| format!("cannot listen on {}", config.listen()))?;
        let http = format!("http://{}", listener.local_addr()?);
        let mut roles = Roles::new(stop);
        roles.commands(&installation, flexcore_workers::command::Settings::default());
        roles.projections(&installation);
        let verifier = Verifier::new(vec![key.public().clone()], token::ISSUER, token::AUDIENCE);
        let metrics = telemetry.metrics();
        let render = std::sync::Arc::new(move || metrics.render());
        roles.gateway(&installation, listener, None, verifier, render);
        let tenant = match config.tenant_given() {
            Some(tenant) => tenant,
            None => Tenant::parse(TENANT)?,
        };
        let subject = ActorName::parse("dev")?;
        let ready = Ready {
            http,
            nats: servers.nats_url(),
            nats_monitor: servers.nats_monitor_url(),
            postgres: endpoints.postgres,
            token: token::mint(config, &tenant, &subject, TOKEN_LIFETIME)?,
            tenant,
            signing_key: key_path,
        };
        let mut dev = Self { installation, ready, roles, servers, ready_files: Vec::new() };
        dev.announce(&config.ready_file())?;
        if let Some(path) = ready_file {
            dev.announce(path)?;
        }
        Ok(dev)
    }

    fn announce(&mut self, path: &Path) -> anyhow::Result<()> {
        self.ready.write(path)?;
        self.ready_files.push(path.to_owned());
        Ok(())
    }

    /// Serves until it is told to stop, then drains and ends its servers.
    pub(crate) async fn serve(self) -> anyhow::Result<bool> {
        let result = self.roles.ended().await;
        for path in &self.ready_files {
            // Gone already, or a new process wrote it: either way not ours to mend.
            let _ = fs::remove_file(path);
        }
        self.installation.member.leave().await;
        self.installation.read_models.close().await;
        self.servers.stop().await;
        result.map(|()| true)
    }
}

/// The key of the data folder, made when it is missing.
fn signing_key(config: &Config) -> anyhow::Result<(SigningKey, PathBuf)> {
    let path = config.own_signing_key();
    let key = match fs::read_to_string(&path) {
        Ok(pem) => {
            SigningKey::from_pem(&pem).with_context(|| format!("signing key {}", path.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (key, pem) = SigningKey::generate();
            write_private(&path, pem.as_bytes())?;
            key
        }
        Err(error) => {
            return Err(error).with_context(|| format!("signing key {}", path.display()));
        }
    };
    let path = fs::canonicalize(&path).unwrap_or(path);
    Ok((key, path))
}
