//! Commits that the log has not taken, and that is certain: they are too large for it, or it is full.

use std::collections::VecDeque;

use flexcore_domain::{AggregateKey, Outcome};

use super::{Action, Appending, Lane, Recall, Work};

impl Lane {
    /// A commit is larger than the log takes, and would be each time: the command is refused.
    pub(super) fn too_large(
        &mut self,
        key: AggregateKey,
        appending: Appending,
        why: &str,
        waiting: VecDeque<Work>,
        now_ms: i64,
        actions: &mut Vec<Action>,
    ) {
        let Appending { before, command, patient, ticket, generation, .. } = appending;
        let message = format!(
            "the events of {} are too large for one commit: in their envelopes {why}; record fewer \
             or smaller events, or divide the command",
            command.name
        );
        let outcome = Outcome::Faulty { message };
        let outcome = Some(self.doubts.told(ticket, patient, outcome));
        actions.push(Action::Answer { ticket, outcome });
        if generation != self.generation {
            return self.begin_anew(key, waiting, actions);
        }
        self.drain(key, before, waiting, 0, now_ms, actions);
    }

    /// The broker's storage is full. Who waits is told at once; what came from the queue is tried again
    /// now and then, in its order, until there is room.
    pub(super) fn no_room(
        &mut self,
        key: AggregateKey,
        appending: Appending,
        why: &str,
        waiting: VecDeque<Work>,
        attempts: u32,
        actions: &mut Vec<Action>,
    ) {
        let Appending { before, command, patient, ticket, generation, guessed, .. } = appending;
        let known = !guessed && generation == self.generation;
        let outcome = Outcome::NoRoom { message: why.to_owned() };
        let mut left = VecDeque::with_capacity(waiting.len());
        for work in std::iter::once(Work::Command { command, patient, ticket }).chain(waiting) {
            match work {
                // A repeated one has its outcome already, or may have.
                Work::Command { command, patient: false, ticket }
                    if before.recall(&command.id) == Recall::Never =>
                {
                    let outcome = Some(self.doubts.told(ticket, false, outcome.clone()));
                    actions.push(Action::Answer { ticket, outcome });
                }
                work => left.push_back(work),
            }
        }
        if left.is_empty() {
            if known {
                self.cache.put(key, before);
            }
        } else {
            self.load(key, left, known.then(|| Box::new(before)), attempts, actions);
        }
    }
}
