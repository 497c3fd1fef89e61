//! A call of a group, from its place to its outcome.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flexcore_resilience::Verdict;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{
    error::PoolError,
    group::Group,
    limits::{DECISION_FULL, LEFT_MIN},
    run::{Broken, CallPlace},
    spec::PoolCall,
};

/// The time that a call has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    until: Instant,
    /// It is nearly as long as a call of this plugin may take: whoever is late then is at fault. Some of
    /// the time has gone by before the call came here.
    is_full: bool,
}

impl Limit {
    fn new(within: Duration, call_max: Duration) -> Self {
        let is_full = within.saturating_mul(10) >= call_max.saturating_mul(9);
        Self { until: Instant::now() + within.min(call_max), is_full }
    }

    /// Of questions for decisions.
    pub(crate) fn of_decisions(within: Duration, call_max: Duration) -> Self {
        let limit = Self::new(within, call_max);
        Self { is_full: limit.is_full || within >= DECISION_FULL, ..limit }
    }

    /// When it is over.
    pub(crate) fn until(self) -> Instant {
        self.until
    }

    /// What is left of it. Fails when that is not worth a call.
    pub(crate) fn left(self) -> Result<Duration, PoolError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left < LEFT_MIN { Err(PoolError::Late) } else { Ok(left) }
    }

    /// The plugin has had all the time that a call may take. It may say itself, too early, that it is late.
    fn is_used_up(self) -> bool {
        self.is_full && self.left().is_err()
    }
}

/// Calls a function of the contract. One that may be repeated is called once more if the instance
/// ended under the call, by what is in service `now`: the group may have been replaced meanwhile.
pub(crate) async fn call(
    group: &Group,
    call: &PoolCall,
    within: Duration,
    now: impl Fn() -> Option<Arc<Group>>,
) -> Result<Bytes, PoolError> {
    let (limit, tenant) = (Limit::new(within, group.spec.call_max), &call.context.tenant);
    limit.left()?;
    group.may_call(tenant)?;
    let place = group.place()?;
    let is_idempotent = place.is_idempotent(&call.function)?;
    let broken = match attempt(group, place, call, limit).await {
        Ok(output) => return Ok(output),
        Err(broken) => broken,
    };
    // Where the death was one too many for this tenant, it is not tried again.
    if !(broken.died && is_idempotent) || group.may_call(tenant).is_err() {
        return Err(broken.error);
    }
    let Ok(Some((group, place))) = timeout_at(limit.until, place_soon(group, now)).await else {
        return Err(broken.error);
    };
    if !place.is_idempotent(&call.function).unwrap_or(false) {
        // Another version, which thinks otherwise.
        return Err(broken.error);
    }
    attempt(&group, place, call, limit).await.map_err(|again| match again.error {
        // The first one may have been done all the same.
        PoolError::Away(_) | PoolError::Late => broken.error,
        error => error,
    })
}

/// A place at what is in service, as soon as an instance of it is ready. None when that is not soon.
/// Nothing waits without a time.
pub(crate) async fn place_soon(
    before: &Group,
    now: impl Fn() -> Option<Arc<Group>>,
) -> Option<(Arc<Group>, CallPlace)> {
    // All groups of a pool have the same figures.
    let mut changes = before.figures.changes();
    loop {
        let group = now()?;
        match group.place() {
            Ok(place) => return Some((group, place)),
            Err(PoolError::Away(_)) if !group.is_over() => {}
            Err(_) => return None,
        }
        drop(group);
        // Its other end is here.
        let _ = changes.changed().await;
    }
}

/// Calls a method of a foreign plugin, once.
pub(crate) async fn call_method(
    group: &Group,
    tenant: &str,
    method: &str,
    input: Value,
    within: Duration,
) -> Result<Value, PoolError> {
    let limit = Limit::new(within, group.spec.call_max);
    limit.left()?;
    group.may_call(tenant)?;
    let place = group.place()?;
    let admitted = group.admit(tenant)?;
    let called = place.call_method(method, input, limit.left()?, group.on_death(tenant)).await;
    admitted.leave(verdict(&called, limit));
    called.map_err(|broken| broken.error)
}

async fn attempt(
    group: &Group,
    place: CallPlace,
    call: &PoolCall,
    limit: Limit,
) -> Result<Bytes, Broken> {
    let tenant = &call.context.tenant;
    let left = limit.left().map_err(Broken::not_made)?;
    place.configured(tenant, left, group.on_death(tenant)).await?;
    let admitted = group.admit(tenant).map_err(Broken::not_made)?;
    let left = limit.left().map_err(Broken::not_made)?;
    let called = place.call(call, left, group.on_death(tenant)).await;
    admitted.leave(verdict(&called, limit));
    called
}

/// What the call says of the plugin. One whose caller had less time than there is says nothing when
/// it is late: else callers in a hurry could have it left alone by all.
pub(crate) fn verdict<T>(called: &Result<T, Broken>, limit: Limit) -> Verdict {
    match called {
        Ok(_) => Verdict::Success,
        Err(Broken { is_fault: true, error: PoolError::Late, .. }) if !limit.is_used_up() => {
            Verdict::Neutral
        }
        Err(Broken { is_fault: true, .. }) => Verdict::Failure,
        Err(Broken { error: PoolError::Failed(_) | PoolError::UnknownFunction, .. }) => {
            Verdict::Success
        }
        Err(_) => Verdict::Neutral,
    }
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Failure;

    use super::*;

    #[test]
    fn only_what_is_the_plugins_fault_counts_against_it() {
        let second = Duration::from_secs(1);
        let used_up = |of: Limit| Limit { until: Instant::now(), ..of };
        let full = used_up(Limit::new(second * 9, second));
        let short = used_up(Limit::new(second / 2, second));
        let broken = |error, died, is_fault| Err::<(), _>(Broken { error, died, is_fault });
        let late = || broken(PoolError::Late, false, true);
        assert_eq!(verdict(&late(), full), Verdict::Failure);
        assert_eq!(verdict(&late(), short), Verdict::Neutral);
        // It said so itself, at once.
        assert_eq!(verdict(&late(), Limit::new(second, second)), Verdict::Neutral);
        let raised = broken(PoolError::Unknown("it raised".to_owned()), false, false);
        assert_eq!(verdict(&raised, full), Verdict::Neutral);
        let gone = || PoolError::Unknown("gone".to_owned());
        assert_eq!(verdict(&broken(gone(), true, false), full), Verdict::Neutral);
        assert_eq!(verdict(&broken(gone(), false, true), short), Verdict::Failure);
        let failed = PoolError::Failed(Failure::new("no", "as asked"));
        assert_eq!(verdict(&broken(failed, false, false), full), Verdict::Success);
        assert_eq!(verdict(&Ok(()), full), Verdict::Success);
    }

    #[test]
    fn no_call_has_more_time_than_the_plugin() {
        let second = Duration::from_secs(1);
        assert!(Limit::new(second * 9, second).left().unwrap() <= second);
        for none in [Duration::ZERO, LEFT_MIN / 2] {
            assert_eq!(Limit::new(none, second).left(), Err(PoolError::Late));
        }
    }

    /// Some of the time has gone by before a call comes to the pool, and so no lateness ever counted.
    #[test]
    fn nearly_all_of_the_time_is_as_good_as_all_of_it() {
        let second = Duration::from_secs(1);
        assert!(Limit::new(second * 9 / 10, second).is_full && Limit::new(second, second).is_full);
        assert!(!Limit::new(second * 8 / 10, second).is_full);
        let of_decisions = |within| Limit::of_decisions(within, second * 30).is_full;
        assert!(of_decisions(second) && !of_decisions(second / 2));
    }
}
