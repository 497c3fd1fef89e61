//! FLEX_COMMANDS: asynchronous commands, published by clients, and read by each slot's owner in order.

mod share;

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use flexcore_broker::{publish, room::Room, size};
use flexcore_domain::{AggregateKey, CommandId, CommandName, SLOTS, command::header};
use flexcore_queue::{Descriptor, Queue, Queued};

use crate::{Error, EventStore, KeptOutcome, headers, subjects, topology};

pub use crate::subjects::{command_address, command_subject, published_subject, stored_part};
pub(crate) use share::Share;

/// Stored commands, a slot a place.
pub(crate) const STORED: Descriptor = Descriptor {
    stream: topology::COMMANDS,
    subject: subjects::STORED_TOKEN,
    progress: topology::PROGRESS,
    places: SLOTS,
};

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
    /// Publishes a command with its payload, JSON text. Returns its sequence in the queue when the broker has
    /// it: then it will be processed. Fails with [`Error::Unavailable`] when that is unknown: publish it again
    /// with the same id. Fails with [`Error::TooLarge`], [`Error::NoRoom`] or [`Error::TooMuch`] when it is
    /// not stored for that reason.
    pub async fn publish(
        &self,
        key: &AggregateKey,
        name: &CommandName,
        id: &CommandId,
        headers: HeaderMap,
        payload: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        self.send(key, name, id, headers, payload).await?.sequence().await
    }

    /// Sends a command behind those that were sent before it, and does not wait until the broker
    /// has it. Await this before the next call: that keeps their order.
    pub async fn send(
        &self,
        key: &AggregateKey,
        name: &CommandName,
        id: &CommandId,
        mut headers: HeaderMap,
        payload: impl Into<Bytes>,
    ) -> Result<SentCommand, Error> {
        let payload = payload.into();
        self.room.check()?;
        // Not `Nats-Msg-Id`, which means something to the broker.
        headers.insert(header::OWN_COMMAND_ID, id.as_str());
        let subject = command_subject(key, name);
        let bytes = subject.len() + size::encoded_bytes(&headers, payload.len());
        let on_its_way = self.share.enter(&self.jetstream, key.tenant(), bytes)?;
        let sent = self.publisher.send(subject, headers, payload).await?;
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
    #[boxed::async_recursion]
    pub async fn stored(self) -> Result<(), Error> {
        self.sequence().await?;
        Ok(())
    }

    async fn sequence(self) -> Result<u64, Error> {
        let sequence = self.sent.stored().await?;
        self.on_its_way.stored(sequence);
        Ok(sequence)
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

    /// The queue of stored commands, a slot a place.
    #[must_use]
    pub fn command_queue(&self) -> &Queue {
        &self.queue
    }

    /// How many commands have no outcome yet: [`Queue::depth`].
    #[boxed::async_recursion]
    pub async fn queue_depth(&self) -> Result<u64, Error> {
        Ok(self.queue.depth().await?)
    }

    /// Whether a command of this id is stored for the aggregate and has no outcome yet: `kept`, the last that is
    /// kept of the id, is of an earlier one. Also true where very many wait for the aggregate and it was not among
    /// the first. What is under way may be said to wait for a moment after it is in the log.
    #[boxed::async_recursion]
    pub async fn waits(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        kept: Option<&KeptOutcome>,
    ) -> Result<bool, Error> {
        let mut after = self.queue.settled(key.slot().number()).await?;
        let subjects = subjects::stored_of(key);
        for _ in 0..LOOKED_THROUGH_MAX {
            let Some(waiting) = self.queue.next_on(&subjects, after).await? else {
                return Ok(false);
            };
            let is_done = kept.is_some_and(|kept| kept.covers(waiting.stamp()));
            if !is_done && has_id(&waiting, id) {
                return Ok(true);
            }
            after = waiting.sequence;
        }
        Ok(true)
    }

    /// The command of this id that the queue has for the aggregate at this sequence, done or not; `None`: it
    /// is not there any more. It goes some time after it is settled, and not before.
    #[boxed::async_recursion]
    pub async fn stored_command(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
    ) -> Result<Option<Queued>, Error> {
        let Some(before) = sequence.checked_sub(1) else { return Ok(None) };
        let next = self.queue.next_on(&subjects::stored_of(key), before).await?;
        Ok(next.filter(|next| next.sequence == sequence && has_id(next, id)))
    }
}

fn has_id(stored: &Queued, id: &CommandId) -> bool {
    headers::command_id(stored.headers.as_ref()) == Some(id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_behind_is_asked_again_and_says_what_mends_it() {
        for (progress, said) in [
            (STORED.progress, "Delete the stream KV_flex_queue "),
            ("KV_other", "Delete the stream KV_other "),
        ] {
            let behind = flexcore_queue::Error::Behind { progress, last: 49, settled: 50 };
            let behind = Error::from(behind);
            assert!(behind.is_passing(), "a leader that was deposed says so as well: {behind}");
            assert!(behind.to_string().contains(said), "{behind}");
        }
    }
}
