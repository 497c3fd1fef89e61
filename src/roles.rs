//! `flexcore gateway` and `flexcore worker`: single roles, for containers.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use flexcore_auth::{PublicKey, SigningKey};
use flexcore_installation::{Installation, RenderMetrics, Roles, listen, stop_at_signals, tokens};
use flexcore_workers as workers;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Serve HTTP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore gateway --nats nats://10.0.0.1:4222 --nats-monitor http://10.0.0.1:8222 \\
    --postgres postgres://flexcore@10.0.0.2/flexcore --http 0.0.0.0:8080 --verify-key public.pem

Without --verify-key the signing key's public half accepts tokens.")]
pub(crate) struct Gateway {
    /// Public RSA key that accepts tokens, PEM; may be given more than once
    #[arg(long, env = "FLEXCORE_VERIFY_KEY", value_name = "FILE", value_delimiter = ',')]
    pub(crate) verify_key: Vec<PathBuf>,
    /// Serve /metrics and health here, and /metrics not on the main address
    #[arg(long, env = "FLEXCORE_METRICS_HTTP", value_name = "ADDR")]
    pub(crate) metrics_http: Option<String>,
}

/// Run workers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore worker             every role
  flexcore worker command
  flexcore worker projection
  flexcore worker plugin

Start as many as you like: the cluster's leader, one of them, shares the slots out among those that
are there. SIGTERM hands over what the worker has and exits 0.")]
pub(crate) struct Worker {
    /// Roles to run [default: all]
    #[arg(value_enum)]
    pub(crate) roles: Vec<Role>,
    /// Serve /metrics and health here
    #[arg(long, env = "FLEXCORE_METRICS_HTTP", value_name = "ADDR")]
    pub(crate) metrics_http: Option<String>,
}

/// A worker's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Decides commands.
    Command,
    /// Keeps read models.
    Projection,
    /// Runs the installed plugins.
    Plugin,
}

/// The port that the gateway listens on unless an address is given.
const GATEWAY_LISTEN: &str = "127.0.0.1:8080";

pub(crate) async fn gateway(
    config: &Config,
    args: &Gateway,
    metrics: RenderMetrics,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let verifier = tokens::verifier(public_keys(config, args)?);
    let endpoints = config.endpoints()?;
    let secrets_key = config.secrets_key_given()?;
    let membership = config.membership("gateway", []);
    let installation =
        Installation::open_when_there(&endpoints, config.profile, &membership, &stop).await?;
    let installation = installation.with_secrets_key(secrets_key);
    // Only now: a connection that nobody answers is worse than one that is refused.
    let http = listen(config.listen_given().unwrap_or(GATEWAY_LISTEN)).await?;
    let apart = match &args.metrics_http {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    tracing::info!(address = %http.local_addr()?, "gateway serves");
    let mut roles = Roles::new(stop);
    roles.resignation(&installation);
    roles.gateway(&installation, http, apart, verifier, metrics);
    let result = roles.ended().await;
    installation.member.leave().await;
    result.map(|()| true)
}

pub(crate) async fn worker(
    config: &Config,
    args: &Worker,
    metrics: RenderMetrics,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let endpoints = config.endpoints()?;
    let secrets_key = config.secrets_key_given()?;
    let has = |role| args.roles.is_empty() || args.roles.contains(&role);
    let kinds = [(Role::Command, workers::COMMANDS), (Role::Projection, workers::PROJECTIONS)];
    let kinds = kinds.into_iter().filter(|(role, _)| has(*role)).map(|(_, kind)| kind);
    let membership = config.membership("worker", kinds);
    let installation =
        Installation::open_when_there(&endpoints, config.profile, &membership, &stop).await?;
    let installation = installation.with_secrets_key(secrets_key);
    let mut roles = Roles::new(stop);
    roles.resignation(&installation);
    if has(Role::Command) {
        roles.commands(&installation, workers::command::Settings::default());
    }
    if has(Role::Projection) {
        roles.projections(&installation);
    }
    if has(Role::Plugin) {
        roles.plugins(&installation, config.plugin_files());
    }
    if let Some(address) = &args.metrics_http {
        roles.metrics(&installation, listen(address).await?, metrics);
    }
    tracing::info!(roles = ?args.roles, member = %installation.member.id(), "worker serves");
    let result = roles.ended().await;
    installation.member.leave().await;
    result.map(|()| true)
}

/// The keys that accept tokens: those given, else the public half of the signing key.
fn public_keys(config: &Config, args: &Gateway) -> anyhow::Result<Vec<PublicKey>> {
    let read = |path: &std::path::Path| {
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    if args.verify_key.is_empty() {
        let path = config.signing_key();
        let pem = read(&path).context("give --verify-key, or --signing-key")?;
        return Ok(vec![SigningKey::from_pem(&pem)?.public().clone()]);
    }
    let mut keys = Vec::new();
    for path in &args.verify_key {
        let key = PublicKey::from_pem(&read(path)?)
            .with_context(|| format!("verification key {}", path.display()))?;
        keys.push(key);
    }
    if keys.is_empty() {
        bail!("no verification key");
    }
    Ok(keys)
}
