//! Stored commands whose decider is away, such as a plugin that is not installed: they wait for it while they are in
//! nobody's way. A slot reads on only so far beyond a command that is not settled, and has only so many under way. So
//! those that would stop it are put aside, for a person to have them done again.

use std::collections::HashMap;

use flexcore_domain::Slot;

use super::Ticket;

/// Stored commands of one slot that wait at once. 64: a quarter of those that a slot has under way.
const WAITING_MAX: usize = 64;

/// Stored commands of the slot that are done with while one waits. 500: a half of those that the slot's reader may be
/// ahead of it.
const PASSED_MAX: u64 = 500;

/// Times that a command's decider is asked. 60, with up to 2 s between them, are nearly two minutes: a plugin is
/// upgraded, and a worker is replaced, in less. Meanwhile those behind it in its aggregate stand still.
const TRIES_MAX: u32 = 60;

/// Time for which a decider that was away for so long is not waited for again, unless one answers in the slot: those
/// behind would each wait for as long, one after another.
const GONE_MS: i64 = 60_000;

/// The stored commands of a lane that wait.
#[derive(Default)]
pub(super) struct Away {
    waiting: HashMap<Ticket, Waits>,
    of: HashMap<Slot, OfSlot>,
}

struct Waits {
    slot: Slot,
    tries: u32,
    /// Of its slot, when it began to wait.
    passed: u64,
}

#[derive(Default)]
struct OfSlot {
    waiting: usize,
    /// Stored commands that are done with.
    passed: u64,
    /// Until when no decider is waited for.
    gone_until_ms: Option<i64>,
}

impl Away {
    /// The decider of a stored command is away. Returns whether the command waits for it.
    pub(super) fn waits(&mut self, ticket: Ticket, slot: Slot, now_ms: i64) -> bool {
        let of = self.of.entry(slot).or_default();
        let waits = self.waiting.entry(ticket).or_insert_with(|| {
            of.waiting += 1;
            Waits { slot, tries: 0, passed: of.passed }
        });
        waits.tries = waits.tries.saturating_add(1);
        let is_gone = of.gone_until_ms.is_some_and(|until_ms| now_ms < until_ms);
        let is_over = waits.tries >= TRIES_MAX;
        if is_gone || is_over {
            of.gone_until_ms = Some(now_ms.saturating_add(GONE_MS));
        }
        let is_first = waits.tries == 1;
        let is_in_the_way = is_first && of.waiting > WAITING_MAX
            || of.passed.saturating_sub(waits.passed) >= PASSED_MAX;
        let goes_on = !(is_gone || is_over || is_in_the_way);
        if !goes_on {
            self.end(ticket);
        }
        goes_on
    }

    /// A decider has answered in the slot.
    pub(super) fn answered(&mut self, slot: Slot) {
        if let Some(of) = self.of.get_mut(&slot) {
            of.gone_until_ms = None;
        }
    }

    /// A stored command of the slot is done with.
    pub(super) fn passed(&mut self, slot: Slot) {
        if let Some(of) = self.of.get_mut(&slot) {
            of.passed = of.passed.saturating_add(1);
        }
    }

    /// The command waits no more.
    pub(super) fn end(&mut self, ticket: Ticket) {
        let Some(Waits { slot, .. }) = self.waiting.remove(&ticket) else { return };
        if let Some(of) = self.of.get_mut(&slot) {
            of.waiting = of.waiting.saturating_sub(1);
        }
    }

    pub(super) fn leave(&mut self, slot: Slot) {
        self.waiting.retain(|_, waits| waits.slot != slot);
        self.of.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use flexcore_queue::settling::IN_DOUBT_MAX;

    use super::*;
    use crate::command::some_keys::key;

    fn slot() -> Slot {
        key("acme", 0).slot()
    }

    /// Times that a command waits, with others done with between them.
    fn times(away: &mut Away, ticket: Ticket, now_ms: i64, passed: u64) -> u32 {
        let mut times = 0;
        while away.waits(ticket, slot(), now_ms) {
            times += 1;
            (0..passed).for_each(|_| away.passed(slot()));
        }
        times
    }

    #[test]
    fn a_command_waits_for_some_time_and_those_behind_it_do_not_wait_as_long() {
        let mut away = Away::default();
        assert_eq!(times(&mut away, 1, 0, 0), TRIES_MAX - 1);
        assert_eq!(times(&mut away, 2, GONE_MS - 1, 0), 0);
        // That one was told so, too.
        assert_eq!(times(&mut away, 3, 2 * GONE_MS - 2, 0), 0);
        assert_eq!(times(&mut away, 4, 3 * GONE_MS - 2, 0), TRIES_MAX - 1);
        away.answered(slot());
        assert_eq!(times(&mut away, 5, 3 * GONE_MS - 2, 0), TRIES_MAX - 1);
        assert!(away.waiting.is_empty());
    }

    #[test]
    fn a_slot_is_not_stopped_by_those_that_wait() {
        let mut away = Away::default();
        let places = u64::try_from(WAITING_MAX).unwrap();
        assert!((0..places).all(|ticket| away.waits(ticket, slot(), 0)));
        assert!(!away.waits(places, slot(), 0), "one more");
        assert!(away.waits(0, slot(), 0), "those that wait go on");
        away.end(0);
        assert!(away.waits(places + 1, slot(), 0));
        // The slot's reader comes to where it must not read on.
        let mut away = Away::default();
        assert_eq!(times(&mut away, 1, 0, 100), 5);
        assert!(2 * PASSED_MAX <= u64::try_from(IN_DOUBT_MAX).unwrap());
        away.leave(slot());
        assert!(away.of.is_empty() && away.waiting.is_empty());
    }
}
