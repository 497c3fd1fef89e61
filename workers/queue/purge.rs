//! Purges a queue of what is settled.

use std::time::Duration;

use flexcore_cluster::{Member, WorkKind};
use flexcore_eventstore::Error;
use flexcore_queue::Queue;
use flexcore_resilience::lasts;
use metrics::Gauge;
use tokio_util::sync::CancellationToken;

/// Time between purges.
const PURGE_EVERY: Duration = Duration::from_secs(5);

/// Has a queue purged of what all its places have settled, until the token is cancelled. One worker does it
/// for all, the owner of the first place of this kind. Its gauge says how many messages wait.
#[boxed::async_recursion]
pub async fn purge(
    queue: Queue,
    member: Member,
    kind: WorkKind,
    waiting: fn() -> Gauge,
    stop: CancellationToken,
) {
    let (stream, assigned) = (queue.described.stream, member.assigned());
    let (mut seen, mut failures) = (0, 0);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PURGE_EVERY) => {}
        }
        if !assigned.borrow().of(kind).contains_key(&0) {
            waiting().set(0.0);
            continue;
        }
        match queue.purge(seen).await.map_err(Error::from) {
            Ok(purged) => {
                (seen, failures) = (purged.stored, 0);
                waiting().set(purged.waiting as f64);
                if purged.gone > 0 {
                    tracing::debug!(stream, purged.gone, "settled messages left the queue");
                }
            }
            Err(error) => {
                failures += 1;
                // Nobody knows how many: the number from before would look like one of now.
                waiting().set(f64::NAN);
                if lasts(failures) {
                    tracing::warn!(%error, stream, failures, "the queue is not purged, and may fill up");
                }
            }
        }
    }
}
