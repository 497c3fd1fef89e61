//! The state of the model, and what each event makes of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{KIND, NOW, Outcome, PLACES, Rules, TTL};
use crate::{
    MemberId, Record, Serves,
    fence::Fence,
    lease::{Found, Lease, Step, Terms, Written},
    plan::{Place, share_out},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(super) struct Stored<T> {
    pub(super) sequence: u64,
    pub(super) when: u64,
    pub(super) what: T,
}

/// A member's record.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) followed: u64,
    pub(super) places: BTreeSet<u16>,
    pub(super) beat: u64,
    pub(super) epoch: Option<u64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(super) struct Led {
    pub(super) by: u8,
    pub(super) beat: u64,
    pub(super) epoch: Option<u64>,
}

#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub(super) struct Drawn {
    pub(super) epoch: u64,
    pub(super) places: Vec<Place>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(super) enum Write {
    Lead { expected: u64, led: Led },
    Record { of: u8, expected: u64, said: Said },
    Map { leader: u64, drawn: Drawn },
}

/// A member, as it knows itself.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) id: u8,
    pub(super) joined: bool,
    pub(super) own: Lease,
    pub(super) lead: Lease,
    pub(super) map: (Drawn, u64),
    pub(super) fence: Fence,
    /// The guard is not held down.
    pub(super) raised: bool,
    /// Its report of the places that it serves.
    pub(super) said: Said,
    /// The report that was stored last.
    pub(super) stored: (u64, BTreeSet<u16>),
    pub(super) serves: BTreeMap<u16, u64>,
    /// It has asked the guard, and is about to act.
    pub(super) armed: Option<(u16, u64)>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(super) struct State {
    pub(super) sequence: u64,
    pub(super) leader: Option<Stored<Led>>,
    pub(super) records: BTreeMap<u8, Stored<Said>>,
    pub(super) map: Option<Stored<Drawn>>,
    pub(super) late: Vec<Write>,
    pub(super) nodes: Vec<Node>,
    /// The greatest epoch that the resource has seen, and whose it was, by place.
    pub(super) resource: Vec<(u64, u8)>,
    /// The greatest epoch that was given, by place.
    pub(super) given: Vec<u64>,
    pub(super) losses: u8,
    pub(super) delays: u8,
    pub(super) deaths: u8,
    pub(super) deletions: u8,
    pub(super) wrong: BTreeSet<&'static str>,
}
pub(super) fn name(id: u8) -> MemberId {
    MemberId::new("m", &id.to_string())
}

impl Node {
    pub(super) fn new(id: u8, margin_ms: u64) -> Self {
        let terms = Terms { ttl_ms: TTL, margin_ms };
        Self {
            id,
            joined: false,
            own: Lease::own(terms),
            lead: Lease::new(terms),
            map: Default::default(),
            fence: Fence::default(),
            raised: false,
            said: Said::default(),
            stored: Default::default(),
            serves: BTreeMap::new(),
            armed: None,
        }
    }

    pub(super) fn guard(&self, now: u64) -> bool {
        self.raised && self.own.holds(now)
    }

    pub(super) fn places(&self, tenures: bool) -> BTreeMap<u16, u64> {
        let Some(tenure) = self.own.tenure() else { return BTreeMap::new() };
        let me = Some(name(self.id));
        let mine = |(number, place): (u16, &Place)| {
            let valid = !place.leaving && (place.epoch >= tenure || !tenures);
            (place.owner == me && valid).then_some((number, place.epoch))
        };
        (0..).zip(&self.map.0.places).filter_map(mine).collect()
    }

    /// As the node's own `raise`.
    pub(super) fn raise(&mut self, now: u64, tenures: bool) {
        let places = self.places(tenures);
        let void = self.said.places.iter().any(|number| !places.contains_key(number));
        self.raised = !(tenures && void) || self.guard(now);
    }

    /// The process follows what it is assigned. It does not leave a place where it is about to act.
    pub(super) fn serve(&mut self, now: u64, tenures: bool) {
        let holds = self.own.holds(now);
        let wanted = if holds { self.places(tenures) } else { BTreeMap::new() };
        let armed = self.armed;
        self.serves.retain(|number, epoch| {
            wanted.get(number) == Some(epoch) || armed == Some((*number, *epoch))
        });
        for (number, epoch) in wanted {
            self.serves.entry(number).or_insert(epoch);
        }
        self.said.followed = if holds { self.map.1 } else { 0 };
        self.said.places = self.serves.keys().copied().collect();
    }

    /// True if a renewal is due, or there is something to say.
    pub(super) fn wants_to_renew(&self, now: u64) -> bool {
        let new = self.stored.0 != self.said.followed || self.stored.1 != self.said.places;
        new || self.own.until_ms() <= now + 1 || self.own.clone().step(now) == Step::Read
    }
}

impl State {
    pub(super) fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// A write arrives at the broker. `None`: it is refused.
    pub(super) fn arrives(&mut self, write: Write, rules: &Rules) -> Option<u64> {
        let leader = self.leader.as_ref().map_or(0, |stored| stored.sequence);
        let when = NOW;
        match write {
            Write::Lead { expected, led } => {
                let sequence = (leader == expected).then(|| self.next())?;
                self.leader = Some(Stored { sequence, when, what: led });
                Some(sequence)
            }
            Write::Record { of, expected, said } => {
                let at = self.records.get(&of).map_or(0, |stored| stored.sequence);
                let sequence = (at == expected).then(|| self.next())?;
                self.records.insert(of, Stored { sequence, when, what: said });
                Some(sequence)
            }
            Write::Map { leader: known, drawn } => {
                let sequence = (leader == known || !rules.conditional).then(|| self.next())?;
                self.check_map(&drawn);
                self.map = Some(Stored { sequence, when, what: drawn });
                Some(sequence)
            }
        }
    }

    /// Rules between the map in force and the next one.
    pub(super) fn check_map(&mut self, next: &Drawn) {
        let before = self.map.as_ref().map(|stored| stored.what.clone()).unwrap_or_default();
        if next.epoch < before.epoch {
            self.wrong.insert(DEPOSED);
        }
        for (number, place) in (0_u16..).zip(&next.places) {
            let Some(owner) = &place.owner else { continue };
            let old = before.places.get(usize::from(number));
            if old.is_some_and(|old| old.owner == place.owner && old.epoch == place.epoch) {
                continue;
            }
            let top = &mut self.given[usize::from(number)];
            if *top >= place.epoch {
                self.wrong.insert(EPOCHS);
            }
            *top = place.epoch.max(*top);
            let served = self.nodes.iter().any(|node| {
                name(node.id) != *owner && node.serves.contains_key(&number) && node.guard(NOW)
            });
            // A record that somebody deletes ends a lease without a warning.
            if served && self.deletions == 0 {
                self.wrong.insert(TAKEN);
            }
        }
    }

    pub(super) fn send(&mut self, write: Write, outcome: Outcome, rules: &Rules) -> Written {
        match outcome {
            Outcome::Answered => {
                return self.arrives(write, rules).map_or(Written::Refused, Written::Stored);
            }
            Outcome::Unheard => {
                self.losses += 1;
                let _ = self.arrives(write, rules);
            }
            Outcome::Lost => self.losses += 1,
            Outcome::Late => {
                self.delays += 1;
                self.late.push(write);
            }
        }
        Written::Unknown
    }

    pub(super) fn renews(&mut self, at: usize, outcome: Outcome, rules: &Rules) -> Option<()> {
        let mut node = self.nodes[at].clone();
        match node.own.step(NOW) {
            Step::Read if outcome == Outcome::Answered => {
                node.own.found(match self.records.get(&node.id) {
                    None => Found::Free(0),
                    Some(Stored { sequence, what: Said { beat, epoch, .. }, .. }) => {
                        Found::Ours { sequence: *sequence, beat: *beat, epoch: *epoch }
                    }
                });
            }
            Step::Read => return None,
            Step::Write { expected, beat, epoch } => {
                (node.said.beat, node.said.epoch) = (beat, epoch);
                let write = Write::Record { of: node.id, expected, said: node.said.clone() };
                let written = self.send(write, outcome, rules);
                node.own.written(written);
                if let Written::Stored(_) = written {
                    node.stored = (node.said.followed, node.said.places.clone());
                    node.joined = true;
                }
            }
        }
        node.raise(NOW, rules.tenures);
        self.nodes[at] = node;
        Some(())
    }

    pub(super) fn contends(&mut self, at: usize, outcome: Outcome, rules: &Rules) -> Option<()> {
        let mut node = self.nodes[at].clone();
        match node.lead.step(NOW) {
            Step::Read if outcome == Outcome::Answered => {
                node.lead.found(match &self.leader {
                    None => Found::Free(0),
                    Some(Stored { what: Led { by, .. }, .. }) if *by != node.id => Found::Taken,
                    Some(Stored { sequence, what: Led { beat, epoch, .. }, .. }) => {
                        Found::Ours { sequence: *sequence, beat: *beat, epoch: *epoch }
                    }
                });
            }
            Step::Read => return None,
            Step::Write { expected, beat, epoch } => {
                let led = Led { by: node.id, beat, epoch };
                node.lead.written(self.send(Write::Lead { expected, led }, outcome, rules));
            }
        }
        self.nodes[at] = node;
        Some(())
    }

    pub(super) fn looks(&mut self, at: usize, rules: &Rules) {
        let map = self.map.as_ref();
        let map = map.map(|stored| (stored.what.clone(), stored.sequence)).unwrap_or_default();
        let node = &mut self.nodes[at];
        node.fence.saw(map.1);
        node.map = map;
        node.serve(NOW, rules.tenures);
        node.raise(NOW, rules.tenures);
    }

    pub(super) fn assigns(&mut self, at: usize, outcome: Outcome, rules: &Rules) -> Option<()> {
        let mut node = self.nodes[at].clone();
        let map = self.map.as_ref();
        node.map = map.map(|stored| (stored.what.clone(), stored.sequence)).unwrap_or_default();
        node.fence.saw(node.map.1);
        let (epoch, sequence) = (node.lead.epoch(NOW)?, node.lead.sequence()?);
        let members: BTreeMap<_, _> = self.records.iter().map(record).collect();
        if !members.contains_key(&name(node.id)) && node.own.holds(NOW) {
            return None;
        }
        let fence = node.fence.next(sequence, &members)?;
        let mut drawn = Drawn { epoch, ..node.map.0.clone() };
        drawn.places.resize_with(PLACES, Place::default);
        share_out(&mut drawn.places, KIND, &members, &BTreeSet::new(), fence);
        if drawn == node.map.0 {
            return None;
        }
        let write = Write::Map { leader: sequence, drawn: drawn.clone() };
        match self.send(write, outcome, rules) {
            Written::Stored(at) => {
                node.fence.saw(at);
                node.map = (drawn, at);
            }
            Written::Refused => node.lead.written(Written::Refused),
            Written::Unknown if rules.doubts => node.fence.unanswered(sequence),
            Written::Unknown => {}
        }
        self.nodes[at] = node;
        Some(())
    }

    pub(super) fn acts(&mut self, at: usize, rules: &Rules) -> Option<()> {
        let (number, epoch) = self.nodes[at].armed.take()?;
        let (id, resource) = (self.nodes[at].id, &mut self.resource[usize::from(number)]);
        if epoch < resource.0 {
            if !rules.fenced {
                self.wrong.insert(LOWER);
            }
        } else {
            if epoch == resource.0 && resource.1 != id {
                self.wrong.insert(LOWER);
            }
            *resource = (epoch, id);
        }
        Some(())
    }
}

pub(super) fn record((id, stored): (&u8, &Stored<Said>)) -> (MemberId, Record) {
    let Said { followed, places, beat, epoch } = stored.what.clone();
    let record = Record {
        kinds: BTreeSet::from([KIND.name.into()]),
        serves: BTreeMap::from([(KIND.name.into(), Serves { followed, places })]),
        beat,
        epoch: epoch.or(Some(stored.sequence)),
        ..Record::default()
    };
    (name(*id), record)
}

pub(super) const LOWER: &str = "an effect under an epoch that is lower, or another's";
pub(super) const TWO: &str = "two serve a place, and both may act";
pub(super) const DEPOSED: &str = "a deposed leader's map is stored";
pub(super) const EPOCHS: &str = "a place is given under an epoch that is not above the others";
pub(super) const TAKEN: &str = "a place is given while another serves it and may act";
