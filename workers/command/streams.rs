//! Streams that somebody deletes under running workers.

use std::time::Duration;

use flexcore_cluster::Member;
use flexcore_eventstore::EventStore;
use flexcore_resilience::lasts;
use tokio_util::sync::CancellationToken;

/// Time between looks. From a deletion to the next one stored commands stand still.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Has the missing streams made anew until the token is cancelled. One worker does it for all.
pub(super) async fn watch(store: EventStore, member: Member, stop: CancellationToken) {
    let assigned = member.assigned();
    let mut failures = 0;
    loop {
        let is_mine = assigned.borrow().of(crate::COMMANDS).contains_key(&0);
        let remade = if is_mine { store.remake_streams().await } else { Ok(()) };
        match remade {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                // What is just away passes without a word.
                if lasts(failures) || failures == 1 && !error.is_passing() {
                    tracing::error!(%error, failures, "streams are not looked after");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
