//! Commands that are not done with at their first try, and the time that they are told.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use flexcore_domain::{Decision, Event, Refusal, State};

use super::*;
use crate::command::{cache::Entry, deciders::Fingerprint, memory::random_secret};

fn unanswered() -> Input {
    Input::Appended { key: key(), result: Err(unavailable()) }
}

fn conflict() -> Input {
    Input::Appended { key: key(), result: Err(Error::Conflict) }
}

/// The same commit under another command's id.
fn of_another(commit: &Commit) -> Commit {
    Commit { command_id: CommandId::parse("other").unwrap(), ..commit.clone() }
}

/// A commit that had no answer may get into the log yet: whatever else would be decided now must not
/// be told.
#[test]
fn a_commit_without_an_answer_is_sent_again_as_it_was() {
    for patient in [true, false] {
        let (mut lane, first) = started();
        let (commit, expected) = append(lane.handle(up("b", 2, 1, patient), 7));
        lane.handle(unanswered(), 8);
        for _ in 0..2 {
            // Nothing of it shows, as at a replica that is behind. The clock has moved on.
            let again = append(lane.handle(loaded(vec![]), 99));
            assert_eq!(
                (again.0.encode(&first.hash).body, again.1),
                (commit.encode(&first.hash).body, expected)
            );
            lane.handle(conflict(), 100);
        }
        let told = outcomes(&lane.handle(loaded(vec![recorded(&commit, expected, 11)]), 101));
        let [(1, Outcome::Accepted { version: 2, replayed, .. })] = told[..] else {
            panic!("{told:?}")
        };
        assert!(replayed, "it is the commit that had no answer");
    }
}

#[test]
fn what_the_log_can_never_take_is_decided_again() {
    for patient in [true, false] {
        let (mut lane, _) = started();
        let (commit, expected) = append(lane.handle(up("b", 600, 1, patient), 0));
        lane.handle(unanswered(), 0);
        // Something else follows on the first commit, so that this one's expectation is wrong for ever.
        let other = recorded(&of_another(&commit), expected, 11);
        let told = outcomes(&lane.handle(loaded(vec![other]), 0));
        let [(1, Outcome::Rejected { code, .. })] = &told[..] else { panic!("{told:?}") };
        assert_eq!(code, "too_high");
    }
}

#[test]
fn a_waiting_client_learns_that_the_outcome_is_unknown() {
    let (mut lane, _) = started();
    append(lane.handle(up("b", 2, 1, false), 0));
    lane.handle(unanswered(), 0);
    let told = (0..3).find_map(|_| {
        append(lane.handle(loaded(vec![]), 0));
        outcomes(&lane.handle(conflict(), 0)).pop()
    });
    assert!(matches!(told, Some((1, Outcome::Unavailable { .. }))), "{told:?}");
}

/// It was sent again, as the answer says, and refused for the time that had gone by; then the first
/// commit got into the log.
#[test]
fn a_command_of_unknown_outcome_that_comes_again_is_decided_as_before() {
    let (mut lane, left, told) = tired();
    lane.handle(up("b", 2, 1, false), 5);
    let (commit, expected) = append(lane.handle(loaded(vec![]), 5));
    for _ in 0..3 {
        lane.handle(unanswered(), 6);
        append(lane.handle(loaded(vec![]), 7));
    }
    let told_first = outcomes(&lane.handle(unanswered(), 8));
    assert!(matches!(told_first[..], [(1, Outcome::Unavailable { .. })]), "{told_first:?}");

    lane.handle(up("b", 2, 2, false), 900);
    let again = append(lane.handle(loaded(vec![]), 900));
    assert_eq!(again.0.encode(&expected.hash).body, commit.encode(&expected.hash).body);
    assert_eq!(*told.lock().unwrap(), [5, 5]);
    lane.handle(conflict(), 901);
    // Whatever else comes of it now, its first commit may still arrive.
    left.store(1, Ordering::Relaxed);
    let told = outcomes(&lane.handle(loaded(vec![]), 902));
    assert!(matches!(told[..], [(2, Outcome::Unavailable { .. })]), "{told:?}");
    // And when it has:
    append(lane.handle(up("b", 2, 3, false), 903));
    lane.handle(conflict(), 904);
    let told = outcomes(&lane.handle(loaded(vec![recorded(&commit, expected, 9)]), 905));
    assert!(matches!(told[..], [(3, Outcome::Accepted { version: 1, .. })]), "{told:?}");
}

/// Its client has stored it after an unknown outcome, and its functions are too slow now: it was put
/// aside at once, and then its first commit got into the log.
#[test]
fn a_stored_command_whose_first_commit_may_arrive_is_not_put_aside_at_once() {
    let (mut lane, left, _) = tired();
    lane.handle(up("b", 2, 1, false), 5);
    let (commit, expected) = append(lane.handle(loaded(vec![]), 5));
    for _ in 0..3 {
        lane.handle(unanswered(), 6);
        append(lane.handle(loaded(vec![]), 7));
    }
    let told = outcomes(&lane.handle(unanswered(), 8));
    assert!(matches!(told[..], [(1, Outcome::Unavailable { .. })]), "{told:?}");

    left.store(100, Ordering::Relaxed);
    let mut actions = lane.handle(up("b", 2, 2, true), 900);
    for _ in 0..8 {
        assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
        actions = lane.handle(loaded(vec![]), 901);
    }
    left.store(0, Ordering::Relaxed);
    let told = outcomes(&lane.handle(loaded(vec![recorded(&commit, expected, 9)]), 902));
    assert!(matches!(told[..], [(2, Outcome::Accepted { version: 1, .. })]), "{told:?}");
}

/// A counter that uses up its time so many times, and notes the time that it is told.
struct Tired {
    counter: Native<Counter>,
    left: Arc<AtomicU32>,
    told: Arc<Mutex<Vec<i64>>>,
}

impl Tired {
    fn rest(&self) -> Result<(), Refusal> {
        let less = |left: u32| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Err(Refusal::Exhausted("too slow".to_owned())),
            Err(_) => Ok(()),
        }
    }
}

impl Decider for Tired {
    fn decide(
        &mut self,
        state: &State,
        command: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        self.rest()?;
        self.told.lock().unwrap().push(context.now_ms);
        self.counter.decide(state, command, payload, context)
    }

    fn evolve(&mut self, state: &State, events: &[Event]) -> Result<State, Refusal> {
        self.rest()?;
        self.counter.evolve(state, events)
    }
}

/// A lane with such counters, how often they are tired yet, and the times that they were told.
fn tired() -> (Lane, Arc<AtomicU32>, Arc<Mutex<Vec<i64>>>) {
    let left = Arc::new(AtomicU32::new(0));
    let told: Arc<Mutex<Vec<i64>>> = Arc::default();
    let lane = lane_of({
        let (left, told) = (left.clone(), told.clone());
        move || {
            let (left, told) = (left.clone(), told.clone());
            Box::new(Tired { counter: Native::default(), left, told })
        }
    });
    (lane, left, told)
}

/// Works off loads until something else is to be done; returns how many there were, and that.
fn after_loads(
    lane: &mut Lane,
    mut actions: Vec<Action>,
    log: &[Recorded],
) -> (usize, Vec<Action>) {
    let mut loads = 0;
    while let [Action::Load { after, .. }] = &actions[..] {
        loads += 1;
        assert!(loads < 20, "it never ends");
        let news = log.iter().filter(|recorded| recorded.sequence > after.sequence);
        actions = lane.handle(loaded(news.cloned().collect()), 0);
    }
    (loads, actions)
}

#[test]
fn a_stored_command_that_took_too_long_is_tried_again_and_a_waiting_one_answered() {
    let (_, first) = started();
    // Where the time goes: in `decide`, or in `evolve` while the state is loaded.
    for log in [vec![], vec![first]] {
        for times in 1..=3 {
            let (mut lane, left, _) = tired();
            left.store(times, Ordering::Relaxed);
            let actions = lane.handle(up("b", 2, 1, true), 0);
            let (loads, actions) = after_loads(&mut lane, actions, &log);
            assert!(matches!(actions[..], [Action::Append { .. }]), "{actions:?}");
            assert_eq!(loads, times as usize + 1);
        }
        let (mut lane, left, _) = tired();
        left.store(100, Ordering::Relaxed);
        let actions = lane.handle(up("b", 2, 1, true), 0);
        let (loads, actions) = after_loads(&mut lane, actions, &log);
        assert!(matches!(&outcomes(&actions)[..], [(1, Outcome::Faulty { .. })]), "{actions:?}");
        assert_eq!((loads, left.load(Ordering::Relaxed)), (4, 96), "four tries");
        left.store(1, Ordering::Relaxed);
        let actions = lane.handle(up("c", 2, 2, false), 0);
        let (_, actions) = after_loads(&mut lane, actions, &log);
        assert!(matches!(&outcomes(&actions)[..], [(2, Outcome::Faulty { .. })]), "{actions:?}");
    }
}

#[test]
fn an_aggregates_time_never_goes_back() {
    let (mut lane, _, told) = tired();
    lane.handle(up("a", 1, 0, false), 5_000);
    let (commit, expected) = append(lane.handle(loaded(vec![]), 5_000));
    let first = recorded(&commit, expected, 10);
    lane.handle(appended(&first), 5_000);
    // The clock was set back.
    let (commit, expected) = append(lane.handle(up("b", 1, 1, false), 3_000));
    assert_eq!(commit.time_ms, 5_000);
    let second = recorded(&commit, expected, 11);
    lane.handle(appended(&second), 3_000);
    let (commit, _) = append(lane.handle(up("c", 1, 2, false), 6_000));
    assert_eq!(commit.time_ms, 6_000);
    assert_eq!(*told.lock().unwrap(), [5_000, 5_000, 6_000], "deciders see the same");

    // The next owner's clock is behind: it has the log, or a snapshot.
    for from_snapshot in [false, true] {
        let (mut next, _, told) = tired();
        next.handle(up("d", 1, 3, false), 1_000);
        let found = if from_snapshot {
            let (secret, native) = (random_secret(), Fingerprint::native());
            let mut entry = Entry::new(secret, native);
            entry.record(&first, State::from_json("1"));
            entry.record(&second, State::from_json("2"));
            Loaded { snapshot: Some(entry.snapshot()), commits: vec![], more: false }
        } else {
            Loaded { snapshot: None, commits: vec![first.clone(), second.clone()], more: false }
        };
        let (commit, _) =
            append(next.handle(Input::Loaded { key: key(), result: Ok(found) }, 1_000));
        assert_eq!((commit.version(), commit.time_ms), (3, 5_000));
        assert_eq!(*told.lock().unwrap(), [5_000]);
    }
}
