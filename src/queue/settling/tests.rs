use std::collections::BTreeSet;

use super::*;

fn read(number: u64) -> Event<u64> {
    // Each second sequence is another place's.
    Event::Read { number, sequence: 2 * number, message: number }
}

fn fresh() -> Settling<u64> {
    Settling::new(Found::default())
}

#[test]
fn what_was_in_doubt_is_looked_up_before_it_is_done() {
    let now = Instant::now();
    let mut settling = Settling::new(Found { last_before: 4, ..Found::default() });
    assert_eq!(settling.on(read(1), now), [Action::LookUp(0)]);
    assert_eq!(settling.on(read(2), now), [Action::LookUp(1)]);
    assert_eq!(settling.on(read(3), now), [], "it waits for those before it");
    assert_eq!(settling.on(Event::LookedUp(1, Some(false)), now), []);
    let done = settling.on(Event::LookedUp(0, Some(true)), now);
    assert_eq!(done, [Action::DoneBefore(0), Action::Do(1), Action::Do(2)]);
    assert_eq!(settling.message(2), (&3, 6));
}

/// An owner leaves a thousand in doubt at most. Where its record is gone, so is that bound: the rest was done anew.
#[test]
fn without_a_record_of_earlier_owners_everything_is_in_doubt() {
    let now = Instant::now();
    let all = IN_DOUBT_MAX as u64 + 500;
    for (in_doubt_to, looked_up) in [(2 * all, all), (0, IN_DOUBT_MAX as u64)] {
        let found = Found { last_before: 2 * all, in_doubt_to, ..Found::default() };
        let (mut settling, mut looks) = (Settling::new(found), 0);
        for number in 1..=all {
            let mut actions = settling.on(read(number), now);
            while let Some(action) = actions.pop() {
                let follows = match action {
                    Action::LookUp(number) => {
                        looks += 1;
                        settling.on(Event::LookedUp(number, Some(true)), now)
                    }
                    Action::Do(number) => settling.on(Event::Done(number), now),
                    Action::Write(_) => settling.on(Event::Written(true), now),
                    Action::DoneBefore(_) | Action::Ask => Vec::new(),
                };
                actions.extend(follows);
            }
        }
        assert_eq!(looks, looked_up);
    }
}

#[test]
fn behind_what_cannot_be_looked_up_nothing_is_begun() {
    let now = Instant::now();
    let mut settling = Settling::new(Found { last_before: 6, ..Found::default() });
    for number in 1..=3 {
        assert_eq!(settling.on(read(number), now), [Action::LookUp(number - 1)]);
    }
    assert_eq!(settling.on(Event::LookedUp(1, None), now), []);
    assert!(!settling.reads() && settling.is_open(), "the one before goes on");
    assert_eq!(settling.on(Event::LookedUp(0, Some(false)), now), [Action::Do(0)]);
    assert_eq!(settling.on(Event::LookedUp(2, Some(false)), now), [], "given up");
    assert!(!settling.is_open());
    assert_eq!(settling.on(Event::Done(0), now), [Action::Write(Record::Settled(2))]);
    assert!(!settling.has_ended());
    assert_eq!(settling.on(Event::Written(true), now), []);
    assert!(settling.has_ended());
}

#[test]
fn what_is_settled_is_passed_over_and_what_was_lost_is_not() {
    let now = Instant::now();
    let mut settling = Settling::new(Found { settled: 2, ..Found::default() });
    assert_eq!(settling.on(read(1), now), [], "settled");
    assert_eq!(settling.on(read(2), now), [Action::Do(1)]);
    assert_eq!(settling.on(read(4), now), []);
    assert!(!settling.is_open());
}

#[test]
fn the_first_waits_until_it_is_recorded_that_it_is_begun_with() {
    let now = Instant::now();
    let mut settling = Settling::new(Found { first: Some((2, 1)), ..Found::default() });
    assert_eq!(settling.on(read(1), now), [Action::Write(Record::Begins)]);
    assert!(!settling.reads());
    assert_eq!(settling.on(Event::Written(true), now), [Action::Do(0)]);
    assert_eq!(settling.wakes_at(), Some(now + SURVIVED));
    assert_eq!(settling.on(Event::Time, now), []);
    let lives = settling.on(Event::Time, now + SURVIVED);
    assert_eq!(lives, [Action::Write(Record::LivesOn)]);
    assert_eq!(settling.wakes_at(), None, "one write at a time");
}

#[test]
fn whoever_cannot_write_begins_with_nothing_more() {
    let now = Instant::now();
    let mut settling = Settling::new(Found { first: Some((2, 1)), ..Found::default() });
    assert_eq!(settling.on(read(1), now), [Action::Write(Record::Begins)]);
    assert_eq!(settling.on(Event::Written(false), now), []);
    assert!(settling.has_ended());
    assert_eq!(settling.begun(), 0);
}

/// For an owner that has begun with the first message that it found.
fn begun_with_the_first(now: Instant) -> Settling<u64> {
    let mut settling = Settling::new(Found { first: Some((2, 1)), ..Found::default() });
    assert_eq!(settling.on(read(1), now), [Action::Write(Record::Begins)]);
    assert_eq!(settling.on(Event::Written(true), now), [Action::Do(0)]);
    settling
}

#[test]
fn what_is_given_back_is_not_waited_for_and_has_killed_nobody() {
    let now = Instant::now();
    let mut settling = begun_with_the_first(now);
    assert_eq!(settling.on(read(2), now), [Action::Do(1)]);
    assert_eq!(settling.on(Event::Done(1), now), []);
    assert_eq!(settling.on(Event::Leave, now), [], "the first may be done yet");
    assert!(!settling.has_ended());
    assert_eq!(settling.on(Event::GivenBack, now), [Action::Write(Record::GivesBack)]);
    assert!(!settling.has_ended());
    assert_eq!(settling.on(Event::Written(true), now), []);
    assert!(settling.has_ended());
}

#[test]
fn whoever_leaves_records_what_is_settled_before_what_it_gives_back() {
    let now = Instant::now();
    let mut settling = begun_with_the_first(now);
    assert_eq!(settling.on(read(2), now), [Action::Do(1)]);
    assert_eq!(settling.on(Event::Leave, now), []);
    assert_eq!(settling.on(Event::Done(0), now), [], "the second is under way");
    assert_eq!(settling.on(Event::GivenBack, now), [Action::Write(Record::Settled(2))]);
    assert_eq!(settling.on(Event::Written(true), now), [], "the first is done");
    assert!(settling.has_ended());
    // While something else is written, too.
    let mut settling = begun_with_the_first(now);
    let lives = settling.on(Event::Time, now + SURVIVED);
    assert_eq!(lives, [Action::Write(Record::LivesOn)]);
    assert_eq!(settling.on(Event::Leave, now), []);
    assert_eq!(settling.on(Event::GivenBack, now), []);
    assert!(!settling.has_ended());
    assert_eq!(settling.on(Event::Written(true), now), [], "it has lived on");
    assert!(settling.has_ended());
}

/// It counted as a death, although nothing had been begun with.
#[test]
fn a_leave_while_the_beginning_is_recorded_is_no_death() {
    let now = Instant::now();
    for is_written in [true, false] {
        let mut settling = Settling::new(Found { first: Some((2, 1)), ..Found::default() });
        assert_eq!(settling.on(read(1), now), [Action::Write(Record::Begins)]);
        assert_eq!(settling.on(Event::Leave, now), []);
        assert!(!settling.has_ended());
        let follows = settling.on(Event::Written(is_written), now);
        if is_written {
            assert_eq!(follows, [Action::Write(Record::GivesBack)]);
            assert_eq!(settling.on(Event::Written(true), now), []);
        } else {
            assert_eq!(follows, [], "another owner has come, or nobody knows");
        }
        assert!(settling.has_ended());
        assert_eq!(settling.begun(), 0);
    }
}

#[test]
fn a_reader_that_lost_messages_is_given_up() {
    let now = Instant::now();
    let mut settling = fresh();
    for (there, open) in [(0, true), (3, true), (3, false)] {
        assert_eq!(settling.on(Event::Idle, now), [Action::Ask]);
        assert_eq!(settling.on(Event::Idle, now), [], "one question at a time");
        assert_eq!(settling.on(Event::HandedOut(Some(there)), now), []);
        assert_eq!(settling.is_open(), open, "{there}");
    }
    let mut settling = fresh();
    assert_eq!(settling.on(Event::Idle, now), [Action::Ask]);
    assert_eq!(settling.on(Event::HandedOut(None), now), []);
    assert!(settling.has_ended(), "the broker does not know the reader");
}

/// The world around a machine, which answers in any order.
#[derive(Default)]
struct World {
    looked_up: BTreeSet<u64>,
    done: BTreeSet<u64>,
    looking: Vec<u64>,
    doing: Vec<u64>,
    writing: Option<Record>,
    began: Option<u64>,
    settled: u64,
    /// It is recorded that the owner begins with the first, and nothing since says that it lives.
    may_die: bool,
}

impl World {
    fn act(&mut self, action: Action, found: Found) {
        match action {
            Action::LookUp(number) => self.looking.push(number),
            Action::Do(number) => {
                let sequence = 2 * (number + 1);
                let in_doubt = sequence <= found.last_before && number < IN_DOUBT_MAX as u64;
                assert!(!in_doubt || self.looked_up.contains(&number), "{number} is in doubt");
                assert!(sequence > found.settled, "{number} was settled");
                assert!(self.began.is_none_or(|last| last < number), "{number} out of order");
                self.began = Some(number);
                self.doing.push(number);
            }
            Action::DoneBefore(number) => {
                assert!(self.looked_up.contains(&number));
                self.done.insert(number);
            }
            Action::Write(record) => {
                assert_eq!(self.writing, None, "one at a time");
                if let Record::Settled(sequence) = record {
                    assert!(sequence >= self.settled, "it never goes back");
                    let all = (0..sequence / 2).filter(|number| 2 * (number + 1) > found.settled);
                    let open = all.filter(|number| !self.done.contains(number)).count();
                    assert_eq!(open, 0, "{sequence} is settled, and not done");
                    self.settled = sequence;
                }
                if record == Record::GivesBack {
                    assert!(self.may_die && self.doing.is_empty(), "nothing is given back");
                }
                self.may_die = record == Record::Begins;
                self.writing = Some(record);
            }
            Action::Ask => {}
        }
    }
}

/// Numbers that look random (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % most as u64).unwrap()
    }
}

#[test]
fn nothing_is_settled_that_is_not_done_whatever_the_order_of_what_happens() {
    for seed in 1..200_u64 {
        let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let settled = 2 * chance.below(4) as u64;
        let first = (seed % 3 == 0).then_some((settled + 2, 1 + chance.below(6) as u32));
        let last_before = settled + chance.below(200) as u64;
        let found = Found { settled, last_before, first, ..Found::default() };
        let (mut settling, mut world) = (Settling::new(found), World::default());
        let (mut now, mut next) = (Instant::now(), 1);
        let (gives_back, mut leaves, mut fails) = (seed % 2 == 0, false, false);
        for step in 0.. {
            assert!(step < 20_000, "seed {seed}: it does not end");
            let event = match chance.below(6) {
                0 | 1 if settling.reads() && next <= 600 => {
                    next += 1;
                    read(next - 1)
                }
                2 if !world.looking.is_empty() => {
                    let number = world.looking.swap_remove(chance.below(world.looking.len()));
                    world.looked_up.insert(number);
                    Event::LookedUp(number, (chance.below(500) > 0).then(|| chance.below(2) == 0))
                }
                3 if !world.doing.is_empty() => {
                    let number = world.doing.swap_remove(chance.below(world.doing.len()));
                    world.done.insert(number);
                    Event::Done(number)
                }
                4 if world.writing.take().is_some() => {
                    let is_written = chance.below(300) > 0;
                    fails |= !is_written;
                    Event::Written(is_written)
                }
                5 if leaves && gives_back && chance.below(50) == 0 => {
                    world.doing.clear();
                    Event::GivenBack
                }
                5 if next > 600 => {
                    leaves = true;
                    Event::Leave
                }
                _ => {
                    now += Duration::from_millis(chance.below(30) as u64);
                    Event::Time
                }
            };
            for action in settling.on(event, now) {
                world.act(action, found);
            }
            if settling.has_ended() {
                break;
            }
        }
        assert!(world.doing.is_empty(), "seed {seed}: what was begun is heard of");
        assert!(!world.may_die || fails, "seed {seed}: it ended well, and counts as dead");
    }
}
