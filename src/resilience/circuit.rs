//! The circuit breaker as a state machine: time and chance are arguments.
//!
//! *Closed* lets everything through and counts. *Open* lets nothing through until its pause is over.
//! *Half open* lets one call at a time through, the probe; enough of them that succeed close the
//! circuit, one that fails opens it for longer.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{
    pause::{Backoff, upper_half},
    policy::BreakerPolicy,
};

/// The caller's verdict on a call's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target answered, be it with a refusal.
    Success,
    /// The target did not answer, or said that it cannot now.
    Failure,
    /// It says nothing about the target: it was not asked, or not until the end.
    Neutral,
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CircuitState {
    /// Calls go through.
    Closed,
    /// One call at a time goes through.
    HalfOpen,
    /// No call goes through.
    Open,
}

impl CircuitState {
    /// As metrics call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The right to make one call; given back with its result by [`Circuit::on_result`].
#[derive(Debug)]
#[must_use = "a probe's place is taken until the ticket is given back"]
pub struct Ticket {
    /// Results of calls that began before the last change say nothing about now.
    era: u64,
    began: Instant,
}

/// A circuit breaker without clock, chance or lock.
#[derive(Debug)]
pub struct Circuit {
    policy: BreakerPolicy,
    phase: Phase,
    era: u64,
    /// The last outcomes with their times; `true`: a failure.
    recent: VecDeque<(Instant, bool)>,
    failures_in_a_row: u32,
    /// Openings since the target worked for longer than the longest pause.
    openings: u32,
    closed_since: Option<Instant>,
    changed: Option<CircuitState>,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Open { since: Instant, until: Instant },
    HalfOpen { probing: bool, successes: u32 },
}

impl Circuit {
    /// A closed circuit.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            phase: Phase::Closed,
            era: 0,
            recent: VecDeque::with_capacity(policy.window),
            failures_in_a_row: 0,
            openings: 0,
            closed_since: None,
            changed: None,
        }
    }

    /// The answer to a call that asks to be made now. Fails with the time after which to ask again.
    pub fn decide(&mut self, now: Instant) -> Result<Ticket, Duration> {
        match self.phase {
            Phase::Open { until, .. } if now < until => Err(until - now),
            // The probe's duration is not known; assume the shortest pause.
            Phase::HalfOpen { probing: true, .. } => Err(self.policy.pause_min),
            Phase::Closed | Phase::Open { .. } | Phase::HalfOpen { .. } => Ok(self.admit(now)),
        }
    }

    /// As [`Circuit::decide`], but ends a pause early: for active checks, and where nothing better
    /// is left to try. `None` while another probe is under way.
    pub fn insist(&mut self, now: Instant) -> Option<Ticket> {
        (!matches!(self.phase, Phase::HalfOpen { probing: true, .. })).then(|| self.admit(now))
    }

    fn admit(&mut self, now: Instant) -> Ticket {
        match &mut self.phase {
            Phase::Closed => {}
            Phase::Open { .. } => {
                self.phase = Phase::HalfOpen { probing: true, successes: 0 };
                self.changed = Some(CircuitState::HalfOpen);
            }
            Phase::HalfOpen { probing, .. } => *probing = true,
        }
        Ticket { era: self.era, began: now }
    }

    /// Takes a call's result. `random` in 0..1 shortens the pause if this opens the circuit.
    pub fn on_result(&mut self, ticket: Ticket, verdict: Verdict, now: Instant, random: f64) {
        if ticket.era != self.era {
            return;
        }
        let slow = now.saturating_duration_since(ticket.began) >= self.policy.slow_call;
        let verdict = if slow { Verdict::Failure } else { verdict };
        match (&mut self.phase, verdict) {
            (Phase::Closed, Verdict::Neutral) => {}
            (Phase::Closed, verdict) => self.count(verdict == Verdict::Failure, now, random),
            (Phase::HalfOpen { .. }, Verdict::Failure) => self.open(now, random),
            (Phase::HalfOpen { probing, .. }, Verdict::Neutral) => *probing = false,
            (Phase::HalfOpen { probing, successes }, Verdict::Success) => {
                (*probing, *successes) = (false, *successes + 1);
                if *successes >= self.policy.successes {
                    self.close(now);
                }
            }
            (Phase::Open { .. }, _) => unreachable!("BUG: an open circuit has no tickets"),
        }
    }

    fn count(&mut self, failed: bool, now: Instant, random: f64) {
        let policy = &self.policy;
        self.failures_in_a_row = if failed { self.failures_in_a_row + 1 } else { 0 };
        if self.recent.len() >= policy.window {
            self.recent.pop_front();
        }
        self.recent.push_back((now, failed));
        let too_old =
            |(at, _): &(Instant, bool)| now.saturating_duration_since(*at) > policy.window_age;
        while self.recent.front().is_some_and(too_old) {
            self.recent.pop_front();
        }
        let failures = self.recent.iter().filter(|(_, failed)| *failed).count();
        let calls = self.recent.len();
        let by_share =
            calls >= policy.calls_min && failures * 100 >= calls * policy.failures_percent;
        if failed && (by_share || self.failures_in_a_row >= policy.failures_in_a_row) {
            self.open(now, random);
        }
    }

    fn open(&mut self, now: Instant, random: f64) {
        let worked = self.closed_since.take().map(|since| now.saturating_duration_since(since));
        if worked.is_some_and(|worked| worked > self.policy.pause_max) {
            self.openings = 0;
        }
        let pause = pause(&self.policy, self.openings, random);
        self.openings += 1;
        self.phase = Phase::Open { since: now, until: now + pause };
        self.changed(CircuitState::Open);
    }

    fn close(&mut self, now: Instant) {
        self.closed_since = Some(now);
        self.phase = Phase::Closed;
        self.changed(CircuitState::Closed);
    }

    fn changed(&mut self, to: CircuitState) {
        self.era += 1;
        self.recent.clear();
        self.failures_in_a_row = 0;
        self.changed = Some(to);
    }

    /// The circuit's state.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        match self.phase {
            Phase::Closed => CircuitState::Closed,
            Phase::Open { .. } => CircuitState::Open,
            Phase::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// When it opened, and when its pause ends; `None` unless it is open.
    #[must_use]
    pub fn rests(&self) -> Option<(Instant, Instant)> {
        match self.phase {
            Phase::Open { since, until } => Some((since, until)),
            Phase::Closed | Phase::HalfOpen { .. } => None,
        }
    }

    /// The new state, if it changed since the last call of this function.
    pub(crate) fn take_change(&mut self) -> Option<CircuitState> {
        self.changed.take()
    }
}

/// The pause after so many openings before: doubled each time, capped, less up to half by chance,
/// so that many processes do not probe at once.
fn pause(policy: &BreakerPolicy, openings_before: u32, random: f64) -> Duration {
    let backoff = Backoff { first: policy.pause_min, longest: policy.pause_max };
    upper_half(backoff.after(openings_before.saturating_add(1)), random)
}

#[cfg(test)]
mod tests;
