//! Folding what was loaded.

use flexcore_domain::{AggregateKey, Outcome, Refusal};
use flexcore_eventstore::Error;

use super::{Entry, Lane, Loaded};

impl Lane {
    /// The aggregate as loaded: from a snapshot, from what was known of it, or from nothing.
    pub(super) fn fold(
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
        for recorded in &loaded.commits {
            if !recorded.follows(&entry.expected.hash) {
                return Err(Error::BrokenChain {
                    subject: flexcore_eventstore::subject(key),
                    sequence: recorded.sequence,
                });
            }
            let decider = match self.deciders.get(key.aggregate()) {
                Ok(decider) => decider,
                Err(Outcome::Faulty { message }) => return Ok(Err(Refusal::Exhausted(message))),
                Err(_) => return Ok(Err(Refusal::Faulty("no such aggregate".to_owned()))),
            };
            match decider.evolve(&entry.state, &recorded.commit.events) {
                Ok(state) => entry.record(recorded, state),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        Ok(Ok(entry))
    }
}
