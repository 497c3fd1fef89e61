//! Commands that a plugin decides: what the lane does itself.

use futures::FutureExt as _;

use super::*;
use crate::command::{LaterDecider, LaterDeciders, NoDecision, Proposals, ProposedEvent, ToDecide};

const BY: &str = "{ type: object, required: [by], properties: { by: { type: integer } } }";

/// A counter; `up` is decided in this way.
fn counter(decide: &str) -> String {
    format!(
        "aggregate: counter\ncommands:\n  up: {{ payload: {BY}, decide: {decide} }}\n\
         events:\n  raised: {{ data: {BY}, evolve: '(state, {{ data }}) => (state ?? 0) + data.by' }}\n"
    )
}

/// A lane that asks the plugins of its catalog.
fn lane_of(aggregate: &str) -> Lane {
    let decider: LaterDecider =
        Arc::new(|_| async { Err(NoDecision::Away("the shell asks it".to_owned())) }.boxed());
    let later: LaterDeciders = Arc::new(move |catalog, aggregate, command| {
        let definition = catalog.aggregate(aggregate.as_str())?;
        definition.commands.get(command)?.decide.plugin().map(|_| decider.clone())
    });
    let mut lane = lane_with(Arc::new(|_: &AggregateName| None), later);
    lane.handle(Input::Catalog(catalog(&[aggregate])), 0);
    lane
}

fn plugins() -> Lane {
    lane_of(&counter("{ plugin: rules }"))
}

fn asked(actions: Vec<Action>) -> (u64, ToDecide) {
    match <[Action; 1]>::try_from(actions) {
        Ok([Action::AskDecider { number, to_decide, .. }]) => (number, *to_decide),
        other => panic!("not one question: {other:?}"),
    }
}

/// The plugin is asked about a command, the aggregate's first.
fn ask(lane: &mut Lane, id: &str, ticket: u64) -> u64 {
    lane.handle(up(id, 1, ticket, false), 0);
    asked(lane.handle(loaded(vec![]), 0)).0
}

fn decided(number: u64, result: Proposals) -> Input {
    Input::Decided { key: key(), number, result }
}

fn proposed(event: &str, data: &str) -> Proposals {
    Ok(vec![ProposedEvent { event: event.to_owned(), data: data.to_owned().into() }])
}

#[test]
fn what_a_plugin_decides_is_checked_recorded_and_folded() {
    let mut lane = plugins();
    let number = ask(&mut lane, "a", 0);
    let (commit, expected) =
        append(lane.handle(decided(number, proposed("raised", "{\"by\": 3}")), 0));
    assert_eq!((commit.events.len(), commit.events[0].event.as_str()), (1, "raised"));
    lane.handle(appended(&recorded(&commit, expected, 10)), 0);
    let (number, next) = asked(lane.handle(up("b", 1, 1, false), 0));
    assert_eq!((next.state.as_str(), next.context.version), ("3", 1));
    let nothing = outcomes(&lane.handle(decided(number, Ok(vec![])), 0));
    assert!(matches!(nothing[..], [(1, Outcome::Accepted { version: 1, position: None, .. })]));
}

#[test]
fn a_plugin_that_breaks_its_contract_is_an_answer_and_the_next_command_goes_on() {
    let many = Ok(vec![proposed("raised", "{\"by\": 1}").unwrap().remove(0); 257]);
    for (wrong, said) in [
        (proposed("lowered", "{\"by\": 1}"), "not declared"),
        (proposed("raised", "{\"by\": \"x\"}"), "schema"),
        (proposed("raised", "{"), "JSON"),
        (proposed("raised", "{\"by\": 1, \"by\": 2}"), "by"),
        (many, "256"),
    ] {
        let mut lane = plugins();
        let number = ask(&mut lane, "a", 0);
        lane.handle(up("b", 1, 1, false), 0);
        let mut actions = lane.handle(decided(number, wrong), 0);
        let (number, next) = asked(vec![actions.pop().unwrap()]);
        assert_eq!((next.state.as_str(), next.command.id.as_str()), ("null", "b"));
        let told = outcomes(&actions);
        assert!(
            matches!(&told[..], [(0, Outcome::Faulty { message })] if message.contains(said)),
            "{said}: {told:?}"
        );
        append(lane.handle(decided(number, proposed("raised", "{\"by\":1}")), 0));
    }
}

#[test]
fn a_plugin_is_not_asked_about_what_does_not_fit() {
    let mut lane = plugins();
    let number = ask(&mut lane, "a", 0);
    let (commit, expected) =
        append(lane.handle(decided(number, proposed("raised", "{\"by\":1}")), 0));
    lane.handle(appended(&recorded(&commit, expected, 10)), 0);
    let with = |name: &str, payload: &str, ticket: u64| {
        let Input::Work { work: Work::Command(mut owed), .. } = up("n", 1, ticket, false) else {
            panic!("a command");
        };
        owed.command.name = CommandName::parse(name).unwrap();
        owed.command.payload = Payload::parse(payload.as_bytes()).unwrap();
        Input::Work { key: key(), work: Work::Command(owed) }
    };
    let told = outcomes(&lane.handle(with("up", "{}", 1), 0));
    assert!(matches!(told[..], [(1, Outcome::InvalidPayload { .. })]), "{told:?}");
    let told = outcomes(&lane.handle(with("down", "{}", 2), 0));
    assert!(matches!(told[..], [(2, Outcome::UnknownCommand { .. })]), "{told:?}");
}

/// Its rules are elsewhere by now: what the plugin said is no decision of theirs.
#[test]
fn the_rules_that_are_in_force_when_the_answer_comes_decide() {
    let mut lane = plugins();
    let number = ask(&mut lane, "a", 0);
    let function = counter("\"() => [{ event: 'raised', data: { by: 7 } }]\"");
    lane.handle(Input::Catalog(catalog(&[function.as_str()])), 0);
    let actions = lane.handle(decided(number, proposed("raised", "{\"by\":1}")), 0);
    assert!(matches!(&actions[..], [Action::Load { .. }]), "decided anew: {actions:?}");
    let (commit, _) = append(lane.handle(loaded(vec![]), 0));
    assert_eq!(commit.events[0].data.get(), "{\"by\":7}");
}
