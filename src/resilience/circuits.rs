//! The circuits of one target behind one lock, with their metrics: one for a breaker, one for each
//! endpoint of several.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::{
    circuit::{Circuit, CircuitState, Ticket, Verdict},
    measure,
    policy::BreakerPolicy,
};

#[derive(Debug)]
pub(crate) struct Circuits {
    target: &'static str,
    all: Mutex<Vec<Circuit>>,
}

impl Circuits {
    pub(crate) fn new(target: &'static str, policy: BreakerPolicy, count: usize) -> Self {
        measure::breaker(target);
        Self { target, all: Mutex::new((0..count).map(|_| Circuit::new(policy)).collect()) }
    }

    pub(crate) fn target(&self) -> &'static str {
        self.target
    }

    /// Does something with the circuits, and shows what changed by it. Within the lock, so that the
    /// gauge ends at what is.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut [Circuit], Instant) -> R) -> R {
        // No code panics half way through a change; a poisoned lock still holds whole circuits.
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let result = act(&mut all, now);
        for index in 0..all.len() {
            if let Some(to) = all[index].take_change() {
                let pause =
                    all[index].rests().map_or_else(Default::default, |(from, to)| to - from);
                measure::transition(self.target, to, best(&all), pause);
            }
        }
        result
    }

    /// The state of the best of them.
    pub(crate) fn state(&self) -> CircuitState {
        self.with(|all, _| best(all))
    }

    /// A ticket that comes back whatever happens.
    pub(crate) fn place(&self, index: usize, ticket: Ticket) -> Call<'_> {
        Call { circuits: self, index, ticket: Some(ticket) }
    }
}

fn best(all: &[Circuit]) -> CircuitState {
    all.iter().map(Circuit::state).min().unwrap_or(CircuitState::Closed)
}

/// A call under way. Dropped with it when the caller goes away: then the result says nothing, unless
/// the call was slow already.
#[must_use]
pub(crate) struct Call<'a> {
    circuits: &'a Circuits,
    index: usize,
    ticket: Option<Ticket>,
}

impl Call<'_> {
    pub(crate) fn leave(mut self, verdict: Verdict) {
        self.give_back(verdict);
    }

    fn give_back(&mut self, verdict: Verdict) {
        let Some(ticket) = self.ticket.take() else { return };
        let random = crate::pause::chance();
        self.circuits.with(|all, now| all[self.index].on_result(ticket, verdict, now, random));
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.give_back(Verdict::Neutral);
    }
}
