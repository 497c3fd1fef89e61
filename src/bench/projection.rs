//! `bench projection`: a read model catches up with a log that was filled while it stood still.

use std::time::Instant;

use flexcore_servers::Want;

use crate::{
    Figure, Run, counter,
    filled::{COMMITS, fill},
    projecting::{GOAL_RATIO, Projecting, caught_up, parked, raw_in_words},
    raw_rows::RawRows,
    rig::{Rig, median},
};

/// Events over all rounds.
const EVENTS: u64 = 240_000;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let installation = rig.installation().await?;
    counter::deploy(&rig.store).await?;
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
