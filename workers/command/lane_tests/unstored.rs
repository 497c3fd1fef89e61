//! Commits that the log has certainly not taken.

use super::*;

fn refused(error: &Error) -> Input {
    Input::Appended { key: key(), result: Err(error.clone()) }
}

/// It was taken for an outage once: tried again for ever, with everything behind it.
#[test]
fn a_commit_that_is_too_large_is_an_answer_for_who_waits_and_for_the_queue() {
    let too_large = Error::TooLarge("it takes 7 bytes, and at most 6 are stored".to_owned());
    for patient in [false, true] {
        let (mut lane, first) = started();
        append(lane.handle(up("b", 2, 1, patient), 0));
        assert!(lane.handle(up("c", 3, 2, patient), 0).is_empty(), "c waits for b");
        let actions = lane.handle(refused(&too_large), 0);
        let [(1, Outcome::Faulty { message })] = &outcomes(&actions)[..] else {
            panic!("{actions:?}")
        };
        assert!(message.contains("events of up") && message.contains("at most 6"), "{message}");
        // The next one goes on from the same state.
        let Some(Action::Append { commit, expected }) = actions.last() else {
            panic!("{actions:?}")
        };
        assert_eq!((commit.command_id.as_str(), expected.hash), ("c", first.hash));
    }
}

/// On a new aggregate it would be; on the one that there is it is another commit, or none.
#[test]
fn a_guess_that_is_too_large_is_no_answer() {
    let (_, first) = started();
    let mut lane = expecting_new_ones();
    append(lane.handle(up("b", 2, 50, false), 0));
    let actions = lane.handle(refused(&Error::TooLarge(String::new())), 0);
    assert!(matches!(&actions[..], [Action::Load { after, .. }] if after.sequence == 0));
    let (commit, _) = append(lane.handle(loaded(vec![first]), 0));
    assert_eq!(commit.version(), 2);
}

/// An earlier commit of the command may get into the log yet.
#[test]
fn too_large_is_no_answer_while_an_earlier_commit_is_in_doubt() {
    let (mut lane, first) = started();
    let (commit, expected) = append(lane.handle(up("b", 2, 1, true), 0));
    lane.handle(refused(&unavailable()), 0);
    append(lane.handle(loaded(vec![]), 0));
    let actions = lane.handle(refused(&Error::TooLarge(String::new())), 0);
    assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
    let found = vec![recorded(&commit, expected, first.sequence + 1)];
    let told = outcomes(&lane.handle(loaded(found), 0));
    assert!(matches!(told[..], [(1, Outcome::Accepted { version: 2, .. })]), "{told:?}");
}

#[test]
fn without_room_who_waits_is_told_at_once_and_the_queue_goes_on_when_there_is_some() {
    let full = Error::NoRoom("insufficient resources (error 10023)".to_owned());
    let (mut lane, _) = started();
    append(lane.handle(up("b", 2, 1, false), 0));
    let told = outcomes(&lane.handle(refused(&full), 0));
    assert!(matches!(told[..], [(1, Outcome::NoRoom { .. })]), "{told:?}");

    // Stored commands keep their order; a client that waits among them is told.
    append(lane.handle(up("c", 3, 2, true), 0));
    lane.handle(up("d", 4, 3, false), 0);
    lane.handle(up("e", 5, 4, true), 0);
    lane.handle(up("a", 1, 5, false), 0);
    for _ in 0..20 {
        let actions = lane.handle(refused(&full), 0);
        let told = outcomes(&actions);
        assert!(told.iter().all(|(ticket, _)| *ticket == 3), "{told:?}");
        assert!(matches!(actions.last(), Some(Action::Load { pause, .. }) if !pause.is_zero()));
        let (commit, _) = append(lane.handle(loaded(vec![]), 0));
        assert_eq!(commit.command_id.as_str(), "c");
    }
    let (commit, expected) = {
        lane.handle(refused(&full), 0);
        append(lane.handle(loaded(vec![]), 0))
    };
    let actions = lane.handle(appended(&recorded(&commit, expected, 11)), 0);
    assert!(matches!(outcomes(&actions)[..], [(2, Outcome::Accepted { version: 2, .. })]));
    let Some(Action::Append { commit, expected }) = actions.last() else { panic!("{actions:?}") };
    assert_eq!(commit.command_id.as_str(), "e");
    let actions = lane.handle(appended(&recorded(commit, *expected, 12)), 0);
    let told = outcomes(&actions);
    assert!(
        matches!(
            told[..],
            [(4, Outcome::Accepted { .. }), (5, Outcome::Accepted { replayed: true, .. })]
        ),
        "a repeated command has its first outcome: {told:?}"
    );
}

#[test]
fn a_command_in_doubt_is_not_called_undone_for_lack_of_room() {
    let (mut lane, _) = started();
    append(lane.handle(up("b", 2, 1, false), 0));
    lane.handle(refused(&unavailable()), 0);
    append(lane.handle(loaded(vec![]), 0));
    let told = outcomes(&lane.handle(refused(&Error::NoRoom(String::new())), 0));
    assert!(matches!(told[..], [(1, Outcome::Unavailable { .. })]), "{told:?}");
}

/// A load that is given up for lack of room.
fn not_loaded() -> Input {
    let full = Error::NoRoom("a tenth is kept free".to_owned());
    Input::Loaded { key: key(), result: Err(full) }
}

/// True if the load is one that is given up for lack of room.
fn is_for_client(actions: &[Action]) -> bool {
    let Some(Action::Load { for_client, .. }) = actions.last() else { panic!("{actions:?}") };
    *for_client
}

/// It waited behind other loads until its time was over, and its outcome was called unknown.
#[test]
fn without_room_a_client_does_not_wait_for_a_load_and_all_others_do() {
    let mut lane = lane();
    assert!(is_for_client(&lane.handle(up("a", 1, 1, false), 0)));
    lane.handle(up("b", 2, 2, true), 0);
    lane.handle(Input::Work { key: key(), work: Work::State { ticket: 3 } }, 0);
    let actions = lane.handle(not_loaded(), 0);
    let told = outcomes(&actions);
    assert!(matches!(told[..], [(1, Outcome::NoRoom { .. })]), "{told:?}");
    assert!(!is_for_client(&actions), "a stored command and a question wait for it");
    assert!(matches!(actions.last(), Some(Action::Load { pause, .. }) if !pause.is_zero()));
    let (commit, _) = append(lane.handle(loaded(vec![]), 0));
    assert_eq!(commit.command_id.as_str(), "b");
}

#[test]
fn without_room_a_repeated_command_waits_for_its_outcome() {
    let (mut lane, _) = started();
    append(lane.handle(up("b", 2, 1, false), 0));
    lane.handle(up("a", 1, 2, false), 0);
    assert!(is_for_client(&lane.handle(refused(&Error::Conflict), 0)));
    let actions = lane.handle(not_loaded(), 0);
    let told = outcomes(&actions);
    assert!(matches!(told[..], [(1, Outcome::NoRoom { .. })]), "{told:?}");
    assert!(!is_for_client(&actions), "its outcome is known already, or nearly");
    let told = outcomes(&lane.handle(loaded(vec![]), 0));
    assert!(matches!(told[..], [(2, Outcome::Accepted { replayed: true, .. })]), "{told:?}");
}

#[test]
fn a_command_in_doubt_is_not_called_undone_when_there_is_no_room_to_load() {
    let (mut lane, _) = started();
    append(lane.handle(up("b", 2, 1, false), 0));
    lane.handle(refused(&unavailable()), 0);
    let told = outcomes(&lane.handle(not_loaded(), 0));
    assert!(matches!(told[..], [(1, Outcome::Unavailable { .. })]), "{told:?}");
}
