//! Read models that wait for a plugin, for people to see: which one, and why. And the events at which they may wait.

mod suspects;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flexcore_domain::Name;
use flexcore_readmodel::{Version, WAITS_FOR};
use tokio::time::Instant;

pub(super) use suspects::{Call, Failed, Suspects, Suspicion, Whose};

/// A wait that is over by then is told to nobody: a plugin is upgraded, or has ended and starts again.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// The versions that wait. Readers share it with whoever runs them. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Waiting {
    versions: Arc<Mutex<HashMap<i64, Waits>>>,
    /// Events under which a plugin gave no answer.
    pub(super) suspects: Suspects,
}

/// What a version waits for.
struct Waits {
    name: Name,
    since: Instant,
    reason: String,
}

impl Waiting {
    /// Notes that these versions, each with its read model, wait for this reason.
    pub(super) fn note(&self, versions: &[(i64, Name)], reason: &str, now: Instant) {
        let mut waiting = self.lock();
        for (id, name) in versions {
            let reason = reason.to_owned();
            let since = waiting.get(id).map_or(now, |waits| waits.since);
            waiting.insert(*id, Waits { name: name.clone(), since, reason });
        }
    }

    /// These versions go on.
    pub(super) fn is_over(&self, versions: impl Iterator<Item = i64>) {
        let mut waiting = self.lock();
        versions.for_each(|id| drop(waiting.remove(&id)));
    }

    /// The read models of these versions that have waited for a while, each with that as its trouble. Others are
    /// forgotten.
    pub(super) fn told(&self, versions: &[Arc<Version>], now: Instant) -> Vec<(String, String)> {
        self.told_of(|id| versions.iter().any(|version| version.id() == id), now)
    }

    /// Forgets all.
    pub(super) fn forget(&self) {
        self.lock().clear();
        self.suspects.forget();
    }

    /// True if this version waits.
    #[cfg(test)]
    pub(super) fn waits(&self, id: i64) -> bool {
        self.lock().contains_key(&id)
    }

    fn told_of(&self, is_run: impl Fn(i64) -> bool, now: Instant) -> Vec<(String, String)> {
        let mut waiting = self.lock();
        waiting.retain(|id, _| is_run(*id));
        let long = waiting.values().filter(|waits| now - waits.since >= TOLD_AFTER);
        let told = long
            .map(|Waits { name, reason, .. }| (name.to_string(), format!("{WAITS_FOR}{reason}")));
        told.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Waits>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use flexcore_readmodel::plugin_waited_for;

    use super::*;

    #[test]
    fn a_wait_is_told_when_it_lasts_and_until_it_is_over() {
        let (waiting, start) = (Waiting::default(), Instant::now());
        let sums = [(7, Name::parse("sums").unwrap())];
        let told = |seconds| {
            let told = waiting.told_of(|id| id == 7, start + Duration::from_secs(seconds));
            told.into_iter().map(|(name, what)| format!("{name}: {what}")).collect::<Vec<_>>()
        };
        waiting.note(&sums, "plugin geo (function locate): it starts", start);
        assert!(told(1).is_empty(), "it may be short");
        waiting.note(
            &sums,
            "plugin geo (function locate): it is gone",
            start + Duration::from_secs(1),
        );
        let gone = "it stands still, and waits for plugin geo (function locate): it is gone";
        assert_eq!(told(2), [format!("sums: {gone}")]);
        assert_eq!(plugin_waited_for(gone), Some("geo"));
        waiting.is_over([7].into_iter());
        assert!(told(9).is_empty());

        waiting.note(&[(8, Name::parse("former").unwrap())], "plugin geo: why", start);
        assert!(told(9).is_empty(), "it is read no more");
        waiting.note(&sums, "plugin geo: why", start);
        waiting.forget();
        assert!(told(9).is_empty());
    }
}
