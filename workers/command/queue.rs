//! Asynchronous commands from FLEX_COMMANDS, one reader a slot.

use std::{fmt::Display, time::Duration};

use flexcore_cluster::Guard;
use flexcore_domain::{AggregateKey, CommandId, Outcome, Slot};
use flexcore_eventstore::{
    Error, EventStore,
    commands::{published_subject, stored_part},
    headers::command_id,
};
use flexcore_queue::{
    Claim, Messages, Queued,
    settling::{Action, Event, Found, Record, SUSPECT, Settling},
};
use flexcore_resilience::{Backoff, lasts};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{Lanes, reading::read_command, requests::count, streams::ProgressMade};

/// Commands that a reader is sent ahead of their turn.
const BATCH: usize = 256;
/// Owners that have begun a command before it is taken to be what kills them.
const BEGUN_MAX: u32 = 10;
/// Longest pause before a suspect is begun with. Each slot of an owner has another one: otherwise what
/// kills the owner would take the other slots' first commands with it each time.
const SUSPECT_PAUSE_MAX_MS: u64 = 5_000;
/// A reader that lasted so long had a good start.
const LASTED: Duration = Duration::from_secs(5);
/// Pauses before a reader or a write to the broker is tried again.
const RETRY: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(2) };
/// The pause where a person has to mend something first.
const RETRY_MENDED: Duration = Duration::from_secs(30);
/// A queue that ends before what is settled for so long has lost its end: a deposed leader has heard of it
/// by then, however long it was cut off from the others but not from us.
const BEHIND_MAX: Duration = Duration::from_secs(60);
/// How often an idle reader looks whether messages were lost on their way.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reads a slot's commands as its owner.
pub(super) struct SlotReader {
    pub(super) store: EventStore,
    pub(super) lanes: Lanes,
    pub(super) progress_made: ProgressMade,
    pub(super) guard: Guard,
    pub(super) slot: Slot,
    pub(super) epoch: u64,
}

/// Whether the queue has ended before what is settled for so long that somebody has to mend it. Any other
/// error says nothing of its end.
fn is_lost(error: &Error, behind: &mut Option<Instant>, now: Instant) -> bool {
    if !matches!(error, Error::QueueBehind { .. }) {
        return false;
    }
    now - *behind.get_or_insert(now) > BEHIND_MAX
}

impl SlotReader {
    /// Reads until the token is cancelled; what is under way then is settled. A broker that is away
    /// is waited for.
    pub(super) async fn run(self, stop: CancellationToken) {
        let (mut failures, mut singly, mut behind) = (0_u32, false, None);
        let mut progress_made = self.progress_made.clone();
        loop {
            // Before the slot is claimed: afterwards a change means that the claim has gone.
            progress_made.mark_unchanged();
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = self.open(singly) => opened,
            };
            let is_stuck = match opened {
                Ok((claim, messages)) => {
                    behind = None;
                    let began = Instant::now();
                    let taken = self.read(claim, messages, &mut progress_made, &stop).await;
                    if taken > 0 || began.elapsed() > LASTED {
                        failures = 0;
                    }
                    // Whatever interrupted it may come of the next command, and would again.
                    singly = !singly;
                    false
                }
                Err(error) => self.is_stuck(&error, &mut behind, failures),
            };
            failures = failures.saturating_add(1);
            let pause = if is_stuck { RETRY_MENDED } else { RETRY.after(failures) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Says why the queue cannot be read. Returns true if a person has to mend something first. `behind` is
    /// the time since which the queue ends before what is settled, `failures` those before in a row.
    fn is_stuck(&self, error: &Error, behind: &mut Option<Instant>, failures: u32) -> bool {
        let slot = self.slot;
        if is_lost(error, behind, Instant::now()) || !error.is_passing() {
            tracing::error!(%error, %slot, "the queue cannot be read");
            return true;
        }
        if matches!(error, Error::Conflict) {
            tracing::warn!(%slot, "another owner claims the slot's queue");
        } else {
            self.not_yet(error, failures);
        }
        false
    }

    /// Says that the queue cannot be read just now; louder when that lasts.
    fn not_yet(&self, error: &Error, failures: u32) {
        let slot = self.slot;
        if lasts(failures) {
            tracing::warn!(%error, %slot, failures, "the queue cannot be read for some time");
        } else {
            tracing::debug!(%error, %slot, "the queue cannot be read yet");
        }
    }

    /// With `singly` commands are asked for one by one.
    async fn open(&self, singly: bool) -> Result<(Claim, Messages), Error> {
        let claim = self.store.command_queue().claim(self.slot.number(), self.epoch).await?;
        if let Some((sequence, begun)) = claim.first().filter(|(_, begun)| *begun >= SUSPECT) {
            tracing::warn!(
                slot = %self.slot,
                epoch = self.epoch,
                sequence,
                begun,
                "owners have begun with this command and were not seen to live on"
            );
            tokio::time::sleep(suspect_pause(self.slot, self.epoch)).await;
        }
        let messages = if singly { claim.messages_singly() } else { claim.messages(BATCH).await? };
        Ok((claim, messages))
    }

    /// Works until the stream breaks, the claim has gone or the worker stops; what is under way is
    /// settled either way. Returns how many commands were taken up.
    async fn read(
        &self,
        claim: Claim,
        messages: Messages,
        progress_made: &mut ProgressMade,
        stop: &CancellationToken,
    ) -> u64 {
        let (to, mut outcomes) = mpsc::unbounded_channel();
        let first = claim.first_begun();
        let (settled, last_before) = (claim.settled(), claim.last_before());
        let mut settling = Settling::<Queued>::new(Found { settled, last_before, first });
        let Messages { mut stream, reader } = messages;
        let mut claim = Some(claim);
        let mut performing = FuturesUnordered::<BoxFuture<'_, Performed>>::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !settling.has_ended() {
            let event = tokio::select! {
                () = stop.cancelled(), if settling.is_open() => Event::Leave,
                next = stream.next(), if settling.reads() => self.next(next),
                Some((number, outcome)) = outcomes.recv() => {
                    count(&outcome);
                    if !matches!(outcome, Outcome::Accepted { position: Some(_), .. }) {
                        let message = settling.message(number).0.clone();
                        performing.push(Box::pin(async move {
                            let done = self.keep_at_last(number, message, outcome).await;
                            Performed::from(Event::Done(done))
                        }));
                        continue;
                    }
                    Event::Done(number)
                }
                Some(performed) = performing.next() => {
                    claim = performed.claim.or(claim);
                    performed.event
                }
                Ok(()) = progress_made.changed() => Event::Interrupted,
                () = at(settling.wakes_at()) => Event::Time,
                _ = look.tick(), if settling.is_idle() => Event::Idle,
            };
            for action in settling.on(event, Instant::now().into_std()) {
                match action {
                    Action::LookUp(number) => {
                        let (message, sequence) = settling.message(number);
                        let (message, kills) = (message.clone(), kills(first, sequence));
                        performing.push(Box::pin(async move {
                            let is_done = self.look_up(message, kills).await;
                            Performed::from(Event::LookedUp(number, is_done))
                        }));
                    }
                    Action::Do(number) => self.take_up(number, first, &settling, &to).await,
                    Action::DoneBefore(_) => {
                        metrics::counter!("flexcore_commands_total", "outcome" => "replayed")
                            .increment(1);
                    }
                    Action::Write(record) => performing.extend(self.write(record, claim.take())),
                    Action::Ask => {
                        let asked = reader.handed_out();
                        performing.push(Box::pin(async move {
                            Performed::from(Event::HandedOut(asked.await.ok()))
                        }));
                    }
                }
            }
        }
        settling.begun()
    }

    /// What the stream says.
    fn next(&self, next: Option<Result<Queued, impl Display>>) -> Event<Queued> {
        match next {
            Some(Ok(message)) => {
                Event::Read { number: message.number, sequence: message.sequence, message }
            }
            Some(Err(error)) => {
                tracing::debug!(%error, slot = %self.slot, "reading was interrupted");
                Event::Interrupted
            }
            None => Event::Interrupted,
        }
    }

    /// Writes down how far the slot is settled. Without a claim there is nothing to be written to.
    fn write(&self, record: Record, claim: Option<Claim>) -> Option<BoxFuture<'static, Performed>> {
        let (claim, slot) = (claim?, self.slot);
        Some(Box::pin(async move {
            let written = match record {
                Record::Begins => claim.begin().await,
                Record::LivesOn => claim.survive().await,
                Record::Settled(sequence) => claim.settle(sequence).await,
            };
            if let Err(error) = &written {
                tracing::debug!(%error, %slot, "settled, and not recorded");
            }
            Performed { event: Event::Written(written.is_ok()), claim: written.ok() }
        }))
    }

    /// Finds out whether an earlier owner has refused a command that it may have worked on. That must not
    /// be decided a second time: the aggregate may have moved on. Of what the log has the aggregate knows,
    /// but one that would be put aside is not decided at all. `None`: the log cannot say now.
    async fn look_up(&self, message: Queued, kills: bool) -> Option<bool> {
        let Some((key, id)) = identify(&message) else { return Some(false) };
        let has_outcome = self.store.has_outcome(&key, &id, message.sequence).await;
        let mut is_done = self.known(has_outcome)?;
        if kills && !is_done {
            is_done = match self.store.command_anywhere(&key, &id).await {
                Ok(found) => found.is_some(),
                Err(error @ Error::Unavailable(_)) => return self.known(Err(error)),
                // Waiting makes a damaged log no better, and holds the slot up.
                Err(_) => false,
            };
        }
        Some(is_done)
    }

    fn known(&self, looked_up: Result<bool, Error>) -> Option<bool> {
        let said = |error: &Error| {
            tracing::debug!(%error, slot = %self.slot, "reading was interrupted");
        };
        looked_up.inspect_err(said).ok()
    }

    /// Gives a command to its lane; what comes of it arrives with its number. Those behind it wait while its
    /// seal has the secret read again: they keep their order.
    async fn take_up(
        &self,
        number: u64,
        first: Option<(u64, u32)>,
        settling: &Settling<Queued>,
        to: &mpsc::UnboundedSender<(u64, Outcome)>,
    ) {
        let (message, sequence) = settling.message(number);
        let part = stored_part(&message.subject).unwrap_or_default();
        let read = match message.malformed {
            Some(why) => Err(Outcome::Faulty { message: why.to_owned() }),
            None => {
                let headers = message.headers.as_ref();
                read_command(&self.store, part, headers, &message.payload).await
            }
        };
        let outcome = match read {
            Ok(_) if kills(first, sequence) => Outcome::Faulty {
                message: format!("{BEGUN_MAX} workers began with it, and none has lived on"),
            },
            #[cfg(feature = "defects")]
            Ok(command) => {
                let lanes = self.lanes.clone();
                let hand = move |command, number, to| lanes.queued(command, number, to);
                return crate::defects::queued(hand, command, number, to.clone());
            }
            #[cfg(not(feature = "defects"))]
            Ok(command) => return self.lanes.queued(command, number, to.clone()),
            Err(outcome) => outcome,
        };
        // The receiver is the caller's own.
        let _ = to.send((number, outcome));
    }

    /// Sees to it that an outcome is durable, however long the broker is away or has no room. Returns
    /// the number.
    async fn keep_at_last(&self, number: u64, message: Queued, outcome: Outcome) -> u64 {
        let known = identify(&message);
        let (mut failures, mut buried) = (0_u32, false);
        while let Err(error) = self.keep(&message, known.as_ref(), &outcome, &mut buried).await {
            if !error.is_passing() {
                // Everything is made to fit; a stream that takes less is not opened. Trying for ever
                // would keep the whole slot waiting.
                let (subject, slot) = (message.subject.as_str(), self.slot);
                tracing::error!(%error, %slot, subject, "the outcome of a command cannot be kept");
                break;
            }
            tracing::debug!(%error, "the outcome of a command cannot be kept yet");
            failures = failures.saturating_add(1);
            tokio::time::sleep(RETRY.after(failures)).await;
        }
        number
    }

    /// Makes an outcome durable: what is accepted without events and what is refused are answers to
    /// look up, and what can't be processed is put aside for a person: once, however often this is
    /// tried (`buried`). Fails when the lease does not hold: another owner may have decided otherwise.
    async fn keep(
        &self,
        message: &Queued,
        known: Option<&(AggregateKey, CommandId)>,
        outcome: &Outcome,
        buried: &mut bool,
    ) -> Result<(), Error> {
        if !self.guard.holds() {
            return Err(Error::Unavailable("the lease has ended".to_owned()));
        }
        let reason = match outcome {
            Outcome::Accepted { .. } | Outcome::Rejected { .. } | Outcome::Conflict { .. } => {
                let Some((key, id)) = known else { return Ok(()) };
                return self.store.save_outcome(key, id, message.sequence, outcome).await;
            }
            other => reason(other),
        };
        if !*buried {
            let subject = published_subject(&message.subject);
            let subject = subject.as_deref().unwrap_or(&message.subject);
            let headers = message.headers.as_ref();
            let body = message.payload.clone();
            self.store.bury("command", &reason, subject, headers, body).await?;
            *buried = true;
        }
        match known {
            Some((key, id)) => {
                let dead = Outcome::Dead { reason };
                self.store.save_outcome(key, id, message.sequence, &dead).await
            }
            None => Ok(()),
        }
    }
}

/// What was performed, and the claim as it goes on after a write.
struct Performed {
    event: Event<Queued>,
    claim: Option<Claim>,
}

impl From<Event<Queued>> for Performed {
    fn from(event: Event<Queued>) -> Self {
        Self { event, claim: None }
    }
}

/// True if too many owners have begun with the command of this sequence and gone.
fn kills(first: Option<(u64, u32)>, sequence: u64) -> bool {
    first.is_some_and(|(first, begun)| first == sequence && begun > BEGUN_MAX)
}

/// How long this owner waits before it begins with a suspect.
fn suspect_pause(slot: Slot, epoch: u64) -> Duration {
    // Spread by the golden ratio: neighbours are far apart, and each owner has another order.
    let spread = (epoch ^ u64::from(slot.number())).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    Duration::from_millis(spread % SUSPECT_PAUSE_MAX_MS)
}

async fn at(time: Option<std::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Whose outcome it is; `None` for a command that does not say so.
fn identify(message: &Queued) -> Option<(AggregateKey, CommandId)> {
    let (part, _) = stored_part(&message.subject)?.rsplit_once('.')?;
    let id = command_id(message.headers.as_ref())?;
    Some((AggregateKey::from_subject_part(part)?, CommandId::parse(id).ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader that was deposed and had not heard of it once held a slot up for half a minute.
    #[test]
    fn a_queue_that_is_behind_is_asked_again_and_lost_when_it_stays_so() {
        let behind = Error::QueueBehind { last: 49, settled: 50 };
        let (start, mut since) = (Instant::now(), None);
        let mut lost = |error: &Error, at: Duration| is_lost(error, &mut since, start + at);
        assert!(!lost(&behind, Duration::ZERO));
        assert!(!lost(&Error::Conflict, BEHIND_MAX), "it says nothing of the end");
        assert!(!lost(&behind, BEHIND_MAX));
        assert!(lost(&behind, BEHIND_MAX + RETRY.first));
    }
}
