//! Folding loaded commits, and what deployments do to states.
//!
//! A state carries the fingerprint of the functions that folded it, as its snapshot does. Whatever was under
//! way, or kept, while applications were deployed is compared when it is taken up: with an unchanged
//! fingerprint it is as good as before, with another one the aggregate is loaded anew.

use std::time::Duration;

use flexcore_domain::{AggregateKey, Refusal};
use flexcore_eventstore::{Error, Recorded};
use flexcore_script::clock::processor_time;

use super::{Entry, Fault, Lane, Loaded};
use crate::command::deciders::Fingerprint;

/// Processor time after which a fold lets others go first: some ten thousand events of a plain `evolve`, and
/// one commit of the slowest that there may be.
pub(super) const FOLD_MAX: Duration = Duration::from_millis(50);

/// The result of a fold.
pub(super) enum Folded {
    /// The aggregate after all that was loaded.
    Whole(Box<Entry>),
    /// The aggregate so far, and the commits that follow.
    Part(Box<Entry>, Vec<Recorded>),
    /// A function has failed.
    Refused(Refusal),
}

impl Loaded {
    /// The functions that folded what its commits are put on; `None`: they are put on nothing.
    pub(super) fn folded_by<'a>(&'a self, base: Option<&'a Entry>) -> Option<&'a str> {
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.fingerprint.as_str());
        snapshot.or(base.map(|base| base.folded_by.as_str()))
    }
}

impl Lane {
    /// True if the functions that folded this state are in force.
    pub(super) fn is_current(&mut self, key: &AggregateKey, entry: &Entry) -> bool {
        entry.folded_by == self.deciders.fingerprint(key.aggregate())
    }

    /// The aggregate as loaded: from a snapshot, from an earlier state, or from nothing. Ends after a while,
    /// so that the lane can work for others before it goes on.
    pub(super) async fn fold(
        &mut self,
        key: &AggregateKey,
        (base, in_force): (Option<Entry>, Fingerprint),
        loaded: Loaded,
    ) -> Result<Folded, Error> {
        let mut entry = match (loaded.snapshot, base) {
            (Some(snapshot), _) => Entry::from_snapshot(&snapshot, in_force),
            (None, Some(base)) => base,
            (None, None) => Entry::new(self.secret, in_force),
        };
        if let Some(first) = loaded.commits.first()
            && first.commit.version_before() != entry.version
        {
            return Err(Error::Gap {
                subject: flexcore_eventstore::subject(key),
                expected: entry.version + 1,
                found: first.commit.version_before() + 1,
            });
        }
        let until = processor_time() + self.fold_max;
        let mut commits = loaded.commits.into_iter();
        while let Some(mut recorded) = commits.next() {
            if !recorded.follows(&entry.expected.hash) {
                return Err(Error::BrokenChain {
                    subject: flexcore_eventstore::subject(key),
                    sequence: recorded.sequence,
                });
            }
            // They go to the script thread and come back, so that none is copied.
            let events = std::mem::take(&mut recorded.commit.events);
            match self.deciders.evolve(key, &entry.state, events).await {
                Ok((events, state)) => {
                    recorded.commit.events = events;
                    entry.record(&recorded, state);
                }
                Err(fault) => {
                    return Ok(Folded::Refused(match fault {
                        Fault::Undeclared { .. } => Refusal::Faulty("no such aggregate".to_owned()),
                        Fault::Unmade(message) => Refusal::Exhausted(message),
                        Fault::Refused(refusal) => refusal,
                    }));
                }
            }
            if processor_time() >= until && commits.len() > 0 {
                return Ok(Folded::Part(Box::new(entry), commits.collect()));
            }
        }
        Ok(Folded::Whole(Box::new(entry)))
    }
}
