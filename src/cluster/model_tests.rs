//! A model of members, leases and hand-overs, with the real lease, fence and plan. Answers get
//! lost, writes arrive late, members stop between check and effect, die, and the broker's clock is
//! faster than theirs. All events within a few steps are tried in every order, and long walks at
//! random. Each safeguard is removed once: the check must then find the fault that it prevents.

mod renumber;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Checker, HasDiscoveries, Model, Property};

use self::state::{DEPOSED, EPOCHS, LOWER, Node, State, TAKEN, TWO};
use crate::WorkKind;

/// Duration of leases, in the model's milliseconds.
const TTL: u64 = 3;
/// By how much the broker may free a key early: its clock is not the members'.
const FAST: u64 = 1;
/// It is always now: time makes everything else older, so that the model goes on for ever.
const NOW: u64 = 8;
const KIND: WorkKind = WorkKind { name: "work", places: 2, heading: "places" };
/// One of them moves when a second member comes.
const PLACES: usize = 2;

const ELECTED: &str = "a leader is elected";
const HANDED_OVER: &str = "a place is handed over between the living";
/// Of the random walks.
const SEED: u64 = 7;
/// After so many steps a walk begins anew.
const WALK: usize = 100;

/// The properties that hold, and the states that must be possible.
#[derive(Clone)]
struct Rules {
    margin: u64,
    /// The resource refuses what comes under an older epoch.
    fenced: bool,
    /// Maps are stored only while the key `leader` is as their writer knows it.
    conditional: bool,
    /// After a map without an answer the leader renews before it writes another.
    doubts: bool,
    /// Assignments from before the lease was lost are void.
    tenures: bool,
    /// The members at the beginning: none, or a leader that serves everything.
    begun: bool,
    effects: bool,
    losses_max: u8,
    late_max: u8,
    deaths_max: u8,
    deletions_max: u8,
}

const SOUND: Rules = Rules {
    margin: FAST,
    fenced: true,
    conditional: true,
    doubts: true,
    tenures: true,
    begun: true,
    effects: false,
    losses_max: 0,
    late_max: 0,
    deaths_max: 0,
    deletions_max: 0,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Answered,
    /// Stored, and the answer is lost.
    Unheard,
    Lost,
    /// It arrives some time.
    Late,
}

const OUTCOMES: [Outcome; 4] = [Outcome::Answered, Outcome::Unheard, Outcome::Lost, Outcome::Late];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Time,
    Arrives(usize),
    LeaderExpires,
    RecordExpires(u8),
    LeaderDeleted,
    RecordDeleted(u8),
    Renews(usize, Outcome),
    Contends(usize, Outcome),
    Looks(usize),
    Assigns(usize, Outcome),
    Checks(usize, u16),
    Acts(usize),
    Dies(usize),
}

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            sequence: 0,
            leader: None,
            records: BTreeMap::new(),
            map: None,
            late: Vec::new(),
            nodes: (0..2).map(|id| Node::new(id, self.margin)).collect(),
            resource: vec![(0, 0); PLACES],
            given: vec![0; PLACES],
            losses: 0,
            delays: 0,
            deaths: 0,
            deletions: 0,
            wrong: BTreeSet::new(),
        };
        let done = Outcome::Answered;
        let begin = [
            Action::Renews(0, done),
            Action::Contends(0, done),
            Action::Contends(0, done),
            Action::Assigns(0, done),
            Action::Looks(0),
            Action::Renews(0, done),
            Action::Renews(1, done),
        ];
        for action in begin.into_iter().take(if self.begun { 7 } else { 0 }) {
            state = self.next_state(&state, action).expect("BUG: the beginning is possible");
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Time);
        actions.extend((0..state.late.len()).map(Action::Arrives));
        let ends = |when: u64| NOW + FAST >= when + TTL;
        if state.leader.as_ref().is_some_and(|stored| ends(stored.when)) {
            actions.push(Action::LeaderExpires);
        }
        let ended = state.records.iter().filter(|(_, stored)| ends(stored.when));
        actions.extend(ended.map(|(id, _)| Action::RecordExpires(*id)));
        if state.deletions < self.deletions_max {
            actions.extend(state.leader.as_ref().map(|_| Action::LeaderDeleted));
            actions.extend(state.records.keys().map(|id| Action::RecordDeleted(*id)));
        }
        for (at, node) in state.nodes.iter().enumerate() {
            let mut may = |action: fn(usize, Outcome) -> Action| {
                actions.extend(OUTCOMES.into_iter().filter_map(|outcome| {
                    let possible = match outcome {
                        Outcome::Answered => true,
                        Outcome::Unheard | Outcome::Lost => state.losses < self.losses_max,
                        Outcome::Late => state.delays < self.late_max,
                    };
                    possible.then(|| action(at, outcome))
                }));
            };
            if node.wants_to_renew(NOW) {
                may(Action::Renews);
            }
            if !node.joined {
                continue;
            }
            let sequence = node.lead.sequence().unwrap_or(0);
            let doubts = node.fence.next(sequence, &BTreeMap::new()).is_none();
            if doubts || node.lead.until_ms() <= NOW + 1 {
                may(Action::Contends);
            }
            if node.lead.holds(NOW) {
                may(Action::Assigns);
            }
            actions.push(Action::Looks(at));
            if node.armed.is_some() {
                actions.push(Action::Acts(at));
            } else if self.effects && node.guard(NOW) {
                // The first is the one that moves.
                actions.extend(node.serves.get(&0).map(|_| Action::Checks(at, 0)));
            }
            if state.deaths < self.deaths_max {
                actions.push(Action::Dies(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Time => state.ages(),
            Action::Arrives(number) => {
                let write = state.late.remove(number);
                let _ = state.arrives(write, self);
            }
            Action::LeaderExpires => state.leader = None,
            Action::RecordExpires(id) => drop(state.records.remove(&id)),
            Action::LeaderDeleted => {
                state.deletions += 1;
                state.leader = None;
            }
            Action::RecordDeleted(id) => {
                state.deletions += 1;
                state.records.remove(&id);
            }
            Action::Renews(at, outcome) => state.renews(at, outcome, self)?,
            Action::Contends(at, outcome) => state.contends(at, outcome, self)?,
            Action::Looks(at) => state.looks(at, self),
            Action::Assigns(at, outcome) => state.assigns(at, outcome, self)?,
            Action::Checks(at, number) => {
                let node = &mut state.nodes[at];
                node.armed = Some((number, node.serves[&number]));
            }
            Action::Acts(at) => state.acts(at, self)?,
            Action::Dies(at) => {
                state.deaths += 1;
                let id = state.nodes[at].id + 2;
                state.nodes[at] = Node::new(id, self.margin);
            }
        }
        if state == *last {
            return None;
        }
        state.renumber();
        for number in (0..).take(PLACES) {
            let holders = state
                .nodes
                .iter()
                .filter(|node| node.serves.contains_key(&number) && node.guard(NOW));
            if holders.count() > 1 && state.deletions == 0 {
                state.wrong.insert(TWO);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LOWER, |_, state: &State| !state.wrong.contains(LOWER)),
            Property::always(TWO, |_, state: &State| !state.wrong.contains(TWO)),
            Property::always(DEPOSED, |_, state: &State| !state.wrong.contains(DEPOSED)),
            Property::always(EPOCHS, |_, state: &State| !state.wrong.contains(EPOCHS)),
            Property::always(TAKEN, |_, state: &State| !state.wrong.contains(TAKEN)),
            Property::sometimes(ELECTED, |_, state: &State| {
                state.nodes.iter().any(|node| node.lead.holds(NOW))
            }),
            Property::sometimes(HANDED_OVER, |_, state: &State| {
                state.nodes.iter().all(|node| node.guard(NOW) && node.serves.len() == 1)
            }),
        ]
    }
}

/// Goes through so many states in breadth. Returns the findings.
#[expect(clippy::print_stderr, reason = "how far it went, for whoever runs it by hand")]
fn every(what: &str, rules: Rules, states: usize) -> BTreeSet<&'static str> {
    let checker = rules.checker().threads(2).target_state_count(states);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (count, depth) = (checker.unique_state_count(), checker.max_depth());
    eprintln!("{what}: {count} states, {depth} steps deep");
    checker.discoveries().into_keys().collect()
}

/// Goes so many steps in random walks, until something is wrong in this way. Returns whether it is,
/// and in which ways else.
#[expect(clippy::print_stderr, reason = "how far it went, for whoever runs it by hand")]
fn walk(what: &str, rules: &Rules, steps: usize, wanted: &'static str) -> BTreeSet<&'static str> {
    let start = rules.init_states().remove(0);
    let (mut state, mut random) = (start.clone(), SEED);
    let mut wrong = BTreeSet::new();
    for step in 0..steps {
        if step % WALK == 0 {
            state = start.clone();
        }
        let mut actions = Vec::new();
        rules.actions(&state, &mut actions);
        // Xorshift: its seed is all that a run depends on.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let action = actions[usize::try_from(random % actions.len() as u64).unwrap()];
        state = rules.next_state(&state, action).unwrap_or(state);
        wrong.extend(&state.wrong);
        if wrong.contains(wanted) {
            eprintln!("{what}: {wanted}, found in step {step}, seed {SEED}");
            return wrong;
        }
    }
    eprintln!("{what}: {steps} steps, seed {SEED}: {wrong:?}");
    wrong
}

/// Everything happens.
fn all() -> Rules {
    Rules { effects: true, losses_max: 2, late_max: 1, deaths_max: 1, ..SOUND }
}

#[test]
fn nothing_goes_wrong_in_the_first_steps_whatever_their_order() {
    let elected = BTreeSet::from([ELECTED]);
    assert_eq!(every("everything happens", all(), 40_000), elected);
    let both = BTreeSet::from([ELECTED, HANDED_OVER]);
    assert_eq!(every("nothing is lost", SOUND, 60_000), both);
    let from_nothing = Rules { begun: false, ..SOUND };
    assert_eq!(every("from nothing", from_nothing, 40_000), both);
}

#[test]
fn nothing_goes_wrong_in_long_walks() {
    assert_eq!(walk("everything happens", &all(), 300_000, ""), BTreeSet::new());
    // Deletions end leases without a warning: epochs keep the rest safe.
    let deletions = Rules { deletions_max: 2, ..all() };
    assert_eq!(walk("keys are deleted", &deletions, 150_000, ""), BTreeSet::new());
}

#[test]
fn each_safeguard_is_needed() {
    let losses = Rules { late_max: 1, losses_max: 1, deaths_max: 1, ..SOUND };
    let without = [
        ("no margin", Rules { margin: 0, ..SOUND }, TWO),
        ("no fence", Rules { effects: true, fenced: false, ..SOUND }, LOWER),
        ("maps without condition", Rules { conditional: false, ..losses.clone() }, DEPOSED),
        ("no doubt about a map", Rules { doubts: false, ..losses }, EPOCHS),
        ("what was given stays valid", Rules { tenures: false, ..SOUND }, TWO),
    ];
    for (what, rules, wrong) in without {
        let found = walk(what, &rules, 300_000, wrong);
        assert!(found.contains(wrong), "{what}: {found:?}");
    }
}
