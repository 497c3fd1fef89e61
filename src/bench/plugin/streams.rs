//! Calls in batches on one stream, beside the same calls one by one: the benches' own plugin.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use flexcore_plugin::{
    Plugin,
    contract::{Batch, CallOutcome, CallRequest, Client, Context},
    limits::STREAM_BATCHES_MAX,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    go_host::PATIENCE,
    own::{self, UPPER},
    sampled::{Rounds, Sampled, thousandths},
};
use crate::{
    Figure, Run,
    counter::tenant,
    rig::{Latencies, median},
};

/// Calls in a batch.
const BATCH: usize = 64;

/// Measures both, in turns, and writes them into the figure. `in_flight`: callers one by one.
pub(crate) async fn run(
    run: &Run<'_>,
    figure: &mut Figure,
    bytes: usize,
    in_flight: usize,
) -> anyhow::Result<()> {
    let plugin = own::start().await?;
    let measured = measured(run, &plugin, bytes, in_flight).await;
    plugin.stop().await;
    let (unary, streamed_per_s) = measured?;
    let ratio = streamed_per_s / unary.per_s().max(f64::EPSILON);
    figure.more(
        "streams",
        json!({
            "per_s": crate::round(streamed_per_s),
            "unary_per_s": crate::round(unary.per_s()),
            "ratio": thousandths(ratio),
            "unary_p50_ms": unary.p50_ms(),
            "unary_p99_ms": unary.p99_ms(),
            "batch": BATCH,
            "batches_under_way": STREAM_BATCHES_MAX,
            "unary_in_flight": in_flight,
        }),
    );
    figure.goal("streamed batches at least 3 times the unary rate", ratio >= 3.0);
    Ok(())
}

async fn measured(
    run: &Run<'_>,
    plugin: &Plugin,
    bytes: usize,
    in_flight: usize,
) -> anyhow::Result<(Rounds, f64)> {
    let client = Client::new(plugin.connection());
    let processes = [std::process::id(), plugin.pid()];
    let input = Bytes::from(Value::from("a".repeat(bytes)).to_string());
    called(&client, &input, in_flight, run.measure() / 5).await?;
    streamed(client.clone(), input.clone(), run.measure() / 5).await?;
    let (mut unary, mut streams) = (Rounds::default(), Vec::new());
    for _ in 0..run.rounds() {
        let calls = called(&client, &input, in_flight, run.measure());
        unary.measure(processes, calls).await?;
        let streamed = tokio::spawn(streamed(client.clone(), input.clone(), run.measure()));
        streams.push(streamed.await??);
    }
    Ok((unary, median(streams)))
}

/// By so many callers at once, each with one call after the other.
async fn called(
    client: &Client,
    input: &Bytes,
    in_flight: usize,
    lasting: Duration,
) -> anyhow::Result<Sampled> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        callers.spawn(calls(client.clone(), input.clone(), began + lasting));
    }
    let mut latencies = Latencies::default();
    while let Some(made) = callers.join_next().await {
        latencies.append(made??);
    }
    Sampled::since(began, latencies).context("no call was answered")
}

async fn calls(client: Client, input: Bytes, until: Instant) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut sent = Instant::now();
    while sent < until {
        let (function, input) = (UPPER.to_owned(), input.clone());
        let request = CallRequest { context: Some(context()), function, input };
        fits(&client.call(request, PATIENCE).await?)?;
        let answered = Instant::now();
        latencies.add(answered - sent);
        sent = answered;
    }
    Ok(latencies)
}

/// Results a second, as many batches under way as a stream may have.
async fn streamed(client: Client, input: Bytes, lasting: Duration) -> anyhow::Result<f64> {
    let stream = client.stream(context(), UPPER, lasting + PATIENCE);
    let inputs = vec![input; BATCH];
    let (began, mut results) = (Instant::now(), 0);
    let mut under_way: VecDeque<Batch> = VecDeque::new();
    while began.elapsed() < lasting {
        under_way.push_back(stream.send(inputs.clone()).await?);
        if under_way.len() == STREAM_BATCHES_MAX
            && let Some(oldest) = under_way.pop_front()
        {
            results += taken(oldest).await?;
        }
    }
    for batch in under_way {
        results += taken(batch).await?;
    }
    stream.finish().await?;
    Ok(results as f64 / began.elapsed().as_secs_f64())
}

async fn taken(batch: Batch) -> anyhow::Result<usize> {
    let results = batch.results().await?;
    results.iter().try_for_each(fits)?;
    Ok(results.len())
}

fn fits(outcome: &CallOutcome) -> anyhow::Result<()> {
    match outcome {
        Ok(output) => {
            ensure!(output.starts_with(b"\"A"), "the plugin has answered something else");
            Ok(())
        }
        Err(failure) => Err(anyhow::anyhow!("the plugin has failed: {}", failure.message)),
    }
}

fn context() -> Context {
    let actor = "bench".to_owned();
    Context { tenant: tenant().to_string(), actor, ..Context::default() }
}
