//! Commands over NATS: stored, processed, asked for later; and what becomes of those that can't be.

use async_nats::{HeaderMap, jetstream};
use flexcore_domain::limits::QUEUED_BYTES_MAX;
use serde_json::{Value, json};

use crate::support::{Dev, Http, app, eventually};

/// A client of the queue.
struct Queue {
    jetstream: jetstream::Context,
}

impl Queue {
    async fn of(dev: &Dev) -> Self {
        Self { jetstream: jetstream::new(dev.nats().await) }
    }

    /// Publishes a command; the PubAck is awaited, so it is stored.
    async fn put(&self, subject: &str, headers: &[(&str, &str)], payload: impl Into<bytes::Bytes>) {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(*name, *value);
        }
        let sent = self.jetstream.publish_with_headers(subject.to_owned(), all, payload.into());
        sent.await.unwrap().await.unwrap_or_else(|error| panic!("{subject}: {error}"));
    }
}

/// The outcome of a command, once it is known.
async fn outcome(http: &Http, aggregate: &str, id: &str, command_id: &str) -> Value {
    let path = format!("/v1/commands/{command_id}?aggregate={aggregate}&id={id}");
    eventually(&path, async || {
        let answer = http.get(&path).await;
        match answer.status {
            200 => Ok(answer.json()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await
}

/// Dead commands of a tenant, as `dead list --json` has them.
async fn dead(dev: &Dev, tenant: &str) -> Vec<Value> {
    let arguments = ["dead", "list", "--kind", "command", "--limit", "10000", "--json"];
    let output = dev.run_async(&arguments).await;
    let printed = crate::support::process::succeeded(&arguments, &output);
    let all = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let prefix = format!("cmd.{tenant}.");
    all.filter(|dead| dead["subject"].as_str().unwrap().starts_with(&prefix)).collect()
}

/// The dead commands of a tenant, once there are so many.
async fn dead_of(dev: &Dev, tenant: &str, count: usize) -> Vec<Value> {
    eventually("dead commands", async || {
        let found = dead(dev, tenant).await;
        if found.len() >= count { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

/// A client that gets no answer over one way may send its command over the other, serialised anew.
#[tokio::test]
async fn a_command_that_comes_again_by_the_other_way_is_the_same_command() {
    let dev = Dev::shared();
    let (queue, http) = (Queue::of(&dev).await, dev.http("both_ways"));
    http.command("a-1", "open", &[], r#"{"owner":"Ann","team":"red"}"#).await.ok();
    let subject = "cmd.both_ways.account.a-1.deposit";
    let over_http = async |key: &str, payload: &'static str| {
        http.command("a-1", "deposit", &[("idempotency-key", key)], payload).await
    };
    let first = over_http("k-1", r#"{"amount":1}"#).await.ok();
    assert_eq!((&first["version"], &first["replayed"]), (&json!(2), &json!(false)));
    let anew = r#" { "\u0061mount" : 1.0 } "#;
    queue.put(subject, &[("Flexcore-Command-Id", "k-1")], anew).await;
    queue.put(subject, &[("Nats-Msg-Id", "k-2")], r#"{"amount":10e-1}"#).await;
    // The queue keeps its order: when this one is done, so is the one before it.
    let second = outcome(&http, "account", "a-1", "k-2").await;
    assert_eq!(second["version"], json!(3), "{second}");
    let again = over_http("k-2", anew).await.ok();
    assert_eq!((&again["version"], &again["replayed"]), (&json!(3), &json!(true)), "{again}");
    let events = http.get("/v1/aggregates/account/a-1/events").await.ok();
    assert_eq!(events.as_array().unwrap().len(), 3, "{events}");
    assert!(dead(&dev, "both_ways").await.is_empty());
    // Another value is another command, whichever way it comes.
    over_http("k-2", r#"{"amount":2}"#).await.problem(422, "idempotency-key-reused");
    queue.put(subject, &[("Flexcore-Command-Id", "k-1")], r#"{"amount":2}"#).await;
    dead_of(&dev, "both_ways", 1).await;
}

#[tokio::test]
async fn a_stored_command_is_processed_and_its_outcome_is_known() {
    let dev = Dev::shared();
    let (queue, http) = (Queue::of(&dev).await, dev.http("queued"));
    let open = r#"{"owner":"Ann","team":"red"}"#;
    queue.put("cmd.queued.account.a-1.open", &[("Nats-Msg-Id", "c-1")], open).await;
    let accepted = outcome(&http, "account", "a-1", "c-1").await;
    assert_eq!((&accepted["status"], &accepted["version"]), (&json!("accepted"), &json!(1)));
    // In order, whatever their number.
    for number in 1..=300 {
        let id = format!("d-{number}");
        let subject = "cmd.queued.account.a-1.deposit";
        queue.put(subject, &[("Nats-Msg-Id", &id)], format!(r#"{{"amount":{number}}}"#)).await;
    }
    let last = outcome(&http, "account", "a-1", "d-300").await;
    assert_eq!(last["version"], json!(301), "{last}");
    let events = http.get("/v1/aggregates/account/a-1/events?limit=1000").await.ok();
    let amounts =
        events.as_array().unwrap().iter().skip(1).map(|event| event["data"]["amount"].as_u64());
    assert!(amounts.eq((1..=300).map(Some)), "they keep their order");
    // The same id again changes nothing, and the outcome stays.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    queue.put("cmd.queued.account.a-1.open", &[("Nats-Msg-Id", "c-1")], open).await;
    queue
        .put("cmd.queued.account.a-1.withdraw", &[("Nats-Msg-Id", "w-1")], r#"{"amount":99999}"#)
        .await;
    let rejected = outcome(&http, "account", "a-1", "w-1").await;
    assert_eq!(
        (&rejected["status"], &rejected["code"]),
        (&json!("rejected"), &json!("too_little"))
    );
    assert_eq!(outcome(&http, "account", "a-1", "c-1").await, accepted);
    assert_eq!(http.get("/v1/aggregates/account/a-1").await.header("etag"), "\"301\"");
    // A version to hold to, and who sent it.
    let headers =
        [("Nats-Msg-Id", "e-1"), ("Flexcore-Expected-Version", "7"), ("Flexcore-Actor", "ann")];
    queue.put("cmd.queued.account.a-1.deposit", &headers, r#"{"amount":1}"#).await;
    assert_eq!(outcome(&http, "account", "a-1", "e-1").await["status"], json!("conflict"));
    let headers = [("Nats-Msg-Id", "e-2"), ("Flexcore-Actor", "ann@example.org")];
    queue.put("cmd.queued.account.a-1.deposit", &headers, r#"{"amount":1}"#).await;
    assert_eq!(outcome(&http, "account", "a-1", "e-2").await["status"], json!("accepted"));
    let events = http.get("/v1/aggregates/account/a-1/events?after_version=301").await.ok();
    assert_eq!(events[0]["actor"], json!("nats:ann@example.org"), "nobody vouches for her");
    // A gateway vouches for the token's subject, whichever way the command goes on.
    for headers in [&[][..], &[("prefer", "respond-async, wait=10")]] {
        http.command("a-1", "deposit", headers, r#"{"amount":1}"#).await.ok();
    }
    let events = http.get("/v1/aggregates/account/a-1/events?after_version=301").await.ok();
    assert_eq!((&events[1]["actor"], &events[2]["actor"]), (&json!("cli"), &json!("cli")));
    // One id and one value are one command both ways. Its hash is in logs: it never changes.
    for event in events.as_array().unwrap() {
        assert_eq!(event["commandhash"], json!("016f1879ad40425e206cca1c7dcca1d4"));
    }
    let again = [("idempotency-key", "e-2")];
    let again = http.command("a-1", "deposit", &again, r#"{"amount":1.0}"#).await.ok();
    assert_eq!((&again["version"], &again["replayed"]), (&json!(302), &json!(true)));
    assert!(dead(&dev, "queued").await.is_empty(), "rejections are answers");
}

/// A command that cannot be processed, and what its reason must say.
struct Poison {
    subject: String,
    headers: Vec<(&'static str, String)>,
    payload: bytes::Bytes,
    reason: &'static str,
}

/// The id that a command was given, wherever it is kept.
const ID: &str = "Nats-Msg-Id";

fn poison() -> Vec<Poison> {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!(r#"{{"amount":1,"note":"{}"}}"#, "x".repeat(300 * 1024));
    let deposit = "account.a-1.deposit";
    let payloads: [(&str, bytes::Bytes, &str); 10] = [
        (deposit, "".into(), "invalid payload"),
        (deposit, "{".into(), "invalid payload"),
        (deposit, "{}".into(), "amount"),
        (deposit, deep.into(), "invalid payload"),
        (deposit, huge.into(), "invalid payload"),
        (deposit, r#"{"amount":1,"amount":2}"#.into(), "amount"),
        (deposit, b"\xff\xfe"[..].into(), "invalid payload"),
        (deposit, r#"{"amount":9007199254740993}"#.into(), "/amount: 9007199254740993 is"),
        ("account.a-1.nothing", "{}".into(), "unknown command"),
        ("nobody.a-1.open", "{}".into(), "unknown aggregate"),
    ];
    let with_payload =
        payloads.into_iter().zip(1..).map(|((rest, payload, reason), number)| Poison {
            subject: format!("cmd.poison.{rest}"),
            headers: vec![(ID, format!("p-{number}"))],
            payload,
            reason,
        });
    let id = |text: &str| (ID, text.to_owned());
    let headers: [(Vec<(&'static str, String)>, &str); 5] = [
        (vec![], ID),
        (vec![id("a b")], ID),
        (vec![id(&"k".repeat(129))], ID),
        (vec![id("p-11"), ("Flexcore-Actor", "a b".to_owned())], "Flexcore-Actor"),
        (
            vec![id("p-12"), ("Flexcore-Expected-Version", "x".to_owned())],
            "Flexcore-Expected-Version",
        ),
    ];
    let with_headers = headers.into_iter().map(|(headers, reason)| Poison {
        subject: format!("cmd.poison.{deposit}"),
        headers,
        payload: r#"{"amount":1}"#.into(),
        reason,
    });
    with_payload.chain(with_headers).collect()
}

#[tokio::test]
async fn what_cannot_be_processed_is_put_aside_with_its_reason() {
    let dev = Dev::shared();
    let (queue, http) = (Queue::of(&dev).await, dev.http("poison"));
    let poison = poison();
    for Poison { subject, headers, payload, .. } in &poison {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        queue.put(subject, &headers, payload.clone()).await;
    }
    // The broker's tokens may hold what our names may not.
    let hostile = ["a\u{e4}b", "a%2Eb", "a$b", "a/b", "a'b", "a;b", "\u{1}", "a=b"];
    for (number, name) in hostile.iter().enumerate() {
        let (subject, id) = (format!("cmd.poison.account.{name}.open"), format!("h-{number}"));
        queue.put(&subject, &[(ID, &id)], "{}").await;
    }
    let count = poison.len() + hostile.len();
    let found = dead_of(&dev, "poison", count).await;
    assert_eq!(found.len(), count, "each once: {found:?}");
    for Poison { subject, headers, reason, .. } in &poison {
        let id = headers.iter().find(|(name, _)| *name == ID).map(|(_, id)| id.as_str());
        let of_id = |dead: &&Value| {
            let kept = ["Flexcore-Command-Id", ID].map(|name| dead["headers"][name].as_str());
            if id.is_some() { kept.contains(&id) } else { kept == [None, None] }
        };
        let dead = found.iter().find(of_id).unwrap_or_else(|| panic!("{headers:?}: {found:?}"));
        let said = dead["reason"].as_str().unwrap();
        assert!(said.contains(reason) && !said.contains('\n'), "{headers:?}: {said}");
        assert_eq!(dead["subject"], json!(subject));
    }
    let outcome = outcome(&http, "account", "a-1", "p-3").await;
    assert_eq!(outcome["status"], json!("dead"), "{outcome}");
    assert!(outcome["reason"].as_str().unwrap().contains("amount"), "{outcome}");
    http.get("/v1/aggregates/account/a-1").await.problem(404, "no-such-aggregate");
    // Others go on.
    http.command("a-1", "open", &[], r#"{"owner":"Ann","team":"red"}"#).await.ok();
    check_shown(&dev, &found[0]);
}

/// A person reads one whole; what a stranger wrote does not steer the terminal.
fn check_shown(dev: &Dev, dead: &Value) {
    let number = dead["number"].to_string();
    assert_eq!(dev.json(&["dead", "show", &number, "--json"]), *dead);
    let text = dev.succeed(&["dead", "show", &number]);
    assert!(text.contains("reason") && !text.contains('\u{1}'), "{text}");
    let missing = dev.run(&["dead", "show", "999999999"]);
    let (_, err) = crate::support::process::texts(&missing);
    assert!(!missing.status.success() && err.contains("no dead message 999999999"), "{err}");
}

#[tokio::test]
async fn subjects_that_are_no_commands_are_not_taken() {
    let dev = Dev::shared();
    let jetstream = jetstream::new(dev.nats().await);
    for subject in ["cmd.poison", "cmd.a.b.c", "cmd.a.b.c.d.e"] {
        let sent = jetstream.publish(subject, "{}".into()).await.unwrap();
        assert!(sent.await.is_err(), "{subject} must have no PubAck");
    }
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "too-large");
    let large = vec![b'x'; (1 << 20) + 1];
    let sent = jetstream.publish_with_headers("cmd.a.b.c.d", headers, large.into()).await;
    let refused = match sent {
        Ok(acknowledged) => acknowledged.await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a message over the broker's limit has no PubAck");
}

const BROKEN: &str = r#"
aggregate: machine
commands:
  start:
    payload:
      type: object
      required: [speed]
      properties: { speed: { type: integer } }
    decide: |
      (state, { speed }) => {
        if (speed > 10) throw new Error("too fast to think");
        return [{ event: "started", data: { speed } }];
      }
events:
  started:
    data: { type: object, required: [speed], properties: { speed: { type: integer } } }
    evolve: |
      (state, event) => event.data
---
read_model: machines
columns: { id: text, starts: integer, speed: integer }
key: [id]
on:
  machine.started:
    key: { id: $id }
    add: { starts: 1, speed: $.speed }
"#;

#[tokio::test]
async fn a_dead_command_is_requeued_once_its_cause_is_mended() {
    let dev = Dev::shared();
    let (queue, http) = (Queue::of(&dev).await, dev.http("mended"));
    let broken = app::Files::one("machines", BROKEN);
    app::deploy(&dev, &broken);
    let start = "cmd.mended.machine.m-1.start";
    queue.put(start, &[("Nats-Msg-Id", "s-1")], r#"{"speed":3}"#).await;
    queue.put(start, &[("Nats-Msg-Id", "s-2")], r#"{"speed":30}"#).await;
    queue.put(start, &[("Nats-Msg-Id", "s-3")], r#"{"speed":4}"#).await;
    assert_eq!(outcome(&http, "machine", "m-1", "s-3").await["version"], json!(2), "others go on");
    let dead = &dead_of(&dev, "mended", 1).await[0];
    let reason = dead["reason"].as_str().unwrap();
    assert!(reason.contains("too fast to think") && reason.contains("main.yaml:11"), "{reason}");
    assert_eq!(outcome(&http, "machine", "m-1", "s-2").await["status"], json!("dead"));

    let mended = broken.with("throw new Error(\"too fast to think\")", "speed = 10");
    let deployed = app::deploy(&dev, &mended);
    assert_eq!(deployed["version"], json!(2));
    let number = dead["number"].to_string();
    // Several at once: whoever is too late is told that it is gone, not to try again.
    let requeue = ["dead", "requeue", &number];
    let all = futures::future::join_all((0..4).map(|_| dev.run_async(&requeue))).await;
    assert!(all.iter().any(|one| one.status.success()), "{all:?}");
    for late in all.iter().filter(|one| !one.status.success()) {
        let said = String::from_utf8_lossy(&late.stderr);
        let is_gone = said.contains("was taken off the list") || said.contains("no dead message");
        assert!(is_gone, "{said}");
    }
    let accepted = eventually("the requeued command", async || {
        let found = outcome(&http, "machine", "m-1", "s-2").await;
        if found["status"] == json!("accepted") { Ok(found) } else { Err(found.to_string()) }
    })
    .await;
    assert_eq!(accepted["version"], json!(3));
    let again = dev.run(&["dead", "requeue", &number]);
    assert!(!again.status.success(), "it is off the list");
    // The same command sent once more is recognised.
    queue.put(start, &[("Nats-Msg-Id", "s-2")], r#"{"speed":30}"#).await;
    queue.put(start, &[("Nats-Msg-Id", "s-4")], r#"{"speed":5}"#).await;
    assert_eq!(outcome(&http, "machine", "m-1", "s-4").await["version"], json!(4));
    eventually("the read model to serve", async || {
        let answer = http.get("/v1/query/machines").await;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let position = outcome(&http, "machine", "m-1", "s-4").await["position"].clone();
    let position = position.as_str().unwrap();
    let rows = http.rows(&format!("/v1/query/machines?min_position={position}")).await;
    assert_eq!(rows, [json!({"id": "m-1", "starts": 4, "speed": 3 + 10 + 4 + 5})]);
}

/// The half of a command is another command.
#[tokio::test]
async fn what_was_cut_to_be_put_aside_is_not_requeued() {
    let dev = Dev::shared();
    let subject = ("Flexcore-Subject", "cmd.cut.account.a-1.open");
    let cut = ("Flexcore-Body-Bytes", "2000000");
    let headers = [("Flexcore-Command-Id", "cut-1"), ("Flexcore-Reason", "too long"), subject, cut];
    Queue::of(&dev).await.put("dead.command", &headers, "{").await;
    let found = dead_of(&dev, "cut", 1).await;
    let requeued = dev.run_async(&["dead", "requeue", &found[0]["number"].to_string()]).await;
    let said = String::from_utf8_lossy(&requeued.stderr).into_owned();
    assert!(!requeued.status.success() && said.contains("had 2000000 bytes"), "{said}");
    assert_eq!(dead(&dev, "cut").await.len(), 1, "it is still on the list");
}

/// A header that nobody reads made one too large that had room, and "try again" was said of it.
#[tokio::test]
async fn a_requeue_that_is_too_large_is_final() {
    let dev = Dev::shared();
    let (queue, own) = (Queue::of(&dev).await, "Flexcore-Command-Id");
    let why = [("Flexcore-Reason", "a test"), ("Flexcore-Subject", "cmd.largest.account.a-1.open")];
    let most = QUEUED_BYTES_MAX;
    for (bytes, is_taken) in [(most - 1, true), (most, true), (most + 1, false)] {
        let id = format!("c-{bytes}");
        let block = format!("NATS/1.0\r\n{own}: {id}\r\n\r\n");
        let body = "x".repeat(bytes - block.len());
        queue.put("dead.command", &[&[(own, id.as_str())][..], &why].concat(), body).await;
        // One that is taken comes again for another reason: no payload is so long.
        let is_it = |letter: &Value| {
            letter["headers"][own] == json!(id) && letter["reason"] == json!("a test")
        };
        let letters = dead(&dev, "largest").await;
        let letter = letters.iter().find(|letter| is_it(letter)).expect("it is on the list");
        let requeued = dev.run_async(&["dead", "requeue", &letter["number"].to_string()]).await;
        let said = String::from_utf8_lossy(&requeued.stderr).into_owned();
        assert_eq!(requeued.status.success(), is_taken, "{bytes}: {said}");
        let is_final = said.contains("cannot be requeued") && !said.contains("try again");
        assert_ne!(is_taken, is_final, "{bytes}: {said}");
        let left = dead(&dev, "largest").await;
        assert_eq!(left.iter().any(is_it), !is_taken, "{bytes}: is it on the list?");
    }
}

/// When it was put aside, and its number in the list, make its id.
#[tokio::test]
async fn a_dead_command_without_an_id_gets_one_when_it_is_requeued() {
    let dev = Dev::shared();
    let (queue, http) = (Queue::of(&dev).await, dev.http("unnamed"));
    queue.put("cmd.unnamed.account.a-1.open", &[], r#"{"owner":"Ann","team":"red"}"#).await;
    let letter = dead_of(&dev, "unnamed", 1).await.remove(0);
    let number = letter["number"].to_string();
    dev.succeed(&["dead", "requeue", &number]);
    let made = format!("requeue:{}:{number}", letter["time"].as_str().unwrap());
    let done = outcome(&http, "account", "a-1", &made).await;
    assert_eq!(done["status"], json!("accepted"), "{done}");
}

/// Such a command was read as the first id's and actor's, lay aside as the last's, and was requeued under
/// a third id.
#[tokio::test]
async fn a_header_that_is_given_twice_is_refused_and_stays_so() {
    let dev = Dev::shared();
    let (queue, http) = (Queue::of(&dev).await, dev.http("doubled"));
    let open = r#"{"owner":"Ann","team":"red"}"#;
    let actors = [("Flexcore-Actor", "ann"), ("Flexcore-Actor", "bob")];
    let own = "Flexcore-Command-Id";
    let headers = [&[(own, "first"), (own, "last"), (ID, "third")][..], &actors].concat();
    queue.put("cmd.doubled.account.a-1.open", &headers, open).await;
    let first = dead_of(&dev, "doubled", 1).await.remove(0);
    assert_eq!(first["headers"][own], json!(["first", "last"]));
    assert_eq!(first["headers"]["Flexcore-Actor"], json!(["ann", "bob"]));
    let said = first["reason"].as_str().unwrap();
    assert!(said.contains("Flexcore-Command-Id: it is given more than once"), "{said}");

    dev.succeed(&["dead", "requeue", &first["number"].to_string()]);
    let again = eventually("the same command to be put aside again", async || {
        let found = dead(&dev, "doubled").await;
        match &found[..] {
            [one] if one["number"] != first["number"] => Ok(one.clone()),
            _ => Err(format!("{found:?}")),
        }
    })
    .await;
    for part in ["subject", "reason", "headers", "body"] {
        assert_eq!(again[part], first[part], "{part}");
    }
    // Where only the id is sure, it has an outcome.
    queue.put("cmd.doubled.account.a-1.open", &[&[(ID, "one")][..], &actors].concat(), open).await;
    let outcome = outcome(&http, "account", "a-1", "one").await;
    assert!(outcome["reason"].as_str().unwrap().contains("Flexcore-Actor"), "{outcome}");
    http.get("/v1/aggregates/account/a-1").await.problem(404, "no-such-aggregate");
}
