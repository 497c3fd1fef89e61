//! Snapshots: an aggregate's state at a version. Losing one costs a longer load, nothing else.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_domain::{AggregateKey, CommandHash, CommandId, Hash, Secret, limits};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{Error, EventStore, Expected, direct, topology, unavailable};

/// Blocks of fingerprints that are asked for at once.
const BLOCKS_AT_ONCE: usize = 16;

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
    /// When that commit was decided, in milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
    /// The state.
    pub state: Box<RawValue>,
    /// The last command ids, oldest first.
    pub commands: Vec<RememberedCommand>,
    /// The command ids before those.
    pub older: OlderCommands,
}

/// Fingerprints of command ids that an aggregate does not remember whole. Blocks that are full do not
/// change any more: each is a message of its own, which is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderCommands {
    /// The key of the fingerprints.
    pub secret: Secret,
    /// Blocks that are full.
    pub full: usize,
    /// The one that is not, in the log's order.
    pub open: Block,
    /// The full ones, oldest first.
    #[serde(skip)]
    pub blocks: Vec<Arc<Block>>,
    /// Those of the first that the broker has.
    #[serde(skip)]
    pub kept: usize,
}

/// Fingerprints of command ids, and where in the log their commits are, in the same order. A full
/// block is sorted by both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// By [`Secret::fingerprint`].
    pub prints: Vec<u32>,
    /// Stream sequences.
    pub sequences: Vec<u64>,
}

/// A full block as the broker has it. The secret says of which memory it is: a worker that did not
/// find a snapshot makes another one.
#[derive(Serialize, Deserialize)]
struct KeptBlock<B> {
    secret: Secret,
    block: B,
}

/// A command that was accepted, and its outcome.
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
    /// The sequence that the aggregate's subject must end with for an append on this snapshot.
    #[must_use]
    pub fn expected(&self) -> Expected {
        Expected { sequence: self.sequence, hash: self.hash }
    }
}

impl Block {
    fn is_full(&self) -> bool {
        [self.prints.len(), self.sequences.len()] == [limits::FINGERPRINTS_PER_BLOCK; 2]
    }
}

fn subject(key: &AggregateKey) -> String {
    format!("$KV.flex_snapshots.{}", key.subject_part())
}

/// Where a full block is kept. No id has a dot.
fn block_subject(key: &AggregateKey, number: usize) -> String {
    format!("{}.ids.{number}", subject(key))
}

impl EventStore {
    /// Keeps a snapshot, after those of its blocks that the broker does not have. Fails with
    /// [`Error::TooLarge`] when it is larger than a message, and when the broker is away or has no room.
    #[boxed::async_recursion]
    pub async fn save_snapshot(
        &self,
        key: &AggregateKey,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        self.room.check()?;
        let older = &snapshot.older;
        for (number, block) in older.blocks.iter().enumerate().skip(older.kept) {
            let kept = KeptBlock { secret: older.secret, block: &**block };
            self.put(block_subject(key, number), &kept).await?;
        }
        self.put(subject(key), snapshot).await
    }

    async fn put(&self, subject: String, body: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(body).map_err(unavailable)?;
        self.acknowledged.store(subject, HeaderMap::new(), body.into()).await?;
        Ok(())
    }

    /// The aggregate's snapshot; `None` when there is none that can be read whole.
    #[boxed::async_recursion]
    pub async fn snapshot(&self, key: &AggregateKey) -> Result<Option<Snapshot>, Error> {
        let Some(mut snapshot) = self.get::<Snapshot>(subject(key)).await? else { return Ok(None) };
        let secret = snapshot.older.secret;
        let blocks = (0..snapshot.older.full).map(async |number| {
            let kept = self.get::<KeptBlock<Block>>(block_subject(key, number)).await?;
            Ok::<_, Error>(kept.filter(|kept| kept.secret == secret && kept.block.is_full()))
        });
        let blocks = futures::stream::iter(blocks).buffered(BLOCKS_AT_ONCE);
        let blocks: Vec<Option<KeptBlock<Block>>> = blocks.try_collect().await?;
        let blocks: Option<Vec<_>> =
            blocks.into_iter().map(|kept| kept.map(|kept| Arc::new(kept.block))).collect();
        // Without one of them it would take some old commands for new ones.
        let Some(blocks) = blocks else { return Ok(None) };
        snapshot.older.kept = blocks.len();
        snapshot.older.blocks = blocks;
        Ok(Some(snapshot))
    }

    async fn get<T: DeserializeOwned>(&self, subject: String) -> Result<Option<T>, Error> {
        let to = format!("{}.{subject}", direct::get(topology::SNAPSHOTS));
        let mut replies = self.inbox.request(to, None, Bytes::new()).await?;
        let message = replies.next().await?;
        match message.status.map(|status| status.as_u16()) {
            None => Ok(serde_json::from_slice(&message.payload).ok()),
            Some(404) => Ok(None),
            Some(status) => Err(unavailable(format!("direct get answered {status}"))),
        }
    }
}
