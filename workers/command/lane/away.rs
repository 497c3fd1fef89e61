//! Stored commands whose decider is away, such as a plugin that is not installed, or has too much to do. They wait for
//! it while they are in nobody's way. A slot reads on only so far beyond a command that is not settled, and has only
//! so many under way. So those that would stop it are put aside, for a person to have them done again.

use std::collections::HashMap;

use flexcore_domain::{AggregateKey, Name, Slot, Tenant};

use super::Ticket;

/// Places of a slot for stored commands that wait for long. 64: a quarter of those that a slot has under way. A
/// tenant takes at most as many as are left for others.
const WAITING_MAX: usize = 64;

/// Time for which the commands of a tenant that have no such place wait for a decider that does not answer. 10 s: a
/// plugin is started again in less, and for so long others of the slot may wait behind them.
const RESTART_MS: i64 = 10_000;

/// Stored commands of the slot that are done with while one waits. 500: a half of those that the slot's reader may be
/// ahead of it.
const PASSED_MAX: u64 = 500;

/// Times that a command's decider is asked. 60, with up to 2 s between them, are nearly two minutes: a plugin is
/// upgraded, and a worker is replaced, in less. Meanwhile stored ones behind it in its aggregate stand still.
const TRIES_MAX: u32 = 60;

/// Time for which a decider that was away for so long is not waited for again, unless it answers the tenant in the
/// slot: those behind would each wait for as long, one after another.
const GONE_MS: i64 = 60_000;

/// Of whom a command is, and who decides on it: in each slot these are apart, so that nobody is put aside for what
/// another tenant or another plugin does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Of {
    slot: Slot,
    tenant: Tenant,
    /// `None`: it is no plugin.
    plugin: Option<Name>,
}

impl Of {
    pub(super) fn new(key: &AggregateKey, plugin: Option<&Name>) -> Self {
        Self { slot: key.slot(), tenant: key.tenant().clone(), plugin: plugin.cloned() }
    }
}

/// The stored commands of a lane that wait.
#[derive(Default)]
pub(super) struct Away {
    waiting: HashMap<Ticket, Waits>,
    busy: HashMap<Ticket, Busy>,
    slots: HashMap<Slot, OfSlot>,
    of: HashMap<Of, Outage>,
    /// Answers of each plugin to anybody here.
    answers: HashMap<Name, u64>,
}

/// A command whose decider is away.
struct Waits {
    of: Of,
    tries: u32,
    /// Of its slot, when it began to wait.
    passed: u64,
    has_place: bool,
}

/// A command whose decider has too much to do.
struct Busy {
    slot: Slot,
    tries: u32,
    /// Those since its decider last answered anybody.
    in_vain: u32,
    /// Of its decider, as of its last try.
    answers: u64,
    /// Of its slot, when it came first.
    passed: u64,
}

#[derive(Default)]
struct OfSlot {
    /// Places that are taken.
    taken: usize,
    /// Stored commands that are done with.
    passed: u64,
}

#[derive(Default)]
struct Outage {
    /// Places that its commands have.
    taken: usize,
    /// When the decider was first found to be away, and last.
    away_ms: Option<(i64, i64)>,
    /// Until when it is not waited for.
    gone_until_ms: Option<i64>,
}

impl Outage {
    /// The decider is away now. Returns for how long it has been.
    fn away_for_ms(&mut self, now_ms: i64) -> i64 {
        let known = self.away_ms.filter(|(_, last_ms)| now_ms.saturating_sub(*last_ms) < GONE_MS);
        let first_ms = known.map_or(now_ms, |(first_ms, _)| first_ms);
        self.away_ms = Some((first_ms, now_ms));
        now_ms.saturating_sub(first_ms)
    }

    fn is_gone(&self, now_ms: i64) -> bool {
        self.gone_until_ms.is_some_and(|until_ms| now_ms < until_ms)
    }

    /// Nothing of it counts any more.
    fn is_over(&self, now_ms: i64) -> bool {
        let is_old = |(_, last_ms): (i64, i64)| now_ms.saturating_sub(last_ms) >= GONE_MS;
        self.taken == 0 && !self.is_gone(now_ms) && self.away_ms.is_none_or(is_old)
    }
}

impl Away {
    /// The decider of a stored command is away. Returns whether the command waits for it.
    pub(super) fn waits(&mut self, ticket: Ticket, of: &Of, now_ms: i64) -> bool {
        if !self.of.contains_key(of) {
            self.of.retain(|_, outage| !outage.is_over(now_ms));
        }
        let outage = self.of.entry(of.clone()).or_default();
        let slot = self.slots.entry(of.slot).or_default();
        let new = || Waits { of: of.clone(), tries: 0, passed: slot.passed, has_place: false };
        let waits = self.waiting.entry(ticket).or_insert_with(new);
        if !waits.has_place && outage.taken < WAITING_MAX.saturating_sub(slot.taken) {
            waits.has_place = true;
            outage.taken += 1;
            slot.taken += 1;
        }
        waits.tries = waits.tries.saturating_add(1);
        let away_ms = outage.away_for_ms(now_ms);
        let is_gone = outage.is_gone(now_ms) || waits.tries >= TRIES_MAX;
        if is_gone {
            outage.gone_until_ms = Some(now_ms.saturating_add(GONE_MS));
        }
        let is_in_the_way = !waits.has_place && away_ms >= RESTART_MS
            || slot.passed.saturating_sub(waits.passed) >= PASSED_MAX;
        let goes_on = !(is_gone || is_in_the_way);
        if !goes_on {
            self.end(ticket);
        }
        goes_on
    }

    /// The decider of a stored command has too much to do. Returns whether the command comes again: while the decider
    /// answers others its turn comes, too, unless the slot's reader would stop at it for long.
    pub(super) fn comes_again(&mut self, ticket: Ticket, of: &Of) -> bool {
        let answers = of.plugin.as_ref().and_then(|plugin| self.answers.get(plugin).copied());
        let answers = answers.unwrap_or_default();
        let slot = self.slots.entry(of.slot).or_default();
        let new = || Busy { slot: of.slot, tries: 0, in_vain: 0, answers, passed: slot.passed };
        let busy = self.busy.entry(ticket).or_insert_with(new);
        if busy.answers != answers {
            (busy.answers, busy.in_vain) = (answers, 0);
        }
        busy.tries = busy.tries.saturating_add(1);
        busy.in_vain = busy.in_vain.saturating_add(1);
        let is_in_the_way =
            busy.tries >= TRIES_MAX && slot.passed.saturating_sub(busy.passed) >= PASSED_MAX;
        let goes_on = busy.in_vain < TRIES_MAX && !is_in_the_way;
        if !goes_on {
            self.end(ticket);
        }
        goes_on
    }

    /// Times that the decider of a command was asked in vain; `None`: it has not been away.
    pub(super) fn tries(&self, ticket: Ticket) -> Option<u32> {
        let busy = self.busy.get(&ticket).map_or(0, |busy| busy.tries);
        Some(self.waiting.get(&ticket)?.tries.saturating_add(busy))
    }

    /// The decider of a command of this aggregate, a plugin if it is one, has answered.
    pub(super) fn answered(&mut self, key: &AggregateKey, plugin: Option<&Name>) {
        if let Some(plugin) = plugin {
            if let Some(answers) = self.answers.get_mut(plugin) {
                *answers = answers.wrapping_add(1);
            } else {
                self.answers.insert(plugin.clone(), 1);
            }
        }
        if self.of.is_empty() {
            return;
        }
        if let Some(outage) = self.of.get_mut(&Of::new(key, plugin)) {
            (outage.away_ms, outage.gone_until_ms) = (None, None);
        }
    }

    /// A stored command of the slot is done with.
    pub(super) fn passed(&mut self, slot: Slot) {
        if let Some(of) = self.slots.get_mut(&slot) {
            of.passed = of.passed.saturating_add(1);
        }
    }

    /// The command waits no more.
    pub(super) fn end(&mut self, ticket: Ticket) {
        self.busy.remove(&ticket);
        let Some(Waits { of, has_place: true, .. }) = self.waiting.remove(&ticket) else { return };
        if let Some(outage) = self.of.get_mut(&of) {
            outage.taken = outage.taken.saturating_sub(1);
        }
        if let Some(slot) = self.slots.get_mut(&of.slot) {
            slot.taken = slot.taken.saturating_sub(1);
        }
    }

    pub(super) fn leave(&mut self, slot: Slot) {
        self.waiting.retain(|_, waits| waits.of.slot != slot);
        self.busy.retain(|_, busy| busy.slot != slot);
        self.of.retain(|of, _| of.slot != slot);
        self.slots.remove(&slot);
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

    fn name(name: &str) -> Name {
        Name::parse(name).unwrap()
    }

    /// A tenant's, in the same slot whoever it is.
    fn of(tenant: &str, plugin: &str) -> Of {
        let tenant = Tenant::parse(tenant).unwrap();
        Of { slot: slot(), tenant, plugin: Some(name(plugin)) }
    }

    fn acme() -> Of {
        of("acme", "rules")
    }

    fn answers(away: &mut Away) {
        away.answered(&key("acme", 0), Some(&name("rules")));
    }

    /// Times that a command waits, with others done with between them.
    fn times(away: &mut Away, ticket: Ticket, now_ms: i64, passed: u64) -> u32 {
        let mut times = 0;
        while away.waits(ticket, &acme(), now_ms) {
            times += 1;
            (0..passed).for_each(|_| away.passed(slot()));
        }
        times
    }

    /// Commands with tickets from this on that begin to wait; the rest is put aside.
    fn begin(away: &mut Away, of: &Of, from: u64, now_ms: i64) -> usize {
        (from..from + 256).filter(|ticket| away.waits(*ticket, of, now_ms)).count()
    }

    #[test]
    fn a_command_waits_for_some_time_and_those_behind_it_do_not_wait_as_long() {
        let mut away = Away::default();
        assert_eq!(times(&mut away, 1, 0, 0), TRIES_MAX - 1);
        assert_eq!(times(&mut away, 2, GONE_MS - 1, 0), 0);
        // That one was told so, too.
        assert_eq!(times(&mut away, 3, 2 * GONE_MS - 2, 0), 0);
        assert_eq!(times(&mut away, 4, 3 * GONE_MS - 2, 0), TRIES_MAX - 1);
        answers(&mut away);
        assert_eq!(times(&mut away, 5, 3 * GONE_MS - 2, 0), TRIES_MAX - 1);
        assert!(away.waiting.is_empty());
    }

    /// One tenant's plugin that was gone had another's command put aside, whose plugin was only started again.
    #[test]
    fn a_plugin_that_is_gone_says_nothing_of_another_one_or_of_another_tenant() {
        let mut away = Away::default();
        assert_eq!(times(&mut away, 1, 0, 0), TRIES_MAX - 1);
        for (ticket, other) in [(2, of("acme", "prices")), (3, of("globex", "rules"))] {
            assert!(away.waits(ticket, &other, 1), "{other:?}");
        }
        away.answered(&key("acme", 0), Some(&name("prices")));
        assert!(!away.waits(4, &acme(), 1), "another plugin has answered");
        answers(&mut away);
        assert!(away.waits(5, &acme(), 1));
    }

    #[test]
    fn a_restart_under_a_bulk_puts_nothing_aside_and_a_tenant_leaves_places_for_others() {
        let mut away = Away::default();
        assert_eq!(begin(&mut away, &acme(), 0, 0), 256);
        assert_eq!(begin(&mut away, &acme(), 0, RESTART_MS - 1), 256);
        // It is no restart any more: those with a place go on, and so does whoever comes next.
        assert_eq!(begin(&mut away, &acme(), 0, RESTART_MS), WAITING_MAX / 2);
        assert_eq!(begin(&mut away, &acme(), 1_000, RESTART_MS), 0);
        away.end(0);
        assert!(away.waits(3_000, &acme(), RESTART_MS), "a place that was given back");
        let globex = of("globex", "rules");
        assert_eq!(begin(&mut away, &globex, 2_000, RESTART_MS), 256);
        assert_eq!(begin(&mut away, &globex, 2_000, 2 * RESTART_MS), WAITING_MAX / 4);
        // An answer ends the outage.
        answers(&mut away);
        assert_eq!(begin(&mut away, &acme(), 4_000, RESTART_MS), 256);
    }

    #[test]
    fn a_slot_is_not_stopped_by_those_that_wait() {
        // The slot's reader comes to where it must not read on.
        let mut away = Away::default();
        assert_eq!(times(&mut away, 1, 0, 100), 5);
        assert!(2 * PASSED_MAX <= u64::try_from(IN_DOUBT_MAX).unwrap());
        assert!(away.comes_again(2, &acme()));
        away.leave(slot());
        assert!(away.slots.is_empty() && away.of.is_empty());
        assert!(away.waiting.is_empty() && away.busy.is_empty());
    }

    /// It was put aside although the plugin decided on all that it could.
    #[test]
    fn a_command_whose_decider_answers_others_comes_again_until_its_turn() {
        let mut away = Away::default();
        for _ in 0..1_000 {
            assert!(away.comes_again(1, &acme()));
            answers(&mut away);
        }
        // An outage before, or after, is counted apart.
        assert!(away.waits(1, &acme(), 0));
        // Now it is in the way of those behind it.
        (0..PASSED_MAX).for_each(|_| away.passed(slot()));
        assert!(!away.comes_again(1, &acme()));
        assert!(away.busy.is_empty() && away.waiting.is_empty());
        assert_eq!(away.slots[&slot()].taken, 0);
    }

    #[test]
    fn a_decider_that_is_always_busy_and_answers_nobody_is_given_up() {
        let mut away = Away::default();
        let times = (0..).take_while(|_| away.comes_again(1, &acme())).count();
        assert_eq!(u32::try_from(times).unwrap(), TRIES_MAX - 1);
        // Another one's answers are none of its own.
        let others = |away: &mut Away| {
            away.answered(&key("acme", 0), Some(&name("prices")));
            away.comes_again(2, &acme())
        };
        let times = (0..).take_while(|_| others(&mut away)).count();
        assert_eq!(u32::try_from(times).unwrap(), TRIES_MAX - 1);
        assert!(away.waits(3, &acme(), 0), "nothing is said of those that wait");
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut away = Away::default();
        for tenant in 0..100 {
            assert!(away.waits(tenant, &of(&format!("t{tenant}"), "rules"), 0));
            away.end(tenant);
        }
        assert_eq!(away.of.len(), 100);
        assert!(away.waits(100, &acme(), GONE_MS));
        assert_eq!(away.of.len(), 1);
    }
}
