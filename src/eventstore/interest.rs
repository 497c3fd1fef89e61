//! The part of the log that a reader follows: kinds of aggregates, and of each the slots.

use std::collections::{BTreeMap, BTreeSet};

use flexcore_domain::{AggregateKey, AggregateName, SLOTS, Slot, Tenant};

use crate::subjects;

/// Most subjects of one consumer: the broker compares each message with all of them. Messages that
/// are read too much then are passed over by their subject.
const SUBJECTS_MAX: usize = 64;

/// A bit for each slot.
type Slots = u64;

const ALL: Slots = Slots::MAX;
const _: () = assert!(SLOTS as u32 == Slots::BITS);

/// The aggregates whose commits are wanted: by kind, and by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    of: BTreeMap<AggregateName, Slots>,
}

impl Interest {
    /// Adds the aggregates of this kind in these slots.
    pub fn add(&mut self, aggregate: &AggregateName, slots: impl IntoIterator<Item = Slot>) {
        let bits = slots.into_iter().fold(0, |bits, slot| bits | (1 << slot.number()));
        *self.of.entry(aggregate.clone()).or_default() |= bits;
    }

    /// True if a subject of the log is that of a wanted aggregate. Decided without looking further.
    pub(crate) fn has(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.').skip(1);
        let (slot, aggregate) = (tokens.next(), tokens.nth(1));
        let slot = slot.and_then(|slot| slot.parse().ok()).and_then(Slot::new);
        let (Some(slot), Some(aggregate)) = (slot, aggregate) else { return false };
        self.of.get(aggregate).is_some_and(|slots| slots & (1 << slot.number()) != 0)
    }

    /// The subjects that a consumer is to filter by. No two of them overlap.
    pub(crate) fn subjects(&self) -> Vec<String> {
        let of = |(aggregate, slots): (&AggregateName, &Slots)| {
            let whole = *slots == ALL || self.count() > SUBJECTS_MAX;
            let some = Slot::all().filter(move |slot| !whole && slots & (1 << slot.number()) != 0);
            let some = some.map(move |slot| subjects::of_aggregates(slot, '*', aggregate));
            let whole = whole.then(|| subjects::of_aggregates('*', '*', aggregate));
            some.chain(whole).collect::<Vec<_>>()
        };
        if self.of.len() > SUBJECTS_MAX {
            return vec![subjects::ALL.to_owned()];
        }
        self.of.iter().filter(|(_, slots)| **slots != 0).flat_map(of).collect()
    }

    /// Number of subjects that there would be.
    fn count(&self) -> usize {
        let of = |slots: &Slots| if *slots == ALL { 1 } else { slots.count_ones() as usize };
        self.of.values().map(of).sum()
    }
}

/// All aggregates of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregates {
    /// The one tenant whose they are; `None`: everybody's.
    pub tenant: Option<Tenant>,
    /// Their name.
    pub name: AggregateName,
}

impl Aggregates {
    /// True if an aggregate is one of them.
    pub(crate) fn has(&self, key: &AggregateKey) -> bool {
        self.name == *key.aggregate()
            && self.tenant.as_ref().is_none_or(|tenant| tenant == key.tenant())
    }

    /// Their subjects, as the broker filters by them.
    pub(crate) fn subjects(&self) -> String {
        let tenant = self.tenant.as_ref().map_or("*", Tenant::as_str);
        subjects::of_aggregates('*', tenant, &self.name)
    }

    /// The subjects of all of these. No two of them overlap: the broker refuses a consumer that filters
    /// by such.
    pub(crate) fn subjects_of(all: &[Self]) -> Vec<String> {
        let everybodys = |name| Self { tenant: None, name };
        let within =
            |one: &Self| one.tenant.is_some() && all.contains(&everybodys(one.name.clone()));
        let subjects = all.iter().filter(|one| !within(one)).map(Self::subjects);
        subjects.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use flexcore_domain::AggregateId;

    use super::*;

    fn kind(name: &str) -> AggregateName {
        AggregateName::parse(name).unwrap()
    }

    fn slots(numbers: impl IntoIterator<Item = u16>) -> impl Iterator<Item = Slot> {
        numbers.into_iter().filter_map(Slot::new)
    }

    #[test]
    fn subjects_of_several_aggregates_do_not_overlap() {
        let of = |tenant: Option<&str>, name| Aggregates {
            tenant: tenant.map(|tenant| Tenant::parse(tenant).unwrap()),
            name: kind(name),
        };
        let (users, ours) = (of(None, "user"), of(Some("flexcore"), "user"));
        let deployments = of(Some("flexcore"), "application");
        let all = [ours.clone(), deployments.clone(), users, deployments];
        let subjects = ["evt.*.*.user.*", "evt.*.flexcore.application.*"];
        assert_eq!(Aggregates::subjects_of(&all), subjects);
        for (tenant, name, has) in [
            ("flexcore", "user", [true, false, true, false]),
            ("acme", "user", [false, false, true, false]),
            ("flexcore", "application", [false, true, false, true]),
            ("acme", "application", [false; 4]),
        ] {
            let (tenant, id) = (Tenant::parse(tenant).unwrap(), AggregateId::parse("1").unwrap());
            let key = AggregateKey::new(tenant, kind(name), id);
            assert_eq!(all.each_ref().map(|of| of.has(&key)), has, "{key}");
        }
    }

    #[test]
    fn subjects_name_what_is_wanted_and_no_more_than_the_broker_likes() {
        let mut interest = Interest::default();
        interest.add(&kind("order"), Slot::all());
        interest.add(&kind("ship"), slots([1, 17]));
        let subjects = ["evt.*.*.order.*", "evt.1.*.ship.*", "evt.17.*.ship.*"];
        assert_eq!(interest.subjects(), subjects);
        for (subject, wanted) in [
            ("evt.3.acme.order.o-1", true),
            ("evt.1.acme.ship.s-1", true),
            ("evt.2.acme.ship.s-1", false),
            ("evt.1.ship.acme.s-1", false),
            ("evt.64.acme.order.o-1", false),
            ("evt.junk", false),
            ("evt", false),
        ] {
            assert_eq!(interest.has(subject), wanted, "{subject}");
        }
        interest.add(&kind("bill"), slots(0..62));
        let widened = ["evt.*.*.bill.*", "evt.*.*.order.*", "evt.*.*.ship.*"];
        assert_eq!(interest.subjects(), widened, "the slots are told apart by the reader");
        assert!(!interest.has("evt.63.acme.bill.b-1"));
        for number in 0..=SUBJECTS_MAX {
            interest.add(&kind(&format!("kind{number}")), Slot::all());
        }
        assert_eq!(interest.subjects(), ["evt.>"]);
    }
}
