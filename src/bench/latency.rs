//! `bench latency`: from a command's acknowledgement to its row being readable, at a steady rate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use async_nats::HeaderMap;
use flexcore_definition::ReadModelDefinition;
use flexcore_domain::{Command, Name, Outcome, command::header};
use flexcore_installation::{Installation, Roles};
use flexcore_out as out;
use flexcore_servers::Want;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Figure, Run,
    counter::{self, PER_AGGREGATE, READ_MODEL, address, ask, command, payload},
    rig::{Latencies, Rig},
    round,
};

/// Commands a second.
const PER_S: u32 = 500;
/// Commands in all.
const COMMANDS: u64 = 5_000;
/// Commands before, that warm connections and caches and are not counted.
const WARM_UP: u64 = 500;
/// Longest wait for a row.
const ROW_WITHIN: Duration = Duration::from_secs(10);
/// The goals.
const GOAL_MS: f64 = 100.0;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let installation = rig.installation().await?;
    let stop = CancellationToken::new();
    let mut roles = Roles::new(stop.clone());
    roles.commands(&installation, flexcore_workers::command::Settings::default());
    roles.projections(&installation);
    counter::deploy(&rig.store).await?;
    let application = counter::read()?;
    let model = application.read_models.get(READ_MODEL).context("BUG: no such read model")?;
    let paced = Paced { installation: installation.clone(), model: model.clone() };
    paced.serving().await?;
    let warm_up = run.scale(WARM_UP);
    paced.send(0, warm_up).await?;
    let count = run.scale(COMMANDS);
    let started = Instant::now();
    let (mut acknowledged, mut readable, errors) =
        rig.meter.during(paced.send(warm_up, count)).await?;
    let per_s = count as f64 / started.elapsed().as_secs_f64();
    let mut figure = Figure::new("latency", run);
    figure.rounds = 1;
    figure.ours_per_s = Some(round(per_s));
    figure.p50_ms = readable.percentile_ms(50);
    figure.p99_ms = readable.percentile_ms(99);
    figure.errors = errors;
    figure.more("longest_ms", readable.percentile_ms(100));
    figure.more("acknowledged_p50_ms", acknowledged.percentile_ms(50));
    figure.more("acknowledged_p99_ms", acknowledged.percentile_ms(99));
    figure.measured = format!(
        "{count} commands at {PER_S}/s, each from its acknowledgement until a query returned its row"
    );
    let reached = figure.p99_ms.is_some_and(|ms| ms <= GOAL_MS);
    figure.goal(format!("p99 at most {GOAL_MS} ms"), reached);
    rig.meter.report(&mut figure, "one append, one batch and one look at the checkpoints each");
    stop.cancel();
    roles.ended().await?;
    installation.read_models.close().await;
    drop((paced, installation));
    rig.stop().await;
    Ok(figure)
}

#[derive(Clone)]
struct Paced {
    installation: Installation,
    model: Arc<ReadModelDefinition>,
}

impl Paced {
    /// Waits until the read model can be asked.
    async fn serving(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while ask(&self.installation.read_models, &self.model, 0).await.is_err() {
            ensure!(started.elapsed() < ROW_WITHIN, "the read model does not serve");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Sends commands at the steady rate; returns how long their acknowledgements and then their
    /// rows took, and how many failed.
    async fn send(&self, first: u64, count: u64) -> anyhow::Result<(Latencies, Latencies, u64)> {
        let bar = out::progress(count, "pacing");
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_S);
        let mut under_way = JoinSet::new();
        for number in first..first + count {
            ticks.tick().await;
            bar.inc(1);
            let paced = self.clone();
            under_way.spawn(async move { paced.one(number).await });
        }
        let (mut acknowledged, mut readable) = (Latencies::default(), Latencies::default());
        let mut errors = 0;
        while let Some(ended) = under_way.join_next().await {
            match ended? {
                Ok((answer, row)) => {
                    acknowledged.add(answer);
                    readable.add(row);
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "a row was not seen");
                    errors += 1;
                }
            }
        }
        bar.finish_and_clear();
        Ok((acknowledged, readable, errors))
    }

    async fn one(&self, number: u64) -> anyhow::Result<(Duration, Duration)> {
        let (aggregate, nth) = (number / PER_AGGREGATE, number % PER_AGGREGATE);
        let (key, id) = address(aggregate, nth)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, id.as_str());
        headers.insert(header::ACTOR, "bench");
        let question =
            |epoch, _| (Command::request_subject(epoch, &key, &command()), headers.clone());
        let sent = Instant::now();
        let reply = self.installation.ask(&key, payload(nth).into(), question).await?;
        let answered = Instant::now();
        let (position, version) = match serde_json::from_slice(&reply.payload)? {
            Outcome::Accepted { position: Some(position), version, .. } => (position, version),
            other => bail!("{key}: {other:?}"),
        };
        let read_models = &self.installation.read_models;
        read_models.wait(&[Name::parse(READ_MODEL)?], &[position], ROW_WITHIN).await?;
        let row = ask(read_models, &self.model, aggregate).await?.context("there is no row")?;
        ensure!(row["version"].as_u64() >= Some(version), "the row is older than its position");
        Ok((answered - sent, answered.elapsed()))
    }
}
