//! Questions of many callers, grouped: what comes while a batch is under way goes together in the
//! next one. No caller waits for a timer, and a plugin that is slow gets larger batches.

use std::{fmt, sync::Arc, time::Duration};

use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    exchange::{Broken, Exchange, Pending},
    messages::{DECIDE, DecideRequest, DecideResponse, Decision, DecisionResult, Question},
};
use crate::{
    Connection, Error,
    limits::{
        BATCH_BYTES_MAX, BATCH_ITEMS_MAX, CALL_WAIT_MAX, DECIDE_BATCHES_MAX, DECIDE_TRIES_MAX,
        DECIDE_WAITING_MAX,
    },
};

/// Asks a plugin for decisions. A cheap clone; when the last one is dropped, its stream ends.
#[derive(Clone)]
pub struct Decider {
    asked: mpsc::Sender<Asked>,
    _grouping: Arc<AbortOnDropHandle<()>>,
}

/// A question that waits.
struct Asked {
    question: Question,
    bytes: usize,
    ends: Instant,
    decided: oneshot::Sender<Result<DecisionResult, Error>>,
}

impl Decider {
    pub(super) fn new(connection: &Connection) -> Self {
        let (asked, waiting) = mpsc::channel(DECIDE_WAITING_MAX);
        let grouping =
            Grouping { connection: connection.clone(), waiting, held: None, exchange: None };
        let grouping = Arc::new(AbortOnDropHandle::new(tokio::spawn(grouping.run())));
        Self { asked, _grouping: grouping }
    }

    /// The plugin's decision, within this time, of which the plugin is told. Any error but
    /// [`Error::TooLarge`] means that it is unknown what the plugin decided, or that it broke the
    /// contract. A decision has no effect by itself, so that the question may be asked again: here
    /// it is, where its stream ended under it for the sake of another question.
    pub async fn ask(&self, question: Question, within: Duration) -> Result<DecisionResult, Error> {
        let limit = within.min(CALL_WAIT_MAX);
        let ends = Instant::now() + limit;
        let bytes = question.encoded_len();
        if bytes > BATCH_BYTES_MAX {
            let what = "a question, in bytes,";
            return Err(Error::TooLarge { what, size: bytes, limit: BATCH_BYTES_MAX });
        }
        let late = |_| Error::Late { what: "the plugin's decision", limit };
        for _ in 1..DECIDE_TRIES_MAX {
            let asked = self.ask_once(question.clone(), bytes, ends);
            match timeout_at(ends, asked).await.map_err(late)? {
                Err(Error::Ended) => {}
                decided => return decided,
            }
        }
        timeout_at(ends, self.ask_once(question, bytes, ends)).await.map_err(late)?
    }

    async fn ask_once(
        &self,
        question: Question,
        bytes: usize,
        ends: Instant,
    ) -> Result<DecisionResult, Error> {
        let (decided, decision) = oneshot::channel();
        let asked = Asked { question, bytes, ends, decided };
        self.asked.send(asked).await.map_err(|_| Error::Ended)?;
        decision.await.unwrap_or(Err(Error::Ended))
    }
}

impl fmt::Debug for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decider").finish_non_exhaustive()
    }
}

type Stream = Exchange<DecideRequest, DecideResponse>;

/// Takes questions, and sends them in batches.
struct Grouping {
    connection: Connection,
    waiting: mpsc::Receiver<Asked>,
    /// A question that did not fit into the last batch.
    held: Option<Asked>,
    /// The stream, once there was a question.
    exchange: Option<Arc<Stream>>,
}

impl Grouping {
    async fn run(mut self) {
        while let Some(first) = self.next().await {
            let (exchange, room) = match self.room().await {
                Ok(found) => found,
                Err(broken) => {
                    first.tell(Err(broken.error()));
                    continue;
                }
            };
            let batch = self.batch(first);
            if !batch.is_empty() {
                send(&exchange, room, batch);
            }
        }
    }

    async fn next(&mut self) -> Option<Asked> {
        match self.held.take() {
            Some(held) => Some(held),
            None => self.waiting.recv().await,
        }
    }

    /// A place for a batch, on a new stream if the last one has ended. While it waits, questions
    /// gather.
    async fn room(&mut self) -> Result<(Arc<Stream>, OwnedSemaphorePermit), Broken> {
        if let Some(exchange) = self.exchange.clone() {
            let room = exchange.room().await;
            if let Ok(room) = room {
                return Ok((exchange, room));
            }
        }
        let opened = Stream::open(&self.connection, DECIDE, None, DECIDE_BATCHES_MAX);
        let exchange = Arc::clone(self.exchange.insert(Arc::new(opened)));
        let room = exchange.room().await?;
        Ok((exchange, room))
    }

    /// What waits, as much as fits. Whoever waits for an answer no more is left out.
    fn batch(&mut self, first: Asked) -> Vec<Asked> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(asked) = next {
            if !asked.decided.is_closed() {
                if bytes + asked.bytes > BATCH_BYTES_MAX {
                    self.held = Some(asked);
                    break;
                }
                bytes += asked.bytes;
                batch.push(asked);
            }
            next = if batch.len() < BATCH_ITEMS_MAX { self.waiting.try_recv().ok() } else { None };
        }
        batch
    }
}

impl Asked {
    fn tell(self, decided: Result<DecisionResult, Error>) {
        // Its caller may have given up meanwhile.
        let _ = self.decided.send(decided);
    }
}

/// Sends a batch, and has a task hand out its decisions. The task ends with the last deadline of
/// the batch: then the stream is ended, too, so that a plugin that is stuck on it is told.
fn send(exchange: &Arc<Stream>, room: OwnedSemaphorePermit, mut batch: Vec<Asked>) {
    let now = Instant::now();
    let mut ends = now;
    let mut questions = Vec::with_capacity(batch.len());
    for asked in &mut batch {
        ends = ends.max(asked.ends);
        let left = asked.ends.saturating_duration_since(now).as_millis();
        let mut question = std::mem::take(&mut asked.question);
        question.context.get_or_insert_default().timeout_ms =
            u64::try_from(left).unwrap_or(u64::MAX);
        questions.push(question);
    }
    match exchange.ask(room, |number| DecideRequest { number, questions }) {
        Ok((_, pending)) => {
            tokio::spawn(hand_out(Arc::clone(exchange), pending, batch, ends));
        }
        Err(broken) => fail(batch, &broken),
    }
}

async fn hand_out(
    exchange: Arc<Stream>,
    pending: Pending<DecideResponse>,
    batch: Vec<Asked>,
    ends: Instant,
) {
    let began = Instant::now();
    match timeout_at(ends, pending).await {
        Ok(Ok(Ok(answer))) => decide(batch, answer.decisions),
        // Another batch was late: this one may yet be decided in time.
        Ok(Ok(Err(Broken::Late(_))) | Err(_)) => fail(batch, &Broken::Ended),
        Ok(Ok(Err(broken))) => fail(batch, &broken),
        Err(_) => {
            exchange.break_with(Broken::Late(began.elapsed()));
            fail(batch, &Broken::Late(began.elapsed()));
        }
    }
}

fn decide(batch: Vec<Asked>, decisions: Vec<Decision>) {
    if decisions.len() != batch.len() {
        let (asked, decided) = (batch.len(), decisions.len());
        let fault = format!("the plugin has answered {asked} questions with {decided} decisions");
        return fail(batch, &Broken::Fault(fault));
    }
    for (asked, decision) in batch.into_iter().zip(decisions) {
        let fault = |fault| Error::Contract(format!("the plugin's decision: {fault}"));
        asked.tell(decision.taken().map_err(fault));
    }
}

fn fail(batch: Vec<Asked>, broken: &Broken) {
    for asked in batch {
        asked.tell(Err(broken.clone().error()));
    }
}
