//! Publishing with an acknowledgement each, over one subscription and without a task a message: at
//! 30,000 messages a second a task, its timer and its handles cost more than the message.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    HeaderMap, Message, Subscriber,
    client::{PublishError, PublishErrorKind},
    connection::State,
};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, REQUEST_TIMEOUT,
    refusal::{self, Refusal},
    size, unavailable,
};

/// Between two looks for acknowledgements that do not come.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// Is told the stream sequence of a message, or why there is none. It must not block.
pub type Told = Box<dyn FnOnce(Result<u64, Unstored>) + Send>;

/// Why there is no stream sequence of a message.
#[derive(Clone, Debug)]
pub enum Unstored {
    /// An expectation in its headers does not hold.
    Conflict,
    /// Nor is it stored: another message, maybe an earlier one of the same writer, is just being stored,
    /// and whether the expectation holds depends on it.
    Busy,
    /// The server does not have the whole batch that it closes, and has stored nothing of it: it
    /// takes no more batches at a time, or was another one when the batch began.
    BatchIncomplete,
    /// It is larger than the broker takes; it is not stored.
    TooLarge(String),
    /// The broker has no room; it is not stored.
    NoRoom(String),
    /// It is unknown if the message is stored.
    Unknown(String),
}

impl Unstored {
    /// True if its writer has to look again before it writes: the expectation does not hold, or may not.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict | Self::Busy)
    }
}

impl From<Unstored> for Error {
    fn from(unstored: Unstored) -> Self {
        match unstored {
            Unstored::Conflict | Unstored::Busy => Self::Conflict,
            Unstored::BatchIncomplete => unavailable("the batch was refused as a whole"),
            Unstored::TooLarge(reason) => Self::TooLarge(reason),
            Unstored::NoRoom(reason) => Self::NoRoom(reason),
            Unstored::Unknown(reason) => Self::Unavailable(reason),
        }
    }
}

/// An [`Unstored::Unknown`] with this reason.
pub fn unknown(reason: impl fmt::Display) -> Unstored {
    Unstored::Unknown(reason.to_string())
}

/// Has the broker store a message only if the last one on its subject is at this sequence; 0: there
/// is none.
pub fn expect_last(headers: &mut HeaderMap, sequence: u64) {
    headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
}

/// The same about the last message on other subjects, a pattern maybe.
pub fn expect_last_on(headers: &mut HeaderMap, subjects: &str, sequence: u64) {
    expect_last(headers, sequence);
    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subjects);
}

/// A message, and who is told what became of it.
pub struct Outgoing {
    /// Its subject.
    pub subject: String,
    /// Its headers, with what they expect.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Is told once.
    pub told: Told,
}

/// Publishes to streams and passes on their acknowledgements; cheap to clone.
#[derive(Clone)]
pub struct Acknowledged {
    client: async_nats::Client,
    prefix: Arc<str>,
    waiting: Arc<Mutex<Waiting>>,
    patient: bool,
    _dispatch: Arc<AbortOnDropHandle<()>>,
}

impl Acknowledged {
    /// Publishes over this connection. Fails when the subscription to the acknowledgements is refused.
    #[boxed::async_recursion]
    pub async fn open(client: &async_nats::Client) -> Result<Self, Error> {
        let prefix = client.new_inbox();
        let replies = client.subscribe(format!("{prefix}.*")).await.map_err(unavailable)?;
        let waiting = Arc::<Mutex<Waiting>>::default();
        let dispatch = tokio::spawn(dispatch(replies, prefix.len() + 1, waiting.clone()));
        Ok(Self {
            client: client.clone(),
            prefix: prefix.into(),
            waiting,
            patient: false,
            _dispatch: Arc::new(AbortOnDropHandle::new(dispatch)),
        })
    }

    /// The same, which hands messages over while the connection is down, too: they are sent when it is
    /// back. For those that the broker refuses when they come too late.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    /// The connection below, for messages without an acknowledgement of their own.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Publishes a message. Returns its stream sequence when it is stored; fails like
    /// [`Self::publish`].
    #[boxed::async_recursion]
    pub async fn store(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64, Unstored> {
        let (answer, answered) = oneshot::channel();
        // A caller that has gone away does not need the answer.
        let told = Box::new(move |result| drop(answer.send(result)));
        self.publish(Outgoing { subject, headers, body, told }).await;
        answered.await.map_err(|_| unknown("shutting down"))?
    }

    /// Hands a message over, in order with those before it. One that is too large is not sent. A caller
    /// that waits is told [`Unstored::Unknown`] at the latest half a second after [`REQUEST_TIMEOUT`].
    #[boxed::async_recursion]
    pub async fn publish(&self, message: Outgoing) {
        let Outgoing { subject, headers, body, told } = message;
        if let Err(why) = size::check(&headers, body.len(), self.client.max_payload()) {
            return told(Err(Unstored::TooLarge(why)));
        }
        if !self.patient && self.client.connection_state() == State::Disconnected {
            // Kept back, it would be sent whenever the connection is back: after somebody else has
            // taken its sender's work over, perhaps.
            return told(Err(unknown("not connected to the broker")));
        }
        let token = lock(&self.waiting).add(told);
        let reply = format!("{}.{token}", self.prefix);
        let sent = self.client.publish_with_reply_and_headers(subject, reply, headers, body).await;
        if let Err(error) = sent {
            // Told after the lock is free, since it may publish in turn.
            let told = lock(&self.waiting).take(token);
            if let Some(told) = told {
                told(Err(unsent(&error)));
            }
        }
    }
}

/// Why the client library did not send a message.
pub(crate) fn unsent(error: &PublishError) -> Unstored {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Unstored::TooLarge(error.to_string()),
        PublishErrorKind::InvalidSubject | PublishErrorKind::Send => unknown(error),
    }
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn dispatch(mut replies: Subscriber, skip: usize, waiting: Arc<Mutex<Waiting>>) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            reply = replies.next() => {
                let Some(reply) = reply else { break };
                let token = reply.subject.get(skip..).and_then(|text| text.parse().ok());
                let told = token.and_then(|token| lock(&waiting).take(token));
                // Nobody: it came after its time.
                if let Some(told) = told {
                    told(outcome(&reply));
                }
            }
            now = sweep.tick() => {
                let late = lock(&waiting).sent_before(now - REQUEST_TIMEOUT);
                for told in late {
                    told(Err(unknown("no acknowledgement in time")));
                }
            }
        }
    }
    let left = lock(&waiting).sent_before(Instant::now());
    for told in left {
        told(Err(unknown("the connection was closed")));
    }
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

impl ApiError {
    fn unstored(self) -> Unstored {
        let said = format!("{} (error {})", self.description, self.err_code);
        match refusal::of(self.err_code, &self.description) {
            Refusal::Conflict => Unstored::Conflict,
            Refusal::Busy => Unstored::Busy,
            Refusal::BatchIncomplete => Unstored::BatchIncomplete,
            Refusal::TooLarge => Unstored::TooLarge(said),
            Refusal::NoRoom => Unstored::NoRoom(said),
            Refusal::Unknown => Unstored::Unknown(said),
        }
    }
}

fn outcome(reply: &Message) -> Result<u64, Unstored> {
    if let Some(status) = reply.status {
        // 503: nobody serves the stream at the moment.
        return Err(unknown(format!("publishing was answered {status}")));
    }
    let acknowledgement: Acknowledgement =
        serde_json::from_slice(&reply.payload).map_err(unknown)?;
    match acknowledgement.error {
        None if acknowledgement.seq > 0 => Ok(acknowledgement.seq),
        None => Err(unknown("the message was not acknowledged")),
        Some(error) => Err(error.unstored()),
    }
}

/// Those who wait, by the number of their message. Numbers follow one another, and so do times.
#[derive(Default)]
struct Waiting {
    first: u64,
    sent: VecDeque<(Instant, Option<Told>)>,
}

impl Waiting {
    fn add(&mut self, told: Told) -> u64 {
        self.sent.push_back((Instant::now(), Some(told)));
        self.first + self.sent.len() as u64 - 1
    }

    fn take(&mut self, token: u64) -> Option<Told> {
        let at = usize::try_from(token.checked_sub(self.first)?).ok()?;
        let told = self.sent.get_mut(at)?.1.take();
        while matches!(self.sent.front(), Some((_, None))) {
            self.sent.pop_front();
            self.first += 1;
        }
        told
    }

    fn sent_before(&mut self, limit: Instant) -> Vec<Told> {
        let mut late = Vec::new();
        while self.sent.front().is_some_and(|(sent, _)| *sent <= limit) {
            late.extend(self.sent.pop_front().and_then(|(_, told)| told));
            self.first += 1;
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Log = mpsc::Receiver<(u64, Option<u64>)>;

    fn waiting() -> (Waiting, Log) {
        let (sender, receiver) = mpsc::channel();
        let mut waiting = Waiting::default();
        for number in 0..4 {
            let sender = sender.clone();
            let token = waiting.add(Box::new(move |result| {
                // The test may have let the receiver go.
                let _ = sender.send((number, result.ok()));
            }));
            assert_eq!(token, number);
        }
        (waiting, receiver)
    }

    #[test]
    fn each_is_told_once_in_any_order() {
        let (mut waiting, told) = waiting();
        for token in [2, 0, 3, 1] {
            let told = waiting.take(token).expect("it waits");
            told(Ok(10 + token));
            assert!(waiting.take(token).is_none(), "{token} a second time");
        }
        let numbers: Vec<_> = told.try_iter().collect();
        assert_eq!(numbers, [(2, Some(12)), (0, Some(10)), (3, Some(13)), (1, Some(11))]);
        assert_eq!((waiting.first, waiting.sent.len()), (4, 0));
        assert!(waiting.take(9).is_none(), "a number that nobody has");
    }

    #[test]
    fn what_is_late_is_given_up_and_may_come_later_still() {
        let (mut waiting, _told) = waiting();
        drop(waiting.take(1));
        assert!(waiting.sent_before(Instant::now() - Duration::from_secs(1)).is_empty());
        assert_eq!(waiting.sent_before(Instant::now()).len(), 3);
        assert!(waiting.take(2).is_none());
        assert_eq!(waiting.add(Box::new(|_| {})), 4);
        assert!(waiting.take(4).is_some());
    }
}
