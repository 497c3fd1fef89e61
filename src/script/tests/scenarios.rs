//! Tests of applications with commands that a plugin decides.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use flexcore_definition::{Application, SourceFile};
use flexcore_domain::{Name, Refusal};
use flexcore_script::scenario::{self, PluginDecided, PluginQuestion};

const QUOTE: &str = "
aggregate: quote
commands:
  ask:
    payload: { type: object }
    decide: { plugin: pricing }
  close: { decide: '() => []' }
events:
  asked:
    data: { type: object }
    evolve: (state, event) => event.data
";

const TESTS: &str = "
test: a price is asked for
commands:
  - ask: { amount: 1 }
  - close:
when: { ask: { amount: 2 } }
then: [ { asked: { amount: 2, version: 1 } } ]
state: { amount: 2, version: 1 }
---
test: too much is refused
when: { ask: { amount: 9 } }
rejected: too_much
---
test: nothing is asked
when: { close: }
then: []
";

/// Accepts amounts up to 5, and tells the version.
fn pricing(question: PluginQuestion) -> PluginDecided {
    assert_eq!((question.by.plugin.as_str(), question.by.place.line), ("pricing", 6));
    assert_eq!((question.aggregate.as_str(), question.command.as_str()), ("quote", "ask"));
    let payload: serde_json::Value = serde_json::from_str(question.payload.as_str()).unwrap();
    let amount = payload["amount"].as_u64().unwrap();
    if amount > 5 {
        let (code, message) = ("too_much".to_owned(), "5 at most".to_owned());
        return Err(Refusal::Rejected { code, message });
    }
    let version = question.context.version;
    let before = if version == 0 { "null" } else { r#"{"amount":1,"version":0}"# };
    assert_eq!(question.state.as_str(), before);
    let data = format!(r#"{{"amount":{amount},"version":{version}}}"#);
    Ok(vec![("asked".to_owned(), data.into_bytes())])
}

#[test]
fn whoever_runs_a_test_has_plugins_decide() {
    let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
    let files = vec![file("quote.yaml", QUOTE)];
    let application = Application::read(Name::parse("quotes").unwrap(), files).unwrap();
    let scenarios = scenario::read(&application, &file("tests/quote.yaml", TESTS)).unwrap();
    let mut asked = 0;
    for scenario in &scenarios {
        let mut ask = |question| {
            asked += 1;
            pricing(question)
        };
        assert_eq!(scenario::run(scenario, &mut ask), Ok(()), "{}", scenario.name);
    }
    assert_eq!(asked, 3);
    let named: Vec<_> = scenarios.iter().map(|it| it.plugins().count()).collect();
    assert_eq!(named, [2, 1, 0]);
    let failed =
        scenario::run(&scenarios[0], &mut |_| Ok(vec![("paid".to_owned(), b"{}".to_vec())]));
    let said = failed.unwrap_err().actual;
    assert!(said.contains("plugin pricing: the event \"paid\" is not declared"), "{said}");
}
