//! Streams that somebody deletes under running workers.

use std::time::Duration;

use flexcore_cluster::Member;
use flexcore_eventstore::{Error, EventStore};
use flexcore_resilience::lasts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time between looks. From a deletion to the next one stored commands stand still.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks until the token is cancelled. One worker has the missing streams made anew for all. Each one tells
/// its readers when the claims of their slots have gone: a slot in which nothing happens would not notice,
/// and what was settled there would count as waiting.
pub(super) async fn watch(
    store: EventStore,
    member: Member,
    made: watch::Sender<Option<i128>>,
    stop: CancellationToken,
) {
    let assigned = member.assigned();
    let mut failures = 0;
    loop {
        let is_mine = assigned.borrow().of(crate::COMMANDS).contains_key(&0);
        match look(&store, is_mine, &made).await {
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

async fn look(
    store: &EventStore,
    is_mine: bool,
    made: &watch::Sender<Option<i128>>,
) -> Result<(), Error> {
    let remade = if is_mine { store.remake_streams().await } else { Ok(()) };
    if let Some(now) = store.progress_made_ns().await? {
        made.send_if_modified(|known| is_another(known, now));
    }
    remade
}

/// Notes when the stream was made. Returns true if it was another one before.
fn is_another(known: &mut Option<i128>, now: i128) -> bool {
    known.replace(now).is_some_and(|before| before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_go_with_the_stream_and_with_nothing_else() {
        let mut known = None;
        let found = [5, 5, 9, 9, 3].map(|now| is_another(&mut known, now));
        assert_eq!(found, [false, false, true, false, true]);
    }
}
