//! Slots that the worker leaves.

use std::collections::VecDeque;

use flexcore_domain::{AggregateKey, Slot};

use super::{Action, Lane, Work};

impl Lane {
    /// Drops what is kept of the slot's aggregates, and what waits for them: another worker changes
    /// them from now on. What is under way goes on in the log, where it may arrive or not; nothing
    /// follows from it here. Whoever waits is answered by the shell.
    pub(in crate::command) fn leave(&mut self, slot: Slot) {
        self.cache.forget(slot);
        self.doubts.leave(slot);
        for busy in self.busy.iter_mut().filter(|(key, _)| key.slot() == slot).map(|(_, busy)| busy)
        {
            busy.waiting.clear();
            busy.void = true;
        }
    }

    /// What was under way when the slot was left has ended; what has come since it was taken up again
    /// starts from what the log has.
    pub(super) fn begin_anew(
        &mut self,
        key: AggregateKey,
        waiting: VecDeque<Work>,
        actions: &mut Vec<Action>,
    ) {
        if !waiting.is_empty() {
            self.load(key, waiting, None, 0, actions);
        }
    }
}
