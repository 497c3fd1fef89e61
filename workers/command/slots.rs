//! Which slots this worker serves: it follows the cluster's map.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use flexcore_cluster::{Kind, Member};
use flexcore_domain::Slot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    queue::Reader,
    requests::{self, Here},
};

/// Pause before a slot is tried again that could not be taken up.
const RETRY: Duration = Duration::from_millis(200);
/// How long a slot that is to be left may take to answer what it has taken on; then it is given away
/// all the same, and what is left of it meets the new owner's commits.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Serves the slots that are assigned until the token is cancelled, and leaves those that are not
/// any more: it tells the cluster when nothing of them is under way.
pub(super) async fn follow(here: Here, member: Member, stop: CancellationToken) {
    let mut assigned = member.assigned();
    let mut serving: HashMap<u16, (u64, CancellationToken)> = HashMap::new();
    let mut tasks = JoinSet::new();
    while !stop.is_cancelled() {
        let now = assigned.borrow_and_update().clone();
        let wanted = now.of(Kind::Command);
        for (number, (epoch, token)) in &serving {
            if wanted.get(number) != Some(epoch) {
                token.cancel();
            }
        }
        take_up(&here, &wanted, &mut serving, &mut tasks);
        let serves: BTreeSet<u16> = wanted.keys().chain(serving.keys()).copied().collect();
        metrics::gauge!("flexcore_slots_owned").set(wanted.len() as f64);
        member.report(Kind::Command, now.followed, serves);
        tokio::select! {
            () = stop.cancelled() => {}
            changed = assigned.changed() => if changed.is_err() { break },
            Some(left) = tasks.join_next() => {
                // A slot's task that panicked has left it as well: it is reported, and taken up anew.
                match left {
                    Ok(number) => drop(serving.remove(&number)),
                    Err(error) => {
                        tracing::error!(%error, "serving a slot failed");
                        serving.retain(|_, (_, token)| !token.is_cancelled());
                    }
                }
            }
        }
    }
    for (_, token) in serving.values() {
        token.cancel();
    }
    while tasks.join_next().await.is_some() {}
    let followed = assigned.borrow().followed;
    member.report(Kind::Command, followed, BTreeSet::new());
}

fn take_up(
    here: &Here,
    wanted: &BTreeMap<u16, u64>,
    serving: &mut HashMap<u16, (u64, CancellationToken)>,
    tasks: &mut JoinSet<u16>,
) {
    for (number, epoch) in wanted {
        let Some(slot) = Slot::new(*number) else { continue };
        if serving.contains_key(number) {
            continue;
        }
        let token = CancellationToken::new();
        serving.insert(*number, (*epoch, token.clone()));
        tasks.spawn(serve(here.clone(), slot, *epoch, token));
    }
}

/// Serves a slot until the token is cancelled. Returns its number when nothing of it is under way.
async fn serve(here: Here, slot: Slot, epoch: u64, stop: CancellationToken) -> u16 {
    let reader = Reader { store: here.store.clone(), lanes: here.lanes.clone(), slot, epoch };
    let answering = async {
        while let Err(error) = requests::serve(&here, slot, epoch, &stop).await {
            tracing::warn!(%error, %slot, "requests cannot be taken yet");
            tokio::time::sleep(RETRY).await;
            if stop.is_cancelled() {
                break;
            }
        }
    };
    let both = async { tokio::join!(answering, reader.run(stop.clone())) };
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(LEAVE_MAX).await;
    };
    tokio::select! {
        _ = both => {}
        () = late => tracing::warn!(%slot, "left before everything was answered"),
    }
    here.lanes.forget(slot);
    slot.number()
}
