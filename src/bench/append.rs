//! `bench append`: commits of one event, each on an aggregate of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use flexcore_domain::Hash;
use flexcore_eventstore::{EventStore, Expected, Profile};
use flexcore_out as out;
use flexcore_servers::Want;
use tokio::task::JoinSet;

use crate::{
    Figure, Run,
    counter::{DATA_BYTES, commit, key},
    raw_log::{Publish, RawLog},
    rig::{Latencies, Rig, median, otherwise},
};

/// Appends under way at once.
const WINDOW: usize = 1_024;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let mut raw = RawLog::open(&rig).await?;
    let next = Arc::new(AtomicU64::new(0));
    let bar = out::progress(run.rounds() as u64, "append");
    let (mut ours_per_s, mut raw_per_s) = (Vec::new(), Vec::new());
    let (mut latencies, mut errors) = (Latencies::default(), 0);
    let warm = run.measure() / 5;
    appends(&rig.store, &next, WINDOW, warm).await;
    raw.publish(Publish::Expecting, DATA_BYTES, WINDOW, warm).await?;
    for _ in 0..run.rounds() {
        let store = rig.store.clone();
        let mut appended = rig.meter.during(appends(&store, &next, WINDOW, run.measure())).await;
        ours_per_s.push(appended.per_s);
        errors += appended.errors;
        latencies.append(std::mem::take(&mut appended.latencies));
        raw_per_s.push(raw.publish(Publish::Expecting, DATA_BYTES, WINDOW, run.measure()).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut figure = Figure::new("append", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    figure.p50_ms = latencies.percentile_ms(50);
    figure.p99_ms = latencies.percentile_ms(99);
    figure.errors = errors;
    figure.measured = format!(
        "commits of one event with {DATA_BYTES} bytes of data ({} bytes with envelope), {WINDOW} in \
         flight, each on an aggregate of its own",
        commit(&key(0), 1).encode(&Hash::ZERO).body.len()
    );
    figure.raw = format!(
        "messages of {DATA_BYTES} bytes published with an expected sequence, {WINDOW} in flight, \
         stream of the same settings"
    );
    let goal = if run.profile() == Profile::Relaxed { 0.7 } else { 8.0 };
    let reached = figure.ratio.is_some_and(|ratio| ratio >= goal);
    figure.goal(format!("ratio at least {goal}"), reached);
    rig.meter.report(&mut figure, otherwise(run.profile()));
    rig.stop().await;
    Ok(figure)
}

/// The sum of some appends.
#[derive(Default)]
struct Appended {
    per_s: f64,
    latencies: Latencies,
    errors: u64,
}

/// Appends first commits of aggregates, so many in flight, for this long.
async fn appends(
    store: &EventStore,
    next: &Arc<AtomicU64>,
    window: usize,
    lasting: Duration,
) -> Appended {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..window {
        let (store, next) = (store.clone(), next.clone());
        tasks.spawn(async move {
            let (mut latencies, mut errors) = (Latencies::default(), 0);
            while started.elapsed() < lasting {
                let key = key(next.fetch_add(1, Ordering::Relaxed));
                let sent = Instant::now();
                match store.append(&commit(&key, 1), Expected::default()).await {
                    Ok(_) => latencies.add(sent.elapsed()),
                    Err(error) => {
                        tracing::warn!(%error, "an append failed");
                        errors += 1;
                    }
                }
            }
            (latencies, errors)
        });
    }
    let mut appended = Appended::default();
    while let Some(ended) = tasks.join_next().await {
        let Ok((latencies, errors)) = ended else {
            appended.errors += 1;
            continue;
        };
        appended.latencies.append(latencies);
        appended.errors += errors;
    }
    appended.per_s = appended.latencies.len() as f64 / started.elapsed().as_secs_f64();
    appended
}
