//! Limits of messages, at them and beyond.

use super::*;
use crate::contract::messages::{Events, Question};

fn context() -> Option<Context> {
    Some(Context { tenant: "acme".to_owned(), timeout_ms: 1_000, ..Context::default() })
}

fn function(name: &str) -> Function {
    Function { name: name.to_owned(), ..Function::default() }
}

fn description(functions: Vec<Function>) -> Description {
    Description { name: "greeter".to_owned(), functions, ..Description::default() }
}

fn output(json: &'static [u8]) -> CallResponse {
    CallResponse { result: Some(CallResult::Output(Bytes::from_static(json))) }
}

#[test]
fn words_are_short_and_plain() {
    let longest = "a".repeat(WORD_BYTES_MAX);
    for word in ["a", "not_found", "a1", longest.as_str()] {
        assert!(is_word(word), "{word}");
    }
    let long = "a".repeat(WORD_BYTES_MAX + 1);
    for other in ["", "A", "1a", "_a", "a-b", "a b", "é", "aé", "a\n", long.as_str()] {
        assert!(!is_word(other), "{other}");
    }
}

#[test]
fn a_description_has_a_name_and_functions_of_different_names() {
    let all = |count: usize| (0..count).map(|n| function(&format!("f{n}"))).collect::<Vec<_>>();
    description(all(FUNCTIONS_MAX)).check().unwrap();
    let nameless = Description { name: String::new(), ..description(vec![]) };
    let twice = description(vec![function("greet"), function("greet")]);
    let mut large = description(vec![function("greet")]);
    large.functions[0].summary = "x".repeat(DESCRIPTION_BYTES_MAX);
    let wrong = [
        nameless,
        twice,
        large,
        description(all(FUNCTIONS_MAX + 1)),
        description(vec![function("G")]),
    ];
    for wrong in wrong {
        let error = wrong.check().unwrap_err();
        assert!(matches!(error, Error::Contract(_)), "{error}");
    }
}

#[test]
fn schemas_are_json() {
    for (schema, is_one) in [
        ("", true),
        ("{}", true),
        ("true", true),
        (" {\"type\":1}", true),
        ("1", false),
        ("{", false),
    ] {
        let with = |input: &str, output: &str, configuration: &str| Description {
            configuration_schema: configuration.to_owned(),
            ..description(vec![Function {
                input_schema: input.to_owned(),
                output_schema: output.to_owned(),
                ..function("greet")
            }])
        };
        for description in [with(schema, "", ""), with("", schema, ""), with("", "", schema)] {
            assert_eq!(description.check().is_ok(), is_one, "{schema}");
        }
    }
}

#[test]
fn requests_have_a_context_and_their_limits() {
    let call = |bytes: usize| CallRequest {
        context: context(),
        function: "greet".to_owned(),
        input: vec![b'1'; bytes].into(),
    };
    call(INPUT_BYTES_MAX).check().unwrap();
    assert!(matches!(call(INPUT_BYTES_MAX + 1).check(), Err(Error::TooLarge { .. })));
    let without = CallRequest { context: None, ..call(1) };
    assert!(matches!(without.check(), Err(Error::Contract(_))));
    let batch = |number, inputs: usize, bytes: usize| StreamRequest {
        number,
        context: context(),
        function: "greet".to_owned(),
        inputs: vec![vec![b'1'; bytes].into(); inputs],
    };
    batch(1, BATCH_ITEMS_MAX, 1).check().unwrap();
    batch(1, 2, BATCH_BYTES_MAX / 2).check().unwrap();
    StreamRequest { context: None, ..batch(2, 1, 1) }.check().unwrap();
    assert!(StreamRequest { context: None, ..batch(1, 1, 1) }.check().is_err());
    for large in [batch(1, BATCH_ITEMS_MAX + 1, 1), batch(1, 2, BATCH_BYTES_MAX / 2 + 1)] {
        assert!(matches!(large.check(), Err(Error::TooLarge { .. })));
    }
    let question = || Question { context: context(), ..Question::default() };
    let questions = |count| DecideRequest { number: 1, questions: vec![question(); count] };
    questions(BATCH_ITEMS_MAX).check().unwrap();
    questions(BATCH_ITEMS_MAX + 1).check().unwrap_err();
    let large = Question { state: vec![b'1'; BATCH_BYTES_MAX].into(), ..question() };
    DecideRequest { number: 1, questions: vec![large] }.check().unwrap_err();
    let configuration = vec![b'1'; CONFIGURATION_BYTES_MAX + 1].into();
    ConfigureRequest { tenant: "acme".to_owned(), configuration }.check().unwrap_err();
}

#[test]
fn outputs_are_json_of_a_bounded_size() {
    assert_eq!(output(b"{\"a\":1}").taken().unwrap().unwrap(), "{\"a\":1}");
    // Deeper than what serde_json builds, and harmless.
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let deep = CallResponse { result: Some(CallResult::Output(deep.into())) };
    deep.taken().unwrap().unwrap();
    for wrong in [&b""[..], b"{", b"{} {}", b"\"\xff\"", b"NaN"] {
        let fault = output(wrong).taken().unwrap_err();
        assert!(fault.contains("no JSON") || fault.contains("UTF-8"), "{fault}");
    }
    let large = vec![b'1'; OUTPUT_BYTES_MAX + 1].into();
    let large = CallResponse { result: Some(CallResult::Output(large)) };
    assert!(large.taken().unwrap_err().contains("limit"));
    CallResponse::default().taken().unwrap_err();
}

#[test]
fn failures_have_a_code_and_bounded_details() {
    let failure = Failure::new("not_found", "there is none");
    assert_eq!(taken(failure.clone()), Ok(failure.clone()));
    let long = Failure { message: "x".repeat(1 << 20), ..failure.clone() };
    assert!(taken(long).unwrap().message.len() < 5_000);
    let with = |details: Vec<u8>| Failure { details: details.into(), ..failure.clone() };
    taken(with(b"{}".to_vec())).unwrap();
    for wrong in [
        Failure { code: "Not Found".to_owned(), ..failure.clone() },
        Failure { code: String::new(), ..failure.clone() },
        with(b"{".to_vec()),
        with(vec![b'1'; DETAILS_BYTES_MAX + 1]),
    ] {
        taken(wrong).unwrap_err();
    }
}

#[test]
fn decisions_are_events_or_say_why_not() {
    let event = |data: &'static str| Event { event: "opened".to_owned(), data: data.into() };
    let events = |events| Decision { result: Some(DecisionResult::Events(Events { events })) };
    events(vec![]).taken().unwrap();
    events(vec![event("{}"); EVENTS_MAX]).taken().unwrap();
    let nameless = Event { event: String::new(), ..event("{}") };
    let passing = Failure::passing("busy", "later");
    for wrong in [
        events(vec![event("{}"); EVENTS_MAX + 1]),
        events(vec![event("{")]),
        events(vec![nameless]),
        Decision { result: Some(DecisionResult::Rejected(passing.clone())) },
        Decision { result: Some(DecisionResult::Rejected(Failure::new("No!", ""))) },
        Decision::default(),
    ] {
        wrong.taken().unwrap_err();
    }
    let failed = Decision { result: Some(DecisionResult::Failure(passing)) };
    assert!(matches!(failed.taken(), Ok(DecisionResult::Failure(_))));
}
