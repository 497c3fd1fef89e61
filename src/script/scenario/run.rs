//! Runs a test.

use flexcore_definition::{FileLine, Problem};
use flexcore_domain::{
    ActorName, AggregateId, CommandId, Context, Decider, Decision, Refusal, State, Tenant,
};
use serde_json::Value;

use super::{Expected, Failure, PluginDecided, PluginQuestion, Scenario, Step};
use crate::{Proposed, ScriptDecider};

/// 2013-01-01T00:00:00Z.
const NOW_MS: i64 = 1_356_998_400_000;

/// Runs a test. `ask` has plugins decide their commands. Fails with what happened instead of what it expects.
pub fn run(
    scenario: &Scenario,
    ask: &mut dyn FnMut(PluginQuestion) -> PluginDecided,
) -> Result<(), Failure> {
    let mut decider = ScriptDecider::new(scenario.aggregate.clone()).map_err(|problems| {
        let said = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
        failure(&scenario.place, "functions that compile", said)
    })?;
    let mut version = scenario.given.len() as u64;
    let mut state = State::none();
    for event in &scenario.given {
        // Each may be a commit of its own, and has the time of one.
        state = decider.evolve(&state, std::slice::from_ref(event)).map_err(|refusal| {
            failure(&scenario.place, "`given` to be folded", refusal.to_string())
        })?;
    }
    for step in &scenario.commands {
        let decision =
            decide(&mut decider, scenario, (&state, version), step, ask).map_err(|refusal| {
                failure(&step.place, "the command to be accepted", said(&refusal))
            })?;
        version += decision.events.len() as u64;
        state = decision.state;
    }
    let outcome = decide(&mut decider, scenario, (&state, version), &scenario.when, ask);
    expect(scenario, &outcome)?;
    let after = outcome.map_or(state, |decision| decision.state);
    expect_state(scenario, &after)
}

fn decide(
    decider: &mut ScriptDecider,
    scenario: &Scenario,
    (state, version): (&State, u64),
    step: &Step,
    ask: &mut dyn FnMut(PluginQuestion) -> PluginDecided,
) -> Result<Decision, Refusal> {
    let context = Context {
        tenant: Tenant::parse("test").expect("BUG: a name"),
        id: AggregateId::parse("test").expect("BUG: an id"),
        version,
        command_id: CommandId::parse("test").expect("BUG: an id"),
        actor: ActorName::parse("test").expect("BUG: a name"),
        now_ms: NOW_MS,
    };
    let refused = |violations: &Vec<_>| Refusal::InvalidPayload { violations: violations.clone() };
    let payload = step.payload.as_ref().map_err(refused)?;
    let Some(by) = decider.decided_by(&step.command, payload)? else {
        return decider.decide(state, &step.command, payload, &context);
    };
    let events = ask(PluginQuestion {
        by,
        aggregate: scenario.aggregate.name.clone(),
        state: state.clone(),
        command: step.command.clone(),
        payload: payload.clone(),
        context,
    })?;
    let proposed = events.iter().map(|(event, data)| Proposed { event, data });
    decider.conclude(state, &step.command, version, &proposed.collect::<Vec<_>>())
}

fn expect(scenario: &Scenario, outcome: &Result<Decision, Refusal>) -> Result<(), Failure> {
    let then = &scenario.then;
    let good = match (&then.expected, outcome) {
        (Expected::Events(events), Ok(decision)) => {
            let actual = recorded(decision);
            actual.len() == events.len()
                && actual.iter().zip(events).all(|(a, b)| a.0 == b.0 && same(&a.1, &b.1))
        }
        (Expected::Rejected(expected), Err(Refusal::Rejected { code, .. })) => code == expected,
        (Expected::Invalid(pointer), Err(Refusal::InvalidPayload { violations })) => {
            violations.iter().any(|violation| violation.field == *pointer)
        }
        _ => false,
    };
    if good {
        return Ok(());
    }
    let expected = match &then.expected {
        Expected::Events(events) => listed(events),
        Expected::Rejected(code) => format!("rejected: {code}"),
        Expected::Invalid(pointer) => format!("invalid: {pointer}"),
    };
    let actual = match outcome {
        Ok(decision) => listed(&recorded(decision)),
        Err(refusal) => said(refusal),
    };
    Err(failure(&then.place, expected, actual))
}

fn expect_state(scenario: &Scenario, after: &State) -> Result<(), Failure> {
    let Some((expected, place)) = &scenario.state else { return Ok(()) };
    let actual: Value = serde_json::from_str(after.as_str()).expect("BUG: a state is JSON");
    if same(&actual, expected) {
        return Ok(());
    }
    Err(failure(place, format!("state: {expected}"), format!("state: {actual}")))
}

fn recorded(decision: &Decision) -> Vec<(String, Value)> {
    let events = decision.events.iter();
    let data = |text| serde_json::from_str(text).expect("BUG: checked event data are JSON");
    events.map(|it| (it.event.to_string(), data(it.data.get()))).collect()
}

fn listed(events: &[(String, Value)]) -> String {
    if events.is_empty() {
        return "no events".to_owned();
    }
    let lines: Vec<_> = events.iter().map(|(name, data)| format!("{name}: {data}")).collect();
    lines.join("\n")
}

fn said(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Rejected { code, message } => format!("rejected: {code} ({message})"),
        Refusal::InvalidPayload { violations } => {
            let listed =
                violations.iter().map(|it| format!("invalid: {}: {}", it.field, it.reason));
            listed.collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}

/// Equal as JavaScript sees it: 229.0 and 229 are the same number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => one == other,
    }
}

fn failure(place: &FileLine, expected: impl Into<String>, actual: impl Into<String>) -> Failure {
    Failure { place: place.to_string(), expected: expected.into(), actual: actual.into() }
}
