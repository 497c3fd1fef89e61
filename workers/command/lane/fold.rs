//! Folding loaded commits.

use flexcore_domain::{AggregateKey, Refusal};
use flexcore_eventstore::Error;

use super::{Entry, Fault, Lane, Loaded};

impl Lane {
    /// The aggregate as loaded: from a snapshot, from an earlier state, or from nothing.
    pub(super) async fn fold(
        &mut self,
        key: &AggregateKey,
        base: Option<Entry>,
        loaded: Loaded,
    ) -> Result<Result<Entry, Refusal>, Error> {
        let mut entry = match (loaded.snapshot, base) {
            (Some(snapshot), _) => Entry::from_snapshot(&snapshot),
            (None, Some(base)) => base,
            (None, None) => Entry::new(self.secret),
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
        for mut recorded in loaded.commits {
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
                    return Ok(Err(match fault {
                        Fault::Undeclared { .. } => Refusal::Faulty("no such aggregate".to_owned()),
                        Fault::Unmade(message) => Refusal::Exhausted(message),
                        Fault::Refused(refusal) => refusal,
                    }));
                }
            }
        }
        Ok(Ok(entry))
    }
}
