//! Commits that the log has not taken, and that is certain: they are too large for it, or it is full.

use std::collections::VecDeque;

use flexcore_domain::Outcome;

use super::{Action, Appending, Lane, Recall, Turn, Work};

impl Lane {
    /// A commit is larger than the log takes, and would be each time: the command is refused.
    pub(super) async fn too_large(
        &mut self,
        mut turn: Turn,
        appending: Appending,
        why: &str,
    ) -> Vec<Action> {
        let Appending { before, owed, .. } = appending;
        let message = format!(
            "the events of {} are too large for one commit: in their envelopes {why}; record fewer \
             or smaller events, or divide the command",
            owed.command.name
        );
        self.answer_all(&mut turn, [Work::Command(owed)], &Outcome::Faulty { message });
        if !self.is_current(&turn.key, &before) {
            return self.begin_anew(turn);
        }
        turn.attempts = 0;
        self.drain(turn, before).await
    }

    /// The broker's storage is full. A client that waits gets its answer at once. A command from
    /// the queue is tried again now and then, in its order, until there is room.
    pub(super) fn no_room(
        &mut self,
        mut turn: Turn,
        appending: Appending,
        why: String,
    ) -> Vec<Action> {
        let Appending { before, owed, guessed, .. } = appending;
        let known = !guessed && self.is_current(&turn.key, &before);
        turn.waiting.push_front(Work::Command(owed));
        // A repeated one has its outcome already, or may have.
        let (told, left): (VecDeque<Work>, VecDeque<Work>) =
            turn.waiting.into_iter().partition(|work| {
                matches!(work, Work::Command(owed)
                if !owed.patient && before.recall(&owed.command.id) == Recall::Never)
            });
        turn.waiting = left;
        self.answer_all(&mut turn, told, &Outcome::NoRoom { message: why });
        if !turn.waiting.is_empty() {
            return self.load(turn, known.then(|| Box::new(before)));
        }
        if known {
            self.cache.put(turn.key, before);
        }
        turn.actions
    }
}
