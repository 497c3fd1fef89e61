//! Asynchronous commands from FLEX_COMMANDS, one reader a slot.

use std::{collections::VecDeque, fmt::Display, time::Duration};

use async_nats::jetstream::{self, AckKind, consumer::pull};
use flexcore_domain::{AggregateKey, CommandId, Outcome, Slot, command::header};
use flexcore_eventstore::{Error, EventStore};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Lanes,
    requests::{count, read_command},
};

/// Commands of one slot that are worked on at once; those of one aggregate still go one by one.
const SLOT_CONCURRENCY: usize = 256;
/// Commands settled between two acknowledgements, which cover all before them.
const ACK_EVERY: usize = 100;
/// How long the last commands of a slot stay unacknowledged while others may follow: with several
/// replicas an acknowledgement is agreed on and synced like a message.
const ACK_DELAY: Duration = Duration::from_millis(100);
/// Deliveries of one command before it is taken to be what kills its workers.
const DELIVERIES_MAX: i64 = 10;
/// Pause before a reader or a write to the broker is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// How often the server says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Reads a slot's commands as its owner.
pub(super) struct Reader {
    pub(super) store: EventStore,
    pub(super) lanes: Lanes,
    pub(super) slot: Slot,
    pub(super) epoch: u64,
}

impl Reader {
    /// Reads until the token is cancelled; what is under way then is settled. A broker that is away
    /// is waited for.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY_FIRST;
        while !stop.is_cancelled() {
            match self.open().await {
                Ok((messages, delivered)) => {
                    pause = RETRY_FIRST;
                    self.read(messages, delivered, &stop).await;
                }
                Err(error) => {
                    tracing::debug!(%error, slot = %self.slot, "the queue cannot be read yet");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    /// Messages, and how many were handed out before.
    async fn open(&self) -> Result<(pull::Stream, u64), Error> {
        let consumer = self.store.queue(self.slot, self.epoch).await?;
        let delivered = consumer.cached_info().delivered.consumer_sequence;
        let messages = consumer
            .stream()
            .max_messages_per_batch(SLOT_CONCURRENCY)
            .heartbeat(HEARTBEAT)
            .expires(Duration::from_secs(30))
            .messages()
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok((messages, delivered))
    }

    /// Works until the stream breaks or the worker stops; what is under way is settled either way.
    async fn read(&self, mut messages: pull::Stream, mut delivered: u64, stop: &CancellationToken) {
        let (to, mut outcomes) = mpsc::unbounded_channel();
        let mut under_way = UnderWay::default();
        let mut keeping = FuturesUnordered::new();
        let mut open = true;
        let mut ack_at = None;
        while open || !under_way.is_empty() {
            let settled = tokio::select! {
                () = stop.cancelled(), if open => {
                    open = false;
                    continue;
                }
                next = messages.next(), if open && under_way.len() < SLOT_CONCURRENCY => {
                    delivered += 1;
                    match self.next(next, delivered) {
                        Some(message) => self.take_up(message, &mut under_way, &to),
                        None => open = false,
                    }
                    continue;
                }
                Some((number, outcome)) = outcomes.recv() => {
                    count(&outcome);
                    if !matches!(outcome, Outcome::Accepted { .. }) {
                        let message = under_way.message(number).clone();
                        keeping.push(self.keep_at_last(number, message, outcome));
                        continue;
                    }
                    number
                }
                Some(number) = keeping.next() => number,
                () = at(ack_at) => {
                    ack_at = None;
                    acknowledge(under_way.settled.take()).await;
                    continue;
                }
            };
            if under_way.settle(settled) {
                ack_at = None;
                acknowledge(under_way.settled.take()).await;
            } else if under_way.settled.is_some() {
                ack_at = ack_at.or_else(|| Some(Instant::now() + ACK_DELAY));
            }
        }
        acknowledge(under_way.settled.take()).await;
    }

    /// The next message; `None` when the reader has to begin anew.
    fn next<E: Display>(
        &self,
        next: Option<Result<jetstream::Message, E>>,
        delivered: u64,
    ) -> Option<jetstream::Message> {
        match next? {
            Ok(message) if follows(&message, delivered) => Some(message),
            Ok(_) => {
                tracing::warn!(slot = %self.slot, "commands went elsewhere");
                None
            }
            Err(error) => {
                tracing::debug!(%error, slot = %self.slot, "reading was interrupted");
                None
            }
        }
    }

    /// Gives a command to its lane; what comes of it arrives with its number.
    fn take_up(
        &self,
        message: jetstream::Message,
        under_way: &mut UnderWay,
        to: &mpsc::UnboundedSender<(u64, Outcome)>,
    ) {
        let rest = message.subject.strip_prefix("cmdq.").unwrap_or_default();
        let deliveries = message.info().map_or(0, |info| info.delivered);
        let read = read_command(rest, message.headers.as_ref(), &message.payload);
        let number = under_way.add(message);
        let outcome = match read {
            Ok(command) if deliveries <= DELIVERIES_MAX => {
                return self.lanes.queued(command, number, to.clone());
            }
            Ok(_) => Outcome::Faulty {
                message: format!("delivered {deliveries} times without an outcome"),
            },
            Err(outcome) => outcome,
        };
        // The receiver is the caller's own.
        let _ = to.send((number, outcome));
    }

    /// Sees to it that an outcome is durable, however long that takes. Returns the number.
    async fn keep_at_last(
        &self,
        number: u64,
        message: jetstream::Message,
        outcome: Outcome,
    ) -> u64 {
        let known = identify(&message);
        let mut pause = RETRY_FIRST;
        while let Err(error) = self.keep(&message, known.as_ref(), &outcome).await {
            tracing::debug!(%error, "what came of a command cannot be kept yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LONGEST);
        }
        number
    }

    /// Makes an outcome durable: accepted commands are in the log, rejections are answers to look
    /// up, and what can't be processed is put aside for a person.
    async fn keep(
        &self,
        message: &jetstream::Message,
        known: Option<&(AggregateKey, CommandId)>,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let reason = match outcome {
            Outcome::Accepted { .. } => return Ok(()),
            Outcome::Rejected { .. } | Outcome::Conflict { .. } => {
                let Some((key, id)) = known else { return Ok(()) };
                return self.store.save_outcome(key, id, outcome).await;
            }
            other => reason(other),
        };
        let subject = message.subject.as_str();
        let client_subject = subject.splitn(3, '.').nth(2).unwrap_or_default();
        self.store
            .bury(
                "command",
                &reason,
                &format!("cmd.{client_subject}"),
                message.headers.as_ref(),
                message.payload.clone(),
            )
            .await?;
        match known {
            Some((key, id)) => self.store.save_outcome(key, id, &Outcome::Dead { reason }).await,
            None => Ok(()),
        }
    }
}

/// Acknowledges a message, and all before it.
async fn acknowledge(message: Option<jetstream::Message>) {
    // A lost acknowledgement means that the commands come again and are recognised.
    if let Some(message) = message
        && let Err(error) = message.ack_with(AckKind::Ack).await
    {
        tracing::debug!(%error, "an acknowledgement was lost");
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether nothing was handed out between this message and the one before. What was (to a reader
/// that is gone, or over a connection that broke) must not be acknowledged with the next.
fn follows(message: &jetstream::Message, delivered: u64) -> bool {
    message.info().is_ok_and(|info| info.consumer_sequence == delivered)
}

/// Commands under way, in order. Acknowledgements cover all messages before them, so only every
/// hundredth is sent, and the last after a moment.
#[derive(Default)]
struct UnderWay {
    /// Number of the first message.
    first: u64,
    /// Each with whether its outcome is durable.
    messages: VecDeque<(jetstream::Message, bool)>,
    /// Settled since the last acknowledgement.
    since: usize,
    /// The last one that is settled like all before it, and not acknowledged.
    settled: Option<jetstream::Message>,
}

impl UnderWay {
    fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn len(&self) -> usize {
        self.messages.len()
    }

    fn add(&mut self, message: jetstream::Message) -> u64 {
        self.messages.push_back((message, false));
        self.first + self.messages.len() as u64 - 1
    }

    fn place(&self, number: u64) -> usize {
        usize::try_from(number - self.first).expect("BUG: few are under way")
    }

    fn message(&self, number: u64) -> &jetstream::Message {
        &self.messages[self.place(number)].0
    }

    /// The outcome of this message is durable. Returns whether it is time to acknowledge.
    fn settle(&mut self, number: u64) -> bool {
        let place = self.place(number);
        self.messages[place].1 = true;
        while matches!(self.messages.front(), Some((_, true))) {
            self.settled = self.messages.pop_front().map(|(message, _)| message);
            self.first += 1;
            self.since += 1;
        }
        let enough = self.since >= ACK_EVERY;
        if enough {
            self.since = 0;
        }
        enough
    }
}

/// Whose outcome it is; `None` for a command that does not say so.
fn identify(message: &jetstream::Message) -> Option<(AggregateKey, CommandId)> {
    let (part, _) = message.subject.strip_prefix("cmdq.")?.rsplit_once('.')?;
    let headers = message.headers.as_ref()?;
    let id = headers.get(header::OWN_COMMAND_ID).or_else(|| headers.get(header::COMMAND_ID))?;
    Some((AggregateKey::from_subject_part(part)?, CommandId::parse(id.as_str()).ok()?))
}

fn reason(outcome: &Outcome) -> String {
    let listed = |known: &[String]| known.join(", ");
    match outcome {
        Outcome::InvalidPayload { violations } => {
            let fields = violations.iter().map(|v| format!("{}: {}", v.field, v.reason));
            format!("invalid payload: {}", fields.collect::<Vec<_>>().join("; "))
        }
        Outcome::UnknownAggregate { known } => {
            format!("unknown aggregate; deployed are: {}", listed(known))
        }
        Outcome::UnknownCommand { known } => {
            format!("unknown command; the aggregate accepts: {}", listed(known))
        }
        Outcome::IdMismatch => "this command id was used with another payload".to_owned(),
        Outcome::Faulty { message } | Outcome::Unavailable { message } => message.clone(),
        other => format!("{other:?}"),
    }
}
