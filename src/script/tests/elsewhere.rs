//! Commands that a plugin decides.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use flexcore_domain::{
    Decision, Payload, Refusal, State,
    limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX},
};
use flexcore_script::{Proposed, ScriptDecider};
use support::{decider, event, faulty, name, run};

const QUOTE: &str = r#"
aggregate: quote
decide: { plugin: pricing }
commands:
  ask:
    payload:
      type: object
      required: [amount]
      properties: { amount: { type: integer } }
  close:
    decide: "() => [{ event: 'closed' }]"
events:
  asked:
    version: 2
    data:
      type: object
      required: [amount]
      properties: { amount: { type: integer }, note: { type: string } }
    evolve: |
      (state, event) => {
        if (event.data.amount === 13) throw new Error('unlucky');
        return { total: (state?.total ?? 0) + event.data.amount, version: event.version };
      }
    upcast: { 1: '(data) => data' }
  closed:
    evolve: (state) => state
  spun:
    data: { type: object }
    evolve: '() => { for (;;) ; }'
"#;

fn conclude(
    quote: &mut ScriptDecider,
    state: &State,
    events: &[(&str, &str)],
) -> Result<Decision, Refusal> {
    let proposed = events.iter().map(|(event, data)| Proposed { event, data: data.as_bytes() });
    quote.conclude(state, &name("ask"), 4, &proposed.collect::<Vec<_>>())
}

#[test]
fn what_a_plugin_decides_is_folded_as_it_will_be_from_the_log() {
    let mut quote = decider(QUOTE);
    // As a client in Python writes it: spaces, and characters as pairs of escapes.
    let data = r#" { "amount": 3, "note": "\ud83d\ude00" } "#;
    let decided =
        conclude(&mut quote, &State::none(), &[("asked", data), ("asked", r#"{"amount":4}"#)]);
    let decided = decided.unwrap();
    assert_eq!(decided.state.as_str(), r#"{"total":7,"version":6}"#);
    assert_eq!(decided.events[0].data.get(), "{\"amount\":3,\"note\":\"\u{1f600}\"}");
    assert_eq!((decided.events[0].event.as_str(), decided.events[0].schema_version), ("asked", 2));
    let recorded: Vec<_> = decided.events.iter().zip(5..).collect();
    let recorded = recorded.iter().map(|(it, version)| event("asked", *version, 2, it.data.get()));
    let folded =
        flexcore_domain::Decider::evolve(&mut quote, &State::none(), &recorded.collect::<Vec<_>>());
    assert_eq!(folded.unwrap(), decided.state);
    let nothing = conclude(&mut quote, &decided.state, &[]).unwrap();
    assert!(nothing.events.is_empty());
    assert_eq!(nothing.state, decided.state);
}

#[test]
fn what_a_plugin_may_not_decide_is_its_fault() {
    let mut quote = decider(QUOTE);
    let many = vec![("asked", r#"{"amount":1}"#); COMMIT_EVENTS_MAX + 1];
    let large = format!(r#"{{"amount":1,"note":"{}"}}"#, "x".repeat(COMMIT_BYTES_MAX / 2));
    let deep = format!(r#"{{"amount":1,"note":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    let cases: [(&[(&str, &str)], &str); 10] = [
        (&[("paid", "{}")], "the event \"paid\" is not declared"),
        (&[("pa\u{1b}[0m", "{}")], "the event \"pa\\u{1b}[0m\" is not declared"),
        (&[("asked", "{}")], "does not match its schema: \"amount\" is a required property"),
        (&[("asked", r#"{"amount":"1"}"#)], "does not match its schema: /amount "),
        (&[("asked", "{")], "the event asked: not valid JSON"),
        (&[("asked", r#"{"amount":1,"amount":2}"#)], "the event asked: "),
        (&[("asked", r#"{"amount":9007199254740993}"#)], "beyond 2^53 - 1"),
        (&[("asked", deep.as_str())], "nested deeper"),
        (&many, "257 events; at most 256"),
        (&[("asked", large.as_str()), ("asked", large.as_str())], "the events have more than"),
    ];
    for (events, why) in cases {
        let said = faulty(conclude(&mut quote, &State::none(), events));
        assert!(said.starts_with("app.yaml:3: decide of ask: plugin pricing: "), "{said}");
        assert!(said.contains(why), "should say {why}, and says {said}");
    }
    assert_eq!(conclude(&mut quote, &State::none(), &many[1..]).unwrap().events.len(), 256);
    // These are faults of the application's own functions, which the message names.
    let said = faulty(conclude(&mut quote, &State::none(), &[("asked", r#"{"amount":13}"#)]));
    assert!(
        said.starts_with("app.yaml:21: evolve of asked: ") && said.contains("unlucky"),
        "{said}"
    );
    let spun = conclude(&mut quote, &State::none(), &[("spun", "{}")]).unwrap_err();
    assert!(matches!(&spun, Refusal::Exhausted(why) if why.contains("evolve of spun")), "{spun}");
}

#[test]
fn a_payload_is_checked_before_a_plugin_is_asked() {
    let mut quote = decider(QUOTE);
    let by = |command: &str, payload: &str| -> Result<Option<String>, Refusal> {
        let payload = Payload::parse(payload.as_bytes()).unwrap();
        let by = quote.decided_by(&name(command), &payload)?;
        Ok(by.map(|by| by.plugin.to_string()))
    };
    assert_eq!(by("ask", r#"{"amount":1}"#), Ok(Some("pricing".to_owned())));
    assert_eq!(by("close", "{}"), Ok(None));
    assert!(matches!(by("ask", "{}"), Err(Refusal::InvalidPayload { .. })));
    let known = vec!["ask".to_owned(), "close".to_owned()];
    assert_eq!(by("open", "{}"), Err(Refusal::UnknownCommand { known }));
    // Nobody has asked the plugin.
    let said = faulty(run(&mut quote, &State::none(), "ask", r#"{"amount":1}"#));
    assert!(said.contains("plugin pricing: it decides, and was not asked"), "{said}");
    let closed = run(&mut quote, &State::none(), "close", "{}").unwrap();
    assert_eq!(closed.events.len(), 1);
    // Whoever stands in for a function is checked, too.
    let proposed = [Proposed { event: "paid", data: b"{}" }];
    let said = faulty(quote.conclude(&State::none(), &name("close"), 0, &proposed));
    assert!(said.contains("decide of close: the event \"paid\" is not declared"), "{said}");
}
