//! FLEX_COMMANDS: asynchronous commands, read by each slot's owner in order and purged in bulk. A
//! work queue would cost a synced delete for each.
//!
//! How far an owner has come stands in the bucket `flex_queue`. The broker's own acknowledgements
//! would do the same, but with three replicas each of 64 consumers would be a Raft group that agrees
//! on every delivery: measured, they took more of the servers than the commands did.

mod claim;
mod queued;
mod share;

use async_nats::HeaderMap;
use async_nats::jetstream::{
    self,
    stream::{self, Stream},
};
use flexcore_broker::{publish, room::Room, size};
use flexcore_domain::{
    AggregateKey, Command, CommandId, CommandName, SLOTS, Slot, command::header,
};
use futures::{StreamExt, TryStreamExt};

use crate::{Error, EventStore, topology, unavailable};

pub use claim::{Claim, Messages, Reader};
pub use flexcore_broker::ephemeral::Lost;
pub use queued::Queued;
use queued::next_on;
pub(crate) use share::Share;

/// Questions to the broker at a time, where there is one a slot.
const ASKED_AT_ONCE: usize = 16;
/// Waiting commands of one aggregate that are looked through for an id.
const LOOKED_THROUGH_MAX: usize = 64;

/// Publishes many asynchronous commands, in order, as fast as the profile lets it: with atomic
/// batches where one server syncs each message. Cheap to clone.
#[derive(Clone)]
pub struct CommandPublisher {
    publisher: publish::Publisher,
    room: Room,
    share: Share,
    jetstream: jetstream::Context,
}

impl CommandPublisher {
    /// Publishes a command with its payload, JSON text. Returns when the broker has it: then it will
    /// be processed. Fails with [`Error::Unavailable`] when that is unknown: publish it again with
    /// the same id. Fails with [`Error::TooLarge`], [`Error::NoRoom`] or [`Error::TooMuch`] when it is
    /// not stored for that reason.
    pub async fn publish(
        &self,
        key: &AggregateKey,
        name: &CommandName,
        id: &CommandId,
        headers: HeaderMap,
        payload: String,
    ) -> Result<(), Error> {
        self.send(key, name, id, headers, payload).await?.stored().await
    }

    /// Sends a command behind those that were sent before it, and does not wait until the broker
    /// has it. Await this before the next call: that keeps their order.
    pub async fn send(
        &self,
        key: &AggregateKey,
        name: &CommandName,
        id: &CommandId,
        mut headers: HeaderMap,
        payload: String,
    ) -> Result<SentCommand, Error> {
        self.room.check()?;
        // Not `Nats-Msg-Id`: the broker would swallow another aggregate's command of the same id.
        headers.insert(header::OWN_COMMAND_ID, id.as_str());
        let subject = Command::queue_subject(key, name);
        let bytes = subject.len() + size::encoded_bytes(&headers, payload.len());
        let on_its_way = self.share.enter(&self.jetstream, key.tenant(), bytes)?;
        let sent = self.publisher.send(subject, headers, payload.into()).await?;
        Ok(SentCommand { sent, on_its_way })
    }
}

/// A command on its way to the broker.
pub struct SentCommand {
    sent: publish::Sent,
    on_its_way: share::OnItsWay,
}

impl SentCommand {
    /// Returns when the broker has it: then it will be processed. Fails with
    /// [`Error::Unavailable`] when that is unknown.
    pub async fn stored(self) -> Result<(), Error> {
        self.on_its_way.stored(self.sent.stored().await?);
        Ok(())
    }
}

impl EventStore {
    /// A publisher of asynchronous commands.
    #[must_use]
    pub fn command_publisher(&self) -> CommandPublisher {
        let groups = self.settings.command_groups();
        CommandPublisher {
            publisher: publish::Publisher::start(&self.acknowledged, groups),
            room: self.room.clone(),
            share: self.share.clone(),
            jetstream: self.jetstream.clone(),
        }
    }

    /// Looks how many commands wait, and removes those of the first `seen` that are settled in every
    /// slot, if the broker lets it. Of those that are stored in between a leader that was deposed knows
    /// nothing, and says that none are left.
    pub async fn purge_queue(&self, seen: u64) -> Result<Purged, Error> {
        let (queue, place, first_left) = self.first_left().await?;
        let first_kept = place.first_to_keep(first_left, seen);
        let mut purged = Purged { gone: 0, stored: place.last, waiting: place.from(first_left) };
        if first_kept > 1 {
            match queue.purge().sequence(first_kept).await {
                Ok(removed) => purged.gone = removed.purged,
                // The next one takes more.
                Err(error) => tracing::debug!(%error, "processed commands stay in the queue"),
            }
        }
        Ok(purged)
    }

    /// Commands that have no outcome yet: 0 exactly when there are none, and otherwise at most so
    /// many, since some behind the first of them may have one.
    pub async fn queue_depth(&self) -> Result<u64, Error> {
        let (_, place, first_left) = self.first_left().await?;
        Ok(place.from(first_left))
    }

    /// Whether a command of this id is stored for the aggregate and has no outcome yet; also true where
    /// very many wait for the aggregate and it was not among the first. What is under way may be said to
    /// wait for a moment after it has its outcome.
    pub async fn waits(&self, key: &AggregateKey, id: &CommandId) -> Result<bool, Error> {
        let queue = self.jetstream.get_stream_no_info(topology::COMMANDS).await;
        let queue = queue.map_err(unavailable)?;
        let progress = self.progress_of(key.slot()).await?;
        // After what was read: it cannot be settled further than the queue goes.
        let place = Place::of(&queue.get_info().await.map_err(unavailable)?);
        let mut after = progress.settled_in(place)?;
        let subjects = format!("cmdq.{}.*", key.subject_part());
        for _ in 0..LOOKED_THROUGH_MAX {
            let Some(waiting) = next_on(&self.jetstream, &subjects, after).await? else {
                return Ok(false);
            };
            let ids = [header::OWN_COMMAND_ID, header::COMMAND_ID];
            let headers = waiting.headers.as_ref();
            let own = ids.into_iter().find_map(|name| headers?.get(name));
            if own.is_some_and(|own| own.as_str() == id.as_str()) {
                return Ok(true);
            }
            after = waiting.sequence;
        }
        Ok(true)
    }

    /// Stream sequence of the first command, over all slots, that is not known to be settled; and
    /// where the queue ended before that was found out.
    async fn first_left(&self) -> Result<(Stream, Place, Option<u64>), Error> {
        // First, since it may go on: then no slot is settled further than the queue goes.
        let progress = self.progress().await?;
        let queue = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        let place = Place::of(queue.cached_info());
        let mut after = Vec::with_capacity(progress.len());
        for (slot, progress) in (0..SLOTS).filter_map(Slot::new).zip(progress) {
            after.push((slot, progress.settled_in(place)?));
        }
        let nexts = futures::stream::iter(after)
            .map(|(slot, settled)| next(&self.jetstream, slot, settled))
            .buffer_unordered(ASKED_AT_ONCE);
        let nexts: Vec<Option<u64>> = nexts.try_collect().await?;
        Ok((queue, place, nexts.into_iter().flatten().min()))
    }
}

/// What a purge of the queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Commands that it removed.
    pub gone: u64,
    /// How many have been stored by now: `seen` of the next purge, some seconds later.
    pub stored: u64,
    /// As [`EventStore::queue_depth`].
    pub waiting: u64,
}

/// The queue's stream, and where it ended when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// When it was made, in nanoseconds since 1970: another one begins to count anew.
    made_ns: i64,
    /// Its last sequence.
    last: u64,
}

impl Place {
    /// How many there are from the first that is left on.
    fn from(self, first_left: Option<u64>) -> u64 {
        first_left.map_or(0, |first| self.last.max(first) - first + 1)
    }

    fn of(info: &stream::Info) -> Self {
        let made_ns = info.created.unix_timestamp_nanos();
        Self { made_ns: made_ns.try_into().unwrap_or(i64::MAX), last: info.state.last_sequence }
    }

    /// Sequence of the first command that a purge must leave, when this one was then found to be the
    /// first without an outcome. The slots are asked one after the other: in one that was asked
    /// before, a command may have come meanwhile. What was not seen stays, too.
    fn first_to_keep(self, first_left: Option<u64>, seen: u64) -> u64 {
        let next = self.last.min(seen) + 1;
        first_left.map_or(next, |first| first.min(next))
    }
}

/// Stream sequence of a slot's first command after this one; `None` when there is none. The stream's
/// leader is asked: another replica may not have the last commands yet.
async fn next(
    jetstream: &jetstream::Context,
    slot: Slot,
    after: u64,
) -> Result<Option<u64>, Error> {
    Ok(next_on(jetstream, &filter(slot), after).await?.map(|message| message.sequence))
}

/// The subjects of a slot's commands.
fn filter(slot: Slot) -> String {
    format!("cmdq.{slot}.>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_while_the_slots_were_asked_is_kept() {
        let place = Place { made_ns: 0, last: 100 };
        assert_eq!(place.first_to_keep(None, 100), 101, "all was settled");
        assert_eq!(place.first_to_keep(Some(40), 100), 40);
        // 101 is in a slot that had nothing when it was asked.
        assert_eq!(place.first_to_keep(Some(102), 200), 101);
    }

    #[test]
    fn what_a_deposed_leader_may_not_have_is_kept() {
        let place = Place { made_ns: 0, last: 100 };
        assert_eq!(place.first_to_keep(None, 90), 91);
        assert_eq!(place.first_to_keep(Some(40), 90), 40);
        assert_eq!(place.first_to_keep(None, 0), 1, "nothing was seen");
    }
}
