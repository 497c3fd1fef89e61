//! Publishing to a stream: pipelined, or in groups.
//!
//! One replica that syncs each message takes about 5,000 messages a second however many are in
//! flight, and one atomic batch takes one sync. So there what waits while a batch is in flight goes
//! out as the next batch. Otherwise each message is published by itself and many are in flight.

use std::{collections::HashSet, sync::Arc};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::{Error, REQUEST_TIMEOUT, unavailable};

/// Most messages of one batch; the broker's own limit.
const BATCH_MESSAGES_MAX: usize = 1_000;
/// Most bytes of one batch: it is staged by the server before the one sync.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Up to this many waiting messages go out one by one: a batch has a fixed cost of a millisecond,
/// a synced message a fifth of that.
const SINGLES_MAX: usize = 4;
/// Messages that wait for a batch before publishers wait in turn.
const WAITING_MAX: usize = 8_192;

/// Publishes to one stream; cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher {
    strategy: Strategy,
}

#[derive(Clone)]
enum Strategy {
    Grouped(mpsc::Sender<Waiting>),
    Pipelined(Box<jetstream::Context>),
}

/// What groups may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Groups {
    /// Each subject once in a batch, since a subject that the batch has written can't be checked
    /// again within it. Two batches in flight: while the server syncs one, the next is sent.
    Expecting,
    /// One batch in flight, since two might change places.
    Ordered,
}

struct Waiting {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
    answer: oneshot::Sender<Result<u64, Error>>,
}

impl Publisher {
    /// Publishes one by one when `groups` is `None`.
    pub(crate) fn start(
        client: &async_nats::Client,
        jetstream: &jetstream::Context,
        groups: Option<Groups>,
    ) -> Self {
        let Some(groups) = groups else {
            return Self { strategy: Strategy::Pipelined(Box::new(jetstream.clone())) };
        };
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let sending = Sending { client: client.clone(), jetstream: jetstream.clone() };
        tokio::spawn(group(sending, groups, receiver));
        Self { strategy: Strategy::Grouped(sender) }
    }

    /// Returns the stream sequence. Fails with [`Error::Conflict`] when an expectation in the
    /// headers does not hold, and with [`Error::Unavailable`] when the outcome is unknown.
    pub(crate) async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64, Error> {
        self.send(subject, headers, body).await?.stored().await
    }

    /// Hands a message over, in order with those before it, and does not wait until it is stored.
    pub(crate) async fn send(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Sent, Error> {
        match &self.strategy {
            Strategy::Pipelined(jetstream) => {
                let sent = jetstream.publish_with_headers(subject, headers, body).await;
                Ok(Sent::Pipelined(Box::new(sent.map_err(unavailable)?)))
            }
            Strategy::Grouped(sender) => {
                let (answer, answered) = oneshot::channel();
                let waiting = Waiting { subject, headers, body, answer };
                sender.send(waiting).await.map_err(|_| unavailable("shutting down"))?;
                Ok(Sent::Grouped(answered))
            }
        }
    }
}

/// A message on its way.
pub(crate) enum Sent {
    Grouped(oneshot::Receiver<Result<u64, Error>>),
    Pipelined(Box<jetstream::context::PublishAckFuture>),
}

impl Sent {
    /// Its stream sequence, once it is stored.
    pub(crate) async fn stored(self) -> Result<u64, Error> {
        match self {
            Self::Grouped(answered) => answered.await.map_err(|_| unavailable("shutting down"))?,
            Self::Pipelined(acknowledgement) => outcome((*acknowledgement).await),
        }
    }
}

fn outcome(
    acknowledged: Result<jetstream::publish::PublishAck, jetstream::context::PublishError>,
) -> Result<u64, Error> {
    match acknowledged {
        Ok(acknowledgement) => Ok(acknowledgement.sequence),
        Err(error) if error.kind() == jetstream::context::PublishErrorKind::WrongLastSequence => {
            Err(Error::Conflict)
        }
        Err(error) => Err(unavailable(error)),
    }
}

#[derive(Clone)]
struct Sending {
    client: async_nats::Client,
    jetstream: jetstream::Context,
}

/// Gathers what waits and sends it off, until every handle is gone.
async fn group(sending: Sending, groups: Groups, mut receiver: mpsc::Receiver<Waiting>) {
    let batches_in_flight = if groups == Groups::Expecting { 2 } else { 1 };
    let in_flight = Arc::new(tokio::sync::Semaphore::new(batches_in_flight));
    let mut gathered = Vec::with_capacity(BATCH_MESSAGES_MAX);
    loop {
        let permit = in_flight.clone().acquire_owned().await.expect("BUG: never closed");
        if gathered.is_empty() && receiver.recv_many(&mut gathered, BATCH_MESSAGES_MAX).await == 0 {
            return;
        }
        let room = BATCH_MESSAGES_MAX.saturating_sub(gathered.len());
        for _ in 0..room {
            let Ok(waiting) = receiver.try_recv() else { break };
            gathered.push(waiting);
        }
        let (batch, rest) = take_batch(std::mem::take(&mut gathered), groups);
        gathered = rest;
        if groups == Groups::Expecting {
            metrics::histogram!("flexcore_append_batch_commits").record(batch.len() as f64);
        }
        let sending = sending.clone();
        tokio::spawn(async move {
            sending.publish(batch).await;
            drop(permit);
        });
    }
}

/// Splits off what can go out as one batch; the rest keeps its order.
fn take_batch(waiting: Vec<Waiting>, groups: Groups) -> (Vec<Waiting>, Vec<Waiting>) {
    let mut subjects = HashSet::new();
    let mut size_bytes = 0;
    let (mut batch, mut rest) = (Vec::with_capacity(waiting.len()), Vec::new());
    for one in waiting {
        if groups == Groups::Ordered && !rest.is_empty() {
            rest.push(one);
            continue;
        }
        size_bytes += one.body.len();
        let fits = batch.is_empty() || size_bytes <= BATCH_BYTES_MAX;
        let once = groups == Groups::Ordered || subjects.insert(one.subject.clone());
        if fits && once {
            batch.push(one);
        } else {
            rest.push(one);
        }
    }
    (batch, rest)
}

#[derive(Deserialize)]
struct Acknowledgement {
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The server's code for an expected sequence that does not hold.
const WRONG_LAST_SEQUENCE: u64 = 10_071;

impl Sending {
    /// Publishes a batch and answers each of its appenders. A batch with a conflict is not recorded
    /// at all: it is split, until the conflict stands alone.
    async fn publish(&self, batch: Vec<Waiting>) {
        let mut left = vec![batch];
        while let Some(mut batch) = left.pop() {
            if batch.len() <= SINGLES_MAX {
                self.publish_singly(batch).await;
                continue;
            }
            match self.publish_atomically(&batch).await {
                Ok(last) => {
                    let first = last + 1 - batch.len() as u64;
                    for (one, sequence) in batch.into_iter().zip(first..) {
                        // An appender that has gone away does not need the answer.
                        let _ = one.answer.send(Ok(sequence));
                    }
                }
                Err(Error::Conflict) => {
                    let half = batch.split_off(batch.len() / 2);
                    left.push(half);
                    left.push(batch);
                }
                Err(error) => {
                    for one in batch {
                        let _ = one.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Sends one after another, so that they keep their order, and then waits for all.
    async fn publish_singly(&self, batch: Vec<Waiting>) {
        let mut sent = Vec::with_capacity(batch.len());
        for one in batch {
            let publishing =
                self.jetstream.publish_with_headers(one.subject, one.headers, one.body).await;
            sent.push((publishing, one.answer));
        }
        for (publishing, answer) in sent {
            let result = match publishing {
                Ok(acknowledgement) => outcome(acknowledgement.await),
                Err(error) => Err(unavailable(error)),
            };
            // An appender that has gone away does not need the answer.
            let _ = answer.send(result);
        }
    }

    /// Returns the stream sequence of the batch's last message.
    async fn publish_atomically(&self, batch: &[Waiting]) -> Result<u64, Error> {
        let id = self.client.new_inbox();
        let id = id.rsplit('.').next().unwrap_or(&id).to_owned();
        for (one, number) in batch.iter().zip(1_usize..) {
            let mut headers = one.headers.clone();
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", number.to_string());
            let (subject, body) = (one.subject.clone(), one.body.clone());
            if number < batch.len() {
                self.client
                    .publish_with_headers(subject, headers, body)
                    .await
                    .map_err(unavailable)?;
                continue;
            }
            headers.insert("Nats-Batch-Commit", "1");
            return self.commit_batch(subject, headers, body).await;
        }
        Err(unavailable("an empty batch"))
    }

    async fn commit_batch(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64, Error> {
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(body)
            .timeout(Some(REQUEST_TIMEOUT));
        let reply = self.client.send_request(subject, request).await.map_err(unavailable)?;
        let acknowledgement: Acknowledgement =
            serde_json::from_slice(&reply.payload).map_err(unavailable)?;
        match acknowledgement.error {
            None if acknowledgement.seq > 0 => Ok(acknowledgement.seq),
            None => Err(unavailable("the batch was not acknowledged")),
            Some(error) if error.err_code == WRONG_LAST_SEQUENCE => Err(Error::Conflict),
            Some(error) => {
                Err(unavailable(format!("{} (error {})", error.description, error.err_code)))
            }
        }
    }
}
