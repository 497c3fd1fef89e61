//! A log that is filled with aggregates, and loads of them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flexcore_eventstore::{self as eventstore, EventStore, Expected};
use flexcore_out as out;
use tokio::task::JoinSet;

use crate::{
    counter::{commit, key},
    rig::Latencies,
};

/// Commits of an aggregate.
pub(crate) const COMMITS: u64 = 5;
/// Loads under way at once.
pub(crate) const IN_FLIGHT: usize = 32;
/// Appends under way while the log is filled.
const FILL_WINDOW: u64 = 2_048;
/// A step through the aggregates that no decimal number of them divides.
const STRIDE: u64 = 7_919;

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
