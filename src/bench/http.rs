//! `bench http`: synchronous commands through the gateway, the worker and the log.

use flexcore_http::health::LIVEZ;
use flexcore_out as out;
use flexcore_servers::Want;

use crate::{
    Figure, Run,
    client::Report,
    counter::{PER_AGGREGATE, payload},
    gateway::Gateway,
    raw_log::RawLog,
    raw_requests::RawRequests,
    rig::{Rig, median, otherwise},
    round,
};

/// Connections of the main measurement.
const CONNECTIONS: u64 = 256;
/// The goals.
const GOAL_PER_S: f64 = 8_000.0;
const GOAL_P99_MS: f64 = 100.0;
const GOAL_SINGLE_P50_MS: f64 = 3.0;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let log = RawLog::open(&rig).await?;
    let raw = RawRequests::start(&rig, run.profile(), payload(0).len()).await?;
    let gateway = Gateway::start(run, &rig).await?;
    let (mut ours_per_s, mut raw_per_s, mut reports) = (vec![], vec![], vec![]);
    let bar = out::progress(run.rounds() as u64 + 2, "http");
    for _ in 0..run.rounds() {
        let report = gateway.load(run, &mut rig, CONNECTIONS, None).await?;
        ours_per_s.push(report.per_s());
        reports.push(report);
        raw_per_s.push(raw.ask(CONNECTIONS as usize, run.measure()).await?);
        bar.inc(1);
    }
    let single = gateway.load(run, &mut rig, 1, None).await?;
    bar.inc(1);
    let livez = gateway.load(run, &mut rig, CONNECTIONS, Some(LIVEZ)).await?;
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
    drop((log, raw));
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
