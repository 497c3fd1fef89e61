//! Functions get what `schemas/README.md` says.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use flexcore_domain::{Decider as _, State, limits::INTEGER_EXACT_MAX};
use serde_json::{Value, json};
use support::{decider, event, faulty, run};

const REFERENCE: &str = include_str!("../../../schemas/README.md");

/// The first list of names in braces in the table's row of a function.
fn documented(function: &str) -> Vec<&'static str> {
    let row = REFERENCE.lines().find(|line| line.starts_with(&format!("| `{function}")));
    let row = row.unwrap_or_else(|| panic!("no row says what {function} gets"));
    let gets = row.split(" | ").nth(1).unwrap();
    let (_, names) = gets.split_once("`{").unwrap();
    names.split_once("}`").unwrap().0.split(", ").collect()
}

/// An aggregate whose `decide` is this, and whose `evolve` makes the event the state.
fn probe(decide: &str) -> String {
    format!(
        "aggregate: probe
commands:
  look:
    payload: {{ type: object }}
    decide: |
      {decide}
events:
  seen:
    data: {{ type: object }}
    evolve: |
      (state, event) => ({{ names: Object.keys(event), data: event.data }})
"
    )
}

#[test]
fn functions_get_what_the_document_says_under_its_names() {
    let decide = "(state, payload, context) => [{ event: 'seen', data: { ...context } }]";
    let mut probed = decider(&probe(decide));
    let decision = run(&mut probed, &State::none(), "look", "{}").unwrap();
    let seen: Value = serde_json::from_str(decision.state.as_str()).unwrap();
    let given: Vec<&str> = seen["data"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(given, documented("decide("));
    assert_eq!(seen["names"], json!(documented("evolve(")));
    let (now, now_ms) = (&seen["data"]["now"], &seen["data"]["now_ms"]);
    assert_eq!((now, now_ms), (&json!("2013-01-01T00:00:00.123Z"), &json!(1_356_998_400_123_i64)));
    let folded = probed.evolve(&State::none(), &[event("seen", 1, 1, "{}")]).unwrap();
    let folded: Value = serde_json::from_str(folded.as_str()).unwrap();
    assert_eq!(folded["names"], json!(documented("evolve(")));
}

/// It was `undefined`, and `until > context.now_ms` false for ever.
#[test]
fn a_name_that_the_context_does_not_have_is_a_mistake_with_its_line() {
    for (mistake, name) in [
        ("context.nowMs > 5", "nowMs"),
        ("context.commandId", "commandId"),
        ("context['tenants']", "tenants"),
        ("(({ user }) => user)(context)", "user"),
    ] {
        let decide = format!("(state, payload, context) => [{{ event: {mistake} }}]");
        let message = faulty(run(&mut decider(&probe(&decide)), &State::none(), "look", "{}"));
        let said = format!("the context has no {name}; it has tenant, id, version, command_id");
        assert!(message.starts_with("app.yaml:6: ") && message.contains(&said), "{message}");
    }
    let fine = "(state, payload, context) => {
        const all = [JSON.stringify(context), `${context}`, 'nowMs' in context, context.toString()];
        for (const name in context) all.push(name);
        return [{ event: 'seen', data: { all, same: context.hasOwnProperty('now') } }];
      }";
    let decision = run(&mut decider(&probe(fine)), &State::none(), "look", "{}").unwrap();
    let seen: Value = serde_json::from_str(decision.state.as_str()).unwrap();
    let all = seen["data"]["all"].as_array().unwrap();
    assert_eq!(
        all[1..5],
        [json!("[object Object]"), json!(false), all[1].clone(), json!("tenant")]
    );
    assert_eq!(seen["data"]["same"], json!(true));
}

/// Shortest texts of doubles, which a reader that is not exact gets wrong in the last place.
#[test]
fn numbers_pass_through_a_decider_to_the_last_bit() {
    let decide = "(state, payload) => [{ event: 'seen', data: payload }]";
    let mut probed = decider(&probe(decide));
    let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..20 {
        let mut numbers = Vec::new();
        while numbers.len() < 100 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            // Those that may stand for several integers are refused.
            let is_taken = |number: &f64| {
                let size = number.abs();
                size <= INTEGER_EXACT_MAX as f64 || size >= 1e21 && size.is_finite()
            };
            numbers.extend(Some(f64::from_bits(bits)).filter(is_taken));
        }
        let payload = json!({ "numbers": numbers }).to_string();
        let decision = run(&mut probed, &State::none(), "look", &payload).unwrap();
        let data: Value = serde_json::from_str(decision.events[0].data.get()).unwrap();
        let read: Vec<f64> =
            data["numbers"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        assert_eq!(read, numbers);
    }
}
