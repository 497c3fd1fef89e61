//! FLEX_COMMANDS: asynchronous commands, one durable consumer for a slot's owner, acknowledged in
//! order and purged in bulk. A work queue would cost a synced delete for each.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{self, AckPolicy, Consumer, DeliverPolicy, pull};
use async_nats::jetstream::stream::LastRawMessageErrorKind as RawMessageErrorKind;
use flexcore_domain::{
    AggregateKey, Command, CommandId, CommandName, SLOTS, Slot, command::header,
};
use futures::TryStreamExt;

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

    /// The durable consumer of a slot's asynchronous commands for the slot's owner of this epoch,
    /// `slot_<n>_<epoch>`, made when it is missing; those of earlier owners are deleted, so that
    /// they can neither take nor acknowledge any more. It begins after the last command that was
    /// acknowledged: an acknowledgement covers all before it, so what an earlier reader took and did
    /// not see through has to come first. Fails with [`Error::Unavailable`] when there is a later
    /// owner.
    pub async fn queue(&self, slot: Slot, epoch: u64) -> Result<Consumer<pull::Config>, Error> {
        let stream = self.jetstream.get_stream_no_info(topology::COMMANDS).await;
        let stream = stream.map_err(unavailable)?;
        let names: Vec<String> =
            stream.consumer_names().try_collect().await.map_err(unavailable)?;
        let mut floor = 0;
        let (mut own, mut former) = (None, Vec::new());
        for name in names {
            match owner(&name) {
                Some((of, later)) if of == slot.number() && later > epoch => {
                    return Err(unavailable(format!("slot {slot} has a later owner: {later}")));
                }
                Some((of, earlier)) if of == slot.number() => {
                    let consumer: Consumer<pull::Config> =
                        stream.get_consumer(&name).await.map_err(unavailable)?;
                    floor = floor.max(acknowledged(consumer.cached_info()));
                    match earlier == epoch {
                        true => own = Some(consumer),
                        false => former.push(name),
                    }
                }
                _ => {}
            }
        }
        let config = pull::Config {
            durable_name: Some(format!("slot_{slot}_{epoch}")),
            filter_subject: format!("cmdq.{slot}.>"),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: floor + 1 },
            ack_policy: AckPolicy::All,
            ack_wait: ACK_WAIT,
            max_ack_pending: SLOT_IN_FLIGHT_MAX,
            metadata: HashMap::from([(FLOOR.to_owned(), floor.to_string())]),
            ..pull::Config::default()
        };
        let mut consumer = match own {
            Some(consumer) => consumer,
            None => {
                let made = self.jetstream.create_consumer_on_stream(config, topology::COMMANDS);
                made.await.map_err(unavailable)?
            }
        };
        if consumer.cached_info().num_ack_pending > 0 {
            consumer.reset(None).await.map_err(unavailable)?;
        }
        for name in former {
            stream.delete_consumer(&name).await.map_err(unavailable)?;
        }
        Ok(consumer)
    }

    /// Removes the commands that every slot has acknowledged. Returns how many went.
    pub async fn purge_queue(&self) -> Result<u64, Error> {
        let stream = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        let mut lowest = stream.cached_info().state.last_sequence;
        let mut seen = HashSet::new();
        let mut consumers = stream.consumers();
        while let Some(info) = consumers.try_next().await.map_err(unavailable)? {
            let Some((slot, _)) = owner(&info.name) else { continue };
            seen.insert(slot);
            let floor = acknowledged(&info);
            if info.num_pending > 0 || info.num_ack_pending > 0 {
                lowest = lowest.min(floor);
                continue;
            }
            // It may be behind on another server: the stream's own leader says what is left.
            let next = stream
                .raw_message_builder()
                .sequence(floor + 1)
                .next_by_subject(format!("cmdq.{slot}.>"))
                .send()
                .await;
            match next {
                Ok(message) => lowest = lowest.min(message.sequence - 1),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
        // Nobody has read a slot yet: all of it may be waiting.
        if seen.len() < usize::from(SLOTS) {
            return Ok(0);
        }
        let purged = stream.purge().sequence(lowest + 1).await.map_err(unavailable)?;
        Ok(purged.purged)
    }

    /// Commands that wait or are under way, over all slots that have been read.
    pub async fn queue_depth(&self) -> Result<u64, Error> {
        let stream = self.jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
        let mut depths: HashMap<u16, (u64, u64)> = HashMap::new();
        let mut consumers = stream.consumers();
        while let Some(info) = consumers.try_next().await.map_err(unavailable)? {
            let Some((slot, epoch)) = owner(&info.name) else { continue };
            let depth = info.num_pending + info.num_ack_pending as u64;
            let known = depths.entry(slot).or_insert((epoch, depth));
            if known.0 <= epoch {
                *known = (epoch, depth);
            }
        }
        Ok(depths.values().map(|(_, depth)| depth).sum())
    }
}

/// Metadata of a consumer: the last sequence that was acknowledged before it was made.
const FLOOR: &str = "flexcore_floor";

/// Slot and epoch in the name of a consumer.
fn owner(name: &str) -> Option<(u16, u64)> {
    let (slot, epoch) = name.strip_prefix("slot_")?.split_once('_')?;
    Some((slot.parse().ok()?, epoch.parse().ok()?))
}

/// The last sequence that is acknowledged, by the consumer itself or by those before it.
fn acknowledged(info: &consumer::Info) -> u64 {
    let before = info.config.metadata.get(FLOOR).and_then(|floor| floor.parse().ok());
    info.ack_floor.stream_sequence.max(before.unwrap_or(0))
}
