//! The slots that this worker serves.

use std::time::Duration;

use flexcore_cluster::{Guard, Member};
use flexcore_domain::Slot;
use tokio_util::sync::CancellationToken;

use super::{
    requests::{self, Answerer},
    stored::Stored,
};
use crate::{
    places::{self, ServedPlace},
    queue::{PlaceReader, ProgressMade},
};

/// Pause before a slot is tried again that could not be taken up.
const RETRY: Duration = Duration::from_millis(200);

/// Serves the slots that are assigned, until the token is cancelled and others have them.
pub(super) async fn follow(
    answerer: Answerer,
    progress_made: ProgressMade,
    member: Member,
    stop: CancellationToken,
) {
    let guard = member.guard();
    places::follow(&member, crate::COMMANDS, stop, |place| {
        let slot = Slot::new(place.number)?;
        Some(serve(answerer.clone(), progress_made.clone(), guard.clone(), slot, place))
    })
    .await;
}

/// Serves a slot until it is to be left. Returns when nothing of it is under way.
async fn serve(
    mut answerer: Answerer,
    progress_made: ProgressMade,
    guard: Guard,
    slot: Slot,
    place: ServedPlace,
) {
    let (epoch, leave) = (place.epoch, &place.leave);
    answerer.lanes = answerer.lanes.own(slot, epoch);
    let queue = answerer.store.command_queue().clone();
    let handler = Stored { store: answerer.store.clone(), lanes: answerer.lanes.clone(), slot };
    let reader = PlaceReader { queue, handler, progress_made, guard, place: place.clone() };
    let answering = async {
        while let Err(error) = requests::serve(&answerer, slot, epoch, leave).await {
            tracing::warn!(%error, %slot, "requests cannot be taken yet");
            tokio::time::sleep(RETRY).await;
            if leave.is_cancelled() {
                break;
            }
        }
    };
    let both = async {
        tokio::join!(answering, reader.run());
    };
    place.until_left(both).await;
    answerer.lanes.leave(slot).await;
}
