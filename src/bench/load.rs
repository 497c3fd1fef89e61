//! `bench load`: aggregates of five commits, read from a long log.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flexcore_eventstore::{self as eventstore, EventStore, Expected};
use flexcore_out as out;
use flexcore_servers::Want;
use tokio::task::JoinSet;

use crate::{
    Figure, Run,
    append::{commit, key},
    raw::Raw,
    rig::{Latencies, Rig, median},
};

/// Commits of an aggregate.
pub(crate) const COMMITS: u64 = 5;
/// Loads under way at once.
pub(crate) const IN_FLIGHT: usize = 32;
/// Events in the log.
const EVENTS: u64 = 500_000;
/// Appends under way while the log is filled.
const FILL_WINDOW: u64 = 2_048;
/// Loads of one measurement: fewer than there are aggregates, so that none comes twice.
const LOADS: u64 = 20_000;
/// The goals.
const GOAL_PER_S: f64 = 5_000.0;
/// A step through the aggregates that no decimal number of them divides.
const STRIDE: u64 = 7_919;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let raw = Raw::open(&rig).await?;
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

/// Appends five commits to each of these aggregates, so that those of one lie far apart.
pub(crate) async fn fill(
    store: &EventStore,
    first: u64,
    aggregates: u64,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let bar = out::progress(aggregates * COMMITS, "filling");
    let mut tasks = JoinSet::new();
    for task in 0..FILL_WINDOW.min(aggregates) {
        let (store, bar) = (store.clone(), bar.clone());
        tasks.spawn(async move {
            let mine = (task..aggregates).step_by(FILL_WINDOW as usize);
            let mut heads: Vec<_> =
                mine.map(|number| (key(first + number), Expected::default())).collect();
            for version in 1..=COMMITS {
                for (key, head) in &mut heads {
                    let appended = store.append(&commit(key, version), *head).await?;
                    *head = Expected { sequence: appended.sequence, hash: appended.hash };
                }
                bar.inc(heads.len() as u64);
            }
            Ok::<_, eventstore::Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.context("filling the log")?;
    }
    bar.finish_and_clear();
    Ok(started.elapsed())
}

/// Numbers of aggregates all over the log.
pub(crate) fn scattered(aggregates: u64, from: u64, count: u64) -> Vec<u64> {
    (from..from + count).map(|n| n.wrapping_mul(STRIDE) % aggregates).collect()
}

/// The sum of some loads.
pub(crate) struct Loaded {
    pub(crate) per_s: f64,
    pub(crate) latencies: Latencies,
}

/// Loads these aggregates, so many at once. Fails when one has not the commits that it should.
pub(crate) async fn load(
    store: &EventStore,
    numbers: Vec<u64>,
    in_flight: usize,
) -> anyhow::Result<Loaded> {
    let count = numbers.len();
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for part in numbers.chunks(count.div_ceil(in_flight).max(1)) {
        let (store, part) = (store.clone(), part.to_vec());
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            for number in part {
                let sent = Instant::now();
                let commits = store.load(&key(number), 0).await?;
                latencies.add(sent.elapsed());
                let found = commits.len() as u64;
                ensure!(found == COMMITS, "aggregate {number} has {found} commits");
            }
            Ok(latencies)
        });
    }
    let mut latencies = Latencies::default();
    while let Some(ended) = tasks.join_next().await {
        latencies.append(ended??);
    }
    Ok(Loaded { per_s: count as f64 / started.elapsed().as_secs_f64(), latencies })
}
