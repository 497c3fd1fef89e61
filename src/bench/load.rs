//! `bench load`: aggregates of five commits, read from a long log.

use flexcore_eventstore as eventstore;
use flexcore_servers::Want;

use crate::{
    Figure, Run,
    counter::key,
    filled::{COMMITS, IN_FLIGHT, fill, load, scattered},
    raw_log::RawLog,
    rig::{Latencies, Rig, median},
};

/// Events in the log.
const EVENTS: u64 = 500_000;
/// Loads of one measurement: fewer than there are aggregates, so that none comes twice.
const LOADS: u64 = 20_000;
/// The goals.
const GOAL_PER_S: f64 = 5_000.0;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let raw = RawLog::open(&rig).await?;
    let events = run.events(EVENTS);
    let aggregates = (events / COMMITS).max(1);
    fill(&rig.store, 0, aggregates).await?;
    let loads = run.scale(LOADS).min(aggregates);
    let (mut ours_per_s, mut raw_per_s) = (Vec::new(), Vec::new());
    let mut latencies = Latencies::default();
    for round in 0..run.rounds() as u64 {
        let numbers = scattered(aggregates, 2 * round * loads, loads);
        let store = rig.store.clone();
        let mut loaded = rig.meter.during(load(&store, numbers, IN_FLIGHT)).await?;
        ours_per_s.push(loaded.per_s);
        latencies.append(std::mem::take(&mut loaded.latencies));
        let numbers = scattered(aggregates, (2 * round + 1) * loads, loads);
        let subjects = numbers.into_iter().map(|n| eventstore::subject(&key(n))).collect();
        raw_per_s.push(raw.load(subjects, IN_FLIGHT).await?);
    }
    let mut figure = Figure::new("load", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    figure.p50_ms = latencies.percentile_ms(50);
    figure.p99_ms = latencies.percentile_ms(99);
    figure.more("events_in_log", events);
    figure.measured = format!(
        "loads of aggregates with {COMMITS} commits, {IN_FLIGHT} in flight, decoded and checked, no \
         cache, {loads} a round of {aggregates}"
    );
    figure.raw = format!("the same direct gets, {IN_FLIGHT} in flight, nothing decoded");
    let reached = figure.ours_per_s.is_some_and(|rate| rate >= GOAL_PER_S);
    figure.goal(format!("at least {GOAL_PER_S}/s"), reached);
    rig.meter.report(&mut figure, "round trips to the broker");
    rig.stop().await;
    Ok(figure)
}
