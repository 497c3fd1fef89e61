//! Commands that may be old ones: the log is asked at the places that their fingerprints name.

use flexcore_domain::{AggregateKey, CommandId, Secret};
use flexcore_eventstore::{Error, snapshot::RememberedCommand};

use super::{Action, Asking, Entry, Lane, Phase, Recall, Turn, Work};

/// The command that has to be looked up before this can be worked on, and where.
pub(super) fn to_look_up(entry: &Entry, work: &Work) -> Option<(CommandId, Vec<u64>)> {
    let id = match work {
        Work::Command(owed) => &owed.command.id,
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
        turn: Turn,
        entry: Entry,
        id: CommandId,
        places: Vec<u64>,
    ) -> Vec<Action> {
        let action = Action::LookUp { key: turn.key.clone(), id: id.clone(), places };
        let phase = Phase::LookingUp { entry: Box::new(entry), id };
        self.wait_for(turn, phase, action)
    }

    pub(super) async fn looked_up(
        &mut self,
        key: AggregateKey,
        result: Result<Option<RememberedCommand>, Error>,
        now_ms: i64,
    ) -> Vec<Action> {
        let Some((turn, phase, void)) = self.resume(key, now_ms) else { return Vec::new() };
        let Phase::LookingUp { mut entry, id } = phase else { return Vec::new() };
        if void || !self.is_current(&turn.key, &entry) {
            return self.begin_anew(turn);
        }
        match result {
            Ok(said) => {
                entry.looked_up(id, said);
                self.drain(turn, *entry).await
            }
            Err(Error::Unavailable(message)) => self.not_loaded(turn, Some(entry), message),
            Err(broken) => self.broken(turn, &broken),
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
            Some(Phase::LookingUp { entry, .. } | Phase::Asking(Asking { entry, .. })) => {
                entry.keeps(secret, count)
            }
            Some(Phase::Loading { .. }) => {}
        }
    }
}
