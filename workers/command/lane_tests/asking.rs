//! Deciders that answer later.

use std::collections::BTreeMap;

use flexcore_domain::Refusal;
use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::command::{LaterDecider, NoDecision, Proposals, ProposedEvent, ToDecide};

/// A lane whose counters are decided elsewhere.
fn asking() -> Lane {
    let native: crate::command::NativeDeciders =
        Arc::new(|_: &AggregateName| Some(Box::new(Native::<Counter>::default())));
    let decider: LaterDecider =
        Arc::new(|_| async { Err(NoDecision::Away("the shell asks it".to_owned())) }.boxed());
    lane_with(native, Arc::new(move |_, _, _| Some(decider.clone())))
}

/// The decider's answer once it is asked.
fn answer(asked: &ToDecide) -> Proposals {
    let ToDecide { state, command, context } = asked;
    let mut counter = Native::<Counter>::default();
    let decided = counter.decide(state, &command.name, &command.payload, context);
    let decision = decided.map_err(NoDecision::Refused)?;
    let proposed = decision.events.iter().map(|it| proposed(it.event.as_str(), it.data.get()));
    Ok(proposed.collect())
}

fn proposed(event: &str, data: &str) -> ProposedEvent {
    ProposedEvent { event: event.to_owned(), data: data.to_owned().into() }
}

fn ask(mut actions: Vec<Action>) -> (u64, ToDecide) {
    match actions.pop() {
        Some(Action::AskDecider { number, to_decide, .. }) if actions.is_empty() => {
            (number, *to_decide)
        }
        other => panic!("not one question: {actions:?} {other:?}"),
    }
}

fn decided(number: u64, result: Proposals) -> Input {
    Input::Decided { key: key(), number, result }
}

fn late() -> Proposals {
    Err(NoDecision::Refused(Refusal::Exhausted("no answer within 2 s".to_owned())))
}

fn away() -> Proposals {
    Err(NoDecision::Away("the plugin starts again".to_owned()))
}

fn busy() -> Proposals {
    Err(NoDecision::Busy("the plugin has too much to do".to_owned()))
}

fn again(ticket: u64) -> Input {
    Input::Again { key: key(), ticket }
}

/// A lane with a stored command, `a`, whose decider is away.
fn waiting() -> Lane {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, true), 0);
    let (number, _) = ask(lane.handle(loaded(vec![]), 0));
    let actions = lane.handle(decided(number, away()), 0);
    assert!(matches!(actions[..], [Action::Wait { ticket: 0, .. }]), "{actions:?}");
    lane
}

fn nothing(key: AggregateKey) -> Input {
    Input::Loaded { key, result: Ok(Loaded::default()) }
}

#[test]
fn an_aggregate_waits_for_its_decider_and_others_go_on() {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, false), 7);
    let (number, asked) = ask(lane.handle(loaded(vec![]), 7));
    assert_eq!((asked.state.as_str(), asked.context.now_ms), ("null", 7));
    assert!(lane.handle(up("b", 2, 1, false), 8).is_empty(), "b waits for a");
    let other = key_of("c2");
    lane.handle(up_of(other.clone(), "x", 1, 2, false), 8);
    let (others, _) = ask(lane.handle(nothing(other), 8));
    assert_ne!(others, number);
    let (commit, expected) = append(lane.handle(decided(number, answer(&asked)), 9));
    assert_eq!((commit.command_id.as_str(), commit.time_ms), ("a", 7));
    let mut actions = lane.handle(appended(&recorded(&commit, expected, 10)), 9);
    let (_, asked) = ask(vec![actions.pop().unwrap()]);
    assert_eq!((asked.command.id.as_str(), asked.state.as_str()), ("b", "1"));
    assert!(matches!(outcomes(&actions)[..], [(0, Outcome::Accepted { version: 1, .. })]));
}

#[test]
fn an_answer_that_does_not_come_is_an_answer_and_the_next_command_goes_on() {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, false), 0);
    let (number, asked) = ask(lane.handle(loaded(vec![]), 0));
    lane.handle(up("b", 2, 1, false), 0);
    let mut actions = lane.handle(decided(number, late()), 0);
    let (next, _) = ask(vec![actions.pop().unwrap()]);
    let told = outcomes(&actions);
    assert!(matches!(&told[..], [(0, Outcome::Faulty { message })] if message.contains("2 s")));
    let too_late = lane.handle(decided(number, answer(&asked)), 0);
    assert!(too_late.is_empty() && next != number, "{too_late:?}");
}

#[test]
fn a_stored_command_is_asked_again_some_times_and_waits_for_a_decider_that_is_away() {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, true), 0);
    let (mut number, _) = ask(lane.handle(loaded(vec![]), 0));
    // That it is busy is no outage, and not added to one.
    for tried in 0..70 {
        let none = if tried < 20 { away() } else { busy() };
        let actions = lane.handle(decided(number, none), 0);
        assert!(matches!(&actions[..], [Action::Wait { pause, .. }] if !pause.is_zero()));
        (number, _) = ask(lane.handle(again(0), 0));
    }
    for _ in 0..3 {
        let actions = lane.handle(decided(number, late()), 0);
        assert!(matches!(&actions[..], [Action::Load { pause, .. }] if !pause.is_zero()));
        (number, _) = ask(lane.handle(loaded(vec![]), 0));
    }
    let told = outcomes(&lane.handle(decided(number, late()), 0));
    assert!(matches!(told[..], [(0, Outcome::Faulty { .. })]), "{told:?}");
    lane.handle(up("b", 1, 1, false), 0);
    let asked = lane.handle(up("c", 1, 2, false), 0);
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn questions_do_not_wait_for_a_stored_command_whose_decider_is_away() {
    let mut lane = waiting();
    let are_answered = |lane: &mut Lane| {
        let state = lane.handle(Input::Work { key: key(), work: Work::State { ticket: 1 } }, 0);
        assert!(
            matches!(state[..], [Action::AnswerState { ticket: 1, reply: StateReply::NotFound }]),
            "{state:?}"
        );
        let id = CommandId::parse("a").unwrap();
        let work = Work::OutcomeOf { id, stored: None, ticket: 2 };
        let outcome = lane.handle(Input::Work { key: key(), work }, 0);
        assert!(
            matches!(outcome[..], [Action::Answer { ticket: 2, outcome: None }]),
            "it is not recorded: {outcome:?}"
        );
    };
    are_answered(&mut lane);
    ask(lane.handle(again(0), 0));
    are_answered(&mut lane);
}

#[test]
fn clients_do_not_wait_for_a_stored_command_whose_decider_is_away() {
    let mut lane = waiting();
    let (number, _) = ask(lane.handle(up("b", 1, 1, false), 0));
    assert!(lane.handle(again(0), 0).is_empty(), "a waits for b");
    let mut actions = lane.handle(decided(number, away()), 0);
    let (number, asked) = ask(vec![actions.pop().unwrap()]);
    assert_eq!(asked.command.id.as_str(), "a");
    let told = outcomes(&actions);
    assert!(matches!(told[..], [(1, Outcome::Away { .. })]), "{told:?}");
    lane.handle(decided(number, away()), 0);
    let (number, asked) = ask(lane.handle(up("c", 2, 2, false), 0));
    let (commit, expected) = append(lane.handle(decided(number, answer(&asked)), 0));
    let told = outcomes(&lane.handle(appended(&recorded(&commit, expected, 10)), 0));
    assert!(matches!(told[..], [(2, Outcome::Accepted { version: 1, .. })]), "{told:?}");
    let (number, asked) = ask(lane.handle(again(0), 0));
    assert_eq!((asked.command.id.as_str(), asked.state.as_str()), ("a", "2"));
    lane.handle(decided(number, away()), 0);
    lane.leave(key().slot());
    assert!(lane.handle(again(0), 0).is_empty(), "it is its next owner's");
}

#[test]
fn a_client_is_told_that_a_decider_is_away_or_busy() {
    for none in [away(), busy()] {
        let mut lane = asking();
        lane.handle(up("a", 1, 0, false), 0);
        let (number, _) = ask(lane.handle(loaded(vec![]), 0));
        let told = outcomes(&lane.handle(decided(number, none), 0));
        assert!(matches!(told[..], [(0, Outcome::Away { .. })]), "{told:?}");
    }
}

#[test]
fn nothing_follows_from_an_answer_for_a_slot_that_was_left_or_for_older_functions() {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, false), 0);
    let (number, asked) = ask(lane.handle(loaded(vec![]), 0));
    lane.handle(deployed("counter"), 0);
    let actions = lane.handle(decided(number, answer(&asked)), 0);
    assert!(matches!(&actions[..], [Action::Load { .. }]), "decided anew: {actions:?}");
    let (number, asked) = ask(lane.handle(loaded(vec![]), 0));
    lane.leave(key().slot());
    assert!(lane.handle(decided(number, answer(&asked)), 0).is_empty());
}

#[test]
fn the_answer_counts_when_something_else_was_deployed_meanwhile() {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, false), 0);
    let (number, asked) = ask(lane.handle(loaded(vec![]), 0));
    lane.handle(deployed("other"), 0);
    let (commit, _) = append(lane.handle(decided(number, answer(&asked)), 0));
    assert_eq!(commit.command_id.as_str(), "a");
}

#[test]
fn a_repeated_command_is_not_asked_about() {
    let mut lane = asking();
    lane.handle(up("a", 1, 0, false), 0);
    let (number, asked) = ask(lane.handle(loaded(vec![]), 0));
    let (commit, expected) = append(lane.handle(decided(number, answer(&asked)), 0));
    lane.handle(appended(&recorded(&commit, expected, 10)), 0);
    let told = outcomes(&lane.handle(up("a", 1, 1, false), 0));
    assert!(matches!(told[..], [(1, Outcome::Accepted { version: 1, replayed: true, .. })]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..Default::default() })]

    /// Results come in any order, and answers late or not at all: each command is answered once, and
    /// those of one aggregate in their order.
    #[test]
    fn every_command_is_answered_once_and_in_order(
        commands in prop::collection::vec((0_u8..3, 0_u64..3), 1..12),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 200),
        wents in prop::collection::vec(0_u8..4, 200),
    ) {
        let mut lane = asking();
        let (mut open, mut told) = (Vec::new(), BTreeMap::<u8, Vec<u64>>::new());
        for (ticket, (of, by)) in (0_u64..).zip(&commands) {
            let input = up_of(key_of(&format!("c{of}")), &format!("id{ticket}"), *by, ticket, false);
            open.extend(lane.handle(input, 0));
        }
        let (mut sequence, mut picks) = (0, picks.into_iter().zip(wents));
        while !open.is_empty() {
            let (pick, went) = picks.next().expect("it ends");
            let input = match open.swap_remove(pick.index(open.len())) {
                Action::Load { key, .. } => nothing(key),
                Action::AskDecider { key, number, to_decide } => {
                    let result = match went { 0 => late(), 1 => away(), _ => answer(&to_decide) };
                    Input::Decided { key, number, result }
                }
                Action::Append { commit, expected } => {
                    sequence += 1;
                    let recorded = recorded(&commit, expected, sequence);
                    let place = Appended { sequence, hash: recorded.hash };
                    Input::Appended { key: commit.key.clone(), result: Ok(place) }
                }
                other => panic!("{other:?}"),
            };
            // Answers are told at once, in the order in which they are given.
            let (answers, others): (Vec<_>, Vec<_>) = lane.handle(input, 0).into_iter()
                .partition(|action| matches!(action, Action::Answer { .. }));
            for action in answers {
                let Action::Answer { ticket, .. } = action else { continue };
                let of = commands[usize::try_from(ticket).unwrap()].0;
                told.entry(of).or_default().push(ticket);
            }
            open.extend(others);
        }
        for (of, told) in told {
            let asked = (0_u64..).zip(&commands).filter(|(_, command)| command.0 == of);
            prop_assert_eq!(told, asked.map(|(ticket, _)| ticket).collect::<Vec<_>>());
        }
    }
}
