//! What a lane has others do for it: the log's loads and snapshots, and decisions that come later.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Once, time::Duration};

use flexcore_domain::{AggregateKey, Refusal};
use flexcore_eventstore::{Error, EventStore, Expected, snapshot::Snapshot};
use futures::FutureExt as _;

use super::{
    deciders::{Fingerprint, LaterDecider, NoDecision, Proposals, ToDecide},
    messages::{Input, Loaded},
};

/// That a snapshot is too large has been said.
static TOO_LARGE_SAID: Once = Once::new();

/// Keeps a snapshot. Without it loads take longer, and that is all. Returns what the lane is to know.
pub(super) async fn keep(
    store: &EventStore,
    key: AggregateKey,
    snapshot: &Snapshot,
) -> Option<Input> {
    match store.save_snapshot(&key, snapshot).await {
        Ok(()) => {
            let older = &snapshot.older;
            let (secret, count) = (older.secret, older.full);
            return (older.kept < count).then_some(Input::BlocksKept { key, secret, count });
        }
        // It will be the same each time: one line is enough.
        Err(error @ Error::TooLarge(_)) => {
            metrics::counter!("flexcore_snapshots_too_large_total").increment(1);
            TOO_LARGE_SAID.call_once(|| tracing::warn!(%error, %key, "a snapshot is not kept"));
        }
        Err(error) => tracing::debug!(%error, "a snapshot was not kept"),
    }
    None
}

/// The answer of a decider that answers later. It always comes: after its time, and when the decider
/// panics, too.
pub(super) async fn decided(decider: Option<LaterDecider>, to_decide: ToDecide) -> Proposals {
    let Some(decider) = decider else {
        return Err(NoDecision::Away("the aggregate's decider is not there any more".to_owned()));
    };
    let asked = AssertUnwindSafe(async move { decider(to_decide).await }).catch_unwind();
    match tokio::time::timeout(DECIDED_WITHIN, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => {
            Err(NoDecision::Refused(Refusal::Faulty("the aggregate's decider panicked".to_owned())))
        }
        Err(_) => {
            let seconds = DECIDED_WITHIN.as_secs();
            let message = format!("the aggregate's decider did not answer within {seconds} s");
            Err(NoDecision::Refused(Refusal::Exhausted(message)))
        }
    }
}

/// Time that a decider has which answers later: some hops to another process, and twenty times what a
/// function may take. An append and its answer still fit into the time of a waiting client.
pub(super) const DECIDED_WITHIN: Duration = Duration::from_secs(2);

/// The first commits after `after`; a long aggregate starts from its snapshot when that one is of use.
pub(super) async fn load(
    store: &EventStore,
    key: &AggregateKey,
    after: Expected,
    fingerprint: &Fingerprint,
) -> Result<Loaded, Error> {
    let mut page = store.load_page(key, after.sequence).await?;
    let mut snapshot = None;
    if page.more {
        snapshot = store.snapshot(key).await.unwrap_or_default().filter(|snapshot| {
            snapshot.fingerprint == fingerprint.as_str() && snapshot.sequence > after.sequence
        });
        if let Some(snapshot) = &snapshot {
            page = store.load_page(key, snapshot.sequence).await?;
        }
    }
    Ok(Loaded { snapshot, commits: page.commits, more: page.more })
}

/// Time for a load while the broker has no room, with the wait for its turn among other loads. A client's
/// command is begun when a quarter of its time is left at least: 1.5 s of a gateway's 6 s.
const LOADED_WITHIN: Duration = Duration::from_secs(1);

/// As [`load`], for a client's command. While the broker has no room nothing can come of one that is new: a
/// load that takes long then, or fails, ends with [`Error::NoRoom`].
pub(super) async fn load_while_there_is_room(
    store: &EventStore,
    key: &AggregateKey,
    after: Expected,
    fingerprint: &Fingerprint,
) -> Result<Loaded, Error> {
    let mut loading = pin!(load(store, key, after, fingerprint));
    loop {
        let result = tokio::time::timeout(LOADED_WITHIN, &mut loading).await;
        if matches!(result, Err(_) | Ok(Err(Error::Unavailable(_)))) {
            store.check_room()?;
        }
        if let Ok(result) = result {
            return result;
        }
    }
}
