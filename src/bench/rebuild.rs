//! `bench rebuild`: a read model is built anew from the log, while queries go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use flexcore_out as out;
use flexcore_readmodel::{ReadModels, Rebuild};
use flexcore_servers::Want;

use crate::{
    Figure, Run,
    counter::{self, READ_MODEL, ask},
    filled::{COMMITS, fill, scattered},
    projecting::{GOAL_RATIO, Projecting, caught_up, parked, raw_in_words},
    raw_rows::RawRows,
    rig::{Latencies, Rig, median},
};

/// Events in the log.
const EVENTS: u64 = 100_000;
/// Between two queries while it is rebuilt.
const QUERY_EVERY: Duration = Duration::from_millis(10);
/// Longest answer that does not count as blocked.
const BLOCKED_MS: f64 = 250.0;
/// Longest rebuild.
const REBUILT_WITHIN: Duration = Duration::from_secs(120);

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let installation = rig.installation().await?;
    counter::deploy(&rig.store).await?;
    let mut raw = RawRows::open(&rig.postgres()?).await?;
    let aggregates = (run.events(EVENTS) / COMMITS).max(1);
    fill(&rig.store, 0, aggregates).await?;
    let end = rig.store.last_sequence().await?;
    let projecting = Projecting::start(&installation);
    caught_up(&installation.read_models, end).await?;
    let queries = Queries::start(&installation.read_models, aggregates)?;
    let (mut ours_per_s, mut raw_per_s) = (Vec::new(), Vec::new());
    let mut asked = Asked::default();
    for round in 0..run.rounds() as u64 {
        let started = Instant::now();
        queries.go();
        rig.meter.during(rebuild(&installation.read_models)).await?;
        ours_per_s.push((aggregates * COMMITS) as f64 / started.elapsed().as_secs_f64());
        queries.pause();
        raw_per_s.push(raw.write(round * aggregates, aggregates, COMMITS).await?);
    }
    let ended = queries.end().await?;
    asked.latencies.append(ended.latencies);
    let mut figure = Figure::new("rebuild", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    figure.p50_ms = asked.latencies.percentile_ms(50);
    figure.p99_ms = asked.latencies.percentile_ms(99);
    figure.errors = ended.errors + parked(&installation.read_models).await?;
    let longest_ms = asked.latencies.percentile_ms(100).unwrap_or(f64::INFINITY);
    figure.more("queries", asked.latencies.len());
    figure.more("longest_query_ms", longest_ms);
    figure.measured = format!(
        "{} events over {aggregates} rows, from the request for the rebuild until the new version \
         serves; p50 and p99 are of queries by id meanwhile, one every {} ms",
        aggregates * COMMITS,
        QUERY_EVERY.as_millis()
    );
    figure.raw = raw_in_words();
    let reached = figure.ratio.is_some_and(|ratio| ratio >= GOAL_RATIO);
    figure.goal(format!("ratio at least {GOAL_RATIO}"), reached);
    let never = longest_ms <= BLOCKED_MS && ended.errors == 0;
    figure.goal(format!("no query fails or waits longer than {BLOCKED_MS} ms"), never);
    rig.meter.report(&mut figure, "Postgres committing, one transaction a batch");
    projecting.stop().await?;
    installation.read_models.close().await;
    drop(installation);
    rig.stop().await;
    Ok(figure)
}

/// Asks for a rebuild and waits until the new version serves.
async fn rebuild(read_models: &ReadModels) -> anyhow::Result<()> {
    let request = read_models.request_rebuild(READ_MODEL).await?;
    let bar = out::progress(0, "rebuilding");
    let started = Instant::now();
    loop {
        match read_models.rebuild(request).await? {
            Rebuild::Done { .. } => break,
            Rebuild::Building { position, target, .. } => {
                bar.set_length(target);
                bar.set_position(position);
            }
            Rebuild::Waiting => {}
            Rebuild::Superseded => bail!("the rebuild was superseded"),
        }
        if started.elapsed() > REBUILT_WITHIN {
            bail!("the rebuild takes longer than {} s", REBUILT_WITHIN.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bar.finish_and_clear();
    Ok(())
}

#[derive(Default)]
struct Asked {
    latencies: Latencies,
    errors: u64,
}

/// Queries that go on in the background.
struct Queries {
    asking: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Asked>,
}

impl Queries {
    fn start(read_models: &ReadModels, aggregates: u64) -> anyhow::Result<Self> {
        let asking = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let application = counter::read()?;
        let model = application.read_models.get(READ_MODEL).context("BUG: no such read model")?;
        let (model, read_models) = (model.clone(), read_models.clone());
        let task = tokio::spawn({
            let (asking, ended) = (asking.clone(), ended.clone());
            async move {
                let mut asked = Asked::default();
                let mut ticks = tokio::time::interval(QUERY_EVERY);
                for number in scattered(aggregates, 0, aggregates).into_iter().cycle() {
                    ticks.tick().await;
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    if !asking.load(Ordering::Relaxed) {
                        continue;
                    }
                    let started = Instant::now();
                    match ask(&read_models, &model, number).await {
                        Ok(Some(_)) => asked.latencies.add(started.elapsed()),
                        Ok(None) => asked.errors += 1,
                        Err(error) => {
                            tracing::warn!(error = format!("{error:#}"), "a query failed");
                            asked.errors += 1;
                        }
                    }
                }
                asked
            }
        });
        Ok(Self { asking, ended, task })
    }

    fn go(&self) {
        self.asking.store(true, Ordering::Relaxed);
    }

    fn pause(&self) {
        self.asking.store(false, Ordering::Relaxed);
    }

    async fn end(self) -> anyhow::Result<Asked> {
        self.ended.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}
