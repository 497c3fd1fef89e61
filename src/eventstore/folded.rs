//! States that every process folds from the log: what is in force now, and every change after it. A
//! process has one reader for all of them, however many there are and however many follow them.

use std::{sync::Arc, time::Duration};

use flexcore_domain::AggregateKey;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tokio::sync::watch;

use crate::{
    Aggregates, Error, EventStore, Filter, Read, Recorded, Subscription, topology, unavailable,
};

/// Commits that are taken up at once.
const COMMITS_AT_ONCE: usize = 100;
/// Duration of one wait for a commit before the task looks whether anybody still follows.
const WAIT: Duration = Duration::from_secs(5);

/// The way in which a state is folded from the log. Its default is the state of an empty log.
pub struct Fold<S> {
    /// Its name for people, in the plural.
    pub name: &'static str,
    /// Its commits. The last one of each aggregate says all that counts.
    pub of: Aggregates,
    /// Takes up a commit.
    pub put: fn(&mut S, &Recorded),
    /// Takes up that an aggregate's commit cannot be read, and why.
    pub unreadable: fn(&mut S, &AggregateKey, String),
    /// Looks up what the state lacks after that. Done again after the next wait when the broker is away.
    pub complete: for<'a> fn(&'a EventStore, &'a mut S) -> BoxFuture<'a, Result<(), Error>>,
}

/// The states of a process, before they are read.
#[derive(Default)]
pub struct States {
    all: Vec<Box<dyn Folded>>,
}

/// A state that is not whole yet.
pub struct Folding<S>(watch::Receiver<Arc<S>>);

/// All states that were added are whole: each has what the log had when they were begun.
pub struct Whole(());

impl<S> Folding<S> {
    /// The state as it is now, and each after it.
    #[must_use]
    pub fn whole(self, _: &Whole) -> watch::Receiver<Arc<S>> {
        self.0
    }
}

impl States {
    /// Has this state read, too.
    pub fn add<S: Clone + Default + Send + Sync + 'static>(&mut self, fold: Fold<S>) -> Folding<S> {
        let (sender, receiver) = watch::channel(Arc::default());
        let (state, changed, lacks) = (S::default(), false, false);
        self.all.push(Box::new(One { fold, state, sender, changed, lacks }));
        Folding(receiver)
    }

    /// Reads the states until they are whole, and goes on reading until every receiver is gone. Fails
    /// when the broker is away.
    #[boxed::async_recursion]
    pub async fn follow(mut self, store: &EventStore) -> Result<Whole, Error> {
        let all: Vec<_> = self.all.iter().map(|state| state.of().clone()).collect();
        let mut subscription = store.subscribe(Filter::LastOf(all.clone()), 1).await?;
        // Not as many as there are where it is read: that replica may be behind.
        let mut last = 0;
        for of in all {
            last = last.max(store.leaders.last_on(topology::EVENTS, &of.subjects(), 0).await?);
        }
        while subscription.read_to() < last {
            if !self.take(&mut subscription, crate::REQUEST_TIMEOUT).await? {
                let names: Vec<_> = self.all.iter().map(|state| state.name()).collect();
                return Err(unavailable(format!("{} cannot be read in time", names.join(", "))));
            }
        }
        for state in &mut self.all {
            state.settle(store).await?;
        }
        tokio::spawn(self.follow_on(store.clone(), subscription));
        Ok(Whole(()))
    }

    async fn follow_on(mut self, store: EventStore, mut subscription: Subscription) {
        loop {
            self.all.retain(|state| state.is_followed());
            if self.all.is_empty() {
                return;
            }
            if let Err(error) = self.take(&mut subscription, WAIT).await {
                tracing::error!(%error, "the log is not followed any more");
                return;
            }
            // One that has to wait for the broker holds up no other.
            let settled = join_all(self.all.iter_mut().map(|state| state.settle(&store))).await;
            let mut settled = settled.into_iter();
            self.all.retain(|state| match settled.next() {
                Some(Err(error @ Error::Unavailable(_))) => {
                    let of = state.name();
                    tracing::warn!(%error, of, "an earlier commit cannot be read yet");
                    true
                }
                Some(Err(error)) => {
                    tracing::error!(%error, of = state.name(), "the log is not followed any more");
                    false
                }
                _ => true,
            });
        }
    }

    /// Takes up the next commits; false when none came in time.
    async fn take(
        &mut self,
        subscription: &mut Subscription,
        wait: Duration,
    ) -> Result<bool, Error> {
        match subscription.next_batch(COMMITS_AT_ONCE, wait).await? {
            Read::Commits(batch) => {
                for recorded in &batch {
                    self.of(&recorded.commit.key).for_each(|state| state.put(recorded));
                }
                Ok(!batch.is_empty())
            }
            Read::Broken(broken) => {
                if let Some(key) = &broken.key {
                    self.of(key).for_each(|state| state.unreadable(key, &broken.reason));
                }
                Ok(true)
            }
        }
    }

    /// The states that an aggregate's commits are for.
    fn of(&mut self, key: &AggregateKey) -> impl Iterator<Item = &mut Box<dyn Folded>> {
        self.all.iter_mut().filter(|state| state.of().has(key))
    }
}

/// A state that is folded, of whatever type.
trait Folded: Send {
    fn name(&self) -> &'static str;
    fn of(&self) -> &Aggregates;
    fn put(&mut self, recorded: &Recorded);
    fn unreadable(&mut self, key: &AggregateKey, reason: &str);
    /// Looks up what the state lacks, and hands it out when it has changed. Fails when it still lacks
    /// something.
    fn settle<'a>(&'a mut self, store: &'a EventStore) -> BoxFuture<'a, Result<(), Error>>;
    fn is_followed(&self) -> bool;
}

struct One<S> {
    fold: Fold<S>,
    state: S,
    sender: watch::Sender<Arc<S>>,
    /// Since it was handed out.
    changed: bool,
    lacks: bool,
}

impl<S: Clone + Send + Sync + 'static> Folded for One<S> {
    fn name(&self) -> &'static str {
        self.fold.name
    }

    fn of(&self) -> &Aggregates {
        &self.fold.of
    }

    fn put(&mut self, recorded: &Recorded) {
        (self.fold.put)(&mut self.state, recorded);
        self.changed = true;
    }

    fn unreadable(&mut self, key: &AggregateKey, reason: &str) {
        (self.fold.unreadable)(&mut self.state, key, reason.to_owned());
        self.changed = true;
    }

    fn settle<'a>(&'a mut self, store: &'a EventStore) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            if !self.changed && !self.lacks {
                return Ok(());
            }
            let completed = (self.fold.complete)(store, &mut self.state).await;
            (self.changed, self.lacks) = (false, completed.is_err());
            self.sender.send_replace(Arc::new(self.state.clone()));
            completed
        }
        .boxed()
    }

    fn is_followed(&self) -> bool {
        !self.sender.is_closed()
    }
}
