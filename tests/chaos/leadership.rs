//! The leaders: every write to the cluster's bucket that took effect, in the order of the stream.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::{self, consumer::pull};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::task::AbortHandle;

use crate::{checker::epochs::Effect, history::History};

/// The bucket's stream and subjects.
const STREAM: &str = "KV_flex_cluster";
const PREFIX: &str = "$KV.flex_cluster.";

/// A change of the leader, as the stream has it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) epoch: u64,
    /// The node's name.
    pub(crate) node: String,
    /// When the broker stored it, on the history's clock.
    pub(crate) at_ns: u64,
}

/// Follows the bucket until it is dropped.
pub(crate) struct Leadership {
    seen: Arc<Mutex<Seen>>,
    task: AbortHandle,
}

#[derive(Default)]
struct Seen {
    effects: Vec<Effect>,
    changes: Vec<Change>,
}

impl Leadership {
    pub(crate) fn follow(client: async_nats::Client, history: History) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let task = tokio::spawn({
            let seen = seen.clone();
            async move {
                let mut after = 0;
                loop {
                    // A consumer that went with its broker is made anew where it stopped.
                    let _ended = read(&client, &history, &seen, &mut after).await;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
        Self { seen, task: task.abort_handle() }
    }

    /// The last leader that there was.
    pub(crate) fn last(&self) -> Option<Change> {
        self.seen.lock().unwrap().changes.last().cloned()
    }

    /// Waits for a leader with a later epoch.
    pub(crate) async fn next(&self, after_epoch: u64, most: Duration) -> Option<Change> {
        let newer = async {
            loop {
                match self.last() {
                    Some(change) if change.epoch > after_epoch => return change,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(most, newer).await.ok()
    }

    /// Everything that leaders wrote.
    pub(crate) fn effects(&self) -> Vec<Effect> {
        self.seen.lock().unwrap().effects.clone()
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(
    client: &async_nats::Client,
    history: &History,
    seen: &Mutex<Seen>,
    after: &mut u64,
) -> Option<()> {
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await.ok()?;
    let config = pull::OrderedConfig {
        deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence {
            start_sequence: *after + 1,
        },
        ..pull::OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await.ok()?.messages().await.ok()?;
    while let Some(message) = messages.next().await {
        let message = message.ok()?;
        let info = message.info().ok()?;
        let (sequence, stored) = (info.stream_sequence, info.published.unix_timestamp_nanos());
        *after = sequence;
        let value: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let on = message.subject.strip_prefix(PREFIX).unwrap_or_default();
        let (holder, epoch) = match on {
            "leader" => (value["member"].as_str(), value["epoch"].as_u64().or(Some(sequence))),
            "map" => (value["leader"].as_str(), value["epoch"].as_u64()),
            _ => continue,
        };
        let (Some(holder), Some(epoch)) = (holder, epoch) else { continue };
        let mut seen = seen.lock().unwrap();
        let (on, holder) = (on.to_owned(), holder.to_owned());
        if on == "leader" && seen.changes.last().is_none_or(|last| last.epoch < epoch) {
            let at_ns = stored - i128::from(history.begun_ms) * 1_000_000;
            let node = holder.rsplit_once('-').map_or("", |(node, _)| node).to_owned();
            let at_ns = u64::try_from(at_ns.max(0)).unwrap();
            seen.changes.push(Change { epoch, node, at_ns });
        }
        seen.effects.push(Effect { on, epoch, holder });
    }
    None
}
