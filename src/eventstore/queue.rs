//! FLEX_COMMANDS: asynchronous commands, one durable consumer a slot, acknowledged in order and
//! purged in bulk. A work queue would cost a synced delete for each.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use flexcore_domain::{AggregateKey, Command, CommandId, CommandName, Slot, command::header};

use crate::{Error, EventStore, publish, topology, unavailable};

/// Commands of one slot that may be under way, and so come again after a crash.
pub const SLOT_IN_FLIGHT_MAX: i64 = 1_000;
/// How long a command may be under way before the broker hands it out again: longer than any
/// retry that the worker makes, since a repetition is recognised but not free.
pub const ACK_WAIT: Duration = Duration::from_secs(120);

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

    /// The durable consumer of a slot's asynchronous commands, `slot_<n>`, made when it is missing.
    /// It begins after the last command that was acknowledged: an acknowledgement covers all before
    /// it, so what an earlier reader took and did not see through has to come first.
    pub async fn queue(&self, slot: Slot) -> Result<Consumer<pull::Config>, Error> {
        let config = pull::Config {
            durable_name: Some(format!("slot_{slot}")),
            filter_subject: format!("cmdq.{slot}.>"),
            ack_policy: AckPolicy::All,
            ack_wait: ACK_WAIT,
            max_ack_pending: SLOT_IN_FLIGHT_MAX,
            ..pull::Config::default()
        };
        let consumer = self.jetstream.create_consumer_on_stream(config, topology::COMMANDS);
        let mut consumer = consumer.await.map_err(unavailable)?;
        if consumer.cached_info().num_ack_pending > 0 {
            consumer.reset(None).await.map_err(unavailable)?;
        }
        Ok(consumer)
    }

    /// Removes the commands that every slot has acknowledged. Returns how many went.
    pub async fn purge_queue(&self) -> Result<u64, Error> {
        let stream = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        let mut lowest = stream.cached_info().state.last_sequence;
        for slot in Slot::all() {
            // A slot that cannot be looked at, or that nobody has read yet, may have commands.
            let consumer: Result<Consumer<pull::Config>, _> =
                stream.get_consumer(&format!("slot_{slot}")).await;
            let consumer = consumer.map_err(unavailable)?;
            let info = consumer.cached_info();
            let idle = info.num_pending == 0 && info.num_ack_pending == 0;
            if !idle {
                lowest = lowest.min(info.ack_floor.stream_sequence);
            }
        }
        let purged = stream.purge().sequence(lowest + 1).await.map_err(unavailable)?;
        Ok(purged.purged)
    }

    /// Commands that wait or are under way, over all slots.
    pub async fn queue_depth(&self) -> Result<u64, Error> {
        let stream = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        let mut depth = 0;
        for slot in Slot::all() {
            let consumer: Result<Consumer<pull::Config>, _> =
                stream.get_consumer(&format!("slot_{slot}")).await;
            if let Ok(consumer) = consumer {
                let info = consumer.cached_info();
                depth += info.num_pending + info.num_ack_pending as u64;
            }
        }
        Ok(depth)
    }
}
