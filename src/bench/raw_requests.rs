//! The raw limit of synchronous commands: a request over NATS, and a responder that publishes what
//! waits in groups and answers. No HTTP, no checks, no decider, no hashes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use async_nats::{HeaderMap, Message, jetstream};
use bytes::Bytes;
use flexcore_eventstore::Profile;
use futures::StreamExt;
use tokio::task::{AbortHandle, JoinSet};

use crate::rig::Rig;

/// Most messages of a batch; the broker's own limit.
const BATCH_MAX: usize = 1_000;
/// Where the requests go. The broker keeps nothing of it.
const REQUESTS: &str = "raw_requests";

pub(crate) struct RawRequests {
    client: async_nats::Client,
    responder: AbortHandle,
    size_bytes: usize,
}

impl RawRequests {
    /// Starts the responder, on the stream of [`crate::raw_log::RawLog`].
    pub(crate) async fn start(
        rig: &Rig,
        profile: Profile,
        size_bytes: usize,
    ) -> anyhow::Result<Self> {
        let client = rig.connect().await?;
        let behind = rig.connect().await?;
        let requests = behind.subscribe(format!("{REQUESTS}.*")).await?;
        behind.flush().await?;
        let responder = tokio::spawn(async move {
            let responding = match profile {
                Profile::PowerLoss => in_groups(behind, requests).await,
                Profile::Relaxed => one_by_one(behind, requests).await,
            };
            if let Err(error) = responding {
                tracing::warn!(error = format!("{error:#}"), "the raw responder ended");
            }
        });
        Ok(Self { client, responder: responder.abort_handle(), size_bytes })
    }

    /// Requests answered a second, so many waiting at once.
    pub(crate) async fn ask(&self, window: usize, lasting: Duration) -> anyhow::Result<f64> {
        let body = Bytes::from(vec![b'x'; self.size_bytes]);
        let answered = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..window {
            let (client, body, answered) = (self.client.clone(), body.clone(), answered.clone());
            tasks.spawn(async move {
                while started.elapsed() < lasting {
                    client.request(format!("{REQUESTS}.{number}"), body.clone()).await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(answered.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
    }
}

impl Drop for RawRequests {
    fn drop(&mut self) {
        self.responder.abort();
    }
}

/// Waiting messages go out as one atomic batch while the next gathers.
async fn in_groups(
    client: async_nats::Client,
    requests: async_nats::Subscriber,
) -> anyhow::Result<()> {
    let mut requests = requests.ready_chunks(BATCH_MAX);
    let mut batches = 0_u64;
    while let Some(batch) = requests.next().await {
        batches += 1;
        publish(&client, batches, &batch).await?;
        for request in batch {
            let reply = request.reply.context("a request wants an answer")?;
            client.publish(reply, Bytes::new()).await?;
        }
    }
    Ok(())
}

async fn publish(client: &async_nats::Client, id: u64, batch: &[Message]) -> anyhow::Result<()> {
    for (number, request) in (1..).zip(batch) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", format!("raw-{id}"));
        headers.insert("Nats-Batch-Sequence", number.to_string());
        let subject = format!("raw.request.{id}.{number}");
        let body = request.payload.clone();
        if number < batch.len() {
            client.publish_with_headers(subject, headers, body).await?;
            continue;
        }
        headers.insert("Nats-Batch-Commit", "1");
        let answer = client.request_with_headers(subject, headers, body).await?;
        let said: serde_json::Value = serde_json::from_slice(&answer.payload)?;
        anyhow::ensure!(said["seq"].is_u64(), "a batch was refused: {said}");
    }
    Ok(())
}

/// Each is published by itself, many at once.
async fn one_by_one(
    client: async_nats::Client,
    mut requests: async_nats::Subscriber,
) -> anyhow::Result<()> {
    let jetstream = jetstream::new(client.clone());
    let mut number = 0_u64;
    while let Some(request) = requests.next().await {
        number += 1;
        let sent = jetstream.publish(format!("raw.request.{number}"), request.payload).await?;
        let client = client.clone();
        tokio::spawn(async move {
            // A client that waits for an answer that cannot come learns it from the timeout.
            if let (Ok(_), Some(reply)) = (sent.await, request.reply) {
                let _ = client.publish(reply, Bytes::new()).await;
            }
        });
    }
    Ok(())
}
