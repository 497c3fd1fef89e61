//! Asynchronous commands from FLEX_COMMANDS, one reader a slot.

use std::time::Duration;

use async_nats::jetstream::{self, AckKind, consumer::pull};
use flexcore_domain::{AggregateKey, CommandId, Outcome, Slot, command::header};
use flexcore_eventstore::{Error, EventStore};
use futures::{StreamExt, stream::FuturesOrdered};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Lanes, Settings,
    requests::{count, read_command},
};

/// Commands of one slot that are worked on at once; those of one aggregate still go one by one.
const SLOT_CONCURRENCY: usize = 256;
/// Commands settled between two acknowledgements, which cover all before them.
const ACK_EVERY: usize = 100;
/// Deliveries of one command before it is taken to be what kills its workers.
const DELIVERIES_MAX: i64 = 10;
/// Pause before a reader or a write to the broker is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// How often the server says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Starts a reader for each slot. A broker that is away just now is waited for.
pub(super) fn serve(
    store: &EventStore,
    lanes: &Lanes,
    settings: &Settings,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    for slot in &settings.slots {
        let reader = Reader { store: store.clone(), lanes: lanes.clone(), slot: *slot };
        tasks.spawn(reader.run(stop.clone()));
    }
}

struct Reader {
    store: EventStore,
    lanes: Lanes,
    slot: Slot,
}

impl Reader {
    async fn run(self, stop: CancellationToken) {
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
        let consumer = self.store.queue(self.slot).await?;
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
        let mut under_way = FuturesOrdered::new();
        let mut settled = Settled::default();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                () = stop.cancelled(), if open => open = false,
                next = messages.next(), if open && under_way.len() < SLOT_CONCURRENCY => {
                    match next {
                        Some(Ok(message)) => {
                            delivered += 1;
                            if follows(&message, delivered) {
                                under_way.push_back(self.settle(message));
                            } else {
                                tracing::warn!(slot = %self.slot, "commands went elsewhere");
                                open = false;
                            }
                        }
                        Some(Err(error)) => {
                            tracing::debug!(%error, slot = %self.slot, "reading was interrupted");
                            open = false;
                        }
                        None => open = false,
                    }
                }
                Some(message) = under_way.next() => {
                    settled.add(message, under_way.is_empty()).await;
                }
            }
        }
    }

    /// Sees a command through: returns its message when its outcome is durable.
    async fn settle(&self, message: jetstream::Message) -> jetstream::Message {
        let rest = message.subject.strip_prefix("cmdq.").unwrap_or_default();
        let deliveries = message.info().map_or(0, |info| info.delivered);
        let read = read_command(rest, message.headers.as_ref(), &message.payload);
        let (known, outcome) = match read {
            Ok(command) if deliveries <= DELIVERIES_MAX => {
                let known = Some((command.key.clone(), command.id.clone()));
                (known, self.lanes.command(command, true).await)
            }
            Ok(command) => {
                let message = format!("delivered {deliveries} times without an outcome");
                (Some((command.key, command.id)), Outcome::Faulty { message })
            }
            Err(outcome) => (identify(&message), outcome),
        };
        count(&outcome);
        let mut pause = RETRY_FIRST;
        while let Err(error) = self.keep(&message, known.as_ref(), &outcome).await {
            tracing::debug!(%error, "what came of a command cannot be kept yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LONGEST);
        }
        message
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

/// Whether nothing was handed out between this message and the one before. What was (to a reader
/// that is gone, or over a connection that broke) must not be acknowledged with the next.
fn follows(message: &jetstream::Message, delivered: u64) -> bool {
    message.info().is_ok_and(|info| info.consumer_sequence == delivered)
}

/// Acknowledgements cover all messages before them, so only every hundredth is sent, and the last.
#[derive(Default)]
struct Settled {
    since: usize,
}

impl Settled {
    async fn add(&mut self, message: jetstream::Message, last: bool) {
        self.since += 1;
        if last || self.since >= ACK_EVERY {
            self.since = 0;
            // A lost acknowledgement means that the commands come again and are recognised.
            if let Err(error) = message.ack_with(AckKind::Ack).await {
                tracing::debug!(%error, "an acknowledgement was lost");
            }
        }
    }
}

/// Whose outcome it is, for a command whose payload or headers are wrong.
fn identify(message: &jetstream::Message) -> Option<(AggregateKey, CommandId)> {
    let (part, _) = message.subject.strip_prefix("cmdq.")?.rsplit_once('.')?;
    let headers = message.headers.as_ref()?;
    let id = headers.get(header::COMMIT_COMMAND_ID).or_else(|| headers.get(header::COMMAND_ID))?;
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
