//! `bench projection`: a read model catches up with a log that was filled while it stood still.

use std::time::{Duration, Instant};

use anyhow::bail;
use flexcore_installation::{Installation, Roles};
use flexcore_out as out;
use flexcore_readmodel::{ReadModels, State};
use flexcore_servers::Want;
use tokio_util::sync::CancellationToken;

use crate::{
    Figure, Run,
    application::{self, READ_MODEL},
    load::{COMMITS, fill},
    rig::{Rig, median},
    rows::{BATCH, RawRows},
};

/// Events over all rounds.
const EVENTS: u64 = 240_000;
/// Longest wait for the next sign of progress.
const STALLED: Duration = Duration::from_secs(30);
/// The goals.
pub(crate) const GOAL_RATIO: f64 = 0.5;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let installation = rig.installation().await?;
    application::deploy(&rig).await?;
    let mut raw = RawRows::open(&rig.postgres()?).await?;
    let rounds = run.rounds() as u64;
    let aggregates = (run.events(EVENTS) / COMMITS / rounds).max(1);
    let (mut ours_per_s, mut raw_per_s) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        fill(&rig.store, round * aggregates, aggregates).await?;
        let end = rig.store.last_sequence().await?;
        let projecting = Projecting::start(&installation);
        let started = Instant::now();
        rig.meter.during(caught_up(&installation.read_models, end)).await?;
        ours_per_s.push((aggregates * COMMITS) as f64 / started.elapsed().as_secs_f64());
        projecting.stop().await?;
        raw_per_s.push(raw.write(round * aggregates, aggregates, COMMITS).await?);
    }
    let mut figure = Figure::new("projection", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    figure.errors = parked(&installation.read_models).await?;
    figure.measured = format!(
        "{} events a round over {aggregates} aggregates, a row an aggregate, from the start of the \
         worker until every row is readable",
        aggregates * COMMITS
    );
    figure.raw = raw_in_words();
    let reached = figure.ratio.is_some_and(|ratio| ratio >= GOAL_RATIO);
    figure.goal(format!("ratio at least {GOAL_RATIO}"), reached);
    rig.meter.report(&mut figure, "Postgres committing, one transaction a batch");
    installation.read_models.close().await;
    drop(installation);
    rig.stop().await;
    Ok(figure)
}

/// The meaning of raw rows.
pub(crate) fn raw_in_words() -> String {
    format!(
        "rows of the same width written by unnest upserts, {BATCH} and a checkpoint of 64 slots a \
         transaction, one connection, nothing read from the log"
    )
}

/// The projection worker at work.
pub(crate) struct Projecting {
    roles: Roles,
    stop: CancellationToken,
}

impl Projecting {
    pub(crate) fn start(installation: &Installation) -> Self {
        let stop = CancellationToken::new();
        let mut roles = Roles::new(stop.clone());
        roles.projections(installation);
        Self { roles, stop }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.roles.ended().await
    }
}

/// Waits until the read model serves with everything up to this stream sequence.
pub(crate) async fn caught_up(read_models: &ReadModels, end: u64) -> anyhow::Result<()> {
    let bar = out::progress(end, "projecting");
    let mut last = (0, Instant::now());
    loop {
        let statuses = read_models.status().await?;
        let ours = statuses.iter().filter(|status| status.read_model.as_str() == READ_MODEL);
        let position = ours.clone().map(|status| status.position).max().unwrap_or(0);
        if ours.clone().any(|status| status.state == State::Serving && status.lag(end) == 0) {
            bar.finish_and_clear();
            return Ok(());
        }
        bar.set_position(position);
        if position != last.0 {
            last = (position, Instant::now());
        } else if last.1.elapsed() > STALLED {
            bail!("the read model stands at {position} of {end} and does not move");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Events that could not be applied.
pub(crate) async fn parked(read_models: &ReadModels) -> anyhow::Result<u64> {
    let statuses = read_models.status().await?;
    Ok(statuses.iter().map(|status| status.parked).sum())
}
