//! Several endpoints of which any will do: each has a circuit, and a call goes to the next one when
//! it fails. Outcomes of calls and of active checks both tell how an endpoint is.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{StreamExt, stream::FuturesOrdered};
use tokio::time::Instant;

use crate::{
    budget::Budget,
    circuit::{Circuit, CircuitState, Ticket, Verdict},
    circuits::Circuits,
    deadline::Deadline,
    error::Error,
    measure,
    policy::Policy,
};

/// The endpoint that a call tries first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first in the list that is healthy.
    Preferred,
    /// Each in turn.
    RoundRobin,
}

/// The endpoints of one target.
#[derive(Debug)]
pub struct Endpoints<T> {
    all: Vec<T>,
    order: Order,
    turn: AtomicUsize,
    circuits: Circuits,
    policy: Policy,
    budget: Arc<Budget>,
}

impl<T> Endpoints<T> {
    /// All of them taken for healthy. Metrics carry the target's name: its state is that of the best
    /// endpoint.
    #[must_use]
    pub fn new(target: &'static str, all: Vec<T>, order: Order, policy: Policy) -> Self {
        let circuits = Circuits::new(target, policy.breaker, all.len());
        let budget = Arc::new(Budget::new(target, policy.budget));
        Self { all, order, turn: AtomicUsize::new(0), circuits, policy, budget }
    }

    /// Makes a call to an endpoint, and to the next one while `again` says of the error that this
    /// may help, each endpoint once at most. An attempt takes as long as
    /// [`crate::policy::BreakerPolicy::slow_call`] at most. `judge` says what a result tells about
    /// the endpoint. When none is healthy, those that have rested longest are tried before their
    /// time, each by one caller at a time.
    ///
    /// Fails with the last attempt's error when endpoints, budget or time are used up, and with
    /// [`Error::Open`] when none may be tried now.
    pub async fn call<'e, R, E, F>(
        &'e self,
        deadline: Deadline,
        judge: impl Fn(&Result<R, E>) -> Verdict,
        again: impl Fn(&Error<E>) -> bool,
        mut call: impl FnMut(&'e T) -> F,
    ) -> Result<R, Error<E>>
    where
        F: Future<Output = Result<R, E>>,
    {
        let target = self.circuits.target();
        let first = match self.order {
            Order::Preferred => 0,
            Order::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
        };
        self.budget.on_request();
        let mut tried = vec![false; self.all.len()];
        let mut last = None;
        loop {
            let picked = self.circuits.with(|all, now| pick(all, first, &tried, now));
            let Some((index, ticket)) = picked else {
                let retry_after = self.policy.breaker.pause_min;
                return Err(last.unwrap_or(Error::Open { target, retry_after }));
            };
            let place = self.circuits.place(index, ticket);
            if let Some(error) = last.take() {
                // Asked only now, when there is an endpoint to spend it on.
                if !self.budget.take() {
                    return Err(error);
                }
                measure::failover(target);
            }
            tried[index] = true;
            let attempt = deadline.within(self.policy.breaker.slow_call);
            let error = match attempt.timeout(target, call(&self.all[index])).await {
                Ok(result) => {
                    place.leave(judge(&result));
                    match result {
                        Ok(answer) => return Ok(answer),
                        Err(error) => Error::Failed(error),
                    }
                }
                Err(_) => {
                    // The circuit decides if it was slow.
                    place.leave(Verdict::Neutral);
                    Error::TimedOut { target }
                }
            };
            if !again(&error) || deadline.is_over(Instant::now()) {
                return Err(error);
            }
            last = Some(error);
        }
    }

    /// Looks at the endpoints once, at all of them at the same time, until the first that answers is
    /// known: so that a caller who makes one call does not have to find out by it. Takes as long as
    /// [`crate::policy::CheckPolicy::timeout`] at most.
    pub async fn look<'e, F>(&'e self, check: impl Fn(&'e T) -> F)
    where
        F: Future<Output = bool>,
    {
        let look = |index| self.look_at(index, &check);
        let mut looks: FuturesOrdered<_> = (0..self.all.len()).map(look).collect();
        while looks.next().await == Some(false) {}
    }

    /// Looks at every endpoint again and again, for as long as it is polled: `check` says whether
    /// one answers. Endpoints that rest are looked at, too, so that they come back soon.
    pub async fn check<'e, F>(&'e self, check: impl Fn(&'e T) -> F)
    where
        F: Future<Output = bool>,
    {
        let looks = (0..self.all.len()).map(|index| self.check_one(index, &check));
        futures::future::join_all(looks).await;
    }

    async fn check_one<'e, F>(&'e self, index: usize, check: &impl Fn(&'e T) -> F)
    where
        F: Future<Output = bool>,
    {
        let policy = self.policy.check;
        loop {
            tokio::time::sleep(policy.interval.mul_f64(2.0 * crate::pause::chance())).await;
            self.look_at(index, check).await;
        }
    }

    /// True if it answers.
    async fn look_at<'e, F>(&'e self, index: usize, check: &impl Fn(&'e T) -> F) -> bool
    where
        F: Future<Output = bool>,
    {
        let ticket = self.circuits.with(|all, now| all[index].insist(now));
        // A call is probing it: its outcome will tell.
        let Some(ticket) = ticket else { return false };
        let place = self.circuits.place(index, ticket);
        let looked = tokio::time::timeout(self.policy.check.timeout, check(&self.all[index])).await;
        let answers = looked == Ok(true);
        place.leave(if answers { Verdict::Success } else { Verdict::Failure });
        answers
    }

    /// The state of the best of them.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        self.circuits.state()
    }
}

/// The first in order that was not tried and lets a call through; else the one that has rested
/// longest, before its time.
fn pick(
    circuits: &mut [Circuit],
    first: usize,
    tried: &[bool],
    now: Instant,
) -> Option<(usize, Ticket)> {
    let count = circuits.len();
    let untried = || (0..count).map(|n| first.wrapping_add(n) % count).filter(|n| !tried[*n]);
    for index in untried() {
        if let Ok(ticket) = circuits[index].decide(now) {
            return Some((index, ticket));
        }
    }
    let resting = untried().filter_map(|index| Some((circuits[index].rests()?.0, index)));
    let (_, index) = resting.min()?;
    Some((index, circuits[index].insist(now)?))
}

#[cfg(test)]
mod tests;
