//! A turn: the lane works for one aggregate, until that has to wait for a result.

use std::collections::VecDeque;

use flexcore_domain::AggregateKey;

use super::{Action, Busy, Lane, Phase, Work};

/// An aggregate that is worked for. A turn begins with an input, and ends in actions.
pub(super) struct Turn {
    pub(super) key: AggregateKey,
    /// Work for the aggregate, in order.
    pub(super) waiting: VecDeque<Work>,
    /// Failed tries in a row of the first of it.
    pub(super) attempts: u32,
    /// The time that deciders see.
    pub(super) now_ms: i64,
    /// The actions for the shell so far.
    pub(super) actions: Vec<Action>,
}

impl Turn {
    pub(super) fn new(key: AggregateKey, now_ms: i64) -> Self {
        let (waiting, actions) = (VecDeque::new(), Vec::with_capacity(1));
        Self { key, waiting, attempts: 0, now_ms, actions }
    }
}

impl Lane {
    /// Ends a turn with an action. Its result begins the next turn; what comes meanwhile waits.
    pub(super) fn wait_for(&mut self, turn: Turn, phase: Phase, action: Action) -> Vec<Action> {
        let Turn { key, waiting, attempts, mut actions, .. } = turn;
        actions.push(action);
        self.busy.insert(key, Busy { phase, waiting, attempts, void: false });
        actions
    }

    /// The turn that begins with a result, what was under way, and whether that is void. `None`:
    /// nothing was under way.
    pub(super) fn resume(&mut self, key: AggregateKey, now_ms: i64) -> Option<(Turn, Phase, bool)> {
        let Busy { phase, waiting, attempts, void } = self.busy.remove(&key)?;
        let turn = Turn { waiting, attempts, ..Turn::new(key, now_ms) };
        Some((turn, phase, void))
    }
}
