//! Chooses the question that a lane begins with next. Tenants take turns, and so do the commands
//! whose senders wait and those that are stored, also within one aggregate. Each of them has a
//! limit of work begun at once: work that a lane has begun stands in the log's queue, where all
//! wait alike. Beside a tenant that keeps within a share it is few ([`Beside`]). A tenant that has
//! used much of the lane's processor time beside others begins nothing for a while ([`Rests`]).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    time::{Duration, Instant},
};

use flexcore_domain::{AggregateKey, Slot, Tenant};
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
    /// Aggregates with a stored command that waits for its decider, by their tenants, and the stored ones behind it.
    waits: HashMap<Tenant, HashMap<AggregateKey, VecDeque<T>>>,
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
            waits: HashMap::new(),
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
        let waits = self.waits.get_mut(&who.0).filter(|_| who.1 == Class::Stored);
        if let Some(behind) = waits.and_then(|waits| waits.get_mut(&key)) {
            behind.push_back(asked);
            self.note(&who.0, now);
            return None;
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

    /// The stored command that was begun for the aggregate waits for its decider. It counts on beside other stored
    /// ones. Its aggregate is left to clients, and later stored ones stay behind it.
    pub(super) fn waits(&mut self, key: &AggregateKey, now: Instant) {
        let under_way = self.under_way.get_mut(key);
        let stored = under_way.map(|it| mem::take(&mut it.behind.stored)).unwrap_or_default();
        self.waits.entry(key.tenant().clone()).or_default().insert(key.clone(), stored);
        self.ended(key, now);
    }

    /// That command has been answered.
    pub(super) fn waits_no_more(&mut self, key: &AggregateKey, now: Instant) {
        let tenant = key.tenant();
        let Some(waits) = self.waits.get_mut(tenant) else { return };
        let stored = waits.remove(key).unwrap_or_default();
        if waits.is_empty() {
            self.waits.remove(tenant);
        }
        self.put_back(key, Behind { stored, ..Behind::after(Class::Stored) }, now);
        let who = (tenant.clone(), Class::Stored);
        if self.held.remove(&who) {
            self.line_up(who, now);
        }
    }

    /// Takes out what is stored for a slot and waits for a turn, or in an aggregate under way. What stands
    /// next in its aggregate stays there: its turn has come.
    pub(super) fn take_stored(&mut self, slot: Slot, now: Instant) -> Vec<T> {
        let (mut taken, mut tenants) = (Vec::new(), Vec::new());
        for ((tenant, class), queue) in &mut self.queues {
            let is_theirs = |(key, _): &(AggregateKey, T)| key.slot() == slot;
            if *class == Class::Stored && queue.iter().any(is_theirs) {
                let (theirs, rest): (VecDeque<_>, VecDeque<_>) =
                    mem::take(queue).into_iter().partition(is_theirs);
                *queue = rest;
                taken.extend(theirs.into_iter().map(|(_, asked)| asked));
                tenants.push(tenant.clone());
            }
        }
        for (key, under_way) in &mut self.under_way {
            if key.slot() == slot {
                taken.extend(under_way.behind.stored.drain(..));
            }
        }
        for (_, behind) in self.waits.values_mut().flatten().filter(|(key, _)| key.slot() == slot) {
            taken.extend(behind.drain(..));
        }
        // Who has nothing left lines up again with what comes next.
        self.queues.retain(|_, queue| !queue.is_empty());
        self.order.retain(|who| self.queues.contains_key(who));
        self.held.retain(|who| self.queues.contains_key(who));
        for tenant in tenants {
            self.note(&tenant, now);
        }
        taken
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
        let waits = self.waits.get(&who.0).filter(|_| who.1 == Class::Stored);
        if self.under_way.contains_key(key) || waits.is_some_and(|waits| waits.contains_key(key)) {
            return true;
        }
        let waits = waits.map_or(0, HashMap::len);
        let aggregates = self.aggregates.get(who).copied().unwrap_or(0) + waits;
        aggregates < self.at_once_max
            && self.has(&who.0) + waits < self.beside.most(&who.0, now)
            && self.rests.until(&who.0, now).is_none()
    }
}

#[cfg(test)]
mod tests;
