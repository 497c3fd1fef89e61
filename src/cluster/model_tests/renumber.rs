//! States that differ in their numbers or in the time of day only are one.

use std::collections::BTreeSet;

use super::{
    FAST, NOW, TTL,
    state::{Drawn, Said, State, Write},
};

impl State {
    /// Every sequence that is known somewhere; 0 is none.
    pub(super) fn sequences(&mut self, each: &mut impl FnMut(&mut u64)) {
        let drawn = |map: &mut Drawn, each: &mut dyn FnMut(&mut u64)| {
            each(&mut map.epoch);
            map.places.iter_mut().for_each(|place| {
                each(&mut place.epoch);
                each(&mut place.since);
            });
        };
        let said = |said: &mut Said, each: &mut dyn FnMut(&mut u64)| {
            each(&mut said.followed);
            said.epoch.iter_mut().for_each(each);
        };
        each(&mut self.sequence);
        if let Some(stored) = &mut self.leader {
            each(&mut stored.sequence);
            stored.what.epoch.iter_mut().for_each(&mut *each);
        }
        for stored in self.records.values_mut() {
            each(&mut stored.sequence);
            said(&mut stored.what, each);
        }
        if let Some(stored) = &mut self.map {
            each(&mut stored.sequence);
            drawn(&mut stored.what, each);
        }
        for write in &mut self.late {
            match write {
                Write::Lead { expected, led } => {
                    each(expected);
                    led.epoch.iter_mut().for_each(&mut *each);
                }
                Write::Record { expected, said: what, .. } => {
                    each(expected);
                    said(what, each);
                }
                Write::Map { leader, drawn: what } => {
                    each(leader);
                    drawn(what, each);
                }
            }
        }
        for node in &mut self.nodes {
            node.own.sequences().chain(node.lead.sequences()).for_each(&mut *each);
            node.fence.sequences().for_each(&mut *each);
            drawn(&mut node.map.0, each);
            each(&mut node.map.1);
            said(&mut node.said, each);
            each(&mut node.stored.0);
            node.serves.values_mut().for_each(&mut *each);
            node.armed.iter_mut().for_each(|armed| each(&mut armed.1));
        }
        self.resource.iter_mut().for_each(|(epoch, _)| each(epoch));
        self.given.iter_mut().for_each(each);
    }

    pub(super) fn ages(&mut self) {
        let older = |when: &mut u64| *when = (*when - 1).max(NOW + FAST - TTL);
        self.leader.iter_mut().for_each(|stored| older(&mut stored.when));
        self.records.values_mut().for_each(|stored| older(&mut stored.when));
        for node in &mut self.nodes {
            node.own.ages(NOW);
            node.lead.ages(NOW);
        }
    }

    /// Every number of an attempt by a member, for its record or for the leadership.
    pub(super) fn beats(&mut self, at: usize, lead: bool, each: &mut impl FnMut(&mut u64)) {
        let node = &mut self.nodes[at];
        each(if lead { node.lead.beat() } else { node.own.beat() });
        let id = node.id;
        if !lead {
            each(&mut node.said.beat);
            self.records.get_mut(&id).into_iter().for_each(|stored| each(&mut stored.what.beat));
        } else if let Some(stored) = &mut self.leader
            && stored.what.by == id
        {
            each(&mut stored.what.beat);
        }
        for write in &mut self.late {
            match write {
                Write::Lead { led, .. } if lead && led.by == id => each(&mut led.beat),
                Write::Record { of, said, .. } if !lead && *of == id => each(&mut said.beat),
                _ => {}
            }
        }
    }

    /// Numbers them by their order: what differs in the numbers only is one state.
    pub(super) fn renumber(&mut self) {
        let mut known = BTreeSet::from([0]);
        self.sequences(&mut |sequence| {
            known.insert(*sequence);
        });
        let ranks: Vec<u64> = known.into_iter().collect();
        self.sequences(&mut |sequence| {
            let rank = ranks.binary_search(sequence).expect("BUG: it was just there");
            *sequence = u64::try_from(rank).expect("BUG: there are few");
        });
        for (at, lead) in (0..self.nodes.len()).flat_map(|at| [(at, false), (at, true)]) {
            let mut known = BTreeSet::from([0]);
            self.beats(at, lead, &mut |beat| {
                known.insert(*beat);
            });
            let ranks: Vec<u64> = known.into_iter().collect();
            self.beats(at, lead, &mut |beat| {
                *beat = ranks.partition_point(|known| known < beat) as u64;
            });
        }
    }
}
