//! Functions that the engine does not come back from: a hostile application beside a good one.

use std::{pin::pin, time::Duration};

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    Dev, Http,
    app::{self, Files},
    eventually,
};

/// Its functions compare texts of 10 million characters, which is one step to the engine each time: it
/// looks at the time every 10,000. That is some seconds in all, and minutes if it were more turns.
const HOG: &str = r#"aggregate: hog
commands:
  spin:
    payload: { type: object }
    decide: |
      (state, { turns }) => {
        const s = "a".repeat(1e3).repeat(1e4), t = s.slice(1) + "a";
        for (let n = 0; n < turns; n++) s === t;
        return [{ event: "spun", data: {} }];
      }
events:
  spun:
    data: { type: object }
    evolve: |
      (state, event) => ({})
---
read_model: hogs
columns: { id: text, spins: integer }
key: [id]
on:
  hog.spun:
    key: { id: $id }
    add: { spins: 1 }
"#;

/// The event of [`HOG`] gets a version, and an upcast that does the same.
const UPCAST: &str = r#"  spun:
    version: 2
    upcast:
      1: |
        () => {
          const s = "a".repeat(1e3).repeat(1e4), t = s.slice(1) + "a";
          for (let n = 0; n < 4000; n++) s === t;
          return {};
        }
"#;

const TURNS: u32 = 4_000;

const TILL: &str = r#"aggregate: till
commands:
  ring:
    payload: { type: object }
    decide: |
      () => [{ event: "rang", data: {} }]
events:
  rang:
    data: { type: object }
    evolve: |
      (state) => ({ rings: (state ? state.rings : 0) + 1 })
---
read_model: tills
columns: { id: text, rings: integer }
key: [id]
on:
  till.rang:
    key: { id: $id }
    add: { rings: 1 }
"#;

async fn command(http: &Http, path: &str, payload: &str) -> (u16, String) {
    let path = format!("/v1/commands/{path}");
    let json = [("content-type", "application/json")];
    let answer = http.send("POST", &path, &json, payload.to_owned()).await;
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

/// Rings on many tills, in every slot and lane, until the other has ended, and so often at least.
/// Returns the longest that one of them took. None may fail.
async fn rings(http: &Http, least: usize, until: impl Future<Output = ()>) -> Duration {
    let (mut until, mut over, mut longest) = (pin!(until), false, Duration::ZERO);
    for n in 0.. {
        if over && n >= least {
            break;
        }
        let since = Instant::now();
        let path = format!("till/t-{}/ring", n % 100);
        let mut ring = pin!(command(http, &path, "{}"));
        let (status, body) = loop {
            tokio::select! {
                () = &mut until, if !over => over = true,
                answer = &mut ring => break answer,
            }
        };
        assert_eq!(status, 200, "ring {n}, after {:?}: {body}", since.elapsed());
        longest = longest.max(since.elapsed());
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_application_holds_up_no_other() {
    let dev = Dev::start(&[]);
    let hog = Files::one("hog", HOG);
    app::deploy(&dev, &hog);
    app::deploy(&dev, &Files::one("till", TILL));
    let (bad, good) = (dev.http("mallory"), dev.http("acme"));
    // Events for the upcasts below.
    for n in 0..20 {
        let (status, body) = command(&bad, &format!("hog/h-{n}/spin"), r#"{"turns":0}"#).await;
        assert_eq!(status, 200, "{body}");
    }

    let turns = json!({ "turns": TURNS }).to_string();
    // Stored ones, too: what becomes of them is not tried four times.
    for n in 0..4 {
        let path = format!("/v1/commands/hog/s-{n}/spin");
        let headers = [("content-type", "application/json"), ("prefer", "respond-async")];
        let stored = bad.send("POST", &path, &headers, turns.clone()).await;
        assert_eq!(stored.status, 202, "{stored:?}");
    }
    let spins = async {
        let paths: Vec<String> = (0..8).map(|n| format!("hog/w-{n}/spin")).collect();
        let all = paths.iter().map(|path| command(&bad, path, &turns));
        for (status, body) in futures::future::join_all(all).await {
            assert_eq!(status, 422, "{body}");
            // Where nobody looks in time, the engine stops it at its next look.
            let says = ["was left behind", "used far more time", "used more than 100 ms"];
            assert!(says.iter().any(|said| body.contains(said)), "{status} {body}");
        }
    };
    let longest = rings(&good, 200, spins).await;
    let metrics = good.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let name = "\nflexcore_script_runaways_total ";
    let count = |text: &str| -> Option<u32> {
        let (_, after) = text.split_once(name)?;
        after.split_whitespace().next()?.parse().ok()
    };
    // Two are its tenant's share; both lanes may have begun with one more by then.
    assert!(matches!(count(&metrics), Some(2..=4)), "{:?}, {longest:?}", count(&metrics));
    eventually("the stored ones to be put aside", async || {
        let dead = dev.succeed(&["dead", "list", "--limit", "100", "--json"]);
        if dead.matches("hog").count() >= 4 { Ok(()) } else { Err(dead) }
    })
    .await;

    // The same where projections call functions.
    app::deploy(&dev, &hog.with("  spun:\n", UPCAST));
    rings(&good, 20, sleep(Duration::from_secs(1))).await;
    let ring = good
        .send("POST", "/v1/commands/till/t-1/ring", &[("content-type", "application/json")], "{}")
        .await;
    let position = ring.json()["position"].as_str().unwrap().to_owned();
    let read = good.get(&format!("/v1/query/tills?min_position={position}&wait_ms=20000")).await;
    assert_eq!(read.status, 200, "{read:?}");
    eventually("the events to be parked", async || {
        let dead = dev.succeed(&["dead", "list", "--limit", "100", "--json"]);
        let parked = dead.matches("hog.spun").count().min(dead.matches("upcast: ").count());
        if parked >= 20 { Ok(()) } else { Err(dead) }
    })
    .await;
}
