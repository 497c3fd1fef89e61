//! `bench growth`: append, load and projection as the log grows tenfold, and again.

use std::time::Instant;

use anyhow::Context;
use flexcore_installation::Installation;
use flexcore_servers::Want;
use serde::Serialize;

use crate::{
    Figure, Run, counter,
    filled::{COMMITS, IN_FLIGHT, fill, load, scattered},
    projecting::{Projecting, caught_up, parked},
    rig::{Rig, median},
    round,
};

/// Events in the log at the last step; each step before has a tenth.
const EVENTS: u64 = 1_000_000;
/// Steps.
const STEPS: u32 = 3;
/// Events that are appended and projected, and aggregates that are loaded, at each step.
const SAMPLE: u64 = 30_000;
/// The most that a step of ten may slow it down.
const GOAL_FACTOR: f64 = 1.3;

/// Speed with a log of this length, a second.
#[derive(Clone, Debug, Serialize)]
struct Step {
    events: u64,
    append_per_s: f64,
    load_per_s: f64,
    projection_per_s: f64,
}

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let installation = rig.installation().await?;
    counter::deploy(&rig.store).await?;
    let last = run.events(EVENTS);
    let mut steps: Vec<Step> = Vec::new();
    let mut aggregates = 0;
    for step in (0..STEPS).rev() {
        let events = last / 10_u64.pow(step);
        let missing = (events / COMMITS).saturating_sub(aggregates);
        fill(&rig.store, aggregates, missing.max(1)).await?;
        aggregates += missing.max(1);
        catch_up(&rig, &installation).await?;
        steps.push(measure(run, &mut rig, &installation, &mut aggregates).await?);
    }
    let mut figure = Figure::new("growth", run);
    figure.errors = parked(&installation.read_models).await?;
    let of = |rate: fn(&Step) -> f64| {
        let pairs = steps.iter().zip(steps.iter().skip(1));
        pairs.map(|(before, after)| rate(before) / rate(after)).fold(0.0, f64::max)
    };
    let worst = [
        ("append", of(|step| step.append_per_s)),
        ("load", of(|step| step.load_per_s)),
        ("projection", of(|step| step.projection_per_s)),
    ];
    for (name, factor) in worst {
        let goal = format!("{name}: a step of ten at most {GOAL_FACTOR} times slower");
        figure.more(&format!("{name}_slower_factor"), round(factor));
        figure.goal(goal, factor <= GOAL_FACTOR);
    }
    figure.ours_per_s = steps.last().map(|step| step.append_per_s);
    figure.more("steps", serde_json::to_value(&steps).context("BUG: numbers serialise")?);
    figure.measured = format!(
        "at each length of the log {SAMPLE} further events appended, then projected, and aggregates \
         of {COMMITS} commits loaded, {IN_FLIGHT} in flight; ours/s is the append at the last step"
    );
    rig.meter.report(&mut figure, "the broker's and Postgres' disks");
    installation.read_models.close().await;
    drop(installation);
    rig.stop().await;
    Ok(figure)
}

/// Projects what is in the log.
async fn catch_up(rig: &Rig, installation: &Installation) -> anyhow::Result<()> {
    let end = rig.store.last_sequence().await?;
    let projecting = Projecting::start(installation);
    caught_up(&installation.read_models, end).await?;
    projecting.stop().await
}

async fn measure(
    run: &Run<'_>,
    rig: &mut Rig,
    installation: &Installation,
    aggregates: &mut u64,
) -> anyhow::Result<Step> {
    let (mut append_per_s, mut load_per_s, mut projection_per_s) = (vec![], vec![], vec![]);
    let events = rig.store.last_sequence().await?;
    let more = run.scale(SAMPLE) / COMMITS / run.rounds() as u64;
    for at in 0..run.rounds() as u64 {
        let store = rig.store.clone();
        let took = rig.meter.during(fill(&store, *aggregates, more)).await?;
        append_per_s.push((more * COMMITS) as f64 / took.as_secs_f64());
        let numbers = scattered(*aggregates, at * more, more);
        *aggregates += more;
        load_per_s.push(rig.meter.during(load(&store, numbers, IN_FLIGHT)).await?.per_s);
        let started = Instant::now();
        catch_up(rig, installation).await?;
        projection_per_s.push((more * COMMITS) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(Step {
        events,
        append_per_s: round(median(append_per_s)),
        load_per_s: round(median(load_per_s)),
        projection_per_s: round(median(projection_per_s)),
    })
}
