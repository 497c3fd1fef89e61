//! Slots that the worker leaves.

use flexcore_domain::Slot;

use super::{Action, Lane, Turn};

impl Lane {
    /// Drops what is kept of the slot's aggregates, and what waits for them: another worker changes
    /// them from now on. The work under way goes on in the log, where it may arrive or not; nothing
    /// follows from it here. The shell answers those who wait.
    pub(in crate::command) fn leave(&mut self, slot: Slot) {
        self.cache.forget(slot);
        self.tries.leave(slot);
        self.waits.retain(|_, (key, _)| key.slot() != slot);
        for busy in self.busy.iter_mut().filter(|(key, _)| key.slot() == slot).map(|(_, busy)| busy)
        {
            busy.waiting.clear();
            busy.void = true;
        }
    }

    /// The work that was under way when the slot was left has ended; later work starts from what
    /// the log has.
    pub(super) fn begin_anew(&mut self, mut turn: Turn) -> Vec<Action> {
        if turn.waiting.is_empty() {
            return turn.actions;
        }
        turn.attempts = 0;
        self.load(turn, None)
    }
}
