//! Commands that plugins decide.

use super::*;
use crate::{Decide, FunctionId, compare};

const PRICING: &str = "\
aggregate: quote
decide: { plugin: pricing }
commands:
  ask: { payload: { type: object } }
  close:
    decide: () => []
  review:
    decide: { plugin: review }
events:
  asked: { evolve: (state) => state }
";

fn pricing(from: &str, to: &str) -> Application {
    assert!(PRICING.contains(from), "{from}");
    let text = PRICING.replacen(from, to, 1);
    read(&[("quote.yaml", &text)]).unwrap_or_else(|problems| panic!("{to}: {problems:?}"))
}

/// A command's own decider counts before its aggregate's.
#[test]
fn a_command_names_its_decider_or_has_that_of_its_aggregate() {
    let application = pricing("pricing", "pricing");
    let quote = &application.aggregates["quote"];
    let by = |command: &str| {
        let decide = &quote.commands[command].decide;
        let plugin = decide.plugin().map(|by| by.plugin.to_string());
        (plugin, decide.place().line)
    };
    assert_eq!(by("ask"), (Some("pricing".to_owned()), 2));
    assert_eq!(by("close"), (None, 6));
    assert_eq!(by("review"), (Some("review".to_owned()), 8));
    let functions: Vec<FunctionId> = quote.functions().map(|(id, _)| id).collect();
    let named: Vec<String> = functions.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["evolve of asked", "decide of close"], "a plugin's rules are no function");
    let places = application.plugins();
    let places = places.iter().map(|(name, place)| format!("{name} {place}"));
    assert_eq!(places.collect::<Vec<_>>(), ["pricing quote.yaml:2", "review quote.yaml:8"]);
}

#[test]
fn mistakes_are_told_with_their_lines() {
    let own = "decide: { plugin: review }";
    let inherited = "decide: { plugin: pricing }";
    for (from, to, place, message) in [
        (own, "decide: { plugin: Review }", "8", "must match"),
        (own, "decide: { plugin: [review] }", "8", "a plugin's name must be a text, and is a list"),
        (own, "decide: { plugni: review }", "8", "did you mean `plugin`?"),
        (own, "decide: { plugin: review, function: ask }", "8", "`decide` has no `function`"),
        (own, "decide: {}", "8", "`decide` needs `plugin`"),
        (own, "decide: [review]", "8", "a function must be a text, and is a list"),
        (inherited, "decide: { plugin: '' }", "2", "must match"),
        (inherited, "decide: () => []", "2", "a function stands in its command"),
        (inherited, "decide: [pricing]", "2", "must be a map, and is a list"),
        ("decide: { plugin: pricing }\n", "", "3", "command `ask` needs `decide`"),
    ] {
        let text = PRICING.replacen(from, to, 1);
        let problems = read(&[("quote.yaml", &text)]).expect_err(to);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let found = said.iter().any(|problem| {
            problem.starts_with(&format!("quote.yaml:{place}: ")) && problem.contains(message)
        });
        assert!(found, "{to:?} should say {place}: {message}, and says {said:#?}");
        // A mistake in what commands inherit is not told once more for each of them.
        assert_eq!(said.len(), if to.contains("plugni") { 2 } else { 1 }, "{said:#?}");
    }
}

#[test]
fn another_decider_is_a_change_of_its_command_alone() {
    let changes = |old: &Application, new: &Application| {
        let found = compare(old, new);
        assert_eq!(found.refusals, []);
        found.changes
    };
    let first = pricing("pricing", "pricing");
    assert!(changes(&first, &pricing("aggregate", "# a comment\naggregate")).is_empty());
    let function = "{ payload: { type: object }, decide: '() => []' }";
    for (from, to, there, back) in [
        (
            "plugin: pricing",
            "plugin: prices",
            "command quote.ask has the rules of plugin prices",
            "command quote.ask has the rules of plugin pricing",
        ),
        (
            "{ payload: { type: object } }",
            function,
            "command quote.ask has rules of its own in place of those of plugin pricing",
            "command quote.ask has the rules of plugin pricing",
        ),
        (
            "{ payload: { type: object } }",
            "{ payload: { type: object, maxProperties: 9 }, decide: { plugin: prices } }",
            "command quote.ask has another payload and the rules of plugin prices",
            "command quote.ask has another payload and the rules of plugin pricing",
        ),
    ] {
        let other = pricing(from, to);
        assert_eq!(changes(&first, &other), [there]);
        assert_eq!(changes(&other, &first), [back]);
    }
    // The same plugin, named at another place.
    let own = pricing(
        "{ payload: { type: object } }",
        "{ payload: { type: object }, decide: { plugin: pricing } }",
    );
    assert!(changes(&first, &own).is_empty());
    assert!(matches!(own.aggregates["quote"].commands["ask"].decide, Decide::Plugin(_)));
}
