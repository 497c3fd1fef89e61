//! `bench append`: commits of one event, each on an aggregate of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Hash, Tenant,
};
use flexcore_eventstore::{EventStore, Expected, Profile};
use flexcore_out as out;
use flexcore_servers::Want;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use crate::{
    Figure, Run,
    raw::{Publish, Raw},
    rig::{Latencies, Rig, median},
};

/// Appends under way at once.
const WINDOW: usize = 1_024;
/// Bytes of an event's data.
const DATA_BYTES: usize = 256;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let mut raw = Raw::open(&rig).await?;
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

/// The bottleneck of a bench of the log when the processors have time to spare.
pub(crate) fn otherwise(profile: Profile) -> &'static str {
    match profile {
        Profile::PowerLoss => "the broker's syncs to disk, one a batch",
        Profile::Relaxed => "round trips to the broker",
    }
}

/// The sum of some appends.
#[derive(Default)]
pub(crate) struct Appended {
    pub(crate) per_s: f64,
    pub(crate) latencies: Latencies,
    pub(crate) errors: u64,
}

/// Appends first commits of aggregates, so many in flight, for this long.
pub(crate) async fn appends(
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

/// The tenant of everything that benches write.
pub(crate) fn tenant() -> Tenant {
    Tenant::parse("bench").expect("BUG: a valid name")
}

/// The aggregate of this number.
pub(crate) fn key(number: u64) -> AggregateKey {
    let aggregate = AggregateName::parse("counter").expect("BUG: a valid name");
    let id = AggregateId::parse(&format!("c{number}")).expect("BUG: a valid id");
    AggregateKey::new(tenant(), aggregate, id)
}

/// A commit of one event, as the benches' application records it.
pub(crate) fn commit(key: &AggregateKey, version: u64) -> Commit {
    let name = |text: &str| format!("{text}-{}-{version}", key.id());
    let data = payload(version);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    Commit {
        key: key.clone(),
        command_id: CommandId::parse(&name("add")).expect("BUG: a valid id"),
        command_hash: CommandHash::of("add", &data),
        actor: ActorName::parse("bench").expect("BUG: a valid name"),
        correlation_id: None,
        causation_id: None,
        traceparent: None,
        time_ms: i64::try_from(now).unwrap_or(0),
        events: vec![Event {
            event: EventName::parse("added").expect("BUG: a valid name"),
            version,
            schema_version: 1,
            data: RawValue::from_string(data).expect("BUG: JSON"),
        }],
    }
}

/// JSON of exactly [`DATA_BYTES`] bytes: what the command `add` takes and the event `added` has.
pub(crate) fn payload(by: u64) -> String {
    let head = format!(r#"{{"by":{by},"at":"2013-01-01T10:22:00Z","open":true,"note":""#);
    let room = DATA_BYTES.saturating_sub(head.len() + 2);
    format!(r#"{head}{}"}}"#, "n".repeat(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_the_size_that_is_told() {
        for by in [1, 99_999] {
            let data = payload(by);
            assert_eq!(data.len(), DATA_BYTES);
            let value: serde_json::Value = serde_json::from_str(&data).unwrap();
            assert_eq!(value["by"], by);
        }
    }
}
