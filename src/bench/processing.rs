//! Asynchronous commands that are published and processed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use async_nats::HeaderMap;
use flexcore_domain::{AggregateKey, CommandId, command::header};
use flexcore_eventstore::{
    EventStore,
    commands::{CommandPublisher, SentCommand},
};

use crate::counter::{COUNTER, PER_AGGREGATE, address_of, command, payload};

/// Publishes under way at once.
pub(crate) const WINDOW: usize = 1_024;
/// Longest wait for the next sign of progress.
const STALLED: Duration = Duration::from_secs(20);

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
    process_of(store, COUNTER, first, count).await
}

/// The same for aggregates of this name.
pub(crate) async fn process_of(
    store: &EventStore,
    aggregate: &str,
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
        let nth = number / aggregates;
        let address = address_of(aggregate, from + number % aggregates, nth)?;
        in_flight.push_back(send(&publisher, address, nth).await?);
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
    (key, id): (AggregateKey, CommandId),
    number: u64,
) -> anyhow::Result<SentCommand> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACTOR, "bench");
    Ok(publisher.send(&key, &command(), &id, headers, payload(number)).await?)
}
