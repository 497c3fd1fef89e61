//! `bench http`: synchronous commands through the gateway, the worker and the log.

use std::time::Duration;

use flexcore_auth::{Issuer, SigningKey};
use flexcore_domain::{ActorName, Tenant};
use flexcore_installation::{Installation, Roles, tokens};
use flexcore_out as out;
use flexcore_servers::Want;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    Figure, Run,
    append::{otherwise, payload, tenant},
    application,
    bare::Bare,
    client::{self, ClientArgs, PER_AGGREGATE, Report},
    raw::Raw,
    rig::{Rig, median},
    round,
};

/// Connections of the main measurement.
const CONNECTIONS: u64 = 256;
/// Before each measurement: connections are made, aggregates are met.
const WARM_UP: Duration = Duration::from_millis(1_000);
/// Lifetime of the token: longer than any bench.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// The goals.
const GOAL_PER_S: f64 = 8_000.0;
const GOAL_P99_MS: f64 = 100.0;
const GOAL_SINGLE_P50_MS: f64 = 3.0;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let raw = Raw::open(&rig).await?;
    let bare = Bare::start(&rig, run.profile(), payload(0).len()).await?;
    let gateway = Gateway::start(run, &rig).await?;
    let (mut ours_per_s, mut raw_per_s, mut reports) = (vec![], vec![], vec![]);
    let bar = out::progress(run.rounds() as u64 + 2, "http");
    for _ in 0..run.rounds() {
        let report = gateway.load(run, &mut rig, CONNECTIONS, None).await?;
        ours_per_s.push(report.per_s());
        reports.push(report);
        raw_per_s.push(bare.ask(CONNECTIONS as usize, run.measure()).await?);
        bar.inc(1);
    }
    let single = gateway.load(run, &mut rig, 1, None).await?;
    bar.inc(1);
    let livez = gateway.load(run, &mut rig, CONNECTIONS, Some("/livez")).await?;
    bar.finish_and_clear();
    let mut figure = Figure::new("http", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    let of =
        |figure: fn(&Report) -> Option<f64>| median(reports.iter().filter_map(figure).collect());
    figure.p50_ms = Some(round(of(|report| report.p50_ms)));
    figure.p99_ms = Some(round(of(|report| report.p99_ms)));
    let failed = |report: &Report| report.answered() - report.successes() + report.unanswered;
    figure.errors = reports.iter().chain([&single, &livez]).map(failed).sum();
    figure.more("connections", CONNECTIONS);
    figure.more("answers", reports.iter().map(Report::answered).sum::<u64>());
    figure.more("single_per_s", round(single.per_s()));
    figure.more("single_p50_ms", single.p50_ms);
    figure.more("single_p99_ms", single.p99_ms);
    figure.more("livez_per_s", round(livez.per_s()));
    figure.measured = format!(
        "synchronous commands of {} bytes, {PER_AGGREGATE} an aggregate, decided in JavaScript, over \
         {CONNECTIONS} connections (single: over 1), token and schema checked, answered when the \
         commit is durable; the load comes from a process of its own on this machine",
        payload(0).len()
    );
    figure.raw = format!(
        "{CONNECTIONS} requests over NATS at once, published in groups and answered; no HTTP, \
         checks, decider or hashes (livez: plain GETs, what HTTP alone does)"
    );
    goals(&mut figure, single.p50_ms);
    rig.meter.report(&mut figure, otherwise(run.profile()));
    gateway.stop().await?;
    drop((raw, bare));
    rig.stop().await;
    Ok(figure)
}

fn goals(figure: &mut Figure, single_p50_ms: Option<f64>) {
    let enough = figure.ours_per_s.is_some_and(|rate| rate >= GOAL_PER_S);
    figure.goal(format!("at least {GOAL_PER_S}/s"), enough);
    figure.goal("100 % success", figure.errors == 0);
    let soon = figure.p99_ms.is_some_and(|ms| ms > 0.0 && ms <= GOAL_P99_MS);
    figure.goal(format!("p99 at most {GOAL_P99_MS} ms"), soon);
    let quick = single_p50_ms.is_some_and(|ms| ms <= GOAL_SINGLE_P50_MS);
    figure.goal(format!("p50 at most {GOAL_SINGLE_P50_MS} ms on one connection"), quick);
}

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
        application::deploy(rig).await?;
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
