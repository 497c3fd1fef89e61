//! Guessing that an aggregate is new, to save a load. Most commands that meet an aggregate which is
//! not at hand begin a new one (`schedule`, `open`): decided on the empty state and appended with the
//! expectation that there is no commit yet, a wrong guess is a conflict, and nothing else.
//!
//! A conflict costs its whole batch another attempt, so guesses are few at once, and the more often
//! they were wrong the longer they have to be right before the next.

use std::collections::HashMap;

use flexcore_domain::{AggregateName, Command, CommandName};

/// Loads in a row that must have found nothing before the first guess.
const IN_A_ROW_FIRST: u32 = 32;
/// The same after many wrong guesses.
const IN_A_ROW_MAX: u32 = 1 << 16;
/// Guesses of a lane that are under way at once.
const UNDER_WAY_MAX: usize = 128;
/// Kinds of commands that are remembered. Names come from clients, and may be anything.
const KINDS_MAX: usize = 1_024;

/// Counts how often each kind of command met a new aggregate.
#[derive(Default)]
pub(super) struct Guesses {
    kinds: HashMap<(AggregateName, CommandName), Streak>,
    under_way: usize,
}

struct Streak {
    /// New aggregates in a row.
    in_a_row: u32,
    /// Number of these that it takes to guess.
    needed: u32,
}

impl Guesses {
    /// True if an aggregate that is not at hand is likely to be new, judging by the command for it.
    pub(super) fn is_new(&self, command: &Command) -> bool {
        let kind = self.kinds.get(&kind(command));
        self.under_way < UNDER_WAY_MAX && kind.is_some_and(|kind| kind.in_a_row >= kind.needed)
    }

    /// A guess is being appended.
    pub(super) fn begin(&mut self) {
        self.under_way += 1;
    }

    /// The result of a guess is known.
    pub(super) fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// A load for this command has found an aggregate, or none.
    pub(super) fn learn(&mut self, command: &Command, new: bool) {
        let name = kind(command);
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&name) {
            self.kinds.clear();
        }
        let first = Streak { in_a_row: 0, needed: IN_A_ROW_FIRST };
        let kind = self.kinds.entry(name).or_insert(first);
        kind.in_a_row = if new { kind.in_a_row.saturating_add(1) } else { 0 };
    }

    /// A guess for this command was wrong. Of several at once the first counts.
    pub(super) fn wrong(&mut self, command: &Command) {
        if let Some(kind) = self.kinds.get_mut(&kind(command))
            && kind.in_a_row > 0
        {
            *kind = Streak { in_a_row: 0, needed: (kind.needed * 2).min(IN_A_ROW_MAX) };
        }
    }
}

fn kind(command: &Command) -> (AggregateName, CommandName) {
    (command.key.aggregate().clone(), command.name.clone())
}
