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
