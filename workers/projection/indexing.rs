//! Keeps the indexes of what serves as they are declared, beside the readers: one build at a time in a
//! process, so that Postgres has the rest of its time for others.

use std::{collections::HashMap, sync::Arc};

use flexcore_domain::Name;
use flexcore_readmodel::{Error, ReadModels, State, Version};
use metrics::gauge;
use tokio::{task::JoinSet, time::Instant};

use super::{LOOK_INTERVAL, RETRY_LONGEST, backoff};

/// What is built, and what came of what was built.
#[derive(Default)]
pub(super) struct Indexing {
    /// At most one. Given up with the worker.
    task: JoinSet<(i64, Result<bool, Error>)>,
    /// The version that it is for.
    at: Option<i64>,
    resting: HashMap<i64, Resting>,
}

/// A version whose indexes were not made.
struct Resting {
    /// Why; `None`: somebody else is at it.
    error: Option<Error>,
    attempt: u32,
    /// When it is tried again; `None`: when something else is declared.
    again: Option<Instant>,
    /// What was declared.
    wanted: String,
}

impl Indexing {
    /// Takes what came of a build, and begins the next that is due. Returns the read models whose indexes
    /// cannot be made, each with the reason. Fails when Postgres is away.
    pub(super) async fn look(
        &mut self,
        read_models: &ReadModels,
        versions: &[Arc<Version>],
        now: Instant,
    ) -> Result<Vec<(Name, Error)>, Error> {
        let ours = |it: &&Arc<Version>| it.state == State::Serving && it.portions.manage();
        let serving: Vec<&Arc<Version>> = versions.iter().filter(ours).collect();
        let all: Vec<&Version> = serving.iter().map(|version| version.as_ref()).collect();
        let unindexed = read_models.unindexed(&all).await?;
        while let Some(ended) = self.task.try_join_next() {
            self.at = None;
            // One that panicked begins again.
            if let Ok((id, result)) = ended
                && let Some(version) = serving.iter().find(|version| version.id() == id)
            {
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
            self.task.spawn(async move { (version.id(), read_models.index(&version).await) });
        }
        let trouble = |version: &&Arc<Version>| {
            let resting = self.resting.get(&version.id())?;
            Some((version.read_model.clone(), resting.error.clone()?))
        };
        Ok(serving.iter().filter_map(trouble).collect())
    }

    fn is_due(&self, id: i64, now: Instant) -> bool {
        self.resting.get(&id).is_none_or(|resting| resting.again.is_some_and(|again| again <= now))
    }

    fn ended(&mut self, version: &Version, result: Result<bool, Error>, now: Instant) {
        let (id, wanted) = (version.id(), version.indexes_wanted());
        let attempt = self.resting.get(&id).map_or(0, |resting| resting.attempt);
        let rest = match result {
            Ok(true) => None,
            Ok(false) => {
                Some(Resting { error: None, attempt, again: Some(now + RETRY_LONGEST), wanted })
            }
            Err(error) => {
                let attempt = attempt + 1;
                let again = error.is_passing().then(|| now + backoff(attempt).max(LOOK_INTERVAL));
                let error = Error::InTheWay(format!("an index cannot be made: {error}"));
                Some(Resting { error: Some(error), attempt, again, wanted })
            }
        };
        match rest {
            Some(rest) => self.resting.insert(id, rest),
            None => self.resting.remove(&id),
        };
    }
}
