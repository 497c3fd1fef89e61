//! Chooses the question that a lane begins with next. Tenants take turns, and so do the commands
//! whose senders wait and those that are stored, also within one aggregate. Each of them has a
//! limit of work begun at once: work that a lane has begun stands in the log's queue, where all
//! wait alike. Beside a tenant that keeps within a share it is few ([`Beside`]). A tenant that has
//! used much of the lane's processor time beside others begins nothing for a while ([`Rests`]).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use flexcore_domain::{AggregateKey, Tenant};
use flexcore_resilience::Beside;

use super::rests::Rests;

/// True if somebody waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// A client.
    Waiting,
    /// Nobody: a command from the queue.
    Stored,
}

impl Class {
    fn other(self) -> Self {
        match self {
            Self::Waiting => Self::Stored,
            Self::Stored => Self::Waiting,
        }
    }
}

type Who = (Tenant, Class);

/// Questions that are not begun, by their tenants.
pub(super) struct Turns<T> {
    at_once_max: usize,
    beside: Beside<Tenant>,
    rests: Rests,
    queues: HashMap<Who, VecDeque<(AggregateKey, T)>>,
    /// Those that have something and may begin it, as it was when they lined up.
    order: VecDeque<Who>,
    /// Those that have something and must wait until something of theirs has ended, or their rest.
    held: HashSet<Who>,
    /// Aggregates with something under way.
    under_way: HashMap<AggregateKey, UnderWay<T>>,
    /// Aggregates for which these count.
    aggregates: HashMap<Who, usize>,
    /// Questions that follow in an aggregate where something has just ended.
    next: VecDeque<(AggregateKey, T)>,
}

/// An aggregate with something under way.
struct UnderWay<T> {
    /// For whom it counts.
    who: Who,
    behind: Behind<T>,
}

/// The next question in an aggregate: a client and a stored command in turn, each in its order.
/// Otherwise clients would wait for all that is stored for it.
struct Behind<T> {
    waiting: VecDeque<T>,
    stored: VecDeque<T>,
    last: Class,
}

impl<T> Behind<T> {
    fn after(class: Class) -> Self {
        Self { waiting: VecDeque::new(), stored: VecDeque::new(), last: class }
    }

    fn of(&mut self, class: Class) -> &mut VecDeque<T> {
        match class {
            Class::Waiting => &mut self.waiting,
            Class::Stored => &mut self.stored,
        }
    }

    fn next(&mut self) -> Option<T> {
        let first = match self.last {
            Class::Waiting if !self.stored.is_empty() => Class::Stored,
            Class::Stored if self.waiting.is_empty() => Class::Stored,
            Class::Waiting | Class::Stored => Class::Waiting,
        };
        self.last = first;
        self.of(first).pop_front()
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.stored.is_empty()
    }
}

impl<T> Turns<T> {
    /// Each tenant has so many aggregates under way at once for its clients, and so many for its
    /// stored commands. Further questions to an aggregate that is under way wait there, and take
    /// nothing from others.
    pub(super) fn new(at_once_max: usize, beside: Beside<Tenant>) -> Self {
        Self {
            at_once_max,
            beside,
            rests: Rests::default(),
            queues: HashMap::new(),
            order: VecDeque::new(),
            held: HashSet::new(),
            under_way: HashMap::new(),
            aggregates: HashMap::new(),
            next: VecDeque::new(),
        }
    }

    /// Something is asked of the aggregate.
    pub(super) fn push(&mut self, key: AggregateKey, class: Class, asked: T, now: Instant) {
        let who = (key.tenant().clone(), class);
        let queue = self.queues.entry(who.clone()).or_default();
        queue.push_back((key, asked));
        let is_first = queue.len() == 1;
        self.note(&who.0, now);
        if is_first {
            self.line_up(who, now);
        }
    }

    /// A tenant's work under way, and its waiting work.
    fn note(&mut self, tenant: &Tenant, now: Instant) {
        let waits = |class| self.queues.get(&(tenant.clone(), class)).map_or(0, VecDeque::len);
        let wants = waits(Class::Waiting) + waits(Class::Stored) + self.has(tenant);
        self.beside.wants(tenant, wants, now);
    }

    /// Aggregates that count for a tenant.
    fn has(&self, tenant: &Tenant) -> usize {
        let of = |class| self.aggregates.get(&(tenant.clone(), class)).copied().unwrap_or(0);
        of(Class::Waiting) + of(Class::Stored)
    }

    /// What was begun for a tenant has used the lane's processor for so long. Returns the time when
    /// [`Self::rested`] is to be called, if it has to rest for that.
    pub(super) fn used(
        &mut self,
        tenant: &Tenant,
        time: Duration,
        now: Instant,
    ) -> Option<Instant> {
        if self.beside.is_alone(tenant, now) {
            return None;
        }
        self.rests.used(tenant, time, now);
        self.rests.until(tenant, now)
    }

    /// The end of a tenant's rest; `None`: it does not rest.
    pub(super) fn rests_until(&self, tenant: &Tenant, now: Instant) -> Option<Instant> {
        self.rests.until(tenant, now)
    }

    /// A tenant's rest may be over.
    pub(super) fn rested(&mut self, tenant: &Tenant, now: Instant) {
        for class in [Class::Waiting, Class::Stored] {
            let who = (tenant.clone(), class);
            if self.held.remove(&who) {
                self.line_up(who, now);
            }
        }
    }

    /// Puts one that has something where it belongs.
    fn line_up(&mut self, who: Who, now: Instant) {
        if self.may_begin(&who, now) {
            self.order.push_back(who);
        } else {
            self.held.insert(who);
        }
    }

    /// The question to begin with next. [`Self::ended`] is told when it has been answered.
    pub(super) fn next(&mut self, now: Instant) -> Option<(AggregateKey, T)> {
        if let Some(next) = self.next.pop_front() {
            return Some(next);
        }
        loop {
            let who = self.order.pop_front()?;
            // Somebody else may have come meanwhile.
            if !self.may_begin(&who, now) {
                self.held.insert(who);
                continue;
            }
            let begun = self.take(&who, now);
            if self.queues.contains_key(&who) {
                self.line_up(who, now);
            }
            if begun.is_some() {
                return begun;
            }
        }
    }

    /// Takes the first one of somebody; `None`: it has to wait in its aggregate.
    fn take(&mut self, who: &Who, now: Instant) -> Option<(AggregateKey, T)> {
        let queue = self.queues.get_mut(who)?;
        let (key, asked) = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(who);
        }
        if let Some(under_way) = self.under_way.get_mut(&key) {
            under_way.behind.of(who.1).push_back(asked);
            // It takes nothing from others there.
            self.note(&who.0, now);
            return None;
        }
        let under_way = UnderWay { who: who.clone(), behind: Behind::after(who.1) };
        self.under_way.insert(key.clone(), under_way);
        *self.aggregates.entry(who.clone()).or_default() += 1;
        Some((key, asked))
    }

    /// The question that was begun for the aggregate has been answered.
    pub(super) fn ended(&mut self, key: &AggregateKey, now: Instant) {
        let tenant = key.tenant();
        let is_within = self.has(tenant) <= self.beside.most(tenant, now)
            && self.rests.until(tenant, now).is_none();
        let Some(under_way) = self.under_way.get_mut(key) else { return };
        let class = under_way.who.1;
        if is_within && let Some(next) = under_way.behind.next() {
            self.next.push_back((key.clone(), next));
        } else {
            self.leave(key, now);
        }
        // Also where the aggregate goes on: it may do so for ever. The other one of the tenant first.
        for class in [class.other(), class] {
            if self.held.is_empty() {
                return;
            }
            let who = (tenant.clone(), class);
            if self.held.remove(&who) {
                self.line_up(who, now);
            }
        }
    }

    /// The aggregate has nothing under way any more.
    fn leave(&mut self, key: &AggregateKey, now: Instant) {
        let Some(UnderWay { who, behind }) = self.under_way.remove(key) else { return };
        if let Some(aggregates) = self.aggregates.get_mut(&who) {
            *aggregates -= 1;
            if *aggregates == 0 {
                self.aggregates.remove(&who);
            }
        }
        if !behind.is_empty() {
            self.put_back(key, behind, now);
        }
        self.note(key.tenant(), now);
    }

    /// Questions that wait in an aggregate wait again for a turn of their tenant, before later
    /// ones.
    fn put_back(&mut self, key: &AggregateKey, behind: Behind<T>, now: Instant) {
        for (class, asked) in [(Class::Waiting, behind.waiting), (Class::Stored, behind.stored)] {
            let who = (key.tenant().clone(), class);
            for asked in asked.into_iter().rev() {
                let queue = self.queues.entry(who.clone()).or_default();
                queue.push_front((key.clone(), asked));
                if queue.len() == 1 {
                    self.line_up(who.clone(), now);
                }
            }
        }
    }

    /// True if its first one may be begun, or waits in its aggregate.
    fn may_begin(&mut self, who: &Who, now: Instant) -> bool {
        let Some((key, _)) = self.queues.get(who).and_then(VecDeque::front) else { return false };
        if self.under_way.contains_key(key) {
            return true;
        }
        let aggregates = self.aggregates.get(who).copied().unwrap_or(0);
        aggregates < self.at_once_max
            && self.has(&who.0) < self.beside.most(&who.0, now)
            && self.rests.until(&who.0, now).is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::OnceLock, time::Duration};

    use super::*;
    use crate::command::some_keys::key;

    fn at() -> Instant {
        static AT: OnceLock<Instant> = OnceLock::new();
        *AT.get_or_init(Instant::now)
    }

    /// Nobody is held back but by this bound.
    fn turns(at_once_max: usize) -> Turns<&'static str> {
        Turns::new(at_once_max, Beside::new(1 << 20, 1 << 20))
    }

    fn begun(turns: &mut Turns<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| turns.next(at()).map(|(_, asked)| asked)).collect()
    }

    #[test]
    fn a_tenants_flood_holds_up_nobody_elses_next_command() {
        let mut turns = turns(1_000);
        for id in 0..10_000 {
            turns.push(key("flood", id), Class::Stored, "flood", at());
        }
        turns.push(key("calm", 0), Class::Waiting, "calm", at());
        turns.push(key("flood", 10_000), Class::Waiting, "its own client", at());
        let first: Vec<_> = (0..4).map(|_| turns.next(at()).unwrap().1).collect();
        assert_eq!(first, ["flood", "calm", "its own client", "flood"]);
    }

    #[test]
    fn what_one_has_under_way_is_bounded_and_goes_on_when_it_ends() {
        let mut turns = turns(3);
        for id in 0..5 {
            turns.push(key("flood", id), Class::Stored, "flood", at());
        }
        assert_eq!(begun(&mut turns).len(), 3);
        turns.push(key("flood", 9), Class::Waiting, "client", at());
        turns.push(key("calm", 9), Class::Stored, "calm", at());
        assert_eq!(begun(&mut turns), ["client", "calm"], "each has its own bound");
        turns.ended(&key("flood", 1), at());
        assert_eq!(begun(&mut turns), ["flood"]);
        for id in [0, 2, 3, 4] {
            turns.ended(&key("flood", id), at());
        }
        assert_eq!(begun(&mut turns), ["flood"]);
        turns.ended(&key("flood", 4), at());
        turns.ended(&key("flood", 9), at());
        turns.ended(&key("calm", 9), at());
        assert!(turns.aggregates.is_empty() && turns.under_way.is_empty());
        assert!(turns.queues.is_empty() && turns.held.is_empty());
    }

    /// A tenant with one aggregate that everything is for has its other slots go on.
    #[test]
    fn what_waits_for_an_aggregate_under_way_counts_once() {
        let mut turns = turns(2);
        for _ in 0..50 {
            turns.push(key("acme", 0), Class::Stored, "hot", at());
        }
        turns.push(key("acme", 1), Class::Stored, "other", at());
        assert_eq!(begun(&mut turns), ["hot", "other"]);
        // All that may be under way, and more is asked of both.
        turns.push(key("acme", 0), Class::Stored, "hot", at());
        turns.push(key("acme", 1), Class::Stored, "other again", at());
        turns.push(key("acme", 2), Class::Stored, "third", at());
        assert!(begun(&mut turns).is_empty());
        turns.ended(&key("acme", 0), at());
        turns.ended(&key("acme", 1), at());
        assert_eq!(begun(&mut turns), ["hot", "other again"]);
    }

    #[test]
    fn in_an_aggregate_clients_and_stored_commands_take_turns() {
        let mut turns = turns(8);
        for _ in 0..4 {
            turns.push(key("acme", 0), Class::Stored, "stored", at());
        }
        for asked in ["a", "b"] {
            turns.push(key("acme", 0), Class::Waiting, asked, at());
        }
        let mut order = begun(&mut turns);
        while !turns.under_way.is_empty() {
            turns.ended(&key("acme", 0), at());
            order.extend(begun(&mut turns));
        }
        assert_eq!(order, ["stored", "a", "stored", "b", "stored", "stored"]);
    }

    /// Begins with all that wait and ends them at once, so many times. Returns how often each one
    /// came.
    fn work(turns: &mut Turns<&'static str>, times: usize) -> (usize, usize) {
        let (mut flood, mut calm) = (0, 0);
        for _ in 0..times {
            let Some((key, asked)) = turns.next(at()) else { break };
            *(if asked == "calm" { &mut calm } else { &mut flood }) += 1;
            turns.ended(&key, at());
        }
        (flood, calm)
    }

    #[test]
    fn a_flood_has_few_under_way_beside_somebody_who_keeps_within_a_share() {
        let mut turns = Turns::new(512, Beside::new(64, 1));
        for id in 0..1_000 {
            turns.push(key("flood", id), Class::Stored, "flood", at());
            turns.push(key("flood", 10_000 + id), Class::Waiting, "flood", at());
        }
        turns.push(key("calm", 0), Class::Waiting, "calm", at());
        assert_eq!(begun(&mut turns), ["flood", "calm"], "one each");
        turns.ended(&key("calm", 0), at());
        turns.ended(&key("flood", 0), at());
        assert_eq!(begun(&mut turns), ["flood"]);
        let client = key("flood", 10_000);
        assert!(turns.under_way.contains_key(&client), "stored ones and clients in turn");
        let later = at() + Duration::from_secs(2);
        turns.ended(&client, later);
        let alone = std::iter::from_fn(|| turns.next(later)).count();
        assert!(alone > 500, "{alone} when it is alone again");
    }

    #[test]
    fn what_was_begun_before_somebody_came_is_all_that_is_before_it() {
        let mut turns = Turns::new(512, Beside::new(64, 1));
        for round in 0..3 {
            for id in 0..400 {
                let asked = ["first", "second", "third"][round];
                turns.push(key("flood", id), Class::Stored, asked, at());
            }
        }
        assert_eq!(begun(&mut turns).len(), 400);
        turns.push(key("calm", 0), Class::Waiting, "calm", at());
        assert_eq!(begun(&mut turns), ["calm"]);
        for id in 0..399 {
            turns.ended(&key("flood", id), at());
            assert!(begun(&mut turns).is_empty(), "it has enough under way");
        }
        turns.ended(&key("flood", 399), at());
        assert_eq!(begun(&mut turns).len(), 1);
        // All of them come, and those of an aggregate in order.
        turns.ended(&key("calm", 0), at());
        let last = turns.under_way.keys().next().unwrap().clone();
        turns.ended(&last, at());
        assert_eq!(work(&mut turns, usize::MAX).0, 799);
        assert!(turns.aggregates.is_empty() && turns.queues.is_empty() && turns.held.is_empty());
    }

    #[test]
    fn an_aggregate_that_goes_on_and_on_holds_up_nobody_of_its_tenant() {
        for busy in [Class::Stored, Class::Waiting] {
            let mut turns = Turns::new(512, Beside::new(64, 1));
            for calm in ["calm1", "calm2", "calm3"] {
                turns.push(key(calm, 0), Class::Waiting, calm, at());
            }
            for _ in 0..256 {
                turns.push(key("busy", 0), busy, "more", at());
            }
            turns.push(key("busy", 1), busy.other(), "the other", at());
            let mut came = begun(&mut turns);
            assert!(!came.contains(&"the other"), "what its tenant wants is much");
            for _ in 0..10 {
                // Another one comes for each.
                turns.ended(&key("busy", 0), at());
                turns.push(key("busy", 0), busy, "more", at());
                came.extend(begun(&mut turns));
            }
            assert!(came.contains(&"the other"), "{busy:?}: {came:?}");
        }
    }

    #[test]
    fn an_aggregates_commands_of_a_class_keep_their_order() {
        let mut turns = turns(1);
        for asked in ["a", "b", "c"] {
            turns.push(key("acme", 0), Class::Stored, asked, at());
            turns.push(key("calm", 0), Class::Stored, "-", at());
        }
        let mut order = begun(&mut turns);
        for _ in 0..2 {
            turns.ended(&key("acme", 0), at());
            turns.ended(&key("calm", 0), at());
            order.extend(begun(&mut turns));
        }
        assert_eq!(order, ["a", "-", "b", "-", "c", "-"]);
    }

    #[test]
    fn whoever_has_used_much_rests_beside_others_and_then_goes_on() {
        let (limit, flood) = (Duration::from_millis(100), Tenant::parse("flood").unwrap());
        let mut turns = turns(8);
        for class in [Class::Waiting, Class::Stored] {
            for id in 0..4 {
                turns.push(key("flood", id), class, "flood", at());
            }
        }
        for _ in 0..100 {
            assert_eq!(turns.used(&flood, limit, at()), None, "it is alone");
        }
        assert_eq!(begun(&mut turns).len(), 4, "one an aggregate");
        turns.push(key("calm", 0), Class::Waiting, "calm", at());
        let until = (0..100).find_map(|_| turns.used(&flood, limit, at())).unwrap();
        turns.ended(&key("flood", 0), at());
        turns.ended(&key("flood", 1), at());
        assert_eq!(begun(&mut turns), ["calm"]);
        turns.rested(&flood, at());
        assert!(turns.next(at()).is_none(), "too early");
        turns.rested(&flood, until);
        let rest: Vec<_> = std::iter::from_fn(|| turns.next(until)).collect();
        assert_eq!(rest.len(), 2, "one for each aggregate that has nothing under way");
    }
}
