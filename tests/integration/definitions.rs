//! Definitions: deployed, changed, refused, and misbehaving; with no restart of anything.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::support::{
    Dev, Http,
    app::{self, Files},
    eventually,
    http::Answer,
};

/// An application `name` with the aggregate `name` and a counter in it.
fn counter(name: &str) -> Files {
    let text = r#"aggregate: COUNTER
commands:
  raise:
    payload:
      type: object
      required: [by]
      properties:
        by: { type: integer }
    decide: |
      (state, { by }) => {
        if (by < 0) reject("negative", "counters go up");
        return [{ event: "raised", data: { by } }];
      }
events:
  raised:
    data:
      type: object
      required: [by]
      properties:
        by: { type: integer }
    evolve: |
      (state, event) => ({ sum: (state === null ? 0 : state.sum) + event.data.by })
---
read_model: COUNTER_sums
columns: { id: text, sum: integer }
key: [id]
on:
  COUNTER.raised:
    key: { id: $id }
    add: { sum: $.by }
"#;
    Files::one(name, &text.replace("COUNTER", name))
}

async fn raise(http: &Http, counter: &str, id: &str, payload: &str) -> Answer {
    let path = format!("/v1/commands/{counter}/{id}/raise");
    http.send("POST", &path, &[("content-type", "application/json")], payload.to_owned()).await
}

fn words(changes: &Value) -> String {
    let changes = changes["changes"].as_array().unwrap().iter();
    changes.map(|change| change.as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn a_version_is_in_force_as_soon_as_apply_returns() {
    let dev = Dev::shared();
    let http = dev.http("versions");
    raise(&http, "steps", "c-1", r#"{"by":1}"#).await.problem(404, "unknown-aggregate");
    let first = counter("steps");
    let (_folder, path) = first.write();
    let dry = dev.json(&["apply", &path, "--dry-run", "--json"]);
    assert!(words(&dry).contains("is new"), "{dry}");
    raise(&http, "steps", "c-1", r#"{"by":1}"#).await.problem(404, "unknown-aggregate");
    let deployed = app::deploy(&dev, &first);
    assert_eq!((&deployed["application"], &deployed["version"]), (&json!("steps"), &json!(1)));
    assert!(deployed["picked_up_ms"].is_u64(), "{deployed}");
    assert_eq!(raise(&http, "steps", "c-1", r#"{"by":1}"#).await.ok()["version"], json!(1));
    let unchanged = app::deploy(&dev, &first);
    assert_eq!((&unchanged["version"], &unchanged["changes"]), (&json!(1), &json!([])));
    let dry = dev.json(&["apply", &path, "--dry-run", "--json"]);
    assert_eq!((&dry["version"], &dry["changes"]), (&json!(1), &json!([])));

    // Other rules: at once, on an aggregate that is in the workers' memory.
    let second = first.with("if (by < 0)", "if (by < 0 || by > 5)");
    let deployed = app::deploy(&dev, &second);
    assert_eq!(deployed["version"], json!(2));
    assert!(words(&deployed).contains("command steps.raise has other rules"), "{deployed}");
    let answer = raise(&http, "steps", "c-1", r#"{"by":6}"#).await;
    assert_eq!(answer.problem(409, "rejected")["code"], json!("negative"));

    // Another fold of the same events, and another read model, beside the existing ones.
    let third = second
        .with(
            "(state === null ? 0 : state.sum) + event.data.by",
            "(state?.sum ?? 0) + 10 * event.data.by",
        )
        .with("sum: integer }", "sum: integer, raises: integer }")
        .with("add: { sum: $.by }", "add: { sum: $.by, raises: 1 }");
    let deployed = app::deploy(&dev, &third);
    let said = words(&deployed);
    assert!(said.contains("event steps.raised evolves the state in another way"), "{said}");
    assert!(said.contains("read model steps_sums changes"), "{said}");
    let state = http.get("/v1/aggregates/steps/c-1").await.ok();
    assert_eq!((&state["version"], &state["state"]), (&json!(1), &json!({"sum": 10})));
    let rows = eventually("the new version of the read model", async || {
        let answer = http.get("/v1/query/steps_sums?raises=gte.1").await;
        match answer.status {
            200 => Ok(answer.json()["rows"].clone()),
            503 => Err(format!("{:?}", answer.problem(503, "read-model-building"))),
            _ => panic!("{answer:?}"),
        }
    })
    .await;
    assert_eq!(rows, json!([{"id": "c-1", "sum": 1, "raises": 1}]));
    let openapi = http.get("/openapi.json").await.ok();
    assert!(openapi.to_string().contains("steps"), "the documents follow");
}

/// A renamed column once answered every query with 503 until the new version was built.
#[tokio::test]
async fn a_renamed_column_leaves_queries_answered() {
    let dev = Dev::shared();
    let http = dev.http("renamed");
    let first = counter("turns").with(
        "add: { sum: $.by }",
        "add: { sum: $.by }\n---\nquery: turns_above\nreads: [turns_sums]\n\
         parameters: { least: integer }\nsql: |\n  \
         select id, sum from rm.turns_sums where sum >= :least",
    );
    app::deploy(&dev, &first);
    let raised = raise(&http, "turns", "c-1", r#"{"by":1}"#).await.ok();
    let at = raised["position"].as_str().unwrap();
    let read = format!("/v1/query/turns_sums?min_position={at}&wait_ms=30000");
    eventually("the read model", async || match http.get(&read).await.status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    // Nothing takes over while somebody reads the view in a transaction.
    let mut reader = dev.sql().await;
    sqlx::raw_sql("begin; select * from rm.turns_sums").execute(&mut reader).await.unwrap();
    let second = first
        .with("columns: { id: text, sum: integer }", "columns: { id: text, total: integer }")
        .with("add: { sum: $.by }", "add: { total: $.by }")
        .with("parameters: { least: integer }", "parameters: { above: integer }")
        .with("select id, sum", "select id, total")
        .with("where sum >= :least", "where total > :above");
    app::deploy(&dev, &second);
    // A named query by its former declaration, as long as that is what the version in use fits.
    let rows = http.get("/v1/queries/turns_above?least=1").await.ok();
    assert_eq!(rows["rows"], json!([{"id": "c-1", "sum": 1}]));
    let soon = http.get("/v1/queries/turns_above?above=0").await;
    soon.problem(503, "read-model-building");
    http.get("/v1/queries/turns_above?other=1").await.problem(400, "invalid-parameter");
    for path in ["", "?sum=1", "?sort=-sum&fields=id,sum"] {
        let rows = http.rows(&format!("/v1/query/turns_sums{path}")).await;
        assert_eq!(rows, [json!({"id": "c-1", "sum": 1})], "{path}");
    }
    let soon = http.get("/v1/query/turns_sums?total=1").await;
    let said = soon.problem(503, "read-model-building");
    assert!(said["detail"].as_str().unwrap().contains("no column total yet"), "{said}");
    reader.close().await.unwrap();
    let rows = eventually("the new version of the read model", async || {
        match http.rows("/v1/query/turns_sums").await {
            rows if rows[0]["total"].is_null() => Err(format!("{rows:?}")),
            rows => Ok(rows),
        }
    })
    .await;
    assert_eq!(rows, [json!({"id": "c-1", "total": 1})]);
    let rows = http.get("/v1/queries/turns_above?above=0").await.ok();
    assert_eq!(rows["rows"], json!([{"id": "c-1", "total": 1}]));
    http.get("/v1/queries/turns_above?least=1").await.problem(400, "invalid-parameter");
}

#[tokio::test]
async fn what_would_make_recorded_events_unreadable_is_refused() {
    let dev = Dev::shared();
    let http = dev.http("compatible");
    let first = counter("sheep");
    app::deploy(&dev, &first);
    raise(&http, "sheep", "c-1", r#"{"by":2}"#).await.ok();
    // The event's schema, with no new version of it.
    let other = first
        .clone()
        .with(
            "required: [by]\n      properties:\n        by: { type: integer }\n    evolve",
            "required: [by]\n      properties:\n        by: { type: number }\n    evolve",
        )
        .with("sum: integer }", "sum: number }");
    let said = app::refused(&dev, &other);
    let place = other.place("by: { type: number }");
    let (file, line) = place.split_once(':').unwrap();
    let line: usize = line.parse().unwrap();
    let near = (line - 4..=line).any(|line| said.contains(&format!("{file}:{line}: ")));
    assert!(near && said.contains("another schema") && said.contains("version: 2"), "{said}");
    // The event gone.
    let renamed = first
        .clone()
        .with("event: \"raised\"", "event: \"grown\"")
        .with("  raised:\n", "  grown:\n")
        .with("  sheep.raised:", "  sheep.grown:");
    let said = app::refused(&dev, &renamed);
    assert!(said.contains("main.yaml:1") && said.contains("`sheep.raised` is gone"), "{said}");
    // A name that belongs to another application.
    let thief = Files::one("thieves", &format!("{}\n", include_str!("bank/account.yaml")));
    let said = app::refused(&dev, &thief);
    assert!(said.contains("account") && said.contains("bank"), "{said}");
    // The name under which deployments are recorded.
    let platform = counter("application");
    let said = app::refused(&dev, &platform);
    assert!(said.contains("`application` is the platform's own"), "{said}");
    assert_eq!(raise(&http, "sheep", "c-1", r#"{"by":2}"#).await.ok()["version"], json!(2));

    // With a new version of the event and its upcast it is accepted, and old events are read.
    let raised = first
        .with(
            "  raised:\n",
            concat!(
                "  raised:\n    version: 2\n    upcast:\n      1: |\n",
                "        (data) => ({ by: data.by + 0.5 })\n"
            ),
        )
        .with(
            "required: [by]\n      properties:\n        by: { type: integer }\n    evolve",
            "required: [by]\n      properties:\n        by: { type: number }\n    evolve",
        )
        .with("sum: integer }", "sum: number }");
    let deployed = app::deploy(&dev, &raised);
    assert!(words(&deployed).contains("sheep.raised goes from version 1 to 2"), "{deployed}");
    let state = http.get("/v1/aggregates/sheep/c-1").await.ok();
    assert_eq!(state["state"], json!({"sum": 5}), "2.5 twice");
    raise(&http, "sheep", "c-1", r#"{"by":1}"#).await.ok();
    eventually("the rebuilt row", async || {
        let answer = http.get("/v1/query/sheep_sums").await;
        let rows = if answer.status == 200 { answer.json()["rows"].clone() } else { Value::Null };
        if rows == json!([{"id": "c-1", "sum": 6}]) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test]
async fn mistakes_are_shown_with_file_and_line() {
    let dev = Dev::shared();
    let good = counter("typos");
    for (old, new, said) in [
        ("return [{ event", "return [{{ event", "JavaScript"),
        ("(state, { by }) => {", "(state, { by }) = {", ""),
        ("by: { type: integer }", "by: { type: integr }", "JSON Schema"),
        ("commands:", "comands:", "commands"),
        ("payload:", "paylod:", "did you mean `payload`"),
        ("add: { sum: $.by }", "add: { sum: $.bye }", "did you mean `by`"),
        ("add: { sum: $.by }", "add: { summ: $.by }", "did you mean `sum`"),
        ("typos.raised:", "typos.raisd:", "did you mean `raised`"),
        ("key: [id]", "key: [", "YAML"),
        ("sum: integer }", "sum: intger }", "did you mean `integer`"),
        ("columns: { id: text, sum: integer }", "columns: { id: text, tenant: text }", "taken"),
    ] {
        let bad = good.clone().with(old, new);
        let (_folder, path) = bad.write();
        let output = dev.run(&["apply", &path]);
        let (_, err) = crate::support::process::texts(&output);
        assert_eq!(output.status.code(), Some(1), "{new}: {err}");
        assert!(err.contains(said), "{new}: {err}");
        let place = bad.place(new);
        let (file, line) = place.split_once(':').unwrap();
        let line: usize = line.parse().unwrap();
        let near =
            (line.saturating_sub(1)..=line + 1).any(|line| err.contains(&format!("{file}:{line}")));
        assert!(near, "{new} stands at {place}: {err}");
    }
    let nowhere = dev.run(&["apply", "no/such/folder"]);
    let (_, err) = crate::support::process::texts(&nowhere);
    assert!(!nowhere.status.success() && err.contains("no/such/folder"), "{err}");
}

const TRAPS: &str = r#"aggregate: trap
commands:
  spring:
    payload: { type: object, required: [how], properties: { how: { type: string } } }
    decide: |
      (state, { how }, context) => {
        if (how === "loop") for (;;) {}
        if (how === "recurse") { const dive = () => 1 + dive(); dive(); }
        if (how === "hog") { const all = []; for (;;) all.push("x".repeat(1 << 20) + all.length); }
        if (how === "throw") null.missing;
        if (how === "catch") for (;;) { try { for (;;) {} } catch { continue; } }
        if (how === "undeclared") return [{ event: "nothing", data: {} }];
        if (how === "invalid") return [{ event: "sprung", data: { how: 7 } }];
        if (how === "nothing") return undefined;
        if (how === "promise") return Promise.resolve([]);
        if (how === "regex") /^(a+)+$/.test("a".repeat(60) + "!");
        if (how === "clock" && typeof Date === "function" && Date.now() !== Date.now()) throw "clock";
        return [{ event: "sprung", data: { how } }];
      }
events:
  sprung:
    data: { type: object, required: [how], properties: { how: { type: string } } }
    evolve: |
      (state, event) => {
        if (event.data.how === "evolve") throw new TypeError("no state");
        return event.data;
      }
"#;

#[tokio::test]
async fn a_script_that_misbehaves_is_answered_in_time_and_hurts_nobody() {
    let dev = Dev::shared();
    app::deploy(&dev, &Files::one("traps", TRAPS));
    let http = dev.http("traps");
    let spring = async |id: &str, how: &str| {
        let path = format!("/v1/commands/trap/{id}/spring");
        let body = json!({ "how": how }).to_string();
        let since = Instant::now();
        let json = [("content-type", "application/json")];
        let answer = http.another().send("POST", &path, &json, body).await;
        (answer, since.elapsed())
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let others = tokio::spawn(keep_depositing(dev.http("bystanders"), stop.clone()));
    let bad = [
        "loop",
        "recurse",
        "hog",
        "throw",
        "catch",
        "undeclared",
        "invalid",
        "nothing",
        "promise",
        "regex",
        "evolve",
    ];
    for how in bad {
        // On a busy machine a call may run on for so long that nothing of its aggregate is called for a while.
        let (answer, took) = spring(&format!("t-{how}"), how).await;
        let problem = answer.problem(422, "faulty-decider");
        // Its deadline is a tenth of a second; the rest is for a busy machine.
        assert!(took < Duration::from_secs(5), "{how} took {took:?}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("main.yaml:"), "{how}: {detail}");
    }
    // Many at once, on the same threads as everybody else.
    let loops = (0..6).map(|number| {
        let spring = &spring;
        async move { spring(&format!("t-{number}"), "loop").await.0.status }
    });
    assert_eq!(futures::future::join_all(loops).await, [422; 6]);
    let (fine, _) = spring("t-throw", "fine").await;
    assert_eq!(fine.ok()["version"], json!(1), "nothing was recorded before");
    stop.cancel();
    let (answered, longest) = others.await.unwrap();
    assert!(answered > 20, "others were served: {answered}");
    assert!(longest < Duration::from_secs(5), "the slowest took {longest:?}");
}

/// Deposits until it is told to stop; returns how often, and the longest time that one took.
async fn keep_depositing(http: Http, stop: tokio_util::sync::CancellationToken) -> (u32, Duration) {
    http.command("b-1", "open", &[], r#"{"owner":"Bob","team":"red"}"#).await.ok();
    let (mut answered, mut longest) = (0, Duration::ZERO);
    while !stop.is_cancelled() {
        let since = Instant::now();
        http.command("b-1", "deposit", &[], r#"{"amount":1}"#).await.ok();
        (answered, longest) = (answered + 1, longest.max(since.elapsed()));
    }
    (answered, longest)
}

/// It was answered as an outage, to be tried again for ever.
#[tokio::test]
async fn a_state_that_cannot_be_folded_is_the_definitions_fault() {
    const ODD: &str = "\
aggregate: odd
commands: { add: { decide: \"() => [{ event: 'added', data: { x: 1 } }]\" } }
events:
  added:
    data: { type: object }
    evolve: \"(state, event) => event.data\"
";
    let dev = Dev::shared();
    app::deploy(&dev, &Files::one("odds", ODD));
    let http = dev.http("odds");
    let json = [("content-type", "application/json")];
    http.send("POST", "/v1/commands/odd/o-1/add", &json, "{}").await.ok();
    let upcast =
        "  added:\n    version: 2\n    upcast: { 1: \"() => { throw new Error('odd') }\" }\n";
    app::deploy(&dev, &Files::one("odds", &ODD.replace("  added:\n", upcast)));
    for path in ["/v1/aggregates/odd/o-1", "/v1/aggregates/odd/o-1?at_version=1"] {
        let mut answer = http.get(path).await;
        // Until the worker has heard of the deployment.
        for _ in 0..100 {
            if answer.status != 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = http.get(path).await;
        }
        let problem = answer.problem(422, "faulty-decider");
        assert!(problem["detail"].as_str().unwrap().contains("main.yaml:6: upcast"), "{problem}");
    }
}
