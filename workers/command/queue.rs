//! Asynchronous commands from FLEX_COMMANDS, one reader a slot.

mod under_way;

use std::{fmt::Display, pin::pin, time::Duration};

use async_nats::jetstream;
use flexcore_domain::{AggregateKey, CommandId, Outcome, Slot, command::header};
use flexcore_eventstore::{
    Error, EventStore,
    queue::{Claim, Messages},
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Lanes,
    requests::{count, read_command},
};
use under_way::{IN_DOUBT_MAX, Lost, UnderWay};

/// Commands that a reader is sent ahead of their turn.
const BATCH: usize = 256;
/// Earlier outcomes that are looked up at once after a hand-over.
const LOOKED_UP_AT_ONCE: usize = 64;
/// Owners that have begun a command before it is taken to be what kills them.
const BEGUN_MAX: u32 = 10;
/// Pause before a reader or a write to the broker is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// How often an idle reader looks whether messages were lost on their way.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reads a slot's commands as its owner.
pub(super) struct Reader {
    pub(super) store: EventStore,
    pub(super) lanes: Lanes,
    pub(super) slot: Slot,
    pub(super) epoch: u64,
}

/// A command in its turn.
struct Next {
    message: jetstream::Message,
    sequence: u64,
    /// An earlier owner has told what came of it.
    is_done: bool,
}

impl Reader {
    /// Reads until the token is cancelled; what is under way then is settled. A broker that is away
    /// is waited for.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY_FIRST;
        while !stop.is_cancelled() {
            match self.open().await {
                Ok((claim, messages)) => {
                    pause = RETRY_FIRST;
                    self.read(claim, messages, &stop).await;
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

    async fn open(&self) -> Result<(Claim, Messages), Error> {
        let claim = self.store.claim_queue(self.slot, self.epoch).await?;
        let messages = claim.messages(BATCH).await?;
        Ok((claim, messages))
    }

    /// Works until the stream breaks or the worker stops; what is under way is settled either way.
    async fn read(&self, claim: Claim, messages: Messages, stop: &CancellationToken) {
        let (to, mut outcomes) = mpsc::unbounded_channel();
        let (first, last_before) = (claim.first(), claim.last_before());
        let mut under_way = UnderWay::after(first);
        let mut recorder = Recorder { claim: Some(claim), writing: FuturesUnordered::new() };
        let Messages { stream, reader } = messages;
        let in_turn = stream.enumerate();
        let in_turn = in_turn.map(|(place, next)| self.look_up(place, next, last_before));
        let mut in_turn = pin!(in_turn.buffered(LOOKED_UP_AT_ONCE));
        let (mut keeping, mut looking) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut lost, mut open) = (Lost::default(), true);
        loop {
            recorder.record(&mut under_way, !open);
            if !open && under_way.is_empty() && recorder.writing.is_empty() {
                return;
            }
            tokio::select! {
                () = stop.cancelled(), if open => open = false,
                next = in_turn.next(), if open && under_way.has_room() => {
                    match self.in_order(next, under_way.taken()) {
                        Some(next) => self.take_up(next, first, &mut under_way, &to),
                        None => open = false,
                    }
                }
                Some((number, outcome)) = outcomes.recv() => {
                    count(&outcome);
                    if matches!(outcome, Outcome::Accepted { .. }) {
                        under_way.settle(number, Instant::now());
                    } else {
                        let message = under_way.message(number).clone();
                        keeping.push(self.keep_at_last(number, message, outcome));
                    }
                }
                Some(number) = keeping.next() => under_way.settle(number, Instant::now()),
                Some(written) = recorder.writing.next() => match written {
                    Ok(claim) => {
                        under_way.recorded();
                        recorder.claim = Some(claim);
                    }
                    Err(error) => {
                        tracing::debug!(%error, slot = %self.slot, "settled, and not recorded");
                        open = false;
                    }
                },
                () = at(under_way.record_at()), if recorder.claim.is_some() => {}
                _ = look.tick(), if open && under_way.is_empty() && looking.is_empty() => {
                    looking.push(reader.handed_out());
                }
                Some(there) = looking.next() => {
                    open &= there.is_ok_and(|there| !lost.some(under_way.taken(), there));
                }
            }
        }
    }

    /// Finds out whether an earlier owner has refused a command that it may have worked on. That must
    /// not be decided a second time: the aggregate may have moved on. (Of what it has recorded in the
    /// log the aggregate knows.)
    async fn look_up<E: Display>(
        &self,
        place: usize,
        next: Result<jetstream::Message, E>,
        last_before: u64,
    ) -> Result<Next, String> {
        let message = next.map_err(|error| error.to_string())?;
        let sequence = message.info().map_err(|error| error.to_string())?.stream_sequence;
        let in_doubt = place < IN_DOUBT_MAX && sequence <= last_before;
        let Some((key, id)) = in_doubt.then(|| identify(&message)).flatten() else {
            return Ok(Next { message, sequence, is_done: false });
        };
        let is_done = self.store.has_outcome(&key, &id, sequence).await;
        Ok(Next { message, sequence, is_done: is_done.map_err(|error| error.to_string())? })
    }

    /// The next command; `None` when the reader has to begin anew.
    fn in_order(&self, next: Option<Result<Next, String>>, taken: u64) -> Option<Next> {
        match next? {
            Ok(next) if follows(&next.message, taken) => Some(next),
            Ok(_) => {
                tracing::debug!(slot = %self.slot, "commands were lost on their way");
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
        next: Next,
        first: Option<(u64, u32)>,
        under_way: &mut UnderWay<jetstream::Message>,
        to: &mpsc::UnboundedSender<(u64, Outcome)>,
    ) {
        let Next { message, sequence, is_done } = next;
        let rest = message.subject.strip_prefix("cmdq.").unwrap_or_default();
        let begun = first.filter(|(first, _)| *first == sequence).map_or(0, |(_, begun)| begun);
        let read = read_command(rest, message.headers.as_ref(), &message.payload);
        let number = under_way.take_up(message, sequence);
        if is_done {
            return under_way.settle(number, Instant::now());
        }
        let outcome = match read {
            Ok(command) if begun <= BEGUN_MAX => {
                return self.lanes.queued(command, number, to.clone());
            }
            Ok(_) => Outcome::Faulty {
                message: format!("{} workers began it, and none has come to an end", begun - 1),
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
                return self.store.save_outcome(key, id, sequence(message), outcome).await;
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
            Some((key, id)) => {
                let dead = Outcome::Dead { reason };
                self.store.save_outcome(key, id, sequence(message), &dead).await
            }
            None => Ok(()),
        }
    }
}

/// Writes down how far a slot is settled, one write at a time.
struct Recorder {
    /// `None` while it is written to, and when that has failed.
    claim: Option<Claim>,
    writing: FuturesUnordered<BoxFuture<'static, Result<Claim, Error>>>,
}

impl Recorder {
    /// Begins to write what is due; all there is when the reader is about to end.
    fn record(&mut self, under_way: &mut UnderWay<jetstream::Message>, ending: bool) {
        if self.claim.is_some()
            && let Some(sequence) = under_way.take_due(Instant::now(), ending)
            && let Some(claim) = self.claim.take()
        {
            self.writing.push(Box::pin(claim.settle(sequence)));
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether nothing was handed out between the messages that were taken up and this one: what was
/// lost must not be passed over.
fn follows(message: &jetstream::Message, taken: u64) -> bool {
    message.info().is_ok_and(|info| info.consumer_sequence == taken + 1)
}

/// A message's place in the queue.
fn sequence(message: &jetstream::Message) -> u64 {
    message.info().map_or(0, |info| info.stream_sequence)
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
