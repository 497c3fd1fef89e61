//! Whose question a lane begins with next: tenants take turns, and so do the commands whose senders
//! wait and those that are stored. What is begun at once is bounded for each of them: what a lane
//! has begun stands in the log's queue, where all wait alike.

use std::collections::{HashMap, HashSet, VecDeque};

use flexcore_domain::{AggregateKey, Tenant};

/// Whether somebody waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// A client.
    Waiting,
    /// Nobody: a command from the queue.
    Stored,
}

type Who = (Tenant, Class);

/// What was asked and is not begun, by who asks.
pub(super) struct Turns<T> {
    at_once_max: usize,
    queues: HashMap<Who, VecDeque<(AggregateKey, T)>>,
    /// Those that have something and may begin it.
    order: VecDeque<Who>,
    /// Those that have something and must wait until something of theirs has ended.
    held: HashSet<Who>,
    /// Aggregates with something under way: how much, and who counts for them.
    under_way: HashMap<AggregateKey, (usize, Who)>,
    /// Aggregates for which these count.
    aggregates: HashMap<Who, usize>,
}

impl<T> Turns<T> {
    /// Each tenant has so many aggregates under way at once for its clients, and so many for what is
    /// stored. What else is asked of an aggregate that is under way is begun, too: there it waits
    /// in order, and takes nothing from others.
    pub(super) fn new(at_once_max: usize) -> Self {
        Self {
            at_once_max,
            queues: HashMap::new(),
            order: VecDeque::new(),
            held: HashSet::new(),
            under_way: HashMap::new(),
            aggregates: HashMap::new(),
        }
    }

    /// Something is asked of the aggregate.
    pub(super) fn push(&mut self, key: AggregateKey, class: Class, asked: T) {
        let who = (key.tenant().clone(), class);
        let queue = self.queues.entry(who.clone()).or_default();
        queue.push_back((key, asked));
        if queue.len() == 1 {
            self.line_up(who);
        }
    }

    /// Puts one that has something where it belongs.
    fn line_up(&mut self, who: Who) {
        if self.may_begin(&who) {
            self.order.push_back(who);
        } else {
            self.held.insert(who);
        }
    }

    /// What to begin with next. [`Self::ended`] is told when it has been answered.
    pub(super) fn next(&mut self) -> Option<(AggregateKey, T)> {
        let who = self.order.pop_front()?;
        let queue = self.queues.get_mut(&who)?;
        let (key, asked) = queue.pop_front()?;
        let has_more = !queue.is_empty();
        if !has_more {
            self.queues.remove(&who);
        }
        match self.under_way.get_mut(&key) {
            Some((count, _)) => *count += 1,
            None => {
                self.under_way.insert(key.clone(), (1, who.clone()));
                *self.aggregates.entry(who.clone()).or_default() += 1;
            }
        }
        if has_more {
            self.line_up(who);
        }
        Some((key, asked))
    }

    /// Something that was begun for the aggregate has been answered.
    pub(super) fn ended(&mut self, key: &AggregateKey) {
        let Some((count, _)) = self.under_way.get_mut(key) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let Some((_, who)) = self.under_way.remove(key) else { return };
        if let Some(aggregates) = self.aggregates.get_mut(&who) {
            *aggregates -= 1;
            if *aggregates == 0 {
                self.aggregates.remove(&who);
            }
        }
        if self.held.remove(&who) {
            self.line_up(who);
        }
    }

    /// Whether its first one may be begun.
    fn may_begin(&self, who: &Who) -> bool {
        let Some((key, _)) = self.queues.get(who).and_then(VecDeque::front) else { return false };
        let aggregates = self.aggregates.get(who).copied().unwrap_or(0);
        aggregates < self.at_once_max || self.under_way.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use flexcore_domain::{AggregateId, AggregateName};

    use super::*;

    fn key(tenant: &str, id: usize) -> AggregateKey {
        AggregateKey::new(
            Tenant::parse(tenant).unwrap(),
            AggregateName::parse("counter").unwrap(),
            AggregateId::parse(&id.to_string()).unwrap(),
        )
    }

    fn begun(turns: &mut Turns<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| turns.next().map(|(_, asked)| asked)).collect()
    }

    #[test]
    fn a_tenants_flood_holds_up_nobody_elses_next_command() {
        let mut turns = Turns::new(1_000);
        for id in 0..10_000 {
            turns.push(key("flood", id), Class::Stored, "flood");
        }
        turns.push(key("calm", 0), Class::Waiting, "calm");
        turns.push(key("flood", 10_000), Class::Waiting, "its own client");
        let first: Vec<_> = (0..4).map(|_| turns.next().unwrap().1).collect();
        assert_eq!(first, ["flood", "calm", "its own client", "flood"]);
    }

    #[test]
    fn what_one_has_under_way_is_bounded_and_goes_on_when_it_ends() {
        let mut turns = Turns::new(3);
        for id in 0..5 {
            turns.push(key("flood", id), Class::Stored, "flood");
        }
        assert_eq!(begun(&mut turns).len(), 3);
        turns.push(key("flood", 9), Class::Waiting, "client");
        turns.push(key("calm", 9), Class::Stored, "calm");
        assert_eq!(begun(&mut turns), ["client", "calm"], "each has its own bound");
        turns.ended(&key("flood", 1));
        assert_eq!(begun(&mut turns), ["flood"]);
        for id in [0, 2, 3, 4] {
            turns.ended(&key("flood", id));
        }
        assert_eq!(begun(&mut turns), ["flood"]);
        turns.ended(&key("flood", 4));
        turns.ended(&key("flood", 9));
        turns.ended(&key("calm", 9));
        assert!(turns.aggregates.is_empty() && turns.under_way.is_empty());
        assert!(turns.queues.is_empty() && turns.held.is_empty());
    }

    /// A tenant with one aggregate that everything is for has its other slots go on.
    #[test]
    fn what_waits_for_an_aggregate_under_way_counts_once() {
        let mut turns = Turns::new(2);
        for _ in 0..50 {
            turns.push(key("acme", 0), Class::Stored, "hot");
        }
        turns.push(key("acme", 1), Class::Stored, "other");
        assert_eq!(begun(&mut turns).len(), 51);
        // All that may be under way, and more is asked of both.
        turns.push(key("acme", 0), Class::Stored, "hot");
        turns.push(key("acme", 1), Class::Stored, "other");
        turns.push(key("acme", 2), Class::Stored, "third");
        assert_eq!(begun(&mut turns), ["hot", "other"]);
    }

    #[test]
    fn an_aggregates_commands_of_a_class_keep_their_order() {
        let mut turns = Turns::new(1);
        for asked in ["a", "b", "c"] {
            turns.push(key("acme", 0), Class::Stored, asked);
            turns.push(key("calm", 0), Class::Stored, "-");
        }
        assert_eq!(begun(&mut turns), ["a", "-", "b", "-", "c", "-"]);
    }
}
