//! State that every process folds from the log: what is in force now, and every change after it. A
//! process has one reader of each, however many follow it.

use std::{sync::Arc, time::Duration};

use flexcore_domain::AggregateKey;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::{Error, EventStore, Filter, Read, Recorded, Subscription, topology, unavailable};

/// Commits that are taken up at once.
const COMMITS_AT_ONCE: usize = 100;
/// Duration of one wait for a commit before the task looks whether anybody still follows.
const WAIT: Duration = Duration::from_secs(5);

/// The way in which a state is folded from the log. Its default is the state of an empty log.
pub(crate) struct Fold<S> {
    /// Its name for people, in the plural.
    pub(crate) name: &'static str,
    /// Its commits, and their subjects. The last one of each aggregate says all that counts.
    pub(crate) filter: Filter,
    pub(crate) subjects: &'static str,
    /// Takes up a commit.
    pub(crate) put: fn(&mut S, &Recorded),
    /// Takes up that an aggregate's commit cannot be read, and why.
    pub(crate) unreadable: fn(&mut S, &AggregateKey, String),
    /// Looks up what the state lacks. Done again after the next wait when the broker is away.
    pub(crate) complete: for<'a> fn(&'a EventStore, &'a mut S) -> BoxFuture<'a, Result<(), Error>>,
}

impl<S: Clone + Default + Send + Sync + 'static> Fold<S> {
    /// The state as it is now, and each after it. Ends when every receiver is gone. Fails when the
    /// broker is away.
    pub(crate) async fn watch(self, store: &EventStore) -> Result<watch::Receiver<Arc<S>>, Error> {
        let mut subscription = store.subscribe(self.filter.clone(), 1).await?;
        let mut state = S::default();
        // Not as many as there are where it is read: that replica may be behind.
        let last = store.leaders.last_on(topology::EVENTS, self.subjects, 0).await?;
        while subscription.read_to() < last {
            let wait = crate::REQUEST_TIMEOUT;
            if !self.follow(store, &mut subscription, &mut state, wait).await? {
                return Err(unavailable(format!("{} cannot be read in time", self.name)));
            }
        }
        let (sender, receiver) = watch::channel(Arc::new(state.clone()));
        tokio::spawn(self.follow_on(store.clone(), subscription, state, sender));
        Ok(receiver)
    }

    async fn follow_on(
        self,
        store: EventStore,
        mut subscription: Subscription,
        mut state: S,
        sender: watch::Sender<Arc<S>>,
    ) {
        let of = self.name;
        while !sender.is_closed() {
            match self.follow(&store, &mut subscription, &mut state, WAIT).await {
                Ok(false) => {}
                Ok(true) => drop(sender.send_replace(Arc::new(state.clone()))),
                Err(error @ Error::Unavailable(_)) => {
                    tracing::warn!(%error, of, "an earlier commit cannot be read yet");
                    drop(sender.send_replace(Arc::new(state.clone())));
                    tokio::time::sleep(WAIT).await;
                }
                Err(error) => {
                    tracing::error!(%error, of, "the log is not followed any more");
                    return;
                }
            }
        }
    }

    /// Takes up the next commits; false when none came in time.
    async fn follow(
        &self,
        store: &EventStore,
        subscription: &mut Subscription,
        state: &mut S,
        wait: Duration,
    ) -> Result<bool, Error> {
        let mut some = true;
        match subscription.next_batch(COMMITS_AT_ONCE, wait).await? {
            Read::Commits(batch) => {
                some = !batch.is_empty();
                batch.iter().for_each(|recorded| (self.put)(state, recorded));
            }
            Read::Broken(broken) => {
                if let Some(key) = &broken.key {
                    (self.unreadable)(state, key, broken.reason);
                }
            }
        }
        (self.complete)(store, state).await?;
        Ok(some)
    }
}
