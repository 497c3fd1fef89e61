//! Rules that every plan keeps, in any order of members coming, going, being drained, lagging
//! behind and confirming.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{Map, MemberId, Place, Record, Serves, WorkKind, plan};

const COMMAND: WorkKind = WorkKind { name: "command", places: 64, heading: "slots" };
const PROJECTION: WorkKind = WorkKind { name: "projection", places: 16, heading: "projections" };
pub(crate) const KINDS: [WorkKind; 2] = [COMMAND, PROJECTION];

impl Record {
    /// The kinds of work that it does.
    fn does(&self) -> impl Iterator<Item = WorkKind> {
        KINDS.into_iter().filter(|kind| self.kinds.contains(kind.name))
    }
}

/// The next thing to happen. Members are picked by a number among those that there are.
#[derive(Clone, Debug)]
enum Happens {
    Joins(u8),
    /// Its record goes: it left, or its lease ended.
    Goes(usize),
    /// It loses its lease and has it again, maybe before anybody looks.
    Returns(usize),
    Drained(usize),
    TakenBack(usize),
    /// It reads the map, and says then what it serves.
    Follows(usize, Pace),
    /// It starts what it was slow to start.
    Starts(usize),
    /// It says in its record what it serves.
    Reports(usize),
    Plans,
    /// Another leader: the next map is written under a greater sequence.
    Leads,
}

/// The speed of a member that has read the map.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    AtOnce,
    /// It has not left its places yet, as it has to.
    LeavesLate,
    /// It does not start yet what is new.
    StartsLate,
}

fn happens() -> impl Strategy<Value = Happens> {
    let at = || 0_usize..8;
    let pace = prop_oneof![Just(Pace::AtOnce), Just(Pace::LeavesLate), Just(Pace::StartsLate)];
    prop_oneof![
        3 => (1_u8..4).prop_map(Happens::Joins),
        1 => at().prop_map(Happens::Goes),
        1 => at().prop_map(Happens::Returns),
        1 => at().prop_map(Happens::Drained),
        1 => at().prop_map(Happens::TakenBack),
        6 => (at(), pace).prop_map(|(at, pace)| Happens::Follows(at, pace)),
        3 => at().prop_map(Happens::Starts),
        6 => at().prop_map(Happens::Reports),
        8 => Just(Happens::Plans),
        1 => Just(Happens::Leads),
    ]
}

/// A member as it is, beside the record that the leader sees.
#[derive(Clone, Default)]
struct Actual {
    followed: u64,
    serves: BTreeSet<(WorkKind, u16)>,
    /// To be started.
    new: BTreeSet<(WorkKind, u16)>,
    /// The places that the map gives it and that it has followed.
    given: BTreeSet<(WorkKind, u16)>,
    /// Its guard is down until it has reported that it has left what it had.
    down: bool,
}

#[derive(Default)]
struct World {
    map: Map,
    map_at: u64,
    led_at: u64,
    sequence: u64,
    records: BTreeMap<MemberId, Record>,
    actual: BTreeMap<MemberId, Actual>,
    drained: BTreeSet<MemberId>,
    highest: BTreeMap<(WorkKind, u16), u64>,
    joined: usize,
}

impl World {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn pick(&self, at: usize) -> Option<MemberId> {
        let count = self.records.len();
        (count > 0).then(|| self.records.keys().nth(at % count).cloned()).flatten()
    }

    fn happens(&mut self, event: &Happens) {
        match event {
            Happens::Joins(kinds) if self.records.len() < 8 => {
                self.joined += 1;
                // Ids sort by no order of joining.
                let id = MemberId::new(["m", "c", "x"][self.joined % 3], &self.joined.to_string());
                let kinds = [(1, COMMAND), (2, PROJECTION)]
                    .into_iter()
                    .filter(|(bit, _)| kinds & bit > 0)
                    .map(|(_, kind)| kind.name.into())
                    .collect();
                let epoch = Some(self.next());
                self.records.insert(id.clone(), Record { kinds, epoch, ..Record::default() });
                self.actual.insert(id, Actual::default());
            }
            Happens::Joins(_) => {}
            Happens::Plans => self.plans(),
            Happens::Leads => self.led_at = self.next(),
            Happens::Goes(at) => {
                if let Some(id) = self.pick(*at) {
                    self.records.remove(&id);
                    self.actual.remove(&id);
                }
            }
            Happens::Returns(at) => {
                if let Some(id) = self.pick(*at) {
                    // All reports until now are known when the guard may rise.
                    self.reports(&id);
                    let epoch = self.next();
                    self.records.get_mut(&id).unwrap().epoch = Some(epoch);
                    let actual = self.actual.get_mut(&id).unwrap();
                    (actual.down, actual.given) = (true, BTreeSet::new());
                    actual.new.clear();
                    self.rises(&id);
                }
            }
            Happens::Drained(at) => self.drained.extend(self.pick(*at)),
            Happens::TakenBack(at) => {
                if let Some(id) = self.pick(*at) {
                    self.drained.remove(&id);
                }
            }
            Happens::Follows(at, pace) => {
                if let Some(id) = self.pick(*at) {
                    self.follows(&id, *pace);
                }
            }
            Happens::Starts(at) => {
                if let Some(id) = self.pick(*at) {
                    self.starts(&id);
                }
            }
            Happens::Reports(at) => {
                if let Some(id) = self.pick(*at) {
                    self.reports(&id);
                }
            }
        }
    }

    fn follows(&mut self, id: &MemberId, pace: Pace) {
        let mut wanted = BTreeSet::new();
        for kind in self.records[id].does() {
            let mut given = self.map.of(id, kind);
            given.retain(|_, epoch| Some(*epoch) >= self.records[id].epoch);
            wanted.extend(given.into_keys().map(|number| (kind, number)));
        }
        let actual = self.actual.get_mut(id).unwrap();
        actual.followed = self.map_at;
        if pace != Pace::LeavesLate {
            actual.serves.retain(|place| wanted.contains(place));
        }
        actual.given = wanted.clone();
        actual.new = wanted;
        self.rises(id);
        if pace != Pace::StartsLate {
            self.starts(id);
        }
    }

    fn starts(&mut self, id: &MemberId) {
        let actual = self.actual.get_mut(id).unwrap();
        actual.serves.append(&mut actual.new);
        self.check_alone(id);
    }

    /// Its guard is up once what it reports to serve is what it is given.
    fn rises(&mut self, id: &MemberId) {
        let actual = self.actual.get_mut(id).unwrap();
        let record = &self.records[id];
        let serves = record.does().filter_map(|kind| Some((kind, record.serves.get(kind.name)?)));
        let mut places = serves.flat_map(|(kind, of)| of.places.iter().map(move |n| (kind, *n)));
        if actual.down && places.all(|place| actual.given.contains(&place)) {
            actual.down = false;
            self.check_alone(id);
        }
    }

    /// Nobody else may act on what this one may act on.
    fn check_alone(&self, id: &MemberId) {
        let mine = &self.actual[id];
        for (other, actual) in &self.actual {
            let both: Vec<_> = actual.serves.intersection(&mine.serves).collect();
            let act = other != id && !actual.down && !mine.down;
            assert!(!act || both.is_empty(), "{id} and {other} serve {both:?}");
        }
    }

    fn reports(&mut self, id: &MemberId) {
        let actual = self.actual[id].clone();
        let record = self.records.get_mut(id).unwrap();
        for kind in record.does().collect::<Vec<_>>() {
            let places = actual.serves.iter().filter(|(of, _)| *of == kind).map(|(_, n)| *n);
            let serves = Serves { followed: actual.followed, places: places.collect() };
            record.serves.insert(kind.name.into(), serves);
        }
        self.rises(id);
    }

    fn plans(&mut self) {
        let tenures = self.records.values().filter_map(|record| record.epoch);
        let fence = tenures.fold(self.led_at.max(self.map_at), u64::max);
        let next = plan(&KINDS, &self.map, &self.records, &self.drained, fence);
        let again = plan(&KINDS, &next, &self.records, &self.drained, fence + 2);
        assert_eq!(again, next, "nothing changed, and something moves");
        for kind in KINDS {
            for number in 0..kind.places {
                self.check(&next, kind, number);
            }
        }
        if next != self.map {
            self.map = next;
            self.map_at = self.next();
        }
    }

    /// One place's way from the map in force to the next one.
    fn check(&mut self, next: &Map, kind: WorkKind, number: u16) {
        let before = self.map.places.get(kind.name).map(|of| of[usize::from(number)].clone());
        let before = before.unwrap_or_default();
        let after = &next.places[kind.name][usize::from(number)];
        let highest = self.highest.entry((kind, number)).or_default();
        assert!(after.epoch >= *highest, "{kind:?} {number}: {} after {highest}", after.epoch);
        if after.owner == before.owner && after.epoch == before.epoch {
            return;
        }
        if let Some(owner) = &after.owner {
            assert!(after.epoch > *highest, "{kind:?} {number}: a new owner, and no new epoch");
            assert!(self.records[owner].kinds.contains(kind.name), "{owner} cannot serve {kind:?}");
            *highest = after.epoch;
        }
        let Some(old) = before.owner.filter(|old| self.records.contains_key(old)) else { return };
        if self.records[&old].epoch > Some(before.epoch) {
            return;
        }
        assert!(before.leaving, "{kind:?} {number} is taken from {old}, which was not asked");
        let serves = &self.records[&old].serves[kind.name];
        assert!(!serves.places.contains(&number) && serves.followed > before.since);
        assert!(!self.actual[&old].serves.contains(&(kind, number)), "{old} serves {number} yet");
    }

    /// Until nothing moves any more.
    fn settles(&mut self) {
        for round in 0.. {
            assert!(round < 8, "it goes on and on");
            let before = self.map_at;
            self.plans();
            let ids: Vec<_> = self.records.keys().cloned().collect();
            for id in ids {
                self.follows(&id, Pace::AtOnce);
                self.reports(&id);
            }
            if self.map_at == before && round > 1 {
                return;
            }
        }
    }

    /// Number of places of a kind that each able member has.
    fn counts(&self, kind: WorkKind) -> BTreeMap<&MemberId, usize> {
        let able = self.records.iter().filter(|(_, record)| record.kinds.contains(kind.name));
        able.map(|(id, _)| (id, self.map.of(id, kind).len())).collect()
    }

    /// Properties that hold when all have followed.
    fn check_settled(&self) {
        for kind in KINDS {
            let counts = self.counts(kind);
            let unowned = (0..kind.places).filter(|n| self.map.owner(kind, *n).is_none()).count();
            if counts.is_empty() {
                continue;
            }
            assert_eq!(unowned, 0, "{kind:?} with {counts:?}");
            for (id, count) in &counts {
                let actual = &self.actual[*id];
                let serves = actual.serves.iter().filter(|(of, _)| *of == kind).count();
                assert_eq!((serves, actual.down), (*count, false), "{id} serves all that is its");
            }
            assert_eq!(counts.values().sum::<usize>(), usize::from(kind.places), "some leave");
            let (drained, wanted): (Vec<_>, Vec<_>) =
                counts.iter().partition(|(id, _)| self.drained.contains(**id));
            let shared = if wanted.is_empty() { drained } else { wanted.clone() };
            let most = shared.iter().map(|(_, count)| **count).max().unwrap();
            let least = shared.iter().map(|(_, count)| **count).min().unwrap();
            assert!(most - least <= 1, "{counts:?}");
            let of_drained: usize =
                counts.iter().filter(|(id, _)| self.drained.contains(**id)).map(|(_, c)| c).sum();
            assert!(wanted.is_empty() || of_drained == 0, "drained, and serves: {counts:?}");
        }
    }

    fn leaving(&self, kind: WorkKind) -> usize {
        self.map.places[kind.name].iter().filter(|place| place.leaving).count()
    }
}

fn world(events: &[Happens]) -> World {
    let mut world = World { led_at: 1, sequence: 1, ..World::default() };
    for event in events {
        world.happens(event);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..Default::default() })]

    #[test]
    fn every_step_is_cooperative_and_all_settles_in_balance(
        events in prop::collection::vec(happens(), 0..80)
    ) {
        let mut world = world(&events);
        world.settles();
        world.check_settled();
    }

    #[test]
    fn whoever_joins_costs_no_more_than_its_share(
        events in prop::collection::vec(happens(), 0..60)
    ) {
        let mut world = world(&events);
        world.drained.clear();
        world.settles();
        world.happens(&Happens::Joins(3));
        world.plans();
        for kind in KINDS {
            let share = usize::from(kind.places).div_ceil(world.counts(kind).len());
            prop_assert!(world.leaving(kind) <= share, "{} of {kind:?}", world.leaving(kind));
        }
    }

    #[test]
    fn whoever_goes_costs_nothing_but_its_own_places(
        events in prop::collection::vec(happens(), 0..60),
        gone in 0_usize..8,
    ) {
        let mut world = world(&events);
        world.drained.clear();
        world.settles();
        let Some(gone) = world.pick(gone) else { return Ok(()) };
        let before = world.map.clone();
        world.records.remove(&gone);
        world.actual.remove(&gone);
        world.plans();
        for kind in KINDS {
            for (old, new) in before.places[kind.name].iter().zip(&world.map.places[kind.name]) {
                prop_assert!(old == new || old.owner.as_ref() == Some(&gone), "{old:?} → {new:?}");
            }
        }
    }
}

/// A leader of this version, beside members of one that does another kind of work.
#[test]
fn a_kind_that_the_leader_does_not_know_stays_in_the_map_as_it_is() {
    let id = MemberId::new("later", "1");
    let (kinds, owner) = (BTreeSet::from(["command".into(), "task".into()]), Some(id.clone()));
    let members = BTreeMap::from([(id.clone(), Record { kinds, ..Record::default() })]);
    let tasks = vec![Place { owner, epoch: 3, ..Place::default() }; 4];
    let map = Map { places: BTreeMap::from([("task".into(), tasks)]), ..Map::default() };
    let next = plan(&KINDS, &map, &members, &BTreeSet::new(), 7);
    assert_eq!(next.places["task"], map.places["task"]);
    assert_eq!(next.of(&id, COMMAND).len(), 64);
}

/// In a rolling upgrade, members of this version and of the one before read each other's.
#[test]
fn records_and_the_map_are_written_as_they_always_were() {
    let kinds = KINDS.iter().map(|kind| kind.name.into()).collect();
    let serves = Serves { followed: 3, places: BTreeSet::from([1]) };
    let serves = BTreeMap::from([("command".into(), serves)]);
    let record = Record { kinds, serves, ..Record::default() };
    let written = concat!(
        r#"{"kinds":["command","projection"],"role":"","version":"","started_s":0,"#,
        r#""serves":{"command":{"followed":3,"places":[1]}},"beat":0,"epoch":null}"#
    );
    assert_eq!(serde_json::to_string(&record).unwrap(), written);
    assert_eq!(serde_json::from_str::<Record>(written).unwrap(), record);
    let one = WorkKind { places: 1, ..PROJECTION };
    let map = plan(&[one], &Map::default(), &BTreeMap::new(), &BTreeSet::new(), 7);
    let written = concat!(
        r#"{"epoch":0,"leader":"","#,
        r#""places":{"projection":[{"owner":null,"epoch":0,"since":0}]}}"#
    );
    assert_eq!(serde_json::to_string(&map).unwrap(), written);
    assert_eq!(serde_json::from_str::<Map>(written).unwrap(), map);
}
