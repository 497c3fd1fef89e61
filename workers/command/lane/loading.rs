//! Aggregates that are not at hand.

use std::{collections::VecDeque, time::Duration};

use flexcore_domain::AggregateKey;
use flexcore_eventstore::Expected;

use super::{Action, Busy, Entry, Lane, Phase, Work};

/// First and longest pause before the log is asked again after it did not answer.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

impl Lane {
    /// Asks for an aggregate's commits, after a pause when that has failed.
    pub(super) fn load(
        &mut self,
        key: AggregateKey,
        waiting: VecDeque<Work>,
        base: Option<Box<Entry>>,
        attempts: u32,
        actions: &mut Vec<Action>,
    ) {
        let pause = match attempts {
            0 => Duration::ZERO,
            n => (PAUSE_FIRST * 2_u32.pow(n.min(10) - 1)).min(PAUSE_LONGEST),
        };
        self.load_after(pause, key, waiting, base, attempts, actions);
    }

    pub(super) fn load_after(
        &mut self,
        pause: Duration,
        key: AggregateKey,
        waiting: VecDeque<Work>,
        base: Option<Box<Entry>>,
        attempts: u32,
        actions: &mut Vec<Action>,
    ) {
        let after = base.as_ref().map_or_else(Expected::default, |base| base.expected);
        let fingerprint = self.deciders.fingerprint(key.aggregate());
        actions.push(Action::Load { key: key.clone(), after, fingerprint, pause });
        let phase = Phase::Loading { base, generation: self.generation };
        self.busy.insert(key, Busy { phase, waiting, attempts, void: false });
    }
}
