//! Keeps the indexes of what serves as they are declared, beside the readers: one build at a time in a
//! process, so that Postgres has the rest of its time for others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use flexcore_domain::Name;
use flexcore_readmodel::{Error, ReadModels, Version, VersionState};
use flexcore_resilience::Backoff;
use metrics::gauge;
use tokio::{task::JoinSet, time::Instant};

use super::RETRY;

/// First and longest pause after a build that failed. It has read and sorted the table, and may have filled
/// the disk or waited long for somebody who is not done: it must not do so every few seconds.
pub(super) const PAUSE_FIRST: Duration = Duration::from_mins(1);
const PAUSE_LONGEST: Duration = Duration::from_hours(1);

/// Index builds under way, and the results of those that ended.
pub(super) struct Indexing {
    /// At most one. Given up with the worker.
    task: JoinSet<Result<bool, Error>>,
    /// The version that it is for.
    at: Option<i64>,
    resting: HashMap<i64, Resting>,
    pause: Duration,
}

/// A version that serves without the indexes that its reader could not make.
pub(super) struct Unindexed {
    pub(super) id: i64,
    /// The declaration.
    pub(super) wanted: String,
    pub(super) error: Error,
}

/// A version whose indexes were not made.
struct Resting {
    /// Why; `None`: somebody else is at it.
    error: Option<Error>,
    attempt: u32,
    /// When it is tried again; at once, when something else is declared.
    again: Instant,
    /// The declaration.
    wanted: String,
}

impl Indexing {
    /// `pause`: after the first build that fails.
    pub(super) fn new(pause: Duration) -> Self {
        Self { task: JoinSet::new(), at: None, resting: HashMap::new(), pause }
    }

    /// Takes what came of a build, and begins the next that is due. Returns the read models whose indexes
    /// cannot be made, each with the reason. Fails when Postgres is away.
    pub(super) async fn look(
        &mut self,
        read_models: &ReadModels,
        versions: &[Arc<Version>],
        now: Instant,
    ) -> Result<Vec<(Name, Error)>, Error> {
        let ours = |it: &&Arc<Version>| it.state == VersionState::Serving && it.portions.manage();
        let serving: Vec<&Arc<Version>> = versions.iter().filter(ours).collect();
        let all: Vec<&Version> = serving.iter().map(|version| version.as_ref()).collect();
        let unindexed = read_models.unindexed(&all).await?;
        while let Some(ended) = self.task.try_join_next() {
            let at = self.at.take();
            let result = match ended {
                Ok(result) => result,
                Err(error) if error.is_cancelled() => continue,
                Err(error) => Err(Error::Database(error.to_string())),
            };
            if let Some(version) = serving.iter().find(|version| Some(version.id()) == at) {
                self.ended(version, result, now);
            }
        }
        let is_left = |id: i64| serving.iter().all(|version| version.id() != id);
        if self.at.is_some_and(is_left) {
            self.task.abort_all();
        }
        self.resting.retain(|id, resting| {
            let version = serving.iter().find(|version| version.id() == *id);
            let is_same = version.is_some_and(|v| v.indexes_wanted() == resting.wanted);
            is_same && unindexed.contains_key(id)
        });
        for version in &serving {
            let missing = unindexed.get(&version.id()).copied().unwrap_or(0);
            let name = version.read_model.to_string();
            gauge!("flexcore_read_model_indexes_missing", "read_model" => name).set(missing as f64);
        }
        let is_due = |version: &&&Arc<Version>| {
            unindexed.contains_key(&version.id()) && self.is_due(version.id(), now)
        };
        if self.at.is_none()
            && let Some(version) = serving.iter().find(is_due)
        {
            self.at = Some(version.id());
            let (read_models, version) = (read_models.clone(), Arc::clone(version));
            self.task.spawn(async move { read_models.index(&version).await });
        }
        let trouble = |version: &&Arc<Version>| {
            let resting = self.resting.get(&version.id())?;
            Some((version.read_model.clone(), resting.error.clone()?))
        };
        Ok(serving.iter().filter_map(trouble).collect())
    }

    fn is_due(&self, id: i64, now: Instant) -> bool {
        self.resting.get(&id).is_none_or(|resting| resting.again <= now)
    }

    fn ended(&mut self, version: &Version, result: Result<bool, Error>, now: Instant) {
        let (id, wanted) = (version.id(), version.indexes_wanted());
        match result {
            Ok(true) => {
                self.resting.remove(&id);
            }
            Ok(false) => {
                let attempt = self.attempts(id);
                let again = now + RETRY.longest;
                self.resting.insert(id, Resting { error: None, attempt, again, wanted });
            }
            Err(error) => self.failed(&Unindexed { id, wanted, error }, now),
        }
    }

    /// Leaves a version alone for a while, whatever the reason: somebody may mend it, or not soon.
    pub(super) fn failed(&mut self, unindexed: &Unindexed, now: Instant) {
        let Unindexed { id, wanted, error } = unindexed;
        let attempt = self.attempts(*id) + 1;
        let pauses = Backoff { first: self.pause, longest: PAUSE_LONGEST };
        let again = now + pauses.after(attempt);
        let error = format!("an index cannot be made: {error}; it is tried again within the hour");
        let (error, wanted) = (Some(Error::InTheWay(error)), wanted.clone());
        self.resting.insert(*id, Resting { error, attempt, again, wanted });
    }

    fn attempts(&self, id: i64) -> u32 {
        self.resting.get(&id).map_or(0, |resting| resting.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was every five seconds, and after an error that says that no retry helps never.
    #[test]
    fn a_build_that_failed_is_tried_again_ever_less_often() {
        let (mut indexing, start) = (Indexing::new(PAUSE_FIRST), Instant::now());
        let (mut now, mut pauses) = (start, Vec::new());
        for attempt in 0..40 {
            let error = match attempt % 2 {
                0 => Error::Unavailable("no space left on device".to_owned()),
                _ => Error::Database("permission denied".to_owned()),
            };
            indexing.failed(&Unindexed { id: 1, wanted: String::new(), error }, now);
            let again = indexing.resting[&1].again;
            assert!(!indexing.is_due(1, again - Duration::from_millis(1)));
            assert!(indexing.is_due(1, again) && indexing.is_due(2, now));
            pauses.push((again - now).as_secs());
            now = again;
        }
        assert_eq!(pauses[..8], [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        assert!(pauses[8..].iter().all(|pause| *pause == 3_600));
    }
}
