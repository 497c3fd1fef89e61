//! A process that stands still: paused, swapped out, or on a machine that sleeps.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Dev,
    app::{self, Files},
    eventually,
    process::folder,
};

/// Commands that are stored, each for an aggregate of its own.
const COMMANDS: usize = 240;

/// Every function takes some milliseconds, so that a pause meets one.
const BUSY: &str = r#"aggregate: mill
commands:
  grind:
    payload: { type: object }
    decide: |
      () => {
        let dust = 0;
        for (let i = 0; i < 150000; i++) dust += i % 7;
        return [{ event: "ground", data: { dust } }];
      }
events:
  ground:
    data: { type: object, required: [dust], properties: { dust: { type: integer } } }
    evolve: |
      (state, event) => event.data
---
read_model: mills
columns: { id: text, dust: integer }
key: [id]
on:
  mill.ground:
    key: { id: $id }
    set: { dust: $.dust }
"#;

fn paused(dev: &Dev) {
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        dev.signal("STOP");
        std::thread::sleep(Duration::from_millis(200));
        dev.signal("CONT");
    }
}

/// Commands and events that could not be processed.
fn put_aside(dev: &Dev) -> usize {
    dev.succeed(&["dead", "list", "--limit", "10000", "--json"]).lines().count()
}

/// Scripts were stopped by the wall clock: these pauses once put 14 of 296 accepted commands aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_for_a_moment_puts_nothing_aside() {
    let dev = Dev::start(&[]);
    let mill = Files::one("mill", BUSY);
    app::deploy(&dev, &mill);
    let lines: String = (0..COMMANDS)
        .map(|number| {
            let id = format!("m-{number}");
            json!({"aggregate": "mill", "id": id, "command": "grind", "payload": {}}).to_string()
                + "\n"
        })
        .collect();
    let place = folder();
    let file = place.path().join("commands.ndjson");
    std::fs::write(&file, lines).unwrap();
    dev.succeed(&["publish", "--lines", file.to_str().unwrap()]);
    paused(&dev);
    let http = dev.http("demo");
    let rows = async |filter: &str| {
        let answer = http.get(&format!("/v1/query/mills?limit=1000{filter}")).await;
        let rows = if answer.status == 200 { answer.json()["rows"].clone() } else { Value::Null };
        rows.as_array().map_or(0, Vec::len)
    };
    let wait = async |what: &str, filter: &str| {
        eventually(what, async || {
            let (there, aside) = (rows(filter).await, put_aside(&dev));
            let all = there + aside >= COMMANDS;
            if all { Ok(()) } else { Err(format!("{there} rows, {aside} put aside")) }
        })
        .await;
    };
    wait("commands", "").await;
    assert_eq!(put_aside(&dev), 0, "accepted commands were put aside");

    // The same for the functions that projections run.
    let upcast = "  ground:\n    version: 2\n    upcast:\n      1: |\n        (data) => {
          let dust = 0;
          for (let i = 0; i < 150000; i++) dust += i % 7;
          return { dust: dust + 1 };
        }\n";
    let newer = mill
        .with("  ground:\n", upcast)
        .with("dust: integer }", "dust: integer, grain: text }")
        .with("set: { dust: $.dust }", "set: { dust: $.dust, grain: fine }");
    app::deploy(&dev, &newer);
    paused(&dev);
    wait("events", "&grain=fine").await;
    assert_eq!(put_aside(&dev), 0, "events were parked");
}
