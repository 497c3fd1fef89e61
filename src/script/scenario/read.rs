//! Reads tests, and checks that they speak of what the application declares.

use std::sync::Arc;

use flexcore_definition::{
    AggregateDefinition, Application, FileLine, Problem, SourceFile,
    yaml::{self, Data, Node},
};
use flexcore_domain::{CommandName, Event, EventName, Payload, json};
use serde_json::{Value, value::to_raw_value};

use super::{Expected, Scenario, Step, Then};
use crate::violations;

/// Most tests in one file.
const TESTS_MAX: usize = 1_000;
/// Most events and commands before the one that is tested.
const STEPS_MAX: usize = 1_000;
/// The keys of a test.
const KEYS: [&str; 9] =
    ["test", "aggregate", "given", "commands", "when", "then", "rejected", "invalid", "state"];

type Read<T> = Result<T, Problem>;

/// Reads the tests of one file. Fails with what is wrong in each.
pub fn read(application: &Application, file: &SourceFile) -> Result<Vec<Scenario>, Vec<Problem>> {
    let name: Arc<str> = file.path.as_str().into();
    let documents = yaml::documents(&name, &file.text).map_err(|problem| vec![problem])?;
    let (mut scenarios, mut problems) = (Vec::new(), Vec::new());
    for node in documents.iter().take(TESTS_MAX) {
        match scenario(application, &Document { file: &name, node }) {
            Ok(scenario) => scenarios.push(scenario),
            Err(problem) => problems.push(problem),
        }
    }
    if documents.len() > TESTS_MAX {
        let message = format!("{} tests in one file; at most {TESTS_MAX}", documents.len());
        problems.push(Problem { place: FileLine { file: name, line: 1 }, message });
    }
    if problems.is_empty() { Ok(scenarios) } else { Err(problems) }
}

/// One test as YAML.
struct Document<'d> {
    file: &'d Arc<str>,
    node: &'d Node,
}

impl<'d> Document<'d> {
    fn place(&self, line: usize) -> FileLine {
        FileLine { file: self.file.clone(), line }
    }

    fn problem(&self, line: usize, message: impl Into<String>) -> Problem {
        Problem { place: self.place(line), message: message.into() }
    }

    fn entries(&self) -> Read<&'d [(yaml::Key, Node)]> {
        let Data::Map(entries) = &self.node.data else {
            return Err(self.problem(self.node.line, "a test is a map that begins with `test:`"));
        };
        match entries.iter().find(|(key, _)| !KEYS.contains(&key.text.as_str())) {
            Some((key, _)) => {
                let known = KEYS.join(", ");
                let message = format!("a test has no `{}`; it may have {known}", key.text);
                Err(self.problem(key.line, message))
            }
            None => Ok(entries),
        }
    }

    fn get(&self, name: &str) -> Option<&'d Node> {
        let Data::Map(entries) = &self.node.data else { return None };
        entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    fn text(&self, name: &str) -> Read<Option<(String, usize)>> {
        match self.get(name).map(|node| (&node.data, node.line)) {
            None => Ok(None),
            Some((Data::Scalar(Value::String(text)), line)) => Ok(Some((text.clone(), line))),
            Some((_, line)) => Err(self.problem(line, format!("`{name}` must be a text"))),
        }
    }

    /// A list of maps with one entry each.
    fn steps(&self, name: &str) -> Read<Vec<(&'d yaml::Key, &'d Node)>> {
        let Some(node) = self.get(name) else { return Ok(Vec::new()) };
        match &node.data {
            Data::List(nodes) if nodes.len() <= STEPS_MAX => {
                nodes.iter().map(|node| self.single(node)).collect()
            }
            _ => {
                let message = format!("`{name}` must be a list of at most {STEPS_MAX}");
                Err(self.problem(node.line, message))
            }
        }
    }

    fn single(&self, node: &'d Node) -> Read<(&'d yaml::Key, &'d Node)> {
        match &node.data {
            Data::Map(entries) if entries.len() == 1 => Ok((&entries[0].0, &entries[0].1)),
            _ => Err(self.problem(node.line, "one name with its data, such as `{ depart: {} }`")),
        }
    }
}

fn scenario(application: &Application, document: &Document<'_>) -> Read<Scenario> {
    document.entries()?;
    let line = document.node.line;
    let (name, line) = document.text("test")?.ok_or_else(|| {
        document.problem(line, "a test needs `test:`, a sentence that says what it shows")
    })?;
    let aggregate = aggregate(application, document)?;
    let mut given = Vec::new();
    for (key, node) in document.steps("given")? {
        given.push(event(&aggregate, document, key, node, given.len())?);
    }
    let mut commands = Vec::new();
    for (key, node) in document.steps("commands")? {
        commands.push(step(&aggregate, document, key, node)?);
    }
    let when = document.get("when").ok_or_else(|| {
        document.problem(line, "a test needs `when:`, the command that is tested")
    })?;
    let (key, node) = document.single(when)?;
    let when = step(&aggregate, document, key, node)?;
    let then = then(document, line)?;
    let state = document.get("state").map(|node| (node.json(), document.place(node.line)));
    let place = document.place(line);
    Ok(Scenario { name, place, aggregate, given, commands, when, then, state })
}

fn aggregate(application: &Application, document: &Document<'_>) -> Read<Arc<AggregateDefinition>> {
    let all = &application.aggregates;
    if let Some((name, line)) = document.text("aggregate")? {
        let found = all.get(name.as_str()).cloned();
        return found
            .ok_or_else(|| document.problem(line, format!("there is no aggregate {name}")));
    }
    match all.values().next() {
        Some(only) if all.len() == 1 => Ok(only.clone()),
        _ => Err(document.problem(
            document.node.line,
            "a test needs `aggregate:` when the application has several",
        )),
    }
}

fn event(
    aggregate: &AggregateDefinition,
    document: &Document<'_>,
    key: &yaml::Key,
    node: &Node,
    before: usize,
) -> Read<Event> {
    let found = EventName::parse(&key.text).ok().and_then(|it| aggregate.events.get_key_value(&it));
    let (name, declared) = found.ok_or_else(|| {
        let message = format!("{} declares no event {}", aggregate.name, key.text);
        document.problem(key.line, message)
    })?;
    let data = or_empty(node);
    if let Err(violations) = violations::check(&declared.data, &data) {
        let first = &violations[0];
        let message = format!("event {name}: {}: {}", first.field, first.reason);
        return Err(document.problem(node.line_at(&first.field), message));
    }
    let data = to_raw_value(&data).expect("BUG: a value is JSON");
    if let Some(number) = json::beyond_exact(data.get()) {
        let message =
            format!("event {name}: no decider returns {number}, which is beyond 2^53 - 1");
        return Err(document.problem(node.line, message));
    }
    Ok(Event {
        event: name.clone(),
        version: before as u64 + 1,
        schema_version: declared.version,
        data,
    })
}

fn step(
    aggregate: &AggregateDefinition,
    document: &Document<'_>,
    key: &yaml::Key,
    node: &Node,
) -> Read<Step> {
    let command = CommandName::parse(&key.text).ok();
    let command = command.filter(|it| aggregate.commands.contains_key(it)).ok_or_else(|| {
        let message = format!("{} declares no command {}", aggregate.name, key.text);
        document.problem(key.line, message)
    })?;
    let payload = Payload::parse(or_empty(node).to_string().as_bytes());
    Ok(Step { command, payload, place: document.place(key.line) })
}

/// `{ cancel: }` says as much as `{ cancel: {} }`.
fn or_empty(node: &Node) -> Value {
    match node.json() {
        Value::Null => Value::Object(serde_json::Map::new()),
        value => value,
    }
}

fn then(document: &Document<'_>, line: usize) -> Read<Then> {
    let mut found = Vec::new();
    if let Some(node) = document.get("then") {
        let events = document.steps("then")?;
        let events = events.iter().map(|(key, node)| (key.text.clone(), or_empty(node)));
        found.push((Expected::Events(events.collect()), node.line));
    }
    if let Some((code, line)) = document.text("rejected")? {
        found.push((Expected::Rejected(code), line));
    }
    if let Some((pointer, line)) = document.text("invalid")? {
        found.push((Expected::Invalid(pointer), line));
    }
    match (found.pop(), found.is_empty()) {
        (Some((expected, line)), true) => Ok(Then { place: document.place(line), expected }),
        _ => Err(document.problem(line, "a test needs one of `then:`, `rejected:` and `invalid:`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_those_of_the_document() {
        let thousands = |number: usize| format!("{},{:03}", number / 1_000, number % 1_000);
        let (tests, steps) = (thousands(TESTS_MAX), thousands(STEPS_MAX));
        let said = format!(
            "A file has {tests} tests at most, a test {steps} events and {steps} commands."
        );
        let document = include_str!("../../../schemas/README.md");
        let document: Vec<&str> = document.split_whitespace().collect();
        assert!(document.join(" ").contains(&said), "schemas/README.md lacks: {said}");
    }
}
