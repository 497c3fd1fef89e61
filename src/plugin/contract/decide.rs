//! Questions of many callers, grouped: what comes while a batch is under way goes together in the
//! next one. No caller waits for a timer. Where questions take long, few go together: else all of a
//! batch would be late for the sake of those in it.

mod pace;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use super::{
    exchange::{Broken, Exchange, Pending},
    failure::BROKEN,
    messages::{DECIDE, DecideRequest, DecideResponse, Decision, DecisionResult, Question},
};
use crate::{
    Connection, Error,
    limits::{
        BATCH_BYTES_MAX, CALL_WAIT_MAX, DECIDE_BATCHES_MAX, DECIDE_TRIES_MAX, DECIDE_WAITING_MAX,
    },
};
use pace::Pace;

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
    /// Nothing else is to be under way on the stream meanwhile.
    alone: bool,
    decided: oneshot::Sender<Result<DecisionResult, Undecided>>,
}

/// Why a question has no decision.
enum Undecided {
    /// It is for its caller.
    Told(Error),
    /// The stream has ended under it, perhaps for the sake of another question.
    Ended,
    /// The contract was broken, perhaps under another question: it is to be asked alone.
    Shared,
}

impl Decider {
    pub(super) fn new(connection: &Connection) -> Self {
        let (asked, waiting) = mpsc::channel(DECIDE_WAITING_MAX);
        let grouping = Grouping {
            connection: connection.clone(),
            waiting,
            held: None,
            exchange: None,
            pace: Arc::default(),
        };
        let grouping = Arc::new(AbortOnDropHandle::new(tokio::spawn(grouping.run())));
        Self { asked, _grouping: grouping }
    }

    /// The plugin's decision, within this time, of which the plugin is told. Any error but
    /// [`Error::TooLarge`] means that it is unknown what the plugin decided, or that it broke the
    /// contract. A decision has no effect by itself, so that the question may be asked again: here
    /// it is, where its stream ended under it for the sake of another question, and alone where the
    /// contract was broken in its batch, so that only the one that is at fault is told so.
    pub async fn ask(&self, question: Question, within: Duration) -> Result<DecisionResult, Error> {
        let limit = within.min(CALL_WAIT_MAX);
        let ends = Instant::now() + limit;
        let bytes = question.encoded_len();
        if bytes > BATCH_BYTES_MAX {
            let what = "a question, in bytes,";
            return Err(Error::TooLarge { what, size: bytes, limit: BATCH_BYTES_MAX });
        }
        let late = |_| Error::Late { what: "the plugin's decision", limit };
        let mut alone = false;
        for tries in 1..=DECIDE_TRIES_MAX {
            // Whatever comes of the last one is its own doing.
            alone |= tries == DECIDE_TRIES_MAX;
            let asked = self.ask_once(question.clone(), bytes, ends, alone);
            match timeout_at(ends, asked).await.map_err(late)? {
                Ok(decision) => return Ok(decision),
                Err(Undecided::Told(error)) => return Err(error),
                Err(Undecided::Ended) => {}
                Err(Undecided::Shared) => alone = true,
            }
        }
        Err(Error::Ended)
    }

    async fn ask_once(
        &self,
        question: Question,
        bytes: usize,
        ends: Instant,
        alone: bool,
    ) -> Result<DecisionResult, Undecided> {
        let (decided, decision) = oneshot::channel();
        let asked = Asked { question, bytes, ends, alone, decided };
        self.asked.send(asked).await.map_err(|_| Undecided::Ended)?;
        decision.await.unwrap_or(Err(Undecided::Ended))
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
    pace: Arc<Mutex<Pace>>,
}

impl Grouping {
    async fn run(mut self) {
        while let Some(first) = self.next().await {
            let (exchange, room) = match self.room(first.alone).await {
                Ok(found) => found,
                Err(broken) => {
                    first.fail(broken);
                    continue;
                }
            };
            let batch = self.batch(first);
            if !batch.is_empty() {
                send(&exchange, room, batch, &self.pace);
            }
        }
    }

    async fn next(&mut self) -> Option<Asked> {
        match self.held.take() {
            Some(held) => Some(held),
            None => self.waiting.recv().await,
        }
    }

    /// A place for a batch, or all of them for a question that is alone, on a new stream if the last
    /// one has ended. While it waits, questions gather.
    async fn room(&mut self, alone: bool) -> Result<(Arc<Stream>, OwnedSemaphorePermit), Broken> {
        if let Some(exchange) = self.exchange.clone() {
            let room = room(&exchange, alone).await;
            if let Ok(room) = room {
                return Ok((exchange, room));
            }
        }
        let opened = Stream::open(&self.connection, DECIDE, None, DECIDE_BATCHES_MAX);
        let exchange = Arc::clone(self.exchange.insert(Arc::new(opened)));
        let room = room(&exchange, alone).await?;
        Ok((exchange, room))
    }

    /// What waits, as much as fits. Whoever waits for an answer no more is left out.
    fn batch(&mut self, first: Asked) -> Vec<Asked> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        // Its room is for such a one.
        let alone = first.alone;
        let questions_max = if alone { 1 } else { locked(&self.pace).questions_max() };
        let mut next = Some(first);
        while let Some(asked) = next {
            if !asked.decided.is_closed() {
                if asked.alone != alone || bytes + asked.bytes > BATCH_BYTES_MAX {
                    self.held = Some(asked);
                    break;
                }
                bytes += asked.bytes;
                batch.push(asked);
            }
            next = if batch.len() < questions_max { self.waiting.try_recv().ok() } else { None };
        }
        batch
    }
}

impl Asked {
    fn tell(self, decided: Result<DecisionResult, Undecided>) {
        // Its caller may have given up meanwhile.
        let _ = self.decided.send(decided);
    }

    fn fail(self, broken: Broken) {
        let undecided = match broken.error() {
            Error::Ended => Undecided::Ended,
            error if !self.alone && is_fault(&error) => Undecided::Shared,
            error => Undecided::Told(error),
        };
        self.tell(Err(undecided));
    }
}

/// True if it may be for the sake of one question, and goes to all on the stream.
fn is_fault(error: &Error) -> bool {
    match error {
        Error::Contract(_) => true,
        // Of a question that breaks a limit the whole batch is refused.
        Error::Status { status, .. } => status.code() == Code::InvalidArgument,
        _ => false,
    }
}

async fn room(exchange: &Stream, alone: bool) -> Result<OwnedSemaphorePermit, Broken> {
    if alone { exchange.whole_room().await } else { exchange.room().await }
}

fn locked(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a batch, and has a task hand out its decisions. The task ends with the last deadline of
/// the batch: then the stream is ended, too, so that a plugin that is stuck on it is told.
fn send(
    exchange: &Arc<Stream>,
    room: OwnedSemaphorePermit,
    mut batch: Vec<Asked>,
    pace: &Arc<Mutex<Pace>>,
) {
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
            let sent = Sent { batch, at: now, ends, pace: Arc::clone(pace) };
            tokio::spawn(hand_out(Arc::clone(exchange), pending, sent));
        }
        Err(broken) => fail(batch, &broken),
    }
}

/// A batch that is under way.
struct Sent {
    batch: Vec<Asked>,
    at: Instant,
    ends: Instant,
    pace: Arc<Mutex<Pace>>,
}

async fn hand_out(exchange: Arc<Stream>, pending: Pending<DecideResponse>, sent: Sent) {
    let Sent { batch, at, ends, pace } = sent;
    let answered = timeout_at(ends, pending).await;
    let now = Instant::now();
    if matches!(answered, Ok(Ok(Ok(_))) | Err(_)) {
        locked(&pace).took(batch.len(), at, now);
    }
    match answered {
        Ok(Ok(Ok(answer))) => decide(batch, answer.decisions),
        // Another batch was late: this one may yet be decided in time.
        Ok(Ok(Err(Broken::Late(_))) | Err(_)) => fail(batch, &Broken::Ended),
        Ok(Ok(Err(broken))) => fail(batch, &broken),
        Err(_) => {
            let late = Broken::Late(now.saturating_duration_since(at));
            exchange.break_with(late.clone());
            fail(batch, &late);
        }
    }
}

fn decide(batch: Vec<Asked>, decisions: Vec<Decision>) {
    if decisions.len() != batch.len() {
        let (asked, decided) = (batch.len(), decisions.len());
        let fault = format!("the plugin has answered {asked} questions with {decided} decisions");
        return fail(batch, &Broken::Fault(fault));
    }
    let are_several = batch.len() > 1;
    for (asked, decision) in batch.into_iter().zip(decisions) {
        asked.tell(match decision.taken() {
            // It says so, too, where there was no room for it beside the others.
            Ok(DecisionResult::Failure(failure)) if are_several && failure.code == BROKEN => {
                Err(Undecided::Shared)
            }
            Ok(decision) => Ok(decision),
            Err(fault) => {
                let fault = format!("the plugin's decision: {fault}");
                Err(Undecided::Told(Error::Contract(fault)))
            }
        });
    }
}

fn fail(batch: Vec<Asked>, broken: &Broken) {
    for asked in batch {
        asked.fail(broken.clone());
    }
}
