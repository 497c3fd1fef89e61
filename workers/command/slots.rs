//! The slots that this worker serves: it follows the cluster's map.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    time::Duration,
};

use flexcore_cluster::{Guard, Kind, Member};
use flexcore_domain::Slot;
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    queue::Reader,
    requests::{self, Here},
};

/// Pause before a slot is tried again that could not be taken up.
const RETRY: Duration = Duration::from_millis(200);
/// Longest time for a slot that is to be left to answer its work; then it is given away all the
/// same, and the rest of the work meets the new owner's commits.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(10);

/// A slot that is served.
struct Serving {
    epoch: u64,
    /// Cancelled: it is to be left when everything of it is answered.
    leave: CancellationToken,
    /// Cancelled: it is ours no longer, and is to be left at once.
    lost: CancellationToken,
}

/// Serves the slots that are assigned until the token is cancelled and the map says that others are to
/// have them, if there are others, and says so in time. Leaves those that are not assigned any more, and
/// tells the cluster when nothing of them is under way.
pub(super) async fn follow(here: Here, member: Member, stop: CancellationToken) {
    let mut assigned = member.assigned();
    let mut serving: HashMap<u16, Serving> = HashMap::new();
    let mut tasks = JoinSet::new();
    // The slot of each task, for one that panics.
    let mut slots: HashMap<task::Id, u16> = HashMap::new();
    let mut too_late = pin!(async {
        stop.cancelled().await;
        tokio::time::sleep(crate::TOLD_MAX).await;
    });
    loop {
        let now = assigned.borrow_and_update().clone();
        let (wanted, leaving) = (now.of(Kind::Command), now.leaving(Kind::Command));
        leave(&serving, &wanted, &leaving);
        for (number, epoch) in &wanted {
            let Some(slot) = Slot::new(*number) else { continue };
            if serving.contains_key(number) {
                continue;
            }
            let (leave, lost) = (CancellationToken::new(), CancellationToken::new());
            let guard = member.guard();
            let task =
                tasks.spawn(serve(here.clone(), guard, slot, *epoch, leave.clone(), lost.clone()));
            slots.insert(task.id(), *number);
            serving.insert(*number, Serving { epoch: *epoch, leave, lost });
        }
        let serves: BTreeSet<u16> = wanted.keys().chain(serving.keys()).copied().collect();
        metrics::gauge!("flexcore_slots_owned").set(wanted.len() as f64);
        member.report(Kind::Command, now.followed, serves);
        let stops = stop.is_cancelled();
        if stops && wanted.is_empty() && serving.is_empty() {
            break;
        }
        tokio::select! {
            () = stop.cancelled(), if !stops => if member.is_alone(Kind::Command).await { break },
            () = &mut too_late, if !wanted.is_empty() => break,
            changed = assigned.changed() => if changed.is_err() { break },
            Some(ended) = tasks.join_next_with_id() => {
                // A task that panicked has left its slot as well: it is taken up anew.
                let id = ended.as_ref().map_or_else(task::JoinError::id, |(id, ())| *id);
                if let Err(error) = ended {
                    tracing::error!(%error, "serving a slot failed");
                }
                if let Some(number) = slots.remove(&id) {
                    serving.remove(&number);
                }
            }
        }
    }
    for slot in serving.values() {
        slot.leave.cancel();
    }
    while tasks.join_next().await.is_some() {}
    let followed = assigned.borrow().followed;
    member.report(Kind::Command, followed, BTreeSet::new());
}

/// Leaves unwanted slots; a slot that cannot even be left in order is lost.
fn leave(
    serving: &HashMap<u16, Serving>,
    wanted: &BTreeMap<u16, u64>,
    leaving: &BTreeMap<u16, u64>,
) {
    for (number, slot) in serving {
        if wanted.get(number) == Some(&slot.epoch) {
            continue;
        }
        slot.leave.cancel();
        if leaving.get(number) != Some(&slot.epoch) {
            slot.lost.cancel();
        }
    }
}

/// Serves a slot until it is to be left. Returns when nothing of it is under way.
async fn serve(
    mut here: Here,
    guard: Guard,
    slot: Slot,
    epoch: u64,
    leave: CancellationToken,
    lost: CancellationToken,
) {
    here.lanes = here.lanes.own(slot, epoch);
    let (store, lanes) = (here.store.clone(), here.lanes.clone());
    let reader = Reader { store, lanes, guard, slot, epoch };
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
