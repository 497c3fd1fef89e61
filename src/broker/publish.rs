//! Publishing to a stream: pipelined, or in groups.
//!
//! One replica that syncs each message takes about 5,000 messages a second however many are in
//! flight, and one atomic batch takes one sync. Three replicas agree on a batch as on a message. So
//! what waits while a batch is in flight goes out as the next batch. A server that syncs at leisure
//! gains nothing by that: there each message is published by itself and many are in flight.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    Error,
    acknowledged::{Acknowledged, Outgoing, Told, Unstored, unknown, unsent},
    size,
};

/// Most messages of one batch; the broker's own limit.
const BATCH_MESSAGES_MAX: usize = 1_000;
/// Most bytes of one batch: it is staged by the server before the one sync.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Up to this many waiting messages go out one by one: a batch has a fixed cost of a millisecond,
/// a synced message a fifth of that.
const SINGLES_MAX: usize = 4;
/// A batch of so many means a load under which throughput counts, and not the time of one command.
const LARGE: usize = 32;
/// Longest wait for a batch before the next one goes out beside it: with three replicas one that its
/// leader took down with it has no answer for seconds, while the next leader is there at once.
const BATCH_PATIENCE: Duration = Duration::from_millis(500);
/// Messages that are published one by one and not acknowledged: well below the 10,000 that the
/// server takes in before it refuses some.
const IN_FLIGHT_MAX: usize = 4_096;
/// Messages under way before publishers wait in turn.
const UNDER_WAY_MAX: usize = 8_192;

/// Publishes to one stream; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    client: async_nats::Client,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    places: Arc<Semaphore>,
}

/// The way in which messages are grouped.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// The messages that one batch may hold.
    pub order: Order,
    /// When a batch waits for more to come.
    pub linger: Linger,
}

/// Rule for the wait of a batch for more commits: a fraction of the time for storing one.
#[derive(Clone, Copy, Debug)]
pub enum Linger {
    /// Until most of those whom the last batch has answered have come back, as they do within it; they
    /// would otherwise find a batch of a few just gone, at the price of a whole one. One server
    /// stores a batch within some milliseconds.
    ForMostOfTheLast,
    /// When the last one was large, the whole time: three servers take longer, and of many workers
    /// each would otherwise send many small ones.
    WhenLarge,
}

/// Settings of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each subject once in a batch, since a subject that the batch has written can't be checked
    /// again within it.
    Expecting,
    /// All inputs, in their order.
    Ordered,
}

impl Publisher {
    /// Publishes one by one when `groups` is `None`.
    pub fn start(acknowledged: &Acknowledged, groups: Option<Groups>) -> Self {
        let (outgoing, receiver) = mpsc::unbounded_channel();
        let client = acknowledged.client().clone();
        let acknowledged = acknowledged.clone();
        match groups {
            Some(groups) => tokio::spawn(group(acknowledged, groups, receiver)),
            None => tokio::spawn(one_by_one(acknowledged, receiver)),
        };
        Self { client, outgoing, places: Arc::new(Semaphore::new(UNDER_WAY_MAX)) }
    }

    /// Hands a message over, in order with those before it, and returns at once: the caller limits
    /// the work under way. `told` learns the stream sequence, or why there is none. One that is too
    /// large is not sent: it would take the others of its batch with it.
    pub fn publish(&self, subject: String, headers: HeaderMap, body: Bytes, told: Told) {
        if let Err(why) = size::check_in_batch(&headers, body.len(), self.client.max_payload()) {
            return told(Err(Unstored::TooLarge(why)));
        }
        if let Err(mpsc::error::SendError(message)) =
            self.outgoing.send(Outgoing { subject, headers, body, told })
        {
            (message.told)(Err(unknown("shutting down")));
        }
    }

    /// Hands a message over when there is a place, in order with those before it, and does not wait
    /// until it is stored.
    #[boxed::async_recursion]
    pub async fn send(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Sent, Error> {
        let place = self.places.clone().acquire_owned().await.expect("BUG: never closed");
        let (answer, answered) = oneshot::channel();
        let told = move |result| {
            drop(place);
            // A publisher that has gone away does not need the answer.
            drop(answer.send(result));
        };
        self.publish(subject, headers, body, Box::new(told));
        Ok(Sent { answered })
    }
}

/// A message on its way.
pub struct Sent {
    answered: oneshot::Receiver<Result<u64, Unstored>>,
}

impl Sent {
    /// Its stream sequence, once it is stored.
    #[boxed::async_recursion]
    pub async fn stored(self) -> Result<u64, Error> {
        Ok(self.answered.await.map_err(|_| unknown("shutting down"))??)
    }
}

async fn one_by_one(acknowledged: Acknowledged, mut receiver: mpsc::UnboundedReceiver<Outgoing>) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    while let Some(message) = receiver.recv().await {
        let place = places.clone().acquire_owned().await.expect("BUG: never closed");
        let told = message.told;
        let told = Box::new(move |result| {
            drop(place);
            told(result);
        });
        acknowledged.publish(Outgoing { told, ..message }).await;
    }
}

/// Gathers what waits while a batch is in flight and sends it off as the next, until every handle is
/// gone. One batch in flight, unless it has no answer for long: two would halve them, and what a batch
/// costs the server hardly depends on its length (measured with one replica: 57,000 commits a second
/// against 53,000, 1,024 waiting).
async fn group(
    acknowledged: Acknowledged,
    groups: Groups,
    mut receiver: mpsc::UnboundedReceiver<Outgoing>,
) {
    let mut gathered = Vec::with_capacity(BATCH_MESSAGES_MAX);
    let mut last = 0;
    loop {
        if gathered.is_empty() && receiver.recv_many(&mut gathered, BATCH_MESSAGES_MAX).await == 0 {
            return;
        }
        let (enough, longest) = groups.linger.after(last);
        linger(enough, Instant::now() + longest, &mut gathered, &mut receiver).await;
        let room = BATCH_MESSAGES_MAX.saturating_sub(gathered.len());
        for _ in 0..room {
            let Ok(waiting) = receiver.try_recv() else { break };
            gathered.push(waiting);
        }
        let (batch, rest) = take_batch(std::mem::take(&mut gathered), groups.order);
        gathered = rest;
        last = batch.len();
        if groups.order == Order::Expecting {
            metrics::histogram!("flexcore_append_batch_commits").record(batch.len() as f64);
        }
        let published = tokio::spawn(publish_group(acknowledged.clone(), batch));
        match groups.order {
            Order::Ordered => drop(published.await),
            // Messages of one subject wait for one another, but not for other subjects.
            Order::Expecting => drop(tokio::time::timeout(BATCH_PATIENCE, published).await),
        }
    }
}

impl Linger {
    /// Most messages that a batch waits for, and the longest wait, after one of so many.
    fn after(self, last: usize) -> (usize, Duration) {
        match self {
            Self::ForMostOfTheLast if last > SINGLES_MAX => {
                (last * 3 / 4, Duration::from_millis(2))
            }
            Self::WhenLarge if last >= LARGE => (BATCH_MESSAGES_MAX, Duration::from_millis(6)),
            Self::ForMostOfTheLast | Self::WhenLarge => (0, Duration::ZERO),
        }
    }
}

/// Waits until so many have gathered, or until then.
async fn linger(
    enough: usize,
    until: Instant,
    gathered: &mut Vec<Outgoing>,
    receiver: &mut mpsc::UnboundedReceiver<Outgoing>,
) {
    while gathered.len() < enough {
        let room = BATCH_MESSAGES_MAX - gathered.len();
        let received = tokio::time::timeout_at(until, receiver.recv_many(gathered, room)).await;
        if !matches!(received, Ok(1..)) {
            return;
        }
    }
}

/// Splits off what can go out as one batch; the rest keeps its order.
fn take_batch(waiting: Vec<Outgoing>, order: Order) -> (Vec<Outgoing>, Vec<Outgoing>) {
    let mut subjects = HashSet::new();
    let mut size_bytes = 0;
    let (mut batch, mut rest) = (Vec::with_capacity(waiting.len()), Vec::new());
    for one in waiting {
        if order == Order::Ordered && !rest.is_empty() {
            rest.push(one);
            continue;
        }
        size_bytes += one.body.len();
        let fits = batch.is_empty() || size_bytes <= BATCH_BYTES_MAX;
        let once = order == Order::Ordered || subjects.insert(one.subject.clone());
        if fits && once {
            batch.push(one);
        } else {
            rest.push(one);
        }
    }
    (batch, rest)
}

/// Publishes a batch and tells each of its publishers. A batch with a conflict, or with a message that
/// the stream does not take, is not recorded at all: it is split, until that message stands alone. One
/// that the server does not take goes out message by message: it takes 50 batches of a stream at a
/// time, and there may be more workers.
async fn publish_group(acknowledged: Acknowledged, batch: Vec<Outgoing>) {
    let mut left = vec![batch];
    while let Some(mut batch) = left.pop() {
        if batch.len() <= SINGLES_MAX {
            publish_singly(&acknowledged, batch).await;
            continue;
        }
        let inbox = acknowledged.client().new_inbox();
        let id = inbox.rsplit('.').next().unwrap_or(&inbox);
        match publish_atomically(&acknowledged, numbered(&batch, id)).await {
            Ok(last) => {
                let first = last + 1 - batch.len() as u64;
                for (one, sequence) in batch.into_iter().zip(first..) {
                    (one.told)(Ok(sequence));
                }
            }
            Err(Unstored::BatchIncomplete) => publish_singly(&acknowledged, batch).await,
            Err(Unstored::Conflict | Unstored::Busy | Unstored::TooLarge(_)) => {
                let half = batch.split_off(batch.len() / 2);
                left.push(half);
                left.push(batch);
            }
            Err(why) => batch.into_iter().for_each(|one| (one.told)(Err(why.clone()))),
        }
    }
}

/// Sends one after another, so that they keep their order, and then waits for all.
async fn publish_singly(acknowledged: &Acknowledged, batch: Vec<Outgoing>) {
    let (under_way, mut all_told) = mpsc::channel::<()>(1);
    for one in batch {
        let (told, under_way) = (one.told, under_way.clone());
        let told = move |result| {
            told(result);
            drop(under_way);
        };
        acknowledged.publish(Outgoing { told: Box::new(told), ..one }).await;
    }
    drop(under_way);
    // Nothing is ever sent: it ends with the last sender.
    all_told.recv().await;
}

/// A batch as the server wants it: every message with its number, the last one closing the batch.
fn numbered(batch: &[Outgoing], id: &str) -> Vec<(String, HeaderMap, Bytes)> {
    let number = |(one, number): (&Outgoing, usize)| {
        let mut headers = one.headers.clone();
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", number.to_string());
        if number == batch.len() {
            headers.insert("Nats-Batch-Commit", "1");
        }
        (one.subject.clone(), headers, one.body.clone())
    };
    batch.iter().zip(1..).map(number).collect()
}

/// Returns the stream sequence of the batch's last message.
async fn publish_atomically(
    acknowledged: &Acknowledged,
    mut batch: Vec<(String, HeaderMap, Bytes)>,
) -> Result<u64, Unstored> {
    let (subject, headers, body) = batch.pop().ok_or_else(|| unknown("an empty batch"))?;
    for (subject, headers, body) in batch {
        let sent = acknowledged.client().publish_with_headers(subject, headers, body).await;
        sent.map_err(|error| unsent(&error))?;
    }
    acknowledged.store(subject, headers, body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_for_more_only_after_one_that_came_of_a_load() {
        let waits = |linger: Linger, last| linger.after(last).0;
        assert_eq!(waits(Linger::ForMostOfTheLast, SINGLES_MAX), 0);
        assert_eq!(waits(Linger::ForMostOfTheLast, 100), 75);
        assert_eq!(waits(Linger::WhenLarge, LARGE - 1), 0);
        assert_eq!(waits(Linger::WhenLarge, LARGE), BATCH_MESSAGES_MAX);
    }
}
