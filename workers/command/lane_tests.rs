//! The lane's returned actions, with a decider in Rust and no server.

mod asking;
mod deployments;
mod pages;
mod plugins;
mod tries;
mod unstored;

use std::sync::Arc;

use flexcore_definition::{Application, Catalog, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, Command, CommandHash, CommandId,
    CommandName, Context, Decider, Name, Outcome, Payload, Provenance, StateReply, Tenant,
    commit::Commit,
    decider::{Native, Rules},
};
use flexcore_eventstore::{Appended, Error, Expected, Recorded};
use flexcore_script::threads::Scripts;
use serde::{Deserialize, Serialize};

use super::{
    deciders::{Deciders, Made},
    lane::{Lane, SNAPSHOT_EVENTS},
    messages::{Action, Input, Loaded, Owed, Work},
};

/// Counts up, never beyond its limit.
struct Counter;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Count {
    Up(By),
    Nothing(#[expect(dead_code, reason = "that it was asked is all there is to it")] By),
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Counted {
    Raised(By),
}

#[derive(Clone, Copy, Default, Deserialize, Serialize)]
struct By {
    by: u64,
}

impl Rules for Counter {
    type State = u64;
    type Command = Count;
    type Event = Counted;
    const COMMANDS: &'static [&'static str] = &["up", "nothing"];

    fn decide(
        state: &u64,
        command: Count,
        _: &Context,
    ) -> Result<Vec<Counted>, (&'static str, String)> {
        match command {
            Count::Nothing(_) => Ok(vec![]),
            Count::Up(by) if state + by.by > 1_000 => Err(("too_high", "above 1,000".to_owned())),
            Count::Up(by) => Ok(vec![Counted::Raised(by)]),
        }
    }

    fn evolve(state: u64, Counted::Raised(by): &Counted) -> u64 {
        state + by.by
    }
}

pub(super) fn lane() -> Lane {
    lane_of(|| Box::new(Native::<Counter>::default()))
}

fn lane_of(counter: impl Fn() -> Box<dyn Decider> + Send + Sync + 'static) -> Lane {
    let native: super::NativeDeciders =
        Arc::new(move |name: &AggregateName| (name.as_str() == "counter").then(&counter));
    lane_with(native, Arc::new(|_, _, _| None))
}

fn lane_with(native: super::NativeDeciders, later: super::LaterDeciders) -> Lane {
    let (catalog, scripts) = (Arc::new(Catalog::default()), Scripts::unwatched(Made::new));
    Lane::new(Deciders::new(catalog, native, later, scripts), 1 << 20)
}

/// What is deployed: the aggregate of each text, as an application of its own.
fn catalog(aggregates: &[&str]) -> Arc<Catalog> {
    let mut catalog = Catalog::default();
    for (number, text) in aggregates.iter().enumerate() {
        let files = vec![SourceFile { path: "a.yaml".to_owned(), text: (*text).to_owned() }];
        let name = Name::parse(&format!("app{number}")).unwrap();
        catalog.put(Application::read(name, files).unwrap());
    }
    Arc::new(catalog)
}

/// An aggregate with a command and an event, `decide` and `evolve`.
fn declared(name: &str, decide: &str, evolve: &str) -> String {
    format!(
        "aggregate: {name}\ncommands:\n  up: {{ payload: {{ type: object }}, decide: \"{decide}\" }}\n\
         events:\n  raised: {{ data: {{ type: object }}, evolve: \"{evolve}\" }}\n"
    )
}

/// A deployment that declares this aggregate, and no other. Those that it does not declare go on as they
/// did: here they are in Rust.
pub(super) fn deployed(aggregate: &str) -> Input {
    Input::Catalog(catalog(&[declared(aggregate, "() => []", "() => 0").as_str()]))
}

pub(super) fn key() -> AggregateKey {
    key_of("c1")
}

fn key_of(id: &str) -> AggregateKey {
    AggregateKey::new(
        Tenant::parse("acme").unwrap(),
        AggregateName::parse("counter").unwrap(),
        AggregateId::parse(id).unwrap(),
    )
}

pub(super) fn up(id: &str, by: u64, ticket: u64, patient: bool) -> Input {
    up_of(key(), id, by, ticket, patient)
}

fn up_of(key: AggregateKey, id: &str, by: u64, ticket: u64, patient: bool) -> Input {
    let payload = format!("{{\"by\":{by}}}");
    let (payload, canonical) = Payload::parse_canonical(payload.as_bytes()).unwrap();
    let command = Command {
        key: key.clone(),
        name: CommandName::parse("up").unwrap(),
        id: CommandId::parse(id).unwrap(),
        hash: CommandHash::of("up", &canonical),
        payload,
        provenance: Provenance::of(ActorName::parse("alice").unwrap()),
        expected_version: None,
    };
    let owed = Owed { command: Box::new(command), patient, stored: None, ticket };
    Input::Work { key, work: Work::Command(owed) }
}

pub(super) fn loaded(commits: Vec<Recorded>) -> Input {
    Input::Loaded { key: key(), result: Ok(Loaded { snapshot: None, commits, more: false }) }
}

pub(super) fn append(actions: Vec<Action>) -> (Commit, Expected) {
    match <[Action; 1]>::try_from(actions) {
        Ok([Action::Append { commit, expected }]) => (Arc::unwrap_or_clone(commit), expected),
        other => panic!("not one append: {other:?}"),
    }
}

pub(super) fn outcomes(actions: &[Action]) -> Vec<(u64, Outcome)> {
    let answers = actions.iter().filter_map(|action| match action {
        Action::Answer { ticket, outcome } => Some((*ticket, outcome.clone()?)),
        _ => None,
    });
    answers.collect()
}

pub(super) fn recorded(commit: &Commit, expected: Expected, sequence: u64) -> Recorded {
    let encoded = commit.encode(&expected.hash);
    Recorded { sequence, hash: encoded.hash, body: encoded.body.into(), commit: commit.clone() }
}

pub(super) fn appended(recorded: &Recorded) -> Input {
    let place = Appended { sequence: recorded.sequence, hash: recorded.hash };
    Input::Appended { key: key(), result: Ok(place) }
}

/// A lane whose counter stands at 1 with command `a`, and that commit.
pub(super) fn started() -> (Lane, Recorded) {
    let mut lane = lane();
    lane.handle(up("a", 1, 0, false), 0);
    let (commit, expected) = append(lane.handle(loaded(vec![]), 0));
    let first = recorded(&commit, expected, 10);
    let answered = outcomes(&lane.handle(appended(&first), 0));
    assert!(matches!(answered[..], [(0, Outcome::Accepted { version: 1, replayed: false, .. })]));
    (lane, first)
}

#[test]
fn commands_of_one_aggregate_go_one_by_one_in_order() {
    let (mut lane, first) = started();
    let (commit, expected) = append(lane.handle(up("b", 2, 1, false), 0));
    assert_eq!(expected, Expected { sequence: 10, hash: first.hash });
    assert!(lane.handle(up("c", 3, 2, false), 0).is_empty(), "c waits for b");
    let second = recorded(&commit, expected, 11);
    let actions = lane.handle(appended(&second), 0);
    assert!(matches!(outcomes(&actions)[..], [(1, Outcome::Accepted { version: 2, .. })]));
    assert!(
        matches!(actions.last(), Some(Action::Append { expected, .. }) if expected.sequence == 11)
    );
}

#[test]
fn the_same_command_again_gets_the_first_outcome_and_another_payload_is_refused() {
    let (mut lane, _) = started();
    let again = outcomes(&lane.handle(up("a", 1, 5, false), 0));
    assert!(
        matches!(&again[..], [(5, Outcome::Accepted { version: 1, position: Some(position), replayed: true })]
            if position.sequence == 10)
    );
    let other = outcomes(&lane.handle(up("a", 2, 6, false), 0));
    assert_eq!(other, vec![(6, Outcome::IdMismatch)]);
}

#[test]
fn rejections_and_empty_decisions_append_nothing() {
    let (mut lane, _) = started();
    let rejected = outcomes(&lane.handle(up("b", 5_000, 1, false), 0));
    assert!(matches!(&rejected[..], [(1, Outcome::Rejected { code, .. })] if code == "too_high"));
    let Input::Work { work: Work::Command(mut owed), .. } = up("n", 1, 2, false) else {
        panic!("a command");
    };
    owed.command.name = CommandName::parse("nothing").unwrap();
    let empty = outcomes(&lane.handle(Input::Work { key: key(), work: Work::Command(owed) }, 0));
    assert!(matches!(empty[..], [(2, Outcome::Accepted { version: 1, position: None, .. })]));
}

#[test]
fn a_conflict_reloads_and_decides_again() {
    let (mut lane, first) = started();
    let (lost, expected) = append(lane.handle(up("b", 2, 1, false), 0));
    // Another owner wrote `x` meanwhile.
    let mut others = lost.clone();
    others.command_id = CommandId::parse("x").unwrap();
    let others = recorded(&others, expected, 11);
    let actions = lane.handle(Input::Appended { key: key(), result: Err(Error::Conflict) }, 0);
    assert!(
        matches!(&actions[..], [Action::Load { after, .. }] if after.sequence == first.sequence)
    );
    let (commit, expected) = append(lane.handle(loaded(vec![others.clone()]), 0));
    assert_eq!((commit.version(), expected.hash), (3, others.hash));
}

#[test]
fn an_unknown_outcome_is_resolved_by_the_command_id_in_the_log() {
    let (mut lane, _) = started();
    let (commit, expected) = append(lane.handle(up("b", 2, 1, false), 0));
    let written = recorded(&commit, expected, 11);
    let lost = Error::Unavailable("the acknowledgement was lost".to_owned());
    let actions = lane.handle(Input::Appended { key: key(), result: Err(lost) }, 0);
    assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
    let actions = lane.handle(loaded(vec![written]), 0);
    assert!(
        matches!(&outcomes(&actions)[..], [(1, Outcome::Accepted { version: 2, position: Some(position), .. })]
            if position.sequence == 11)
    );
}

#[test]
fn an_outage_is_told_to_waiting_clients_and_waited_out_for_the_queue() {
    let mut lane = lane();
    lane.handle(up("a", 1, 0, false), 0);
    lane.handle(up("b", 1, 1, true), 0);
    let away = Error::Unavailable("the broker is away".to_owned());
    let actions = lane.handle(Input::Loaded { key: key(), result: Err(away) }, 0);
    assert!(matches!(&outcomes(&actions)[..], [(0, Outcome::Unavailable { .. })]));
    assert!(matches!(actions.last(), Some(Action::Load { pause, .. }) if !pause.is_zero()));
    let (commit, _) = append(lane.handle(loaded(vec![]), 0));
    assert_eq!(commit.command_id.as_str(), "b");
}

#[test]
fn a_changed_commit_is_noticed_and_answers_no_command() {
    let (_, first) = started();
    let mut broken = first.clone();
    broken.body =
        String::from_utf8(first.body.to_vec()).unwrap().replace("\"by\":1", "\"by\":7").into();
    let mut lane = lane();
    lane.handle(up("b", 1, 1, false), 0);
    let actions = lane.handle(loaded(vec![broken]), 0);
    assert!(
        matches!(&outcomes(&actions)[..], [(1, Outcome::Faulty { message })] if message.contains("hash chain"))
    );
}

#[test]
fn another_expected_version_is_a_conflict() {
    let (mut lane, _) = started();
    let Input::Work { work: Work::Command(mut owed), .. } = up("b", 1, 1, false) else {
        panic!("a command");
    };
    owed.command.expected_version = Some(7);
    let actions = lane.handle(Input::Work { key: key(), work: Work::Command(owed) }, 0);
    assert_eq!(outcomes(&actions), vec![(1, Outcome::Conflict { version: 1 })]);
}

#[test]
fn long_aggregates_are_snapshotted_and_start_from_there() {
    let (mut lane, mut last) = started();
    let mut snapshots = Vec::new();
    for n in 2..=SNAPSHOT_EVENTS {
        let (commit, expected) = append(lane.handle(up(&format!("n{n}"), 1, n, false), 0));
        last = recorded(&commit, expected, last.sequence + 1);
        for action in lane.handle(appended(&last), 0) {
            if let Action::SaveSnapshot { snapshot, .. } = action {
                snapshots.push(*snapshot);
            }
        }
    }
    let [snapshot] = <[_; 1]>::try_from(snapshots).expect("one snapshot");
    assert_eq!((snapshot.version, snapshot.state.get()), (SNAPSHOT_EVENTS, "256"));
    let mut fresh = self::lane();
    fresh.handle(Input::Work { key: key(), work: Work::State { ticket: 1 } }, 0);
    let from = Loaded { snapshot: Some(snapshot), commits: vec![], more: false };
    let actions = fresh.handle(Input::Loaded { key: key(), result: Ok(from) }, 0);
    assert!(
        matches!(&actions[..], [Action::AnswerState { reply: StateReply::Found { version: 256, state }, .. }]
        if state.get() == "256")
    );
}

/// A lane that has met only new aggregates for a while.
fn expecting_new_ones() -> Lane {
    let mut lane = lane();
    for n in 0..32 {
        let key = key_of(&format!("new{n}"));
        let actions = lane.handle(up_of(key.clone(), "a", 1, n, false), 0);
        assert!(matches!(actions[..], [Action::Load { .. }]), "{n}: {actions:?}");
        let nothing = Loaded { snapshot: None, commits: vec![], more: false };
        append(lane.handle(Input::Loaded { key, result: Ok(nothing) }, 0));
    }
    lane
}

#[test]
fn after_many_new_aggregates_the_next_is_appended_without_a_load() {
    let mut lane = expecting_new_ones();
    let (commit, expected) = append(lane.handle(up("a", 1, 50, false), 0));
    assert_eq!((commit.version(), expected), (1, Expected::default()));
    let answered = outcomes(&lane.handle(appended(&recorded(&commit, expected, 99)), 0));
    assert!(matches!(answered[..], [(50, Outcome::Accepted { version: 1, .. })]));
}

#[test]
fn a_wrong_guess_is_a_conflict_that_loads_at_once_and_ends_the_guessing() {
    let (_, first) = started();
    let mut lane = expecting_new_ones();
    append(lane.handle(up("b", 2, 50, false), 0));
    let actions = lane.handle(Input::Appended { key: key(), result: Err(Error::Conflict) }, 0);
    assert!(
        matches!(&actions[..], [Action::Load { after, pause, .. }]
            if after.sequence == 0 && pause.is_zero()),
        "{actions:?}"
    );
    let (commit, expected) = append(lane.handle(loaded(vec![first.clone()]), 0));
    assert_eq!((commit.version(), expected.sequence), (2, first.sequence));
    let other = lane.handle(up_of(key_of("other"), "a", 1, 51, false), 0);
    assert!(matches!(other[..], [Action::Load { .. }]), "{other:?}");
}

#[test]
fn a_guess_is_never_an_answer() {
    let (_, first) = started();
    let mut lane = expecting_new_ones();
    // Too high for a new counter; what stands in the log is the first outcome of `a`.
    let actions = lane.handle(up("a", 5_000, 50, false), 0);
    assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
    let answered = outcomes(&lane.handle(loaded(vec![first]), 0));
    assert_eq!(answered, vec![(50, Outcome::IdMismatch)]);
}

pub(super) fn unavailable() -> Error {
    Error::Unavailable("the broker is away".to_owned())
}

/// What failed to be appended was once kept as the base of a load from elsewhere, which then never
/// ended.
#[test]
fn an_outage_between_append_and_load_is_waited_out_once() {
    let (mut lane, first) = started();
    let (_, expected) = append(lane.handle(up("b", 2, 1, true), 0));
    assert_eq!(expected.sequence, 10);
    let actions = lane.handle(Input::Appended { key: key(), result: Err(unavailable()) }, 0);
    assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
    let actions = lane.handle(Input::Loaded { key: key(), result: Err(unavailable()) }, 0);
    assert!(
        matches!(&actions[..], [Action::Load { after, pause, .. }]
            if after.sequence == 10 && !pause.is_zero()),
        "{actions:?}"
    );
    // There is nothing new after it.
    let (commit, expected) = append(lane.handle(loaded(vec![]), 0));
    assert_eq!((commit.version(), expected.hash), (2, first.hash));
}

/// A guess whose append failed was once kept as an aggregate without events.
#[test]
fn a_guess_that_failed_leaves_nothing_behind() {
    let (_, first) = started();
    for error in [Error::Conflict, unavailable()] {
        let mut lane = expecting_new_ones();
        append(lane.handle(up("b", 2, 50, false), 0));
        lane.handle(Input::Appended { key: key(), result: Err(error) }, 0);
        let actions = lane.handle(Input::Loaded { key: key(), result: Err(unavailable()) }, 0);
        assert!(matches!(&outcomes(&actions)[..], [(50, Outcome::Unavailable { .. })]));
        let work = Work::State { ticket: 51 };
        let actions = lane.handle(Input::Work { key: key(), work }, 0);
        assert!(matches!(&actions[..], [Action::Load { after, .. }] if after.sequence == 0));
        let actions = lane.handle(loaded(vec![first.clone()]), 0);
        assert!(matches!(
            &actions[..],
            [Action::AnswerState { reply: StateReply::Found { version: 1, .. }, .. }]
        ));
    }
}

#[test]
fn the_more_guesses_were_wrong_the_longer_they_must_be_right() {
    let mut lane = expecting_new_ones();
    append(lane.handle(up("b", 2, 50, false), 0));
    lane.handle(Input::Appended { key: key(), result: Err(Error::Conflict) }, 0);
    let mut loads = 0;
    for n in 0..100 {
        let key = key_of(&format!("later{n}"));
        let actions = lane.handle(up_of(key.clone(), "a", 1, 100 + n, false), 0);
        if !matches!(actions[..], [Action::Load { .. }]) {
            break;
        }
        loads += 1;
        let nothing = Loaded { snapshot: None, commits: vec![], more: false };
        append(lane.handle(Input::Loaded { key, result: Ok(nothing) }, 0));
    }
    assert_eq!(loads, 64);
}

#[test]
fn of_a_slot_that_was_left_nothing_is_known_any_more() {
    let (mut lane, _) = started();
    lane.leave(key().slot());
    let actions = lane.handle(up("b", 2, 1, false), 0);
    let [Action::Load { after, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(*after, Expected::default(), "another owner may have changed it");
}

#[test]
fn what_was_under_way_when_a_slot_was_left_has_no_consequence() {
    for stored in [true, false] {
        let (mut lane, _) = started();
        let (commit, expected) = append(lane.handle(up("b", 2, 1, true), 0));
        assert!(lane.handle(up("c", 3, 2, true), 0).is_empty(), "c waits for b");
        lane.leave(key().slot());
        assert!(lane.handle(up("d", 4, 3, false), 0).is_empty(), "taken up again: d waits");
        let ended = match stored {
            true => appended(&recorded(&commit, expected, 11)),
            false => Input::Appended { key: key(), result: Err(unavailable()) },
        };
        let actions = lane.handle(ended, 0);
        let [Action::Load { after, .. }] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(*after, Expected::default());
        let (commit, _) = append(lane.handle(loaded(vec![]), 0));
        assert_eq!(commit.command_id.as_str(), "d", "neither b again nor c");
    }
}
