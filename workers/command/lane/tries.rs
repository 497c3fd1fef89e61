//! Commands that are not done with at their first try.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use flexcore_domain::{AggregateKey, Command, Name, Outcome, Refusal, Slot, commit::Commit};

use super::{
    Action, Entry, Lane, Owed, Ticket, Turn, Undecided, Work,
    away::{Away, Of},
    unknown::{Decided, Unknown},
};

/// Tries of a stored command whose functions use up their time or memory before it is put aside as
/// faulty. Each takes up to 100 ms of the lane, so that they are few; before the next there are 50, 100
/// and 200 ms.
const TRIES_MAX: u32 = 4;

/// Times that the log is looked at for a commit that it did not answer, and calls too large now: some
/// 10 s in all.
const LOOKS_MAX: u32 = 10;

/// Memory of commands from one try to the next.
#[derive(Default)]
pub(super) struct Tries {
    unanswered: HashMap<Ticket, Unanswered>,
    /// Those whose clients have been told that the outcome is unknown.
    unknown: Unknown,
    /// Tries that used up what a script may use.
    exhausted: HashMap<Ticket, (Slot, u32)>,
    /// Those whose decider is away, or busy.
    pub(super) away: Away,
}

/// A commit that had no answer: it may be in the log, or get there yet. Until that is certain the
/// command is not decided again, since another outcome could follow from it: the same commit is sent
/// again. Either the log takes one of them, or it has something else of the aggregate, and can take
/// none any more.
#[derive(Clone)]
pub(super) struct Unanswered {
    pub(super) commit: Arc<Commit>,
    /// The aggregate with it.
    pub(super) after: Entry,
    /// The stream sequence that the aggregate's subject must end with.
    pub(super) expects: u64,
}

impl Tries {
    pub(super) fn begin(&mut self, ticket: Ticket, unanswered: Unanswered) {
        self.unanswered.insert(ticket, unanswered);
    }

    pub(super) fn end(&mut self, ticket: Ticket) {
        self.unanswered.remove(&ticket);
        self.exhausted.remove(&ticket);
        self.away.end(ticket);
    }

    /// Its client is told that the outcome is unknown, and may send it again.
    pub(super) fn give_up(&mut self, ticket: Ticket) {
        if let Some(Unanswered { commit, expects, .. }) = self.unanswered.remove(&ticket) {
            let decided = Decided { time_ms: commit.time_ms, expects };
            self.unknown.remember(commit.key.clone(), commit.command_id.clone(), decided);
        }
        self.exhausted.remove(&ticket);
        self.away.end(ticket);
    }

    /// The time of the decision of a command that has come again after its outcome was unknown,
    /// while the log can still take the commit that was decided then.
    pub(super) fn decided_ms(&mut self, command: &Command, ends_with: u64) -> Option<i64> {
        self.unknown.decided_ms(&command.key, &command.id, ends_with)
    }

    pub(super) fn leave(&mut self, slot: Slot) {
        self.unknown.leave(slot);
        self.away.leave(slot);
        self.unanswered.retain(|_, unanswered| unanswered.commit.key.slot() != slot);
        self.exhausted.retain(|_, (of, _)| *of != slot);
    }

    /// The commit to send again while the aggregate ends with its expectation. With anything else
    /// the log will never take it, and nothing is in doubt any more.
    pub(super) fn unanswered(&mut self, ticket: Ticket, ends_with: u64) -> Option<Unanswered> {
        if self.unanswered.get(&ticket)?.expects != ends_with {
            self.unanswered.remove(&ticket);
        }
        self.unanswered.get(&ticket).cloned()
    }

    /// True if an unanswered commit may be in the log yet, after so many looks.
    pub(super) fn is_open(&self, ticket: Ticket, looks: u32) -> bool {
        self.unanswered.contains_key(&ticket) && looks < LOOKS_MAX
    }

    /// The answer to a command in place of this outcome, which says that nothing was recorded.
    pub(super) fn told(&self, work: &Work, outcome: &Outcome) -> Outcome {
        let in_doubt = self.unanswered.contains_key(&work.ticket());
        match outcome {
            Outcome::Faulty { message } if in_doubt && work.is_patient() => Outcome::Faulty {
                message: format!("{message}; a commit of it had no answer and may be in the log"),
            },
            _ if in_doubt => still_unknown(),
            other => other.clone(),
        }
    }

    /// True if an undecided command is tried again: a stored one that reached its limits, or whose
    /// decider is away or busy, and one whose first commit may be in the log yet, since its outcome
    /// is not known. `plugin`: the one that decides on it, if one does.
    pub(super) fn comes_again(
        &mut self,
        undecided: &Undecided,
        work: &Work,
        Turn { key, attempts, now_ms, .. }: &Turn,
        plugin: Option<&Name>,
    ) -> bool {
        match undecided {
            Undecided::Exhausted(_) => self.try_again(work, key),
            Undecided::Away(_) => {
                work.is_patient() && self.away.waits(work.ticket(), &Of::new(key, plugin), *now_ms)
            }
            Undecided::Busy(_) => {
                work.is_patient() && self.away.comes_again(work.ticket(), &Of::new(key, plugin))
            }
            Undecided::Told(Outcome::Unavailable { .. }) => {
                work.is_patient() && *attempts < LOOKS_MAX
            }
            Undecided::Told(_) => false,
        }
    }

    /// True if a command that reached its limits is tried again: a stored one, some times.
    pub(super) fn try_again(&mut self, work: &Work, key: &AggregateKey) -> bool {
        if !work.is_patient() {
            return false;
        }
        let (_, tries) = self.exhausted.entry(work.ticket()).or_insert((key.slot(), 0));
        *tries += 1;
        *tries < TRIES_MAX
    }
}

fn still_unknown() -> Outcome {
    Outcome::Unavailable { message: "a commit of this command had no answer".to_owned() }
}

impl Lane {
    /// The commit to append for a command, or the reason why there is none. A commit that had no
    /// answer is appended again as it was.
    pub(super) async fn next_try(
        &mut self,
        entry: &Entry,
        Owed { command, ticket, .. }: &Owed,
        now_ms: i64,
    ) -> Result<Unanswered, Undecided> {
        let expects = entry.expected.sequence;
        if let Some(unanswered) = self.tries.unanswered(*ticket, expects) {
            return Ok(unanswered);
        }
        let decided_ms = self.tries.decided_ms(command, expects);
        let decided = self.decide(entry, command, decided_ms.unwrap_or(now_ms)).await;
        Self::to_append(entry, decided, decided_ms.is_some())
    }

    /// The commit to append. `in_doubt`: another one of this command, decided at the same time on the
    /// same state, may be in the log.
    pub(super) fn to_append(
        entry: &Entry,
        decided: Result<(Commit, Entry), Undecided>,
        in_doubt: bool,
    ) -> Result<Unanswered, Undecided> {
        let (commit, after) = match decided {
            // Another outcome than a commit is that of other functions.
            Err(_) if in_doubt => return Err(still_unknown().into()),
            decided => decided?,
        };
        let (commit, expects) = (Arc::new(commit), entry.expected.sequence);
        Ok(Unanswered { commit, after, expects })
    }

    /// The state cannot be computed. Where that took too much, stored commands are tried again.
    pub(super) fn not_folded(&mut self, mut turn: Turn, refusal: Refusal) -> Vec<Action> {
        let undecided = Undecided::from(refusal);
        let exhausted = matches!(undecided, Undecided::Exhausted(_));
        let all = std::mem::take(&mut turn.waiting).into_iter();
        let (again, told): (VecDeque<Work>, VecDeque<Work>) =
            all.partition(|work| exhausted && self.tries.try_again(work, &turn.key));
        self.answer_all(&mut turn, told, &undecided.outcome());
        if again.is_empty() {
            return turn.actions;
        }
        turn.waiting = again;
        turn.attempts += 1;
        self.load(turn, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_says_how_often_a_stored_command_is_tried() {
        let times = ["", "once", "twice", "three times", "four times", "five times"];
        let said = format!("is tried {} before it is put", times[TRIES_MAX as usize]);
        assert!(include_str!("../../../README.md").contains(&said), "{said}");
    }
}
