//! The places of a kind of work that this worker serves: it follows the cluster's map.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    time::Duration,
};

use flexcore_cluster::{Assigned, Member, WorkKind};
use tokio::{
    sync::watch,
    task::{self, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// Longest time for a place that is to be left to answer its work; then it is given away all the
/// same, and the rest of the work meets what the new owner has done.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(10);

/// The places of one kind of work that the map gives to this worker.
pub(crate) struct OwnPlaces {
    member: Member,
    kind: WorkKind,
    assigned: watch::Receiver<Assigned>,
    /// As it was at the last look.
    now: Assigned,
}

impl OwnPlaces {
    pub(crate) fn of(member: &Member, kind: WorkKind) -> Self {
        let (assigned, now) = (member.assigned(), Assigned::default());
        Self { member: member.clone(), kind, assigned, now }
    }

    /// Looks at the map. Returns the places to be served, each with the epoch under which it was given.
    pub(crate) fn look(&mut self) -> BTreeMap<u16, u64> {
        self.now = self.assigned.borrow_and_update().clone();
        self.now.of(self.kind)
    }

    /// The places that are to be left when everything of them is answered, as of the last look.
    fn leaving(&self) -> BTreeMap<u16, u64> {
        self.now.leaving(self.kind)
    }

    /// Tells the cluster that the places to be served are, as of the last look, and others still: the map
    /// gives a place on when it is no longer among them.
    pub(crate) fn report(&self, others: impl IntoIterator<Item = u16>) {
        let serves = self.now.of(self.kind).into_keys().chain(others).collect();
        self.member.report(self.kind, self.now.followed, serves);
    }

    fn report_none(&self) {
        self.member.report(self.kind, self.assigned.borrow().followed, BTreeSet::new());
    }

    /// Returns when the map has changed since the last look. Fails when it is not followed any more.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.assigned.changed().await
    }

    /// True if nobody else is there to take the places.
    async fn is_alone(&self) -> bool {
        self.member.is_alone(self.kind).await
    }

    /// Says that nothing is served any more, until the map has taken the places: they are given to others
    /// when their owner has said so in answer to a map that asks for it.
    pub(crate) async fn hand_over(&mut self) {
        let alone = self.is_alone().await;
        loop {
            let wanted = self.look();
            self.report_none();
            let none = wanted.is_empty() && self.leaving().is_empty();
            if none || alone || self.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A place to be served, of a kind of work.
#[derive(Clone)]
pub struct ServedPlace {
    /// Its number.
    pub number: u16,
    /// Under which it was given.
    pub epoch: u64,
    /// Cancelled: it is to be left when everything of it is answered.
    pub leave: CancellationToken,
    /// Cancelled: another worker may have it, and it is to be left at once.
    pub lost: CancellationToken,
}

impl ServedPlace {
    /// Has the place's work done until it ends by itself, which it does when the place is to be left and
    /// everything is answered. Drops it when the place is lost, or has not been left in time.
    pub async fn until_left(&self, work: impl Future<Output = ()>) {
        let late = async {
            self.leave.cancelled().await;
            tokio::time::sleep(LEAVE_MAX).await;
        };
        let place = self.number;
        tokio::select! {
            () = work => {}
            () = self.lost.cancelled() => tracing::debug!(place, "lost"),
            () = late => tracing::warn!(place, "left before everything was answered"),
        }
    }
}

/// Serves the places of a kind that are assigned until the token is cancelled and the map says that others
/// are to have them, if there are others, and says so in time. Leaves those that are not assigned any more,
/// and tells the cluster when nothing of them is under way. `serve` returns when it has left the place;
/// `None`: there is no such place.
pub async fn follow<S>(
    member: &Member,
    kind: WorkKind,
    stop: CancellationToken,
    serve: impl Fn(ServedPlace) -> Option<S>,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let mut own = OwnPlaces::of(member, kind);
    let mut serving: HashMap<u16, ServedPlace> = HashMap::new();
    let mut tasks = JoinSet::new();
    // The place of each task, for one that panics.
    let mut places: HashMap<task::Id, u16> = HashMap::new();
    let mut too_late = pin!(async {
        stop.cancelled().await;
        tokio::time::sleep(crate::TOLD_MAX).await;
    });
    loop {
        let wanted = own.look();
        leave(&serving, &wanted, &own.leaving());
        for (number, epoch) in &wanted {
            if serving.contains_key(number) {
                continue;
            }
            let (leave, lost) = (CancellationToken::new(), CancellationToken::new());
            let place = ServedPlace { number: *number, epoch: *epoch, leave, lost };
            let Some(work) = serve(place.clone()) else { continue };
            places.insert(tasks.spawn(work).id(), *number);
            serving.insert(*number, place);
        }
        if kind == crate::COMMANDS {
            metrics::gauge!("flexcore_slots_owned").set(wanted.len() as f64);
        }
        own.report(serving.keys().copied());
        let stops = stop.is_cancelled();
        if stops && wanted.is_empty() && serving.is_empty() {
            break;
        }
        tokio::select! {
            () = stop.cancelled(), if !stops => if own.is_alone().await { break },
            () = &mut too_late, if !wanted.is_empty() => break,
            changed = own.changed() => if changed.is_err() { break },
            Some(ended) = tasks.join_next_with_id() => {
                if let Some(number) = places.remove(&ended_task(ended)) {
                    serving.remove(&number);
                }
            }
        }
    }
    for place in serving.values() {
        place.leave.cancel();
    }
    while tasks.join_next().await.is_some() {}
    own.report_none();
}

/// Which task has ended. One that panicked has left its place as well: it is taken up anew.
fn ended_task(ended: Result<(task::Id, ()), task::JoinError>) -> task::Id {
    ended.map_or_else(
        |error| {
            tracing::error!(%error, "serving a place failed");
            error.id()
        },
        |(id, ())| id,
    )
}

/// Leaves unwanted places; one that cannot even be left in order is lost.
fn leave(
    serving: &HashMap<u16, ServedPlace>,
    wanted: &BTreeMap<u16, u64>,
    leaving: &BTreeMap<u16, u64>,
) {
    for (number, place) in serving {
        if wanted.get(number) == Some(&place.epoch) {
            continue;
        }
        place.leave.cancel();
        if leaving.get(number) != Some(&place.epoch) {
            place.lost.cancel();
        }
    }
}
