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
        let Appending { before, command, patient, ticket, generation, .. } = appending;
        let message = format!(
            "the events of {} are too large for one commit: in their envelopes {why}; record fewer \
             or smaller events, or divide the command",
            command.name
        );
        let work = Work::Command { command, patient, ticket };
        self.answer_all(&mut turn, [work], &Outcome::Faulty { message });
        if generation != self.generation {
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
        let Appending { before, command, patient, ticket, generation, guessed, .. } = appending;
        let known = !guessed && generation == self.generation;
        turn.waiting.push_front(Work::Command { command, patient, ticket });
        // A repeated one has its outcome already, or may have.
        let (told, left): (Vec<Work>, VecDeque<Work>) =
            turn.waiting.into_iter().partition(|work| {
                matches!(work, Work::Command { command, patient: false, .. }
                if before.recall(&command.id) == Recall::Never)
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
