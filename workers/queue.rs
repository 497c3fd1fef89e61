//! Reads a durable queue as the owner of its places, whatever the messages mean. A pure machine says what is
//! done next (`flexcore_queue::settling`); this does it, and has a [`Handler`] do what the messages ask for.
//! Beside that the whole queue is purged, and somebody looks whether its claims still hold.

mod outcomes;
mod progress;
mod purge;

use std::{fmt::Display, time::Duration};

use flexcore_cluster::Guard;
use flexcore_eventstore::Error;
use flexcore_queue::{
    Claim, Messages, Queue, Queued,
    settling::{Action, Event, Found, Record, SUSPECT, Settling},
};
use flexcore_resilience::{Backoff, lasts};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::places::ServedPlace;
use outcomes::Outcomes;
pub use progress::{ProgressMade, watch_progress};
pub use purge::purge;

/// Messages that a reader is sent ahead of their turn.
const BATCH: usize = 256;
/// Owners that have begun a message before it is taken to be what kills them.
pub const BEGUN_MAX: u32 = 10;
/// Longest pause before a suspect is begun with. Each place of an owner has another one: otherwise what
/// kills the owner would take the other places' first messages with it each time.
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

/// Does what the messages of a queue ask for.
pub trait Handler: Send + Sync {
    /// What comes of a message.
    type Outcome: Send + 'static;

    /// Begins with a message. What comes of it is sent to `to` with the message's number, now or later.
    /// Messages are begun with in order: those behind it wait until this returns. One that `kills` has seen
    /// [`BEGUN_MAX`] owners die, and is not done. Clones of `to` are dropped with what they were made for.
    fn begin(
        &self,
        number: u64,
        message: &Queued,
        kills: bool,
        to: &mpsc::UnboundedSender<(u64, Self::Outcome)>,
    ) -> impl Future<Output = ()> + Send;

    /// The place has been left for a moment, and not all is done. Returns when nothing more is begun: messages
    /// that had to wait have been dropped, with their clones of `to`, and the next owner does them. What is
    /// under way has half a second then. By default nothing waits.
    fn give_back(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Returns whether an earlier owner, who may have begun with a message, has done it. Fails when nobody
    /// can say now.
    fn is_done(
        &self,
        message: &Queued,
        kills: bool,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Takes note of a message that an earlier owner has done.
    fn was_done(&self);

    /// Takes note of what came of a message. Returns true if that is durable already.
    fn hear(&self, outcome: &Self::Outcome) -> bool;

    /// Makes durable what came of a message. It is tried again after an error that passes, with the outcome
    /// as this has left it, and while the worker's lease does not hold it is not tried.
    fn keep(
        &self,
        message: &Queued,
        outcome: &mut Self::Outcome,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Reads a place's messages as its owner.
pub struct PlaceReader<H> {
    /// The queue.
    pub queue: Queue,
    /// Does what the messages ask for.
    pub handler: H,
    /// Says when all claims have gone: see [`watch_progress`].
    pub progress_made: ProgressMade,
    /// Of the worker's lease.
    pub guard: Guard,
    /// The place.
    pub place: ServedPlace,
}

/// Whether the queue has ended before what is settled for so long that somebody has to mend it. Any other
/// error says nothing of its end.
fn is_lost(error: &Error, behind: &mut Option<Instant>, now: Instant) -> bool {
    if !matches!(error, Error::QueueBehind { .. }) {
        return false;
    }
    now - *behind.get_or_insert(now) > BEHIND_MAX
}

impl<H: Handler> PlaceReader<H> {
    /// Reads until the place is to be left; what is under way then has a moment to be settled, and the rest
    /// is given back. A broker that is away is waited for.
    pub async fn run(self) {
        let (mut failures, mut singly, mut behind) = (0_u32, false, None);
        let (stop, mut progress_made) = (self.place.leave.clone(), self.progress_made.clone());
        loop {
            // Before the place is claimed: afterwards a change means that the claim has gone.
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
                    // Whatever interrupted it may come of the next message, and would again.
                    singly = !singly;
                    false
                }
                Err(error) => {
                    // One by one they come over another connection.
                    singly |= self.queue.reading.is_away();
                    self.is_stuck(&error, &mut behind, failures)
                }
            };
            failures = failures.saturating_add(1);
            let pause = if is_stuck { RETRY_MENDED } else { RETRY.after(failures) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// The queue's stream and the place, for the log.
    fn named(&self) -> (&'static str, u16) {
        (self.queue.described.stream, self.place.number)
    }

    /// Says why the queue cannot be read. Returns true if a person has to mend something first. `behind` is
    /// the time since which the queue ends before what is settled, `failures` those before in a row.
    fn is_stuck(&self, error: &Error, behind: &mut Option<Instant>, failures: u32) -> bool {
        let (stream, place) = self.named();
        if is_lost(error, behind, Instant::now()) || !error.is_passing() {
            tracing::error!(%error, stream, place, "the queue cannot be read");
            return true;
        }
        if matches!(error, Error::Conflict) {
            tracing::warn!(stream, place, "another owner claims the place");
        } else {
            self.not_yet(error, failures);
        }
        false
    }

    /// Says that the queue cannot be read just now; louder when that lasts.
    fn not_yet(&self, error: &Error, failures: u32) {
        let (stream, place) = self.named();
        if lasts(failures) {
            tracing::warn!(%error, stream, place, failures, "the queue cannot be read for some time");
        } else {
            tracing::debug!(%error, stream, place, "the queue cannot be read yet");
        }
    }

    /// With `singly` messages are asked for one by one.
    async fn open(&self, singly: bool) -> Result<(Claim, Messages), Error> {
        let ServedPlace { number, epoch, .. } = self.place;
        let claim = self.queue.claim(number, epoch).await?;
        if let Some((sequence, begun)) = claim.first().filter(|(_, begun)| *begun >= SUSPECT) {
            tracing::warn!(
                stream = self.queue.described.stream,
                place = number,
                epoch,
                sequence,
                begun,
                "owners have begun with this message and were not seen to live on"
            );
            tokio::time::sleep(suspect_pause(number, epoch)).await;
        }
        let messages = if singly { claim.messages_singly() } else { claim.messages(BATCH).await? };
        Ok((claim, messages))
    }

    /// Works until the stream breaks, the claim has gone or the place is to be left. What is under way is
    /// settled, or given back where the place is to be left. Returns how many messages were taken up.
    async fn read(
        &self,
        claim: Claim,
        mut messages: Messages,
        progress_made: &mut ProgressMade,
        stop: &CancellationToken,
    ) -> u64 {
        let mut outcomes = Outcomes::<H::Outcome>::new();
        let found = found(&claim);
        let mut settling = Settling::<Queued>::new(found);
        let mut claim = Some(claim);
        let mut performing = FuturesUnordered::<BoxFuture<'_, Performed>>::new();
        let mut keeping = FuturesUnordered::<BoxFuture<'_, u64>>::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !settling.has_ended() {
            let all_kept = keeping.is_empty();
            let event = tokio::select! {
                () = stop.cancelled(), if outcomes.is_open() => {
                    messages.end();
                    outcomes.end(self.handler.give_back());
                    Event::Leave
                }
                next = messages.stream.next(), if settling.reads() => {
                    self.next(next, &mut messages)
                }
                heard = outcomes.next(all_kept) => match heard {
                    Some((number, outcome)) if self.handler.hear(&outcome) => Event::Done(number),
                    Some((number, outcome)) => {
                        let message = settling.message(number).0.clone();
                        keeping.push(Box::pin(self.keep_at_last(number, message, outcome)));
                        continue;
                    }
                    None => Event::GivenBack,
                },
                Some(number) = keeping.next() => Event::Done(number),
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
                        let (message, kills) = (message.clone(), kills(found.first, sequence));
                        performing.push(Box::pin(async move {
                            let is_done = self.look_up(message, kills).await;
                            Performed::from(Event::LookedUp(number, is_done))
                        }));
                    }
                    Action::Do(number) => {
                        let (message, sequence) = settling.message(number);
                        let (kills, to) = (kills(found.first, sequence), outcomes.sender());
                        self.handler.begin(number, message, kills, to).await;
                    }
                    Action::DoneBefore(_) => self.handler.was_done(),
                    Action::Write(record) => performing.extend(self.write(record, claim.take())),
                    Action::Ask => {
                        let asked = messages.reader.handed_out();
                        performing.push(Box::pin(async move {
                            Performed::from(Event::HandedOut(asked.await.ok()))
                        }));
                    }
                }
            }
        }
        settling.begun()
    }

    /// What the stream says. One that has broken is given back at once: over a client that has ended it
    /// keeps a processor busy.
    fn next(
        &self,
        next: Option<Result<Queued, impl Display>>,
        messages: &mut Messages,
    ) -> Event<Queued> {
        match next {
            Some(Ok(message)) => {
                let Queued { number, sequence, .. } = message;
                return Event::Read { number, sequence, message };
            }
            Some(Err(error)) => self.interrupted(&error),
            None => {}
        }
        messages.end();
        Event::Interrupted
    }

    fn interrupted(&self, error: &impl Display) {
        let (stream, place) = self.named();
        tracing::debug!(%error, stream, place, "reading was interrupted");
    }

    /// Writes down how far the place is settled. Without a claim there is nothing to be written to.
    fn write(&self, record: Record, claim: Option<Claim>) -> Option<BoxFuture<'static, Performed>> {
        let (claim, (stream, place)) = (claim?, self.named());
        Some(Box::pin(async move {
            let written = match record {
                Record::Begins => claim.begin().await,
                Record::LivesOn => claim.survive().await,
                Record::GivesBack => claim.give_back().await,
                Record::Settled(sequence) => claim.settle(sequence).await,
            };
            if let Err(error) = &written {
                tracing::debug!(%error, stream, place, "settled, and not recorded");
            }
            Performed { event: Event::Written(written.is_ok()), claim: written.ok() }
        }))
    }

    /// Finds out whether an earlier owner has done a message. `None`: nobody can say now.
    async fn look_up(&self, message: Queued, kills: bool) -> Option<bool> {
        let is_done = self.handler.is_done(&message, kills).await;
        is_done.inspect_err(|error| self.interrupted(error)).ok()
    }

    /// Sees to it that an outcome is durable, however long the broker is away or has no room. Returns
    /// the number.
    async fn keep_at_last(&self, number: u64, message: Queued, mut outcome: H::Outcome) -> u64 {
        let mut failures = 0_u32;
        while let Err(error) = self.keep(&message, &mut outcome).await {
            let (stream, place) = self.named();
            if !error.is_passing() {
                // Everything is made to fit; a stream that takes less is not opened. Trying for ever
                // would keep the whole place waiting.
                let subject = message.subject.as_str();
                tracing::error!(%error, stream, place, subject, "an outcome cannot be kept");
                break;
            }
            tracing::debug!(%error, stream, place, "an outcome cannot be kept yet");
            failures = failures.saturating_add(1);
            tokio::time::sleep(RETRY.after(failures)).await;
        }
        number
    }

    /// Fails when the lease does not hold: another owner may have decided otherwise.
    async fn keep(&self, message: &Queued, outcome: &mut H::Outcome) -> Result<(), Error> {
        if !self.guard.holds() {
            return Err(Error::Unavailable("the lease has ended".to_owned()));
        }
        self.handler.keep(message, outcome).await
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

/// What an owner has found that makes this claim.
fn found(claim: &Claim) -> Found {
    Found {
        settled: claim.settled(),
        last_before: claim.last_before(),
        in_doubt_to: claim.in_doubt_to(),
        first: claim.first_begun(),
    }
}

/// True if too many owners have begun with the message of this sequence and gone.
fn kills(first: Option<(u64, u32)>, sequence: u64) -> bool {
    first.is_some_and(|(first, begun)| first == sequence && begun > BEGUN_MAX)
}

/// How long this owner waits before it begins with a suspect.
fn suspect_pause(place: u16, epoch: u64) -> Duration {
    // Spread by the golden ratio: neighbours are far apart, and each owner has another order.
    let spread = (epoch ^ u64::from(place)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    Duration::from_millis(spread % SUSPECT_PAUSE_MAX_MS)
}

async fn at(time: Option<std::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader that was deposed and had not heard of it once held a slot up for half a minute.
    #[test]
    fn a_queue_that_is_behind_is_asked_again_and_lost_when_it_stays_so() {
        let behind = Error::QueueBehind { progress: "KV_progress", last: 49, settled: 50 };
        let (start, mut since) = (Instant::now(), None);
        let mut lost = |error: &Error, at: Duration| is_lost(error, &mut since, start + at);
        assert!(!lost(&behind, Duration::ZERO));
        assert!(!lost(&Error::Conflict, BEHIND_MAX), "it says nothing of the end");
        assert!(!lost(&behind, BEHIND_MAX));
        assert!(lost(&behind, BEHIND_MAX + RETRY.first));
    }
}
