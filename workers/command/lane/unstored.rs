//! Commits that the log has not taken, and that is certain: they are too large for it, or it is full.

use std::collections::VecDeque;

use flexcore_domain::{AggregateKey, Outcome};

use super::{Action, Appending, Lane, Recall, Work};

impl Lane {
    /// A commit is larger than the log takes, and would be each time: the command is refused.
    pub(super) async fn too_large(
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
        let work = Work::Command { command, patient, ticket };
        let outcome = Outcome::Faulty { message: message.clone() };
        self.answer_all(VecDeque::from([work]), &outcome, &message, actions);
        if generation != self.generation {
            return self.begin_anew(key, waiting, actions);
        }
        self.drain(key, before, waiting, 0, now_ms, actions).await;
    }

    /// The broker's storage is full. A client that waits gets its answer at once. A command from
    /// the queue is tried again now and then, in its order, until there is room.
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
        let all = std::iter::once(Work::Command { command, patient, ticket }).chain(waiting);
        // A repeated one has its outcome already, or may have.
        let (told, left): (VecDeque<Work>, VecDeque<Work>) = all.partition(|work| {
            matches!(work, Work::Command { command, patient: false, .. }
                if before.recall(&command.id) == Recall::Never)
        });
        self.answer_all(told, &outcome, why, actions);
        if left.is_empty() {
            if known {
                self.cache.put(key, before);
            }
        } else {
            self.load(key, left, known.then(|| Box::new(before)), attempts, actions);
        }
    }
}
