//! FLEX_COMMANDS: asynchronous commands, read by each slot's owner in order and purged in bulk. A
//! work queue would cost a synced delete for each.
//!
//! How far an owner has come stands in the bucket `flex_queue`. The broker's own acknowledgements
//! would do the same, but with three replicas each of 64 consumers would be a Raft group that agrees
//! on every delivery: measured, they took more of the servers than the commands did.

mod claim;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use flexcore_domain::{
    AggregateKey, Command, CommandId, CommandName, SLOTS, Slot, command::header,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{Error, EventStore, publish, topology, unavailable};

pub use claim::{Claim, Messages, Reader};

/// Questions to the broker at a time, where there is one a slot.
const ASKED_AT_ONCE: usize = 16;

/// Publishes many asynchronous commands, in order, as fast as the profile lets it: with atomic
/// batches where the server syncs each message. Cheap to clone.
#[derive(Clone)]
pub struct CommandPublisher(publish::Publisher);

impl CommandPublisher {
    /// Publishes a command with its payload, JSON text. Returns when the broker has it: then it will
    /// be processed. Fails with [`Error::Unavailable`] when that is unknown: publish it again with
    /// the same id.
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
        // Not `Nats-Msg-Id`: the broker would swallow another aggregate's command of the same id.
        headers.insert(header::OWN_COMMAND_ID, id.as_str());
        let subject = Command::queue_subject(key, name);
        Ok(SentCommand(self.0.send(subject, headers, payload.into()).await?))
    }
}

/// A command on its way to the broker.
pub struct SentCommand(publish::Sent);

impl SentCommand {
    /// Returns when the broker has it: then it will be processed. Fails with
    /// [`Error::Unavailable`] when that is unknown.
    pub async fn stored(self) -> Result<(), Error> {
        self.0.stored().await.map(|_| ())
    }
}

impl EventStore {
    /// A publisher of asynchronous commands.
    #[must_use]
    pub fn command_publisher(&self) -> CommandPublisher {
        let groups = self.settings.groups().then_some(publish::Groups::Ordered);
        CommandPublisher(publish::Publisher::start(&self.acknowledged, groups))
    }

    /// Removes the commands that are settled in every slot. Returns how many went.
    pub async fn purge_queue(&self) -> Result<u64, Error> {
        let queue = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        // Known before the slots are looked at: what comes meanwhile is later.
        let last = queue.cached_info().state.last_sequence;
        let first_left = self.first_left(&queue).await?.unwrap_or(last + 1);
        let purged = queue.purge().sequence(first_left).await.map_err(unavailable)?;
        Ok(purged.purged)
    }

    /// Commands that have no outcome yet: 0 exactly when there are none, and otherwise at most so
    /// many, since some behind the first of them may have one.
    pub async fn queue_depth(&self) -> Result<u64, Error> {
        let queue = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        let last = queue.cached_info().state.last_sequence;
        Ok(match self.first_left(&queue).await? {
            Some(first) => last.max(first) - first + 1,
            None => 0,
        })
    }

    /// Stream sequence of the first command, over all slots, that is not known to be settled.
    async fn first_left(&self, queue: &Stream) -> Result<Option<u64>, Error> {
        let settled = self.settled().await?;
        let nexts = stream::iter((0..SLOTS).filter_map(Slot::new))
            .map(|slot| next(queue, slot, settled[usize::from(slot.number())]))
            .buffer_unordered(ASKED_AT_ONCE);
        let nexts: Vec<Option<u64>> = nexts.try_collect().await?;
        Ok(nexts.into_iter().flatten().min())
    }
}

/// Stream sequence of a slot's first command after this one; `None` when there is none. The stream's
/// leader is asked: another replica may not have the last commands yet.
async fn next<I>(queue: &Stream<I>, slot: Slot, after: u64) -> Result<Option<u64>, Error> {
    let asked =
        queue.raw_message_builder().sequence(after + 1).next_by_subject(filter(slot)).send().await;
    match asked {
        Ok(message) => Ok(Some(message.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// The subjects of a slot's commands.
fn filter(slot: Slot) -> String {
    format!("cmdq.{slot}.>")
}
