//! Guessing that an aggregate is new, to save a load. Most commands that meet an aggregate which is
//! not at hand begin a new one (`schedule`, `open`): decided on the empty state and appended with the
//! expectation that there is no commit yet, a wrong guess is a conflict, and nothing else.

use std::collections::HashMap;

use flexcore_domain::{AggregateKey, AggregateName, Command, CommandName};

/// Loads in a row that must have found nothing before a guess: a wrong one costs its whole batch a
/// second attempt.
const IN_A_ROW: u32 = 32;
/// Kinds of commands that are remembered. Names come from clients, and may be anything.
const KINDS_MAX: usize = 1_024;

/// How often each kind of command met a new aggregate, in a row.
#[derive(Default)]
pub(super) struct Guesses {
    kinds: HashMap<(AggregateName, CommandName), u32>,
}

impl Guesses {
    /// Whether an aggregate that is not at hand is likely to be new, from the command for it.
    pub(super) fn is_new(&self, command: &Command) -> bool {
        let kind = (command.key.aggregate().clone(), command.name.clone());
        self.kinds.get(&kind).is_some_and(|in_a_row| *in_a_row >= IN_A_ROW)
    }

    /// A load for this command has found an aggregate, or none.
    pub(super) fn learn(&mut self, key: &AggregateKey, name: &CommandName, new: bool) {
        if self.kinds.len() >= KINDS_MAX {
            self.kinds.clear();
        }
        let in_a_row = self.kinds.entry((key.aggregate().clone(), name.clone())).or_default();
        *in_a_row = if new { in_a_row.saturating_add(1) } else { 0 };
    }
}
