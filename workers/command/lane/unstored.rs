//! Commits that the log has not taken, and that is certain: they are too large for it, or it is full. While
//! it is, a client's command may end before there is a commit.

use std::collections::VecDeque;

use flexcore_domain::Outcome;

use super::{Action, Appending, Entry, Lane, Recall, Turn, Work};

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
        self.tell_clients(&mut turn, Some(&before), why);
        if !turn.waiting.is_empty() {
            return self.load(turn, known.then(|| Box::new(before)));
        }
        if known {
            self.cache.put(turn.key, before);
        }
        turn.actions
    }

    /// The broker's storage is full, and a client's command would wait long for the aggregate, only to hear
    /// so. What else waits goes on waiting: for questions the log need not take anything.
    pub(super) fn no_room_and_not_loaded(
        &mut self,
        mut turn: Turn,
        base: Option<Box<Entry>>,
        why: String,
    ) -> Vec<Action> {
        self.tell_clients(&mut turn, base.as_deref(), why);
        if turn.waiting.is_empty() {
            return turn.actions;
        }
        turn.attempts += 1;
        self.load(turn, base)
    }

    /// Tells the clients whose commands are new, as far as this part of the aggregate says, that there is no
    /// room.
    fn tell_clients(&mut self, turn: &mut Turn, known: Option<&Entry>, why: String) {
        let waiting = std::mem::take(&mut turn.waiting);
        let (told, left): (VecDeque<Work>, VecDeque<Work>) =
            waiting.into_iter().partition(|work| is_new_of_client(work, known));
        turn.waiting = left;
        self.answer_all(turn, told, &Outcome::NoRoom { message: why });
    }
}

/// True for the command of a client who waits, if it is new as far as this part of the aggregate says. A
/// repeated one has its outcome already, or may have.
pub(super) fn is_new_of_client(work: &Work, known: Option<&Entry>) -> bool {
    let Work::Command(owed) = work else { return false };
    !owed.patient && known.is_none_or(|known| known.recall(&owed.command.id) == Recall::Never)
}
