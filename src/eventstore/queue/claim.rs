//! An owner's claim on a slot's commands, and how far it has come with them.

use std::sync::Arc;

use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{Consumer, DeliverPolicy, pull},
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;
use flexcore_domain::{SLOTS, Slot};
use serde::{Deserialize, Serialize};

use super::{filter, next};
use crate::{
    Error, EventStore,
    ephemeral::{self, Ephemeral},
    topology, unavailable,
};

/// What stands in the bucket `flex_queue` under a slot's number, as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The owner that wrote it.
    epoch: u64,
    /// Stream sequence up to which every command of the slot has its outcome.
    settled: u64,
    /// The first command after that, when the owner came.
    first: Option<u64>,
    /// Owners that have begun with it.
    begun: u32,
}

impl Progress {
    /// What a new owner writes, when `first` is the first command that is left; `None` when a later
    /// owner has been there.
    fn claimed(self, epoch: u64, first: Option<u64>) -> Option<Self> {
        let begun = match first {
            None => 0,
            Some(_) if first != self.first => 1,
            // Made anew by the same owner, after a connection broke: nobody has died of it.
            Some(_) if epoch == self.epoch => self.begun,
            Some(_) => self.begun + 1,
        };
        (self.epoch <= epoch).then_some(Self { epoch, first, begun, ..self })
    }
}

/// A slot's commands in the hand of one owner. Another owner's claim ends it: it can record nothing
/// any more.
#[derive(Clone)]
pub struct Claim {
    store: EventStore,
    slot: Slot,
    progress: Progress,
    /// Sequence of what this owner wrote last.
    revision: u64,
    last: u64,
}

impl EventStore {
    /// Claims a slot's commands for the owner of this epoch. Fails with [`Error::Conflict`] when
    /// there is a later owner (or one has just written), and with [`Error::Unavailable`] when the broker is away.
    pub async fn claim_queue(&self, slot: Slot, epoch: u64) -> Result<Claim, Error> {
        let queue = self.jetstream.get_stream_no_info(topology::COMMANDS).await;
        let queue = queue.map_err(unavailable)?;
        let bucket = self.jetstream.get_stream_no_info(topology::QUEUE).await;
        let (before, revision) = read(&bucket.map_err(unavailable)?, slot).await?;
        let first = next(&queue, slot, before.settled).await?;
        let progress = before.claimed(epoch, first).ok_or(Error::Conflict)?;
        let claim = Claim { store: self.clone(), slot, progress, revision, last: 0 };
        let claim = claim.written().await?;
        // No earlier owner begins anything after this claim.
        let last = queue.get_info().await.map_err(unavailable)?.state.last_sequence;
        Ok(Claim { last, ..claim })
    }

    /// How far each slot is settled; a replica that is behind says less.
    pub(super) async fn settled(&self) -> Result<Vec<u64>, Error> {
        let mut settled = vec![0; usize::from(SLOTS)];
        let request = format!(r#"{{"multi_last":["{}"],"batch":{SLOTS}}}"#, subject("*"));
        let to = format!("$JS.API.DIRECT.GET.{}", topology::QUEUE);
        let mut replies = self.inbox.request(to, None, Bytes::from(request)).await?;
        loop {
            let message = replies.next().await?;
            match message.status.map(|status| status.as_u16()) {
                None => {}
                // 204: the batch ends; 404: nothing there.
                Some(204 | 404) => return Ok(settled),
                Some(status) => return Err(unavailable(format!("direct get answered {status}"))),
            }
            let headers = message.headers.as_ref();
            let subject = headers.and_then(|headers| headers.get("Nats-Subject"));
            let slot = subject.and_then(|subject| subject.as_str().rsplit('.').next());
            let place = slot.and_then(|slot| slot.parse::<usize>().ok());
            if let Some(place) = place.and_then(|place| settled.get_mut(place)) {
                *place = decode(&message.payload)?.settled;
            }
        }
    }
}

impl Claim {
    /// Stream sequence of the last command that may have been begun by an earlier owner: the last
    /// there was when this one came.
    #[must_use]
    pub fn last_before(&self) -> u64 {
        self.last
    }

    /// The first command that had no outcome, and how many owners, this one among them, have begun
    /// with it and not come further.
    #[must_use]
    pub fn first(&self) -> Option<(u64, u32)> {
        self.progress.first.map(|sequence| (sequence, self.progress.begun))
    }

    /// The commands that are left, in order, as long as the broker keeps the reader. Nothing is
    /// acknowledged to it: [`Self::settle`] says how far they are done.
    pub async fn messages(&self, batch: usize) -> Result<Messages, Error> {
        let config = pull::Config {
            name: Some(format!("slot_{}_{}", self.slot, self.progress.epoch)),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.progress.settled + 1,
            },
            filter_subject: filter(self.slot),
            ..pull::Config::default()
        };
        let stream = topology::COMMANDS;
        let (reader, consumer) = Ephemeral::create(&self.store.jetstream, stream, config).await?;
        let stream = ephemeral::messages(&consumer, batch).await?;
        Ok(Messages { stream, reader: Reader { consumer: Arc::new(consumer), _kept: reader } })
    }

    /// Records that every command up to this stream sequence has its outcome. Returns the claim as
    /// it goes on. Fails with [`Error::Conflict`] when another owner has come, and with
    /// [`Error::Unavailable`] when the outcome is unknown: claim the slot again.
    pub async fn settle(mut self, sequence: u64) -> Result<Self, Error> {
        self.progress = Progress { settled: sequence, first: None, begun: 0, ..self.progress };
        self.written().await
    }

    async fn written(mut self) -> Result<Self, Error> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", self.revision.to_string());
        let body = serde_json::to_vec(&self.progress).map_err(unavailable)?;
        let subject = subject(&self.slot.to_string());
        self.revision = self.store.acknowledged.store(subject, headers, body.into()).await?;
        Ok(self)
    }
}

/// A slot's commands as the broker hands them out.
pub struct Messages {
    /// The commands.
    pub stream: pull::Stream,
    /// To be kept as long as they are read.
    pub reader: Reader,
}

/// Who reads a slot's commands, as the broker knows it; given back when this is dropped.
pub struct Reader {
    consumer: Arc<Consumer<pull::Config>>,
    _kept: Ephemeral,
}

impl Reader {
    /// Asks how many messages the broker has handed to this reader. When fewer have come, and go on
    /// being fewer, some were lost with a connection. Fails with [`Error::Unavailable`] when the
    /// broker is away, or has lost the reader.
    pub fn handed_out(&self) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
        let consumer = self.consumer.clone();
        async move {
            let info = consumer.get_info().await.map_err(unavailable)?;
            Ok(info.delivered.consumer_sequence)
        }
    }
}

fn subject(slot: &str) -> String {
    format!("$KV.flex_queue.{slot}")
}

fn decode(body: &[u8]) -> Result<Progress, Error> {
    let broken = |error| unavailable(format!("how far a slot's commands are done: {error}"));
    serde_json::from_slice(body).map_err(broken)
}

/// What stands there, and its sequence. The stream's leader is asked.
async fn read(bucket: &Stream<()>, slot: Slot) -> Result<(Progress, u64), Error> {
    match bucket.get_last_raw_message_by_subject(&subject(&slot.to_string())).await {
        Ok(message) => Ok((decode(&message.payload)?, message.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            Ok((Progress::default(), 0))
        }
        Err(error) => Err(unavailable(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_that_comes_no_further_counts() {
        let first = Progress::default().claimed(5, Some(9)).unwrap();
        assert_eq!(first, Progress { epoch: 5, settled: 0, first: Some(9), begun: 1 });
        assert_eq!(first.claimed(5, Some(9)).unwrap().begun, 1, "the same owner, connected anew");
        let second = first.claimed(8, Some(9)).unwrap();
        assert_eq!((second.epoch, second.begun), (8, 2));
        assert_eq!(second.claimed(9, Some(12)).unwrap().begun, 1, "another command");
    }

    #[test]
    fn owners_of_an_idle_slot_have_begun_nothing() {
        let mut progress = Progress { epoch: 1, settled: 7, ..Progress::default() };
        for epoch in 2..30 {
            progress = progress.claimed(epoch, None).unwrap();
        }
        assert_eq!(progress, Progress { epoch: 29, settled: 7, first: None, begun: 0 });
        assert_eq!(progress.claimed(30, Some(8)).unwrap().begun, 1);
    }

    #[test]
    fn an_earlier_owner_has_no_claim() {
        let now = Progress { epoch: 8, settled: 7, ..Progress::default() };
        assert_eq!(now.claimed(7, None), None);
        assert!(now.claimed(8, None).is_some());
    }
}
