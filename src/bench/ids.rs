//! `bench ids`: what it costs to apply a command once: reading its payload with the hash of its value, and
//! an aggregate that remembers a million command ids.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use flexcore_domain::{
    AggregateId, AggregateKey, AggregateName, CommandHash, Hash, Payload, Tenant,
};
use flexcore_eventstore::snapshot::Snapshot;
use flexcore_servers::Want;
use flexcore_workers::command::measure::{Remembered, remember};
use serde_json::value::RawValue;

use crate::{Figure, Run, rig::Rig, round};

/// Command ids of the aggregate.
const COMMANDS: u64 = 1_000_000;
/// Questions for ids that never were.
const QUESTIONS: u64 = 100_000;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let mut figure = Figure::new("ids", run);
    let small = payload(4);
    let (ours, raw) = (hashed(run, &small, true), hashed(run, &small, false));
    figure.rates(ours, raw);
    let large = payload(4_000);
    let bytes = large.len() as f64;
    figure.more("canonical_mb_per_s", round(hashed(run, &large, true) * bytes / 1e6));
    let commands = run.scale(COMMANDS);
    let questions = run.scale(QUESTIONS);
    let remembered = remember(commands, questions);
    let nanoseconds = |took: Duration, count: u64| round(took.as_nanos() as f64 / count as f64);
    figure.more("commands", commands);
    figure.more("memory_mb", round(remembered.size_bytes as f64 / 1e6));
    figure.more("remember_ns", nanoseconds(remembered.remembering, commands));
    figure.more("new_id_ns", nanoseconds(remembered.asking, questions));
    figure.more("looked_up_in_vain", remembered.in_vain);
    figure.more("of_questions", questions);
    let (save, load) = rig.meter.during(kept(&rig.store.clone(), remembered)).await?;
    figure.more("save_ms", round(save.as_secs_f64() * 1_000.0));
    figure.more("load_ms", round(load.as_secs_f64() * 1_000.0));
    figure.measured = format!(
        "reading a payload of {} bytes, with the hash of its value (canonical JSON); then an aggregate with \
         {commands} command ids: what it takes in memory, a new id's question, and its snapshot saved and \
         loaded",
        small.len()
    );
    figure.raw = "reading the same payload, with the hash of its text".to_owned();
    rig.meter.report(&mut figure, "one thread");
    rig.stop().await;
    Ok(figure)
}

/// A payload with so many members, of every kind of value.
fn payload(members: usize) -> String {
    let member = |n: usize| format!(r#""n{n}": [{n}.50, true, null, "text \u0061 {n}"]"#);
    let members: Vec<String> = (0..members).rev().map(member).collect();
    format!("{{{}}}", members.join(", "))
}

/// Payloads that are read a second, each with the hash of its value, or of its text.
fn hashed(run: &Run<'_>, payload: &str, of_value: bool) -> f64 {
    let (began, mut count) = (Instant::now(), 0_u64);
    while began.elapsed() < run.measure() / 5 {
        for _ in 0..16 {
            let sent = black_box(payload).as_bytes();
            let hash = match of_value {
                true => {
                    Payload::parse_canonical(sent).map(|(_, text)| CommandHash::of("add", &text))
                }
                false => Payload::parse(sent).map(|read| CommandHash::of("add", read.as_str())),
            };
            black_box(hash.ok());
        }
        count += 16;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

/// Time for saving a snapshot with all of it, and for loading it.
async fn kept(
    store: &flexcore_eventstore::EventStore,
    remembered: Remembered,
) -> anyhow::Result<(Duration, Duration)> {
    let key = AggregateKey::new(
        Tenant::parse("acme")?,
        AggregateName::parse("counter")?,
        AggregateId::parse("c1")?,
    );
    let (commands, older) = remembered.saved;
    let snapshot = Snapshot {
        fingerprint: String::new(),
        version: COMMANDS,
        sequence: COMMANDS,
        hash: Hash::ZERO,
        time_ms: 0,
        state: RawValue::from_string("{}".to_owned())?,
        commands,
        older,
    };
    let began = Instant::now();
    store.save_snapshot(&key, &snapshot).await?;
    let saved = began.elapsed();
    let began = Instant::now();
    let loaded = store.snapshot(&key).await?.context("the snapshot was not kept")?;
    ensure!(loaded.older.blocks == snapshot.older.blocks, "another one was kept");
    Ok((saved, began.elapsed()))
}
