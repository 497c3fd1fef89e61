//! A durable queue on a stream of the broker, read by the owner of each place in order, and purged in
//! bulk. A work queue would cost a synced delete for each message.
//!
//! A bucket holds the progress of each owner. The broker's own acknowledgements would do the same,
//! but with three replicas the consumer of each place would be a Raft group that agrees on every
//! delivery: measured with 64 places, they took more of the servers than the work did.

mod claim;
mod end;
mod message;
pub mod settling;

use async_nats::jetstream::{self, stream::Stream};
use flexcore_broker::{
    acknowledged::Acknowledged, bucket::Bucket, inbox::Inbox, renewed::Renewed, stream::found,
    unavailable,
};
use futures::{StreamExt as _, TryStreamExt as _};

pub use claim::{Claim, KeptReader, Messages};
use end::End;
pub use message::{Queued, Stamp};

/// Questions to the broker at a time, where there is one a place.
const ASKED_AT_ONCE: usize = 16;

/// Why a place was not claimed, or the queue not looked through.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The broker did not do it.
    #[error(transparent)]
    Broker(#[from] flexcore_broker::Error),
    /// The queue's leader has fewer messages than were settled. A leader that was cut off says so until it
    /// hears that it was deposed; if it stays so, the queue has lost its end.
    #[error("the queue ends at {last}, before what is settled, {settled}")]
    Behind {
        /// The stream that holds how far each place is settled.
        progress: &'static str,
        /// The last sequence that the leader has.
        last: u64,
        /// The sequence up to which messages are settled.
        settled: u64,
    },
}

/// Where a queue lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The stream of its messages.
    pub stream: &'static str,
    /// The first token of its messages' subjects. The next one is the number of the place.
    pub subject: &'static str,
    /// The stream that holds how far each place is settled, laid out as a KV bucket: `KV_<bucket>`.
    pub progress: &'static str,
    /// Number of its places.
    pub places: u16,
}

impl Descriptor {
    /// The subjects of a place's messages.
    fn messages_of(&self, place: u16) -> String {
        format!("{}.{place}.>", self.subject)
    }
}

/// A queue, over these connections; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    /// Where it lies.
    pub described: Descriptor,
    /// Where questions are asked.
    pub jetstream: jetstream::Context,
    /// Where messages are read. A connection may break over one that its client cannot read, or end for
    /// good: nothing else should be on it.
    pub reading: Renewed,
    /// Where it is recorded what is settled.
    pub acknowledged: Acknowledged,
    /// Where all places are asked for at once.
    pub inbox: Inbox,
}

impl Queue {
    /// How far each place is settled, under its number.
    fn progress_bucket(&self) -> Bucket {
        Bucket {
            stream: self.described.progress,
            jetstream: self.jetstream.clone(),
            acknowledged: self.acknowledged.clone(),
        }
    }

    /// Looks how many messages wait, and removes those of the first `seen` that are settled in every
    /// place, if the broker lets it. Of those that are stored in between a leader that was deposed knows
    /// nothing, and says that none are left.
    #[boxed::async_recursion]
    pub async fn purge(&self, seen: u64) -> Result<Purged, Error> {
        let (stream, end, first_left) = self.first_left().await?;
        let first_kept = end.first_to_keep(first_left, seen);
        let mut purged = Purged { gone: 0, stored: end.last, waiting: end.from(first_left) };
        if first_kept > 1 {
            match stream.purge().sequence(first_kept).await {
                Ok(removed) => purged.gone = removed.purged,
                // The next one takes more.
                Err(error) => tracing::debug!(%error, "settled messages stay in the queue"),
            }
        }
        Ok(purged)
    }

    /// Messages that are not settled: 0 exactly when there are none, and otherwise at most so many, since
    /// some behind the first of them may be. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn depth(&self) -> Result<u64, Error> {
        let (_, end, first_left) = self.first_left().await?;
        Ok(end.from(first_left))
    }

    /// Stream sequence up to which a place is settled, as the bucket's leader has it. Fails when the
    /// broker is away, and with [`Error::Behind`].
    #[boxed::async_recursion]
    pub async fn settled(&self, place: u16) -> Result<u64, Error> {
        let stream = self.jetstream.get_stream_no_info(self.described.stream).await;
        let stream = stream.map_err(unavailable)?;
        let (progress, _) = self.progress_of(place).await?;
        // After what was read: it cannot be settled further than the queue goes.
        let end = End::of(&stream.get_info().await.map_err(unavailable)?);
        progress.settled_in(end, self.described.progress)
    }

    /// When the stream was made that holds how far each place is settled, in nanoseconds since 1970; `None`:
    /// it is gone. At another time all claims of places are void. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn progress_made_ns(&self) -> Result<Option<i128>, flexcore_broker::Error> {
        let found = found(&self.jetstream, self.described.progress).await?;
        Ok(found.map(|info| info.created.unix_timestamp_nanos()))
    }

    /// The first message on these subjects after this sequence, as the stream's leader has it. Fails when
    /// the broker is away.
    #[boxed::async_recursion]
    pub async fn next_on(
        &self,
        subjects: &str,
        after: u64,
    ) -> Result<Option<Queued>, flexcore_broker::Error> {
        message::next_on(&self.jetstream, self.described.stream, subjects, after).await
    }

    /// Stream sequence of a place's first message after this one; `None` when there is none. The stream's
    /// leader is asked: another replica may not have the last messages yet.
    async fn next(&self, place: u16, after: u64) -> Result<Option<u64>, flexcore_broker::Error> {
        let next = self.next_on(&self.described.messages_of(place), after).await?;
        Ok(next.map(|message| message.sequence))
    }

    /// Stream sequence of the first message, over all places, that is not known to be settled; and
    /// where the queue ended before that was found out.
    async fn first_left(&self) -> Result<(Stream, End, Option<u64>), Error> {
        // First, since it may go on: then no place is settled further than the queue goes.
        let progress = self.progress().await?;
        let stream = self.jetstream.get_stream(self.described.stream).await;
        let stream = stream.map_err(unavailable)?;
        let end = End::of(stream.cached_info());
        let mut after = Vec::with_capacity(progress.len());
        for (place, progress) in (0..).zip(progress) {
            after.push((place, progress.settled_in(end, self.described.progress)?));
        }
        let nexts = futures::stream::iter(after)
            .map(|(place, settled)| self.next(place, settled))
            .buffer_unordered(ASKED_AT_ONCE);
        let nexts: Vec<Option<u64>> = nexts.try_collect().await?;
        Ok((stream, end, nexts.into_iter().flatten().min()))
    }
}

/// The result of a purge of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Messages that it removed.
    pub gone: u64,
    /// Number of commands stored by now: `seen` of the next purge, some seconds later.
    pub stored: u64,
    /// As [`Queue::depth`].
    pub waiting: u64,
}
