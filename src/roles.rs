//! `flexcore gateway` and `flexcore worker`: single roles, for containers.

use std::{fs, sync::Arc};

use anyhow::{Context, bail};
use flexcore_auth::{PublicKey, SigningKey, Verifier};
use flexcore_cluster::Kind;
use flexcore_telemetry::Telemetry;
use flexcore_workers as workers;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{self, Role},
    config::Config,
    serve::{Installation, Roles, stop_at_signals},
    token,
};

/// The port that the gateway listens on unless an address is given.
const GATEWAY_LISTEN: &str = "127.0.0.1:8080";

pub(crate) async fn gateway(
    config: &Config,
    args: &cli::Gateway,
    telemetry: &Telemetry,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let verifier = Verifier::new(public_keys(config, args)?, token::ISSUER, token::AUDIENCE);
    let endpoints = config.endpoints()?;
    let membership = config.membership("gateway", []);
    let installation =
        Installation::open_when_there(&endpoints, config.profile, &membership, &stop).await?;
    // Only now: a connection that nobody answers is worse than one that is refused.
    let http = listen(config.listen_given().unwrap_or(GATEWAY_LISTEN)).await?;
    let apart = match &args.metrics_http {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    tracing::info!(address = %http.local_addr()?, "gateway serves");
    let mut roles = Roles::new(stop);
    let metrics = telemetry.metrics();
    let render = Arc::new(move || metrics.render());
    roles.gateway(&installation, http, apart, verifier, render);
    let result = roles.ended().await;
    installation.member.leave().await;
    result.map(|()| true)
}

pub(crate) async fn worker(
    config: &Config,
    args: &cli::Worker,
    telemetry: &Telemetry,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let endpoints = config.endpoints()?;
    let has = |role| args.roles.is_empty() || args.roles.contains(&role);
    let kinds = [(Role::Command, Kind::Command), (Role::Projection, Kind::Projection)];
    let kinds = kinds.into_iter().filter(|(role, _)| has(*role)).map(|(_, kind)| kind);
    let membership = config.membership("worker", kinds);
    let installation =
        Installation::open_when_there(&endpoints, config.profile, &membership, &stop).await?;
    let mut roles = Roles::new(stop);
    if has(Role::Command) {
        roles.commands(&installation, workers::command::Settings::default());
    }
    if has(Role::Projection) {
        roles.projections(&installation);
    }
    if let Some(address) = &args.metrics_http {
        let metrics = telemetry.metrics();
        let render = Arc::new(move || metrics.render());
        roles.metrics(&installation, listen(address).await?, render);
    }
    tracing::info!(roles = ?args.roles, member = %installation.member.id(), "worker serves");
    let result = roles.ended().await;
    installation.member.leave().await;
    result.map(|()| true)
}

async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// The keys that accept tokens: those given, else the public half of the signing key.
fn public_keys(config: &Config, args: &cli::Gateway) -> anyhow::Result<Vec<PublicKey>> {
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
