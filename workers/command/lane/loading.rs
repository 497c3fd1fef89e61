//! Aggregates that are not at hand.

use std::time::Duration;

use flexcore_domain::AggregateKey;
use flexcore_eventstore::Expected;
use flexcore_resilience::Backoff;

use super::{Action, Entry, Lane, Phase, Turn, unstored::is_new_of_client};

/// Before the log is asked again after it did not answer.
pub(super) const PAUSE: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(2) };

impl Lane {
    /// Asks for commits again that had to go before their turn came.
    pub(super) fn unloaded(&mut self, key: AggregateKey, now_ms: i64) -> Vec<Action> {
        let Some((turn, phase, void)) = self.resume(key, now_ms) else { return Vec::new() };
        let Phase::Loading { base } = phase else { return Vec::new() };
        if void { self.begin_anew(turn) } else { self.load_after(Duration::ZERO, turn, base) }
    }

    /// Asks for an aggregate's commits, after a pause when that has failed.
    pub(super) fn load(&mut self, turn: Turn, base: Option<Box<Entry>>) -> Vec<Action> {
        self.load_after(PAUSE.after(turn.attempts), turn, base)
    }

    pub(super) fn load_after(
        &mut self,
        pause: Duration,
        turn: Turn,
        base: Option<Box<Entry>>,
    ) -> Vec<Action> {
        let after = base.as_ref().map_or_else(Expected::default, |base| base.expected);
        let fingerprint = self.deciders.fingerprint(turn.key.aggregate());
        let for_client = turn.waiting.iter().any(|work| is_new_of_client(work, base.as_deref()));
        let action = Action::Load { key: turn.key.clone(), after, fingerprint, pause, for_client };
        let phase = Phase::Loading { base };
        self.wait_for(turn, phase, action)
    }
}
