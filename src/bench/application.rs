//! The application that benches deploy: an aggregate with a small state, and a read model with a row
//! an aggregate that uses every kind of operation.

use flexcore_definition::{Application, SourceFile};
use flexcore_domain::Name;
use flexcore_operations::{application::refused, deploy};

use crate::rig::Rig;

/// The read model.
pub(crate) const READ_MODEL: &str = "counters";

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
    Application::read(name, files).map_err(refused)
}

/// Deploys it; workers that run have it when this returns.
pub(crate) async fn deploy(rig: &Rig) -> anyhow::Result<()> {
    deploy::deploy(&rig.store, &read()?).await?;
    Ok(())
}
