//! Snapshots: an aggregate's state at a version. Losing one costs a longer load, nothing else.

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_domain::{AggregateKey, CommandHash, CommandId, Hash};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, EventStore, Expected, topology, unavailable};

/// An aggregate at a version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Fingerprint of the `evolve` and `upcast` functions that made it: with others it is void.
    pub fingerprint: String,
    /// The aggregate's version.
    pub version: u64,
    /// Stream sequence of the last commit folded.
    pub sequence: u64,
    /// That commit's hash.
    pub hash: Hash,
    /// The state.
    pub state: Box<RawValue>,
    /// The last command ids, oldest first.
    pub commands: Vec<RememberedCommand>,
}

/// A command that was accepted, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedCommand {
    /// Its id.
    pub id: CommandId,
    /// Hash of its name and payload.
    pub hash: CommandHash,
    /// The aggregate's version after it.
    pub version: u64,
    /// Stream sequence of its commit.
    pub sequence: u64,
}

impl Snapshot {
    /// What the aggregate's subject must end with for an append on this snapshot.
    #[must_use]
    pub fn expected(&self) -> Expected {
        Expected { sequence: self.sequence, hash: self.hash }
    }
}

fn subject(key: &AggregateKey) -> String {
    format!("$KV.flex_snapshots.{}", key.subject_part())
}

impl EventStore {
    /// Keeps a snapshot. Fails with [`Error::TooLarge`] when it is larger than a message, and when the
    /// broker is away or has no room.
    pub async fn save_snapshot(
        &self,
        key: &AggregateKey,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        self.room.check()?;
        let body = serde_json::to_vec(snapshot).map_err(unavailable)?;
        self.acknowledged.store(subject(key), HeaderMap::new(), body.into()).await?;
        Ok(())
    }

    /// The aggregate's snapshot; `None` when there is none that can be read.
    pub async fn snapshot(&self, key: &AggregateKey) -> Result<Option<Snapshot>, Error> {
        let to = format!("$JS.API.DIRECT.GET.{}.{}", topology::SNAPSHOTS, subject(key));
        let mut replies = self.inbox.request(to, None, Bytes::new()).await?;
        let message = replies.next().await?;
        match message.status.map(|status| status.as_u16()) {
            None => Ok(serde_json::from_slice(&message.payload).ok()),
            Some(404) => Ok(None),
            Some(status) => Err(unavailable(format!("direct get answered {status}"))),
        }
    }
}
