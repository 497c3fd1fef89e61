//! What deciders decide, refuse and fold.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use flexcore_domain::{Decider, Payload, Refusal, State};
use support::{context, decider, event, faulty, name, run};

const LAMP: &str = "
aggregate: lamp
commands:
  switch:
    payload:
      type: object
      required: [on]
      additionalProperties: false
      properties: { on: { type: boolean } }
    decide: |
      (state, payload, context) => {
        if (state && state.on === payload.on) reject('already', `it is ${payload.on}`);
        return [{ event: 'switched', data: { on: payload.on, by: context.actor, at: context.now } }];
      }
  rest:
    decide: () => []
events:
  switched:
    version: 3
    data:
      type: object
      required: [on, at]
      properties:
        on: { type: boolean }
        by: { type: string }
        at: { type: string, format: date-time }
    evolve: |
      (state, { version, data }) => ({ on: data.on, times: (state?.times ?? 0) + 1, version })
    upcast:
      1: '(data) => ({ ...data, by: \"unknown\" })'
      2: '(data) => ({ ...data, at: \"2013-01-01T00:00:00Z\" })'
";

#[test]
fn a_command_becomes_events_and_a_state() {
    let mut lamp = decider(LAMP);
    let decision = run(&mut lamp, &State::none(), "switch", r#"{"on":true}"#).unwrap();
    assert_eq!(decision.state.as_str(), r#"{"on":true,"times":1,"version":5}"#);
    assert_eq!(decision.events.len(), 1);
    assert_eq!(decision.events[0].event.as_str(), "switched");
    assert_eq!(decision.events[0].schema_version, 3);
    let data = r#"{"on":true,"by":"somebody","at":"2013-01-01T00:00:00.123Z"}"#;
    assert_eq!(decision.events[0].data.get(), data);

    let rejected = run(&mut lamp, &decision.state, "switch", r#"{"on":true}"#).unwrap_err();
    let (code, message) = ("already".to_owned(), "it is true".to_owned());
    assert_eq!(rejected, Refusal::Rejected { code, message });
    let nothing = run(&mut lamp, &decision.state, "rest", "{}").unwrap();
    assert!(nothing.events.is_empty());
    assert_eq!(nothing.state, decision.state);
}

#[test]
fn a_payload_must_match_its_schema() {
    let mut lamp = decider(LAMP);
    let refusal = run(&mut lamp, &State::none(), "switch", r#"{"on":1,"off":2}"#).unwrap_err();
    let Refusal::InvalidPayload { violations } = refusal else { panic!("{refusal}") };
    let fields: Vec<_> = violations.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(violations.len(), 2, "{violations:?}");
    assert!(fields.contains(&"/on"), "{violations:?}");
    let unknown = run(&mut lamp, &State::none(), "break", "{}").unwrap_err();
    assert_eq!(unknown, Refusal::UnknownCommand { known: vec!["rest".into(), "switch".into()] });
}

#[test]
fn folding_the_events_gives_the_state_that_was_decided() {
    let mut lamp = decider(LAMP);
    let first = run(&mut lamp, &State::none(), "switch", r#"{"on":true}"#).unwrap();
    let recorded = event("switched", 5, 3, first.events[0].data.get());
    assert_eq!(lamp.evolve(&State::none(), &[recorded]).unwrap(), first.state);
    let many: Vec<_> = (1..=5_000)
        .map(|version| event("switched", version, 3, first.events[0].data.get()))
        .collect();
    let state = lamp.evolve(&State::none(), &many).unwrap();
    assert_eq!(state.as_str(), r#"{"on":true,"times":5000,"version":5000}"#);
    assert_eq!(lamp.evolve(&state, &[]).unwrap(), state);
}

#[test]
fn older_events_are_brought_to_the_current_schema() {
    let mut lamp = decider(LAMP);
    let upcast = lamp.upcast(&event("switched", 1, 1, r#"{"on":false}"#)).unwrap();
    assert_eq!(upcast.schema_version, 3);
    let data = r#"{"on":false,"by":"unknown","at":"2013-01-01T00:00:00Z"}"#;
    assert_eq!(upcast.data.get(), data);
    let state = lamp.evolve(&State::none(), &[event("switched", 1, 2, r#"{"on":true}"#)]).unwrap();
    assert_eq!(state.as_str(), r#"{"on":true,"times":1,"version":1}"#);
    let current = event("switched", 9, 3, "{}");
    assert_eq!(lamp.upcast(&current).unwrap().data.get(), "{}", "as it was recorded");

    let newer = faulty(lamp.upcast(&event("switched", 1, 4, "{}")).map(|_| ()));
    assert!(newer.contains("recorded with version 4"), "{newer}");
    let unknown = faulty(lamp.evolve(&State::none(), &[event("burst", 1, 1, "{}")]).map(|_| ()));
    assert!(unknown.contains("declares no event burst"), "{unknown}");
    let wrong = faulty(lamp.upcast(&event("switched", 1, 2, r#"{"on":3}"#)).map(|_| ()));
    assert!(wrong.contains("app.yaml:") && wrong.contains("/on"), "{wrong}");
}

const METER: &str = "
aggregate: meter
commands:
  read:
    payload: { type: object, properties: { value: { type: number } } }
    decide: |
      (state, { value }) => [{ event: 'read', data: { value: value * 2 } }]
events:
  read:
    data: { type: object }
    evolve: |
      (state, { data }) => ({ sum: [(state?.sum[0] ?? 0) + data.value] })
";

/// Doubles stand for several integers each beyond 2^53 - 1: it was recorded which one they were not.
#[test]
fn no_integer_is_changed_without_a_word() {
    let mut meter = decider(METER);
    let read = |meter: &mut _, state: &str, value: &str| {
        let payload = format!(r#"{{"value":{value}}}"#);
        run(meter, &State::from_json(state), "read", &payload)
    };
    let exact = read(&mut meter, "null", "4503599627370495.5").unwrap();
    assert_eq!(exact.state.as_str(), r#"{"sum":[9007199254740991]}"#);
    let large = read(&mut meter, "null", "3e30").unwrap();
    assert_eq!(large.state.as_str(), r#"{"sum":[6e+30]}"#);

    let refusal = read(&mut meter, "null", "9007199254740993").unwrap_err();
    let Refusal::InvalidPayload { violations } = refusal else { panic!("{refusal}") };
    assert_eq!(violations[0].field, "/value");
    let event = faulty(read(&mut meter, "null", "4503599627370496").map(|_| ()));
    assert!(event.contains("the event read") && event.contains("9007199254740992"), "{event}");
    let state = faulty(read(&mut meter, r#"{"sum":[9007199254740990]}"#, "1").map(|_| ()));
    assert!(state.contains("the state: 9007199254740992 is an integer beyond"), "{state}");
}

#[test]
fn the_same_input_gives_the_same_answer() {
    let (mut one, mut two) = (decider(LAMP), decider(LAMP));
    let decide = |decider: &mut flexcore_script::ScriptDecider| {
        let payload = Payload::parse(br#"{"on":true}"#).unwrap();
        decider.decide(&State::none(), &name("switch"), &payload, &context()).unwrap()
    };
    let first = decide(&mut one);
    for _ in 0..100 {
        for decider in [&mut one, &mut two] {
            let again = decide(decider);
            assert_eq!(again.state, first.state);
            assert_eq!(again.events[0].data.get(), first.events[0].data.get());
        }
    }
}
