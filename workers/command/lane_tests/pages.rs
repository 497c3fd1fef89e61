//! Long aggregates.

use super::*;

/// Neither all of it in memory nor the lane for itself: others come in between.
#[test]
fn a_long_aggregate_is_folded_page_by_page() {
    let (_, first) = started();
    let mut lane = lane();
    lane.handle(up("b", 1, 7, false), 0);
    let page = Loaded { snapshot: None, commits: vec![first.clone()], more: true };
    let actions = lane.handle(Input::Loaded { key: key(), result: Ok(page) }, 0);
    let [Action::Load { after, pause, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((after.sequence, after.hash), (first.sequence, first.hash));
    assert!(pause.is_zero());
    let (commit, expected) = append(lane.handle(loaded(vec![]), 0));
    assert_eq!((commit.version_before(), expected.sequence), (1, first.sequence));
}

/// 512 commits of a page held the lane for as long as all their functions take.
#[test]
fn a_page_is_folded_in_parts_and_others_come_in_between() {
    let (mut lane, first) = started();
    let mut page = vec![first];
    for (number, id) in ["b", "c"].into_iter().enumerate() {
        let (commit, expected) = append(lane.handle(up(id, 1, number as u64, false), 0));
        let next = recorded(&commit, expected, 11 + number as u64);
        lane.handle(appended(&next), 0);
        page.push(next);
    }
    let mut lane = super::lane();
    lane.folds_one_by_one();
    lane.handle(up("d", 1, 7, false), 0);
    let mut input = loaded(page.clone());
    for left in [2, 1] {
        let actions = lane.handle(input, 0);
        let Ok([Action::GoOn { key, loaded }]) = <[Action; 1]>::try_from(actions) else {
            panic!("it goes on without a pause")
        };
        assert_eq!((loaded.commits.len(), loaded.more), (left, false));
        let (commit, _) = append(guessed(&mut lane, &format!("o{left}")));
        assert_eq!(commit.version_before(), 0, "another aggregate, meanwhile");
        input = Input::Loaded { key, result: Ok(loaded) };
    }
    let (commit, expected) = append(lane.handle(input, 0));
    assert_eq!((commit.version_before(), expected.hash), (3, page[2].hash));
}

/// A command of an aggregate that is not there.
fn guessed(lane: &mut Lane, id: &str) -> Vec<Action> {
    lane.handle(up_of(key_of(id), "a", 1, 1, false), 0);
    lane.handle(Input::Loaded { key: key_of(id), result: Ok(Loaded::default()) }, 0)
}

#[test]
fn what_had_to_go_is_loaded_again_from_where_it_was() {
    let (_, first) = started();
    let mut lane = lane();
    lane.handle(up("b", 1, 7, true), 0);
    let page = Loaded { snapshot: None, commits: vec![first.clone()], more: true };
    lane.handle(Input::Loaded { key: key(), result: Ok(page) }, 0);
    let actions = lane.handle(Input::Unloaded { key: key() }, 0);
    let [Action::Load { after, pause, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((after.sequence, pause.is_zero()), (first.sequence, true));
    let (commit, _) = append(lane.handle(loaded(vec![]), 0));
    assert_eq!(commit.version_before(), 1);
}
