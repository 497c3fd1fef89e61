//! Decisions. A decider that answers later, such as a plugin's, is asked by an action: its aggregate's
//! later commands wait for the answer, the lane's other aggregates go on.

use std::ops::ControlFlow;

use flexcore_domain::{AggregateKey, Command, Context, Decision, Outcome, Slot, commit::Commit};

use super::{
    Action, Entry, Lane, Owed, Phase, Recall, Ticket, Turn, Undecided, Work, answers::repeated,
    loading::PAUSE,
};
use crate::command::deciders::{LaterDecider, NoDecision, Proposals, ToDecide};

/// A decider that has been asked. Its command is the first of what waits.
pub(super) struct Asking {
    /// An answer to another question says nothing.
    number: u64,
    pub(super) entry: Box<Entry>,
    /// The time that it was told.
    now_ms: i64,
    /// A commit of this command, decided at that time, may be in the log.
    in_doubt: bool,
}

/// Who is asked about a command.
pub(super) enum Asks {
    /// A decider that answers later.
    Later(ToAsk),
    /// The lane's own, or there is nothing to ask: a commit of the command is to be sent again.
    Here,
    /// Nobody.
    Nobody {
        /// All that can come of it.
        why: Undecided,
        /// A commit of the command may be in the log.
        in_doubt: bool,
    },
}

/// A question, before it has a number.
pub(super) struct ToAsk {
    to_decide: Box<ToDecide>,
    in_doubt: bool,
}

/// The input of a decider, or the outcome that needs none.
pub(super) fn context(entry: &Entry, command: &Command, now_ms: i64) -> Result<Context, Undecided> {
    if let Recall::Known(first) = entry.recall(&command.id) {
        return Err(repeated(command, first).into());
    }
    if command.expected_version.is_some_and(|expected| expected != entry.version) {
        return Err(Outcome::Conflict { version: entry.version }.into());
    }
    Ok(Context {
        tenant: command.key.tenant().clone(),
        id: command.key.id().clone(),
        version: entry.version,
        command_id: command.id.clone(),
        actor: command.provenance.actor.clone(),
        // Hosts' clocks differ, and are set back: an aggregate's time stands still then.
        now_ms: now_ms.max(entry.time_ms),
    })
}

/// The commit of a decision and the aggregate after it, or why there is nothing to append.
pub(super) fn concluded(
    entry: &Entry,
    command: &Command,
    decision: Decision,
    now_ms: i64,
) -> Result<(Commit, Entry), Undecided> {
    if decision.events.is_empty() {
        let version = entry.version;
        return Err(Outcome::Accepted { version, position: None, replayed: false }.into());
    }
    #[cfg(feature = "defects")]
    let decision = crate::defects::halved(decision);
    Ok(entry.commit(command, decision, now_ms))
}

impl Lane {
    /// A stored command of the slot is done with, whatever came of it.
    pub(in crate::command) fn passed(&mut self, slot: Slot) {
        self.tries.away.passed(slot);
    }

    /// The decider of a command, if it is one that answers later.
    pub(in crate::command) fn later(&self, command: &Command) -> Option<LaterDecider> {
        self.deciders.later(command)
    }

    /// Whom to ask about a command. One that does not fit its schema is not asked about.
    pub(super) async fn asks_later(
        &mut self,
        entry: &Entry,
        Owed { command, ticket, .. }: &Owed,
        now_ms: i64,
    ) -> Asks {
        let expects = entry.expected.sequence;
        if self.later(command).is_none() || self.tries.unanswered(*ticket, expects).is_some() {
            return Asks::Here;
        }
        let decided_ms = self.tries.decided_ms(command, expects);
        let (in_doubt, now_ms) = (decided_ms.is_some(), decided_ms.unwrap_or(now_ms));
        let context = match context(entry, command, now_ms) {
            Ok(context) => context,
            Err(why) => return Asks::Nobody { why, in_doubt },
        };
        if let Err(fault) = self.deciders.admit(command).await {
            return Asks::Nobody { why: fault.into(), in_doubt };
        }
        let (state, command) = (entry.state.clone(), Command::clone(command));
        let to_decide = Box::new(ToDecide { state, command, context });
        Asks::Later(ToAsk { to_decide, in_doubt })
    }

    /// Asks for the first of what waits.
    pub(super) fn ask(&mut self, turn: Turn, entry: Entry, asked: ToAsk) -> Vec<Action> {
        let ToAsk { to_decide, in_doubt } = asked;
        self.asked += 1;
        let phase = Phase::Asking(Asking {
            number: self.asked,
            entry: Box::new(entry),
            now_ms: to_decide.context.now_ms,
            in_doubt,
        });
        let (key, number) = (turn.key.clone(), self.asked);
        self.wait_for(turn, phase, Action::AskDecider { key, number, to_decide })
    }

    pub(super) async fn decided(
        &mut self,
        key: AggregateKey,
        number: u64,
        result: Proposals,
        now_ms: i64,
    ) -> Vec<Action> {
        match self.busy.get(&key).map(|busy| &busy.phase) {
            Some(Phase::Asking(asking)) if asking.number == number => {}
            _ => return Vec::new(),
        }
        let Some((mut turn, phase, void)) = self.resume(key, now_ms) else { return Vec::new() };
        let Phase::Asking(asking) = phase else { return Vec::new() };
        // What it was told was folded by older functions: nothing has come of it.
        if void || !self.is_current(&turn.key, &asking.entry) {
            return self.begin_anew(turn);
        }
        let Asking { entry, now_ms, in_doubt, .. } = asking;
        let Some(Work::Command(owed)) = turn.waiting.pop_front() else {
            return self.drain(turn, *entry).await;
        };
        if result.is_ok() && self.later(&owed.command).is_none() {
            // Another deployment has its rules elsewhere, with the same events.
            turn.waiting.push_front(Work::Command(owed));
            return self.begin_anew(turn);
        }
        if !matches!(result, Err(NoDecision::Away(_) | NoDecision::Busy(_))) {
            self.tries.away.answered(&turn.key, self.deciders.plugin(&owed.command));
        }
        let decided = match result {
            Ok(proposed) => {
                let on = (&entry.state, entry.version);
                let decided = self.deciders.conclude(on, &owed.command, proposed).await;
                decided
                    .map_err(Undecided::from)
                    .and_then(|decision| concluded(&entry, &owed.command, decision, now_ms))
            }
            Err(none) => Err(none.into()),
        };
        let tried = Self::to_append(&entry, decided, in_doubt);
        match self.tried(turn, *entry, owed, tried) {
            ControlFlow::Break(actions) => actions,
            ControlFlow::Continue((turn, entry)) => self.drain(turn, entry).await,
        }
    }

    /// A stored command whose decider is away comes again after a pause, which grows with its tries. Meanwhile the
    /// aggregate goes on.
    pub(super) fn wait(&mut self, turn: &mut Turn, work: Work, tries: u32) {
        let (key, ticket, pause) = (turn.key.clone(), work.ticket(), PAUSE.after(tries));
        turn.actions.push(Action::Wait { key: key.clone(), ticket, pause });
        turn.attempts = 0;
        self.waits.insert(ticket, (key, work));
    }

    /// The pause of a command is over.
    pub(super) async fn again(
        &mut self,
        key: AggregateKey,
        ticket: Ticket,
        now_ms: i64,
    ) -> Vec<Action> {
        // Its slot may have been left.
        let Some((_, work)) = self.waits.remove(&ticket) else { return Vec::new() };
        self.take_up(Turn::new(key, now_ms), work).await
    }
}
