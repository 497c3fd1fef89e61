//! Commands that may be old ones: the log is asked at the places that their fingerprints name.

use std::collections::VecDeque;

use flexcore_domain::{AggregateKey, CommandId, Outcome, Secret};
use flexcore_eventstore::{Error, snapshot::RememberedCommand};

use super::{Action, Busy, Entry, Lane, Phase, Recall, Work};

/// The command that has to be looked up before this can be worked on, and where.
pub(super) fn to_look_up(entry: &Entry, work: &Work) -> Option<(CommandId, Vec<u64>)> {
    let id = match work {
        Work::Command { command, .. } => &command.id,
        Work::OutcomeOf { id, .. } => id,
        Work::State { .. } => return None,
    };
    match entry.recall(id) {
        Recall::Perhaps(places) => Some((id.clone(), places)),
        Recall::Known(_) | Recall::Never => None,
    }
}

impl Lane {
    /// Asks the log for the first of what waits. The rest waits for the answer: it may not be decided
    /// before.
    pub(super) fn look_up(
        &mut self,
        key: AggregateKey,
        entry: Entry,
        (id, places): (CommandId, Vec<u64>),
        waiting: VecDeque<Work>,
        attempts: u32,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::LookUp { key: key.clone(), id: id.clone(), places });
        let phase = Phase::LookingUp { entry: Box::new(entry), id, generation: self.generation };
        self.busy.insert(key, Busy { phase, waiting, attempts, void: false });
    }

    pub(super) async fn looked_up(
        &mut self,
        key: AggregateKey,
        result: Result<Option<RememberedCommand>, Error>,
        now_ms: i64,
        actions: &mut Vec<Action>,
    ) {
        let Some(Busy { phase, waiting, attempts, void }) = self.busy.remove(&key) else { return };
        let Phase::LookingUp { mut entry, id, generation } = phase else { return };
        if void || generation != self.generation {
            return self.begin_anew(key, waiting, actions);
        }
        match result {
            Ok(said) => {
                entry.looked_up(id, said);
                self.drain(key, *entry, waiting, attempts, now_ms, actions).await;
            }
            Err(Error::Unavailable(message)) => {
                self.not_loaded(key, Some(entry), waiting, attempts, message, actions);
            }
            Err(broken) => {
                let message = broken.to_string();
                let outcome = Outcome::Faulty { message: message.clone() };
                self.answer_all(waiting, &outcome, &message, actions);
            }
        }
    }

    /// The next snapshot need not bring these blocks again. Where the aggregate is not at hand, it does.
    pub(super) fn blocks_kept(&mut self, key: &AggregateKey, secret: Secret, count: usize) {
        match self.busy.get_mut(key).map(|busy| &mut busy.phase) {
            None => {
                if let Some(entry) = self.cache.get_mut(key) {
                    entry.keeps(secret, count);
                }
            }
            Some(Phase::Appending(appending)) => appending.after.keeps(secret, count),
            Some(Phase::LookingUp { entry, .. }) => entry.keeps(secret, count),
            Some(Phase::Loading { .. }) => {}
        }
    }
}
