//! The raw limit of the broker: the same messages without anything of ours around them, on a stream
//! with the same settings as the log's.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishAckFuture},
};
use bytes::Bytes;
use flexcore_eventstore::topology;
use futures::StreamExt;

use crate::rig::Rig;

/// The stream beside the log.
const STREAM: &str = "RAW";

/// The way in which a raw message is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    Plain,
    /// With the sequence that its subject must end with, as the log's messages have it.
    Expecting,
}

pub(crate) struct RawLog {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    published: u64,
}

impl RawLog {
    /// Makes the stream, and a connection of its own.
    pub(crate) async fn open(rig: &Rig) -> anyhow::Result<Self> {
        let client = rig.connect().await?;
        let jetstream = jetstream::new(client.clone());
        let log = jetstream.get_stream(topology::EVENTS).await?;
        let mut config = log.cached_info().config.clone();
        config.name = STREAM.to_owned();
        config.subjects = vec!["raw.>".to_owned()];
        jetstream.create_stream(config).await.context("the raw stream")?;
        Ok(Self { client, jetstream, published: 0 })
    }

    /// Publishes messages of so many bytes, each on a subject of its own, so many in flight, for
    /// this long. Returns how many a second were acknowledged. Fails when one is not.
    pub(crate) async fn publish(
        &mut self,
        how: Publish,
        size_bytes: usize,
        window: usize,
        lasting: Duration,
    ) -> anyhow::Result<f64> {
        let body = Bytes::from(vec![b'x'; size_bytes]);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let started = Instant::now();
        let mut in_flight: VecDeque<PublishAckFuture> = VecDeque::with_capacity(window);
        let mut count = 0_u64;
        while started.elapsed() < lasting {
            if in_flight.len() == window
                && let Some(oldest) = in_flight.pop_front()
            {
                oldest.await?;
            }
            self.published += 1;
            count += 1;
            let subject = format!("raw.{}", self.published);
            let sent = match how {
                Publish::Plain => self.jetstream.publish(subject, body.clone()).await,
                Publish::Expecting => {
                    let headers = headers.clone();
                    self.jetstream.publish_with_headers(subject, headers, body.clone()).await
                }
            };
            in_flight.push_back(sent?);
        }
        for waiting in in_flight {
            waiting.await?;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }

    /// Reads all messages of these subjects of the log by direct get, so many requests in flight,
    /// decoding nothing. Returns the subjects read a second.
    pub(crate) async fn load(
        &self,
        subjects: Vec<String>,
        in_flight: usize,
    ) -> anyhow::Result<f64> {
        let count = subjects.len();
        let started = Instant::now();
        let share = count.div_ceil(in_flight).max(1);
        let mut readers = tokio::task::JoinSet::new();
        for part in subjects.chunks(share) {
            readers.spawn(read(self.client.clone(), part.to_vec()));
        }
        while let Some(read) = readers.join_next().await {
            read??;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }
}

/// One after the other.
async fn read(client: async_nats::Client, subjects: Vec<String>) -> anyhow::Result<()> {
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await?;
    for subject in subjects {
        let request = format!(r#"{{"seq":1,"next_by_subj":"{subject}","batch":512}}"#);
        let to = format!("$JS.API.DIRECT.GET.{}", topology::EVENTS);
        client.publish_with_reply(to, inbox.clone(), request.into()).await?;
        loop {
            let reply = replies.next().await.context("the connection was closed")?;
            if reply.status.is_some() {
                break;
            }
        }
    }
    Ok(())
}
