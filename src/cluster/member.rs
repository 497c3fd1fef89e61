//! The handle that a process has on its membership.

use std::{collections::BTreeSet, sync::Arc};

use flexcore_broker::bucket::Entry;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    Assigned, Error, Guard, Map, MemberId, Record, Serves, Settings, WorkKind,
    bucket::{Bucket, MEMBER, parsed},
    node::{Ends, Node, RENEWALS},
    size,
};

/// A membership. Cheap to clone; it ends with [`Self::leave`], or with the process.
#[derive(Clone)]
pub struct Member {
    id: MemberId,
    bucket: Bucket,
    guard: Guard,
    map: watch::Receiver<Arc<Map>>,
    assigned: watch::Receiver<Assigned>,
    reports: mpsc::UnboundedSender<(WorkKind, Serves)>,
    looks: mpsc::UnboundedSender<()>,
    resigning: CancellationToken,
    leaving: CancellationToken,
    gone: CancellationToken,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Member {
    /// Joins. Returns when the member's record is stored. Fails when the broker does not answer, or
    /// takes no message as large as a record may get, and when the member's own would be too large.
    #[boxed::async_recursion]
    pub async fn join(client: &async_nats::Client, settings: Settings) -> Result<Self, Error> {
        size::check_broker(&settings.shared_out, client.max_payload())?;
        let bucket = Bucket::open(client, settings.replicas, settings.lease / RENEWALS).await?;
        let id = MemberId::new(&settings.name, &crate::random());
        let (tell_map, map) = watch::channel(Arc::default());
        let (tell_assigned, assigned) = watch::channel(Assigned::default());
        let (reports, reported) = mpsc::unbounded_channel();
        let (looks, wanted) = mpsc::unbounded_channel();
        let (leaving, gone) = (CancellationToken::new(), CancellationToken::new());
        let resigning = CancellationToken::new();
        let guard = Guard::new();
        let mut node = Node::new(bucket.clone(), id.clone(), &settings, guard.clone());
        size::check_member(&settings.kinds, node.record())?;
        node.told = Some((tell_map, tell_assigned));
        let hints = node.start().await?;
        let task = tokio::spawn({
            let ends = Ends { resigning: resigning.clone(), leaving: leaving.clone() };
            let gone = gone.clone();
            async move {
                // Also when it panics: whoever waits for it would wait for ever.
                let _gone = gone.drop_guard();
                node.run(hints, reported, wanted, ends).await;
            }
        });
        let task = Arc::new(AbortOnDropHandle::new(task));
        Ok(Self {
            id,
            bucket,
            guard,
            map,
            assigned,
            reports,
            looks,
            resigning,
            leaving,
            gone,
            _task: task,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &MemberId {
        &self.id
    }

    /// True if it may act just now.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.guard.clone()
    }

    /// The places that it is to serve. Empty while its lease does not hold.
    #[must_use]
    pub fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.clone()
    }

    /// The map as last read.
    #[must_use]
    pub fn map(&self) -> watch::Receiver<Arc<Map>> {
        self.map.clone()
    }

    /// Says what it serves of a kind, having followed a map: what is not in it, and was to be left,
    /// is given to others.
    pub fn report(&self, kind: WorkKind, followed: u64, places: BTreeSet<u16>) {
        // The task ends last: then nobody reads reports any more.
        let _ = self.reports.send((kind, Serves { followed, places }));
    }

    /// Asks for a look at the map soon: something suggests that it has changed.
    pub fn look(&self) {
        let _ = self.looks.send(());
    }

    /// True if nobody else is there to serve a kind, or nobody says so: then the places that this
    /// member leaves have no new owner to wait for.
    #[boxed::async_recursion]
    pub async fn is_alone(&self, kind: WorkKind) -> bool {
        let Ok(members) = self.bucket.entries(MEMBER).await else { return true };
        let serves = |entry: &Entry| {
            parsed::<Record>(entry)
                .is_some_and(|member| member.kinds.contains(kind.name) && !member.leaving)
        };
        !members.iter().any(|(id, entry)| id != self.id.as_str() && serves(entry))
    }

    /// Leads no longer, and does not want to: it is about to leave. Its places are given to others
    /// from now on; [`Self::assigned`] tells it so.
    pub fn resign(&self) {
        self.resigning.cancel();
    }

    /// Leaves: gives the leadership up, then the record. Its former places are given to others. To
    /// be called when it serves nothing any more.
    #[boxed::async_recursion]
    pub async fn leave(&self) {
        self.leaving.cancel();
        self.gone.cancelled().await;
    }
}
