//! The circuit breaker around asynchronous calls of one target.

use std::{future::Future, time::Duration};

use crate::{
    circuit::{CircuitState, Verdict},
    circuits::Circuits,
    deadline::Deadline,
    error::Error,
    policy::BreakerPolicy,
};

/// Guards one target: lets calls through while it works, and fails them at once while it does not.
#[derive(Debug)]
pub struct Breaker(Circuits);

impl Breaker {
    /// A closed one. Metrics carry the target's name.
    #[must_use]
    pub fn new(target: &'static str, policy: BreakerPolicy) -> Self {
        Self(Circuits::new(target, policy, 1))
    }

    /// Makes a call, unless the circuit is open. `judge` says what the result tells about the
    /// target. Fails with [`Error::Open`] without polling the call, with [`Error::TimedOut`] when
    /// the deadline passes first, and with [`Error::Failed`].
    ///
    /// A call that is dropped, or ended by its deadline, says nothing about the target unless it
    /// had taken [`BreakerPolicy::slow_call`] by then.
    pub async fn call<T, E>(
        &self,
        deadline: Deadline,
        judge: impl FnOnce(&Result<T, E>) -> Verdict,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error<E>> {
        let target = self.0.target();
        let ticket = self
            .0
            .with(|all, now| all[0].decide(now))
            .map_err(|retry_after| Error::Open { target, retry_after })?;
        let place = self.0.place(0, ticket);
        let Ok(result) = deadline.timeout(target, call).await else {
            return Err(Error::TimedOut { target });
        };
        place.leave(judge(&result));
        result.map_err(Error::Failed)
    }

    /// The circuit's state.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        self.0.state()
    }

    /// The time for which calls fail at once from now on; zero if the next call may go through.
    #[must_use]
    pub fn rests_for(&self) -> Duration {
        self.0.with(|all, now| {
            all[0].rests().map_or(Duration::ZERO, |(_, until)| until.saturating_duration_since(now))
        })
    }
}

#[cfg(test)]
mod tests;
