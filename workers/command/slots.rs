//! The slots that this worker serves.

use std::time::Duration;

use flexcore_cluster::{Guard, Member};
use flexcore_domain::Slot;
use tokio_util::sync::CancellationToken;

use super::{
    queue::SlotReader,
    requests::{self, Here},
};
use crate::places::{self, Place};

/// Pause before a slot is tried again that could not be taken up.
const RETRY: Duration = Duration::from_millis(200);
/// Longest time for a slot that is to be left to answer its work; then it is given away all the
/// same, and the rest of the work meets the new owner's commits.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Serves the slots that are assigned, until the token is cancelled and others have them.
pub(super) async fn follow(here: Here, member: Member, stop: CancellationToken) {
    let guard = member.guard();
    places::follow(&member, crate::COMMANDS, stop, |place| {
        let slot = Slot::new(place.number)?;
        Some(serve(here.clone(), guard.clone(), slot, place))
    })
    .await;
}

/// Serves a slot until it is to be left. Returns when nothing of it is under way.
async fn serve(mut here: Here, guard: Guard, slot: Slot, Place { epoch, leave, lost, .. }: Place) {
    here.lanes = here.lanes.own(slot, epoch);
    let (store, lanes) = (here.store.clone(), here.lanes.clone());
    let reader = SlotReader { store, lanes, guard, slot, epoch };
    let answering = async {
        while let Err(error) = requests::serve(&here, slot, epoch, &leave).await {
            tracing::warn!(%error, %slot, "requests cannot be taken yet");
            tokio::time::sleep(RETRY).await;
            if leave.is_cancelled() {
                break;
            }
        }
    };
    let both = async { tokio::join!(answering, reader.run(leave.clone())) };
    let late = async {
        leave.cancelled().await;
        tokio::time::sleep(LEAVE_MAX).await;
    };
    tokio::select! {
        _ = both => {}
        () = lost.cancelled() => tracing::debug!(%slot, "lost"),
        () = late => tracing::warn!(%slot, "left before everything was answered"),
    }
    here.lanes.leave(slot).await;
}
