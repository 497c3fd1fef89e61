//! `bench commands`: asynchronous commands over NATS, from the first publish until each one's
//! outcome is durable.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use async_nats::HeaderMap;
use flexcore_domain::{AggregateKey, CommandId, CommandName, command::header};
use flexcore_eventstore::{
    EventStore, Profile, catalog,
    queue::{CommandPublisher, SentCommand},
    topology,
};
use flexcore_out as out;
use flexcore_servers::Want;
use tokio_util::sync::CancellationToken;

use crate::{
    Figure, Run,
    append::{key, otherwise, payload},
    application,
    raw::{Publish, Raw},
    rig::{Rig, median},
};

/// Publishes under way at once.
pub(crate) const WINDOW: usize = 1_024;
/// Commands of a round.
const COMMANDS: u64 = 40_000;
/// Commands that an aggregate gets: one in so many has to load it.
const PER_AGGREGATE: u64 = 4;
/// Longest wait for the next sign of progress.
const STALLED: Duration = Duration::from_secs(20);

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let mut raw = Raw::open(&rig).await?;
    let stop = CancellationToken::new();
    let catalog = catalog::watch(&rig.store).await?;
    let settings = flexcore_workers::command::Settings::default();
    let (store, member) = (rig.store.clone(), rig.member().await?);
    let worker = flexcore_workers::command::run(store, catalog, member, settings, stop.clone());
    let worker = tokio::spawn(worker);
    application::deploy(&rig).await?;
    let how = match run.profile() {
        Profile::Relaxed => Publish::Plain,
        Profile::PowerLoss => Publish::Expecting,
    };
    let size = payload(0).len();
    let count = run.scale(COMMANDS);
    let (mut ours_per_s, mut publish_per_s, mut raw_per_s) = (vec![], vec![], vec![]);
    let bar = out::progress(run.rounds() as u64, "commands");
    let mut first = 0;
    process(&rig.store, &mut first, count / 10).await?;
    raw.publish(how, size, WINDOW, run.measure() / 5).await?;
    for _ in 0..run.rounds() {
        let store = rig.store.clone();
        let processed = rig.meter.during(process(&store, &mut first, count)).await?;
        ours_per_s.push(processed.per_s);
        publish_per_s.push(processed.published_per_s);
        raw_per_s.push(raw.publish(how, size, WINDOW, run.measure()).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    stop.cancel();
    worker.await??;
    let mut figure = Figure::new("commands", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    let dead = rig.store.jetstream().get_stream(topology::DEAD).await?;
    figure.errors = dead.cached_info().state.messages;
    figure.more("published_per_s", crate::round(median(publish_per_s)));
    figure.measured = format!(
        "{count} asynchronous commands of {size} bytes, {PER_AGGREGATE} an aggregate, {WINDOW} in \
         flight, decided in JavaScript; from the first publish until all commits are in the log and \
         the queue is settled"
    );
    figure.raw = match how {
        Publish::Plain => format!("messages of {size} bytes published, {WINDOW} in flight"),
        Publish::Expecting => {
            format!("the same published with an expected sequence, {WINDOW} in flight")
        }
    };
    let goal = if run.profile() == Profile::Relaxed { 0.2 } else { 2.0 };
    let reached = figure.ratio.is_some_and(|ratio| ratio >= goal);
    figure.goal(format!("ratio at least {goal}"), reached);
    rig.meter.report(&mut figure, otherwise(run.profile()));
    rig.stop().await;
    Ok(figure)
}

/// The result of a round.
pub(crate) struct Processed {
    pub(crate) per_s: f64,
    pub(crate) published_per_s: f64,
}

/// Publishes commands for aggregates from `first` on, and waits until every one is processed.
pub(crate) async fn process(
    store: &EventStore,
    first: &mut u64,
    count: u64,
) -> anyhow::Result<Processed> {
    let aggregates = count.div_ceil(PER_AGGREGATE);
    let from = *first;
    *first += aggregates;
    let before = store.last_sequence().await?;
    let publisher = store.command_publisher();
    let started = Instant::now();
    let mut in_flight: VecDeque<SentCommand> = VecDeque::with_capacity(WINDOW);
    // One round through all aggregates after the other: those of one are far apart.
    for number in 0..count {
        if in_flight.len() == WINDOW
            && let Some(oldest) = in_flight.pop_front()
        {
            oldest.stored().await?;
        }
        in_flight
            .push_back(send(&publisher, from + number % aggregates, number / aggregates).await?);
    }
    for sent in in_flight {
        sent.stored().await?;
    }
    let published_s = started.elapsed().as_secs_f64();
    let mut last = (0, Instant::now());
    loop {
        let processed = store.last_sequence().await? - before;
        if processed >= count && store.queue_depth().await? == 0 {
            ensure!(processed == count, "{processed} commits of {count} commands");
            break;
        }
        if processed != last.0 {
            last = (processed, Instant::now());
        } else if last.1.elapsed() > STALLED {
            bail!("{processed} of {count} commands are processed, and none moves");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let per_s = count as f64 / started.elapsed().as_secs_f64();
    Ok(Processed { per_s, published_per_s: count as f64 / published_s })
}

async fn send(
    publisher: &CommandPublisher,
    aggregate: u64,
    number: u64,
) -> anyhow::Result<SentCommand> {
    let (key, id) = address(aggregate, number)?;
    let mut headers = HeaderMap::new();
    headers.insert(header::ACTOR, "bench");
    Ok(publisher.send(&key, &command(), &id, headers, payload(number)).await?)
}

/// The aggregate, and the id of its command of this number.
pub(crate) fn address(aggregate: u64, number: u64) -> anyhow::Result<(AggregateKey, CommandId)> {
    Ok((key(aggregate), CommandId::parse(&format!("add:{aggregate}:{number}"))?))
}

/// The command that adds.
pub(crate) fn command() -> CommandName {
    CommandName::parse("add").expect("BUG: a valid name")
}
