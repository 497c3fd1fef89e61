//! What deployments leave of the states that are kept, or under way.

use flexcore_domain::State;

use super::*;
use crate::command::{cache::Entry, deciders::Fingerprint, memory::random_secret};

const UP: &str = "(state, { by }) => [{ event: 'raised', data: { by } }]";
const SUM: &str = "(state, { data }) => (state ?? 0) + data.by";
const TWICE: &str = "(state, { data }) => (state ?? 0) + 2 * data.by";

/// A lane whose aggregates are in JavaScript. Its counter stands at 1, with this commit.
fn started_with(aggregates: &[&str]) -> (Lane, Recorded) {
    let mut lane = lane_with(Arc::new(|_: &AggregateName| None), Arc::new(|_, _, _| None));
    lane.handle(Input::Catalog(catalog(aggregates)), 0);
    lane.handle(up("a", 1, 0, false), 0);
    let (commit, expected) = append(lane.handle(loaded(vec![]), 0));
    let first = recorded(&commit, expected, 10);
    lane.handle(appended(&first), 0);
    (lane, first)
}

fn state() -> Input {
    Input::Work { key: key(), work: Work::State { ticket: 9 } }
}

fn is_load_after(actions: &[Action], sequence: u64) -> bool {
    matches!(actions, [Action::Load { after, .. }] if after.sequence == sequence)
}

fn found(actions: &[Action]) -> Option<(u64, &str)> {
    match actions {
        [Action::AnswerState { reply: StateReply::Found { version, state }, .. }] => {
            Some((*version, state.get()))
        }
        _ => None,
    }
}

/// Each deployment, whoever's, once had every tenant's next command load its aggregate from the log.
#[test]
fn an_unchanged_aggregate_stays_in_the_cache_and_is_decided_by_the_new_functions() {
    let (counter, other) = (declared("counter", UP, SUM), declared("other", UP, SUM));
    let changed = declared("other", UP, TWICE);
    let plus_state = "(state, { by }) => [{ event: 'raised', data: { by: by + state } }]";
    let other_decide = declared("counter", plus_state, SUM);
    let (mut lane, _) = started_with(&[counter.as_str(), other.as_str()]);
    let mut sequence = 10;
    for (aggregates, id, by) in [
        (vec![counter.as_str(), changed.as_str()], "b", 2),
        (vec![counter.as_str()], "c", 2),
        (vec![other_decide.as_str()], "d", 2 + 5),
    ] {
        lane.handle(Input::Catalog(catalog(&aggregates)), 0);
        let (commit, expected) = append(lane.handle(up(id, 2, 1, false), 0));
        assert_eq!(expected.sequence, sequence, "{id}");
        let data: By = serde_json::from_str(commit.events[0].data.get()).unwrap();
        assert_eq!(data.by, by, "{id}");
        sequence += 1;
        lane.handle(appended(&recorded(&commit, expected, sequence)), 0);
    }
}

#[test]
fn an_aggregate_that_is_changed_or_gone_is_loaded_and_folded_anew() {
    let counter = declared("counter", UP, SUM);
    let (twice, other) = (declared("counter", UP, TWICE), declared("other", UP, SUM));
    for (deployed, state_after) in [(&twice, Some((1, "2"))), (&other, None)] {
        let (mut lane, first) = started_with(&[counter.as_str()]);
        assert_eq!(found(&lane.handle(state(), 0)), Some((1, "1")));
        lane.handle(Input::Catalog(catalog(&[deployed.as_str()])), 0);
        let actions = lane.handle(state(), 0);
        assert!(is_load_after(&actions, 0), "{actions:?}");
        let actions = lane.handle(loaded(vec![first]), 0);
        assert_eq!(found(&actions), state_after, "{actions:?}");
    }
}

/// The state of a lane's counter at 1, as a snapshot of deciders in Rust has it.
fn snapshot(first: &Recorded) -> Loaded {
    let mut entry = Entry::new(random_secret(), Fingerprint::native());
    entry.record(first, State::from_json("1"));
    Loaded { snapshot: Some(entry.snapshot()), commits: vec![], more: false }
}

/// As a load that began before the deployment, or one whose answer waits while its tenant rests.
#[test]
fn a_load_builds_on_no_state_of_older_functions_and_on_every_other() {
    for (aggregate, changed) in [("counter", true), ("other", false)] {
        // On a state that was at hand.
        let (mut lane, first) = started();
        append(lane.handle(up("b", 2, 1, true), 0));
        lane.handle(Input::Appended { key: key(), result: Err(Error::Conflict) }, 0);
        lane.handle(deployed(aggregate), 0);
        let away = Input::Loaded { key: key(), result: Err(unavailable()) };
        let after = if changed { 0 } else { first.sequence };
        let actions = lane.handle(away, 0);
        assert!(is_load_after(&actions, after), "{aggregate}: {actions:?}");

        // On that state, and on the first page of a long aggregate.
        let (mut at_hand, _) = started();
        append(at_hand.handle(up("b", 2, 1, true), 0));
        at_hand.handle(Input::Appended { key: key(), result: Err(Error::Conflict) }, 0);
        let mut paged = super::lane();
        paged.handle(up("b", 2, 1, true), 0);
        let page = Loaded { snapshot: None, commits: vec![first.clone()], more: true };
        paged.handle(Input::Loaded { key: key(), result: Ok(page) }, 0);
        for mut lane in [at_hand, paged] {
            lane.handle(deployed(aggregate), 0);
            let mut actions = lane.handle(loaded(vec![]), 0);
            if changed {
                assert!(is_load_after(&actions, 0), "{actions:?}");
                actions = lane.handle(loaded(vec![first.clone()]), 0);
            }
            let (commit, expected) = append(actions);
            assert_eq!((commit.version(), expected.sequence), (2, first.sequence));
        }

        // On a snapshot.
        let mut lane = super::lane();
        lane.handle(state(), 0);
        lane.handle(deployed(aggregate), 0);
        let result = Ok(snapshot(&first));
        let actions = lane.handle(Input::Loaded { key: key(), result }, 0);
        assert_eq!(is_load_after(&actions, 0), changed, "{actions:?}");
        assert_eq!(found(&actions), (!changed).then_some((1, "1")), "{actions:?}");
    }
}

#[test]
fn what_was_being_appended_is_answered_and_its_state_kept_while_its_functions_are_in_force() {
    for (aggregate, changed) in [("counter", true), ("other", false)] {
        for full in [false, true] {
            let (mut lane, _) = started();
            let (commit, expected) = append(lane.handle(up("b", 2, 1, false), 0));
            lane.handle(deployed(aggregate), 0);
            let result = if full {
                Input::Appended { key: key(), result: Err(Error::NoRoom(String::new())) }
            } else {
                appended(&recorded(&commit, expected, 11))
            };
            let told = outcomes(&lane.handle(result, 0));
            let stored = matches!(told[..], [(1, Outcome::Accepted { version: 2, .. })]);
            assert_eq!(stored, !full, "{told:?}");
            let actions = lane.handle(state(), 0);
            assert_eq!(is_load_after(&actions, 0), changed, "{actions:?}");
            let kept = if full { (1, "1") } else { (2, "3") };
            assert_eq!(found(&actions), (!changed).then_some(kept), "{actions:?}");
        }
        let (mut lane, first) = started();
        append(lane.handle(up("b", 2, 1, false), 0));
        lane.handle(deployed(aggregate), 0);
        let conflict = Input::Appended { key: key(), result: Err(Error::Conflict) };
        let actions = lane.handle(conflict, 0);
        let after = if changed { 0 } else { first.sequence };
        assert!(is_load_after(&actions, after), "{actions:?}");
    }
}

/// It may be in the log: it is sent again as it was, whatever is deployed meanwhile.
#[test]
fn the_state_after_a_commit_that_older_functions_decided_is_not_kept() {
    let (mut lane, first) = started();
    let (commit, expected) = append(lane.handle(up("b", 2, 1, true), 0));
    lane.handle(Input::Appended { key: key(), result: Err(unavailable()) }, 0);
    lane.handle(deployed("counter"), 0);
    let actions = lane.handle(loaded(vec![]), 0);
    assert!(is_load_after(&actions, 0), "{actions:?}");
    let again = append(lane.handle(loaded(vec![first.clone()]), 0));
    assert_eq!(again.0.encode(&first.hash).body, commit.encode(&first.hash).body);
    let told = outcomes(&lane.handle(appended(&recorded(&commit, expected, 11)), 0));
    assert!(matches!(told[..], [(1, Outcome::Accepted { version: 2, .. })]), "{told:?}");
    let actions = lane.handle(state(), 0);
    assert!(is_load_after(&actions, 0), "{actions:?}");
}
