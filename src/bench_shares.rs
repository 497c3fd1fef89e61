//! `bench shares`: what one tenant's flood does to another tenant's commands. Pairs of measurements,
//! without and with the flood, since a machine is never the same twice.

use anyhow::Context;
use async_nats::HeaderMap;
use flexcore_domain::{AggregateId, AggregateKey, AggregateName, CommandId, Tenant};
use flexcore_servers::Want;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    bench::{Figure, Run, round},
    bench_append::{otherwise, payload},
    bench_client::Report,
    bench_commands::command,
    bench_http::Gateway,
    bench_rig::{Rig, median},
    out,
};

/// Connections of the tenant that is measured, and those of the one that floods: more than a half of a
/// gateway's places for commands.
const CALM: u64 = 8;
const FLOOD: u64 = 1_536;
/// Stored commands that the flood keeps on their way to the broker.
const STORED_AT_ONCE: usize = 256;
/// What ought to be reached: so much more, in hundredths.
const GOAL_PERCENT: f64 = 10.0;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let gateway = Gateway::start(run, &rig).await?;
    let flood = gateway.token_of(&Tenant::parse("flood")?)?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let bar = out::progress(2 * run.rounds() as u64, "shares");
    for _ in 0..run.rounds() {
        alone.push(gateway.load(run, &mut rig, CALM, None).await?);
        bar.inc(1);
        let stop = CancellationToken::new();
        let stored = AbortOnDropHandle::new(tokio::spawn(store(rig.store.clone(), stop.clone())));
        let flooding = gateway.flood(run, &flood, FLOOD).await?;
        beside.push(gateway.load(run, &mut rig, CALM, None).await?);
        let flooded = flooding.report().await?;
        stop.cancel();
        let stored = stored.await.context("the flood of stored commands")??;
        beside.last_mut().context("BUG: just pushed")?.unanswered += u64::from(stored == 0);
        tracing::info!(stored, flooded = flooded.answered(), "flooded");
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut figure = Figure::new("shares", run);
    judge(&mut figure, &alone, &beside);
    figure.measured = format!(
        "synchronous commands of one tenant over {CALM} connections while another one sends over \
         {FLOOD} connections and stores commands as fast as the broker takes them"
    );
    figure.raw = "the same commands without the flood".to_owned();
    rig.meter.report(&mut figure, otherwise(run.profile()));
    gateway.stop().await?;
    rig.stop().await;
    Ok(figure)
}

fn judge(figure: &mut Figure, alone: &[Report], beside: &[Report]) {
    let of = |reports: &[Report], value: fn(&Report) -> Option<f64>| {
        median(reports.iter().filter_map(value).collect())
    };
    let rate = |reports: &[Report]| median(reports.iter().map(Report::per_s).collect());
    figure.rates(rate(beside), rate(alone));
    figure.p50_ms = Some(round(of(beside, |report| report.p50_ms)));
    let (p99, p99_alone) = (of(beside, |report| report.p99_ms), of(alone, |report| report.p99_ms));
    figure.p99_ms = Some(round(p99));
    figure.more("p50_alone_ms", round(of(alone, |report| report.p50_ms)));
    figure.more("p99_alone_ms", round(p99_alone));
    let pairs: Vec<f64> = alone
        .iter()
        .zip(beside)
        .filter_map(|(alone, beside)| Some(100.0 * (beside.p99_ms? / alone.p99_ms? - 1.0)))
        .map(round)
        .collect();
    let more = median(pairs.clone());
    figure.more("p99_more_percent_by_pair", pairs);
    let failed = |report: &Report| report.answered() - report.successes() + report.unanswered;
    figure.errors = alone.iter().chain(beside).map(failed).sum();
    figure.goal("the flood has the other tenant refused nothing", figure.errors == 0);
    figure.goal(format!("its p99 at most {GOAL_PERCENT} % higher"), more <= GOAL_PERCENT);
}

/// Stores commands of the flooding tenant until it is told to stop. Returns how many.
async fn store(
    store: flexcore_eventstore::EventStore,
    stop: CancellationToken,
) -> anyhow::Result<u64> {
    let publisher = store.command_publisher();
    let aggregate = AggregateName::parse("counter")?;
    let (mut sent, mut number) = (std::collections::VecDeque::new(), 0_u64);
    while !stop.is_cancelled() {
        let id = AggregateId::parse(&format!("s{number}"))?;
        let key = AggregateKey::new(Tenant::parse("flood")?, aggregate.clone(), id);
        let id = CommandId::parse(&format!("stored:{number}"))?;
        let body = payload(number);
        sent.push_back(publisher.send(&key, &command(), &id, HeaderMap::new(), body).await?);
        number += 1;
        if sent.len() == STORED_AT_ONCE
            && let Some(first) = sent.pop_front()
        {
            first.stored().await?;
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_calm_tenant_is_an_error_and_pairs_are_compared() {
        let report = |p99_ms, refused| Report {
            seconds: 1.0,
            answers: [(200, 100), (503, refused)].into(),
            p50_ms: Some(1.0),
            p99_ms: Some(p99_ms),
            ..Report::default()
        };
        let alone = [report(10.0, 0), report(20.0, 0), report(10.0, 0)];
        let mut figure = Figure::default();
        judge(&mut figure, &alone, &[report(10.5, 0), report(21.0, 0), report(90.0, 0)]);
        assert_eq!(figure.errors, 0);
        assert!(figure.goals.iter().all(|goal| goal.reached), "{:?}", figure.goals);
        let mut figure = Figure::default();
        judge(&mut figure, &alone, &[report(12.0, 0), report(24.0, 3), report(12.0, 0)]);
        assert_eq!(figure.errors, 3);
        assert!(figure.goals.iter().all(|goal| !goal.reached), "{:?}", figure.goals);
    }
}
