//! The application that benches deploy: an aggregate with a small state, and a read model with a row
//! an aggregate that uses every kind of operation.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use flexcore_definition::{Application, ReadModelDefinition, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, CommandName,
    Commit, Event, EventName, Name, Provenance, Tenant,
};
use flexcore_eventstore::EventStore;
use flexcore_operations::{Error, deploy};
use flexcore_readmodel::{Filter, Op, ReadModels, Select};
use serde_json::value::RawValue;

/// The aggregate.
pub(crate) const COUNTER: &str = "counter";

/// The read model.
pub(crate) const READ_MODEL: &str = "counters";

/// Commands that an aggregate gets: one in so many has to load it.
pub(crate) const PER_AGGREGATE: u64 = 4;

/// Bytes of an event's data.
pub(crate) const DATA_BYTES: usize = 256;

const TEXT: &str = r#"
aggregate: counter
description: Counts what is added to it.
commands:
  add:
    description: Adds a number.
    payload:
      type: object
      additionalProperties: false
      required: [by, at, open, note]
      properties:
        by: { type: integer, minimum: 0 }
        at: { type: string, format: date-time }
        open: { type: boolean }
        note: { type: string, maxLength: 1000 }
    decide: |
      (state, payload) => {
        if (state && state.closed) reject("closed", "nothing can be added any more");
        return [{ event: "added", data: payload }];
      }
events:
  added:
    version: 1
    data:
      type: object
      additionalProperties: false
      required: [by, at, open, note]
      properties:
        by: { type: integer, minimum: 0 }
        at: { type: string, format: date-time }
        open: { type: boolean }
        note: { type: string, maxLength: 1000 }
    evolve: |
      (state, event) => ({
        total: (state ? state.total : 0) + event.data.by,
        closed: !event.data.open,
        at: event.data.at,
      })
---
read_model: counters
description: A row a counter.
columns:
  id: text
  total: integer
  changes: integer
  largest: integer
  smallest: integer
  latest: integer
  version: integer
  at: timestamp
  open: boolean
  note: text
key: [id]
on:
  counter.added:
    key: { id: $id }
    add: { total: $.by, changes: 1 }
    max: { largest: $.by }
    min: { smallest: $.by }
    set: { latest: $.by, version: $version, at: $.at, open: $.open, note: $.note }
"#;

/// Reads the application.
pub(crate) fn read() -> anyhow::Result<Application> {
    let name = Name::parse("bench")?;
    let files = vec![SourceFile { path: "bench.yaml".to_owned(), text: TEXT.to_owned() }];
    Ok(Application::read(name, files).map_err(Error::Refused)?)
}

/// The aggregate of [`read_with`]: as the counter, but a plugin decides.
pub(crate) const TALLY: &str = "tally";

/// The same application, with an aggregate more, whose commands this plugin decides.
pub(crate) fn read_with(plugin: &Name) -> anyhow::Result<Application> {
    let tally = tally(plugin).context("BUG: the counter has a decider and an event")?;
    let file = |path: &str, text| SourceFile { path: path.to_owned(), text };
    let files = vec![file("bench.yaml", TEXT.to_owned()), file("tally.yaml", tally)];
    Ok(Application::read(Name::parse("bench")?, files).map_err(Error::Refused)?)
}

/// The counter's text, with another name and another decider.
fn tally(plugin: &Name) -> Option<String> {
    let (counter, _) = TEXT.split_once("---")?;
    let (head, rest) = counter.split_once("    decide: |")?;
    let (_, events) = rest.split_once("\nevents:")?;
    let head = head.replace("aggregate: counter", &format!("aggregate: {TALLY}"));
    Some(format!("{head}    decide: {{ plugin: {plugin} }}\nevents:{events}"))
}

/// Deploys it; workers that run have it when this returns.
pub(crate) async fn deploy(store: &EventStore) -> anyhow::Result<()> {
    deploy::deploy(store, &read()?).await?;
    Ok(())
}

/// The tenant of everything that benches write.
pub(crate) fn tenant() -> Tenant {
    Tenant::parse("bench").expect("BUG: a valid name")
}

/// The aggregate of this number.
pub(crate) fn key(number: u64) -> AggregateKey {
    key_of(COUNTER, number)
}

/// The one of this number and name.
fn key_of(aggregate: &str, number: u64) -> AggregateKey {
    let aggregate = AggregateName::parse(aggregate).expect("BUG: a valid name");
    let id = AggregateId::parse(&format!("c{number}")).expect("BUG: a valid id");
    AggregateKey::new(tenant(), aggregate, id)
}

/// A commit of one event, as the benches' application records it.
pub(crate) fn commit(key: &AggregateKey, version: u64) -> Commit {
    let name = |text: &str| format!("{text}-{}-{version}", key.id());
    let data = payload(version);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    Commit {
        key: key.clone(),
        command_id: CommandId::parse(&name("add")).expect("BUG: a valid id"),
        command_hash: CommandHash::of("add", &data),
        provenance: Provenance::of(ActorName::parse("bench").expect("BUG: a valid name")),
        time_ms: i64::try_from(now).unwrap_or(0),
        events: vec![Event {
            event: EventName::parse("added").expect("BUG: a valid name"),
            version,
            schema_version: 1,
            data: RawValue::from_string(data).expect("BUG: JSON"),
        }],
    }
}

/// JSON of exactly [`DATA_BYTES`] bytes: what the command `add` takes and the event `added` has.
pub(crate) fn payload(by: u64) -> String {
    let head = format!(r#"{{"by":{by},"at":"2013-01-01T10:22:00Z","open":true,"note":""#);
    let room = DATA_BYTES.saturating_sub(head.len() + 2);
    format!(r#"{head}{}"}}"#, "n".repeat(room))
}

/// The aggregate, and the id of its command of this number.
pub(crate) fn address(aggregate: u64, number: u64) -> anyhow::Result<(AggregateKey, CommandId)> {
    address_of(COUNTER, aggregate, number)
}

/// The same for an aggregate of this name.
pub(crate) fn address_of(
    name: &str,
    aggregate: u64,
    number: u64,
) -> anyhow::Result<(AggregateKey, CommandId)> {
    Ok((key_of(name, aggregate), CommandId::parse(&format!("add:{aggregate}:{number}"))?))
}

/// The command that adds.
pub(crate) fn command() -> CommandName {
    CommandName::parse("add").expect("BUG: a valid name")
}

/// One aggregate's row; `None` when it is not there.
pub(crate) async fn ask(
    read_models: &ReadModels,
    model: &ReadModelDefinition,
    number: u64,
) -> anyhow::Result<Option<serde_json::Value>> {
    let id = Filter { column: Name::parse("id")?, op: Op::Eq, values: vec![format!("c{number}")] };
    let select = Select { filters: vec![id], ..Select::default() };
    let page = read_models.select(&tenant(), model, &select).await?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&page.rows)?;
    Ok(rows.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the bench of deciders would compare something else.
    #[test]
    fn a_plugin_and_a_function_decide_on_the_same_commands() {
        let tally = tally(&Name::parse("bench").unwrap()).unwrap();
        let (counter, _) = TEXT.split_once("---").unwrap();
        let others = |text: &str| {
            let is_other = |line: &&str| !line.starts_with("aggregate:");
            text.lines().filter(is_other).map(str::to_owned).collect::<Vec<_>>()
        };
        let (tally, counter) = (others(&tally), others(counter));
        let at = counter.iter().position(|line| line.contains("decide: |")).unwrap();
        assert_eq!(tally[..at], counter[..at]);
        assert_eq!(tally[at], "    decide: { plugin: bench }");
        let events = |lines: &[String]| {
            let at = lines.iter().position(|line| line == "events:").unwrap();
            lines[at..].to_vec()
        };
        assert_eq!(events(&tally), events(&counter));
        let application = read_with(&Name::parse("bench").unwrap()).unwrap();
        assert_eq!(application.aggregates.len(), 2);
    }

    #[test]
    fn data_has_the_size_that_is_told() {
        for by in [1, 99_999] {
            let data = payload(by);
            assert_eq!(data.len(), DATA_BYTES);
            let value: serde_json::Value = serde_json::from_str(&data).unwrap();
            assert_eq!(value["by"], by);
        }
    }
}
