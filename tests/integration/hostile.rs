//! Hostile input to the loops that serve all, from one tenant, one deployment or one client of the
//! broker: another tenant goes on after each of them, also after a start.

use async_nats::{HeaderMap, jetstream};
use flexcore_domain::{AggregateId, AggregateKey, AggregateName, Tenant};
use serde_json::Value;

use crate::support::{Dev, Http, app, eventually, say};

/// Two ids that one hash could not tell apart: they once stopped all projections.
const COLLIDING: [&str; 2] = ["85eec3d2c784313e", "00c0dce69a15679a"];

const BLOBS: &str = r#"
aggregate: blob
description: Something that grows.
commands:
  grow:
    description: Lets it grow.
    decide: |
      () => [{ event: "grew", data: {} }]
events:
  grew:
    evolve: |
      (state) => ({ size: (state ? state.size : 0) + 1 })
"#;

/// Numbers that cannot be counted on from.
const HEADERS: [(&str, &str); 10] = [
    ("Flexcore-Expected-Version", "18446744073709551615"),
    ("Flexcore-Expected-Version", "18446744073709551616"),
    ("Flexcore-Expected-Version", "-1"),
    ("Flexcore-At-Version", "18446744073709551615"),
    ("Flexcore-Timeout-Ms", "999999999999999999"),
    ("Flexcore-Timeout-Ms", "NaN"),
    ("traceparent", "00-00000000000000000000000000000000-0000000000000000-ff"),
    ("Flexcore-Actor", "\u{202e}\u{7f}"),
    ("Flexcore-Correlation-Id", ">"),
    ("Flexcore-Command-Id", "*"),
];

fn event_subject(tenant: &str, aggregate: &str, id: &str) -> String {
    let key = AggregateKey::new(
        Tenant::parse(tenant).unwrap(),
        AggregateName::parse(aggregate).unwrap(),
        AggregateId::parse(id).unwrap(),
    );
    format!("evt.{}", key.subject_part())
}

/// Another tenant, who wants an amount to arrive in its rows.
struct Victim {
    http: Http,
    deposited: u64,
}

impl Victim {
    async fn goes_on(&mut self, after: &str) {
        let paid = self.http.command("v-1", "deposit", &[], r#"{"amount":1}"#).await;
        assert_eq!(paid.status, 200, "after {after}: {paid:?}");
        self.deposited += 1;
        let position = paid.json()["position"].as_str().unwrap().to_owned();
        let path = format!("/v1/query/accounts?min_position={position}&wait_ms=20000");
        let rows = self.http.get(&path).await;
        assert_eq!(rows.status, 200, "after {after}: {rows:?}");
        assert_eq!(rows.json()["rows"][0]["deposited"], self.deposited, "after {after}");
    }
}

struct Mallory {
    client: async_nats::Client,
    log: jetstream::Context,
}

impl Mallory {
    async fn of(dev: &Dev) -> Self {
        let client = dev.nats().await;
        Self { log: jetstream::new(client.clone()), client }
    }

    /// Stores it in a stream.
    async fn store(&self, subject: &str, headers: HeaderMap, body: &'static str) {
        let sent = self.log.publish_with_headers(subject.to_owned(), headers, body.into()).await;
        sent.unwrap().await.unwrap();
    }

    /// Asks the workers what nobody asks, and does not wait for answers.
    async fn ask_nonsense(&self) {
        for subject in
            ["ctl.catalog.bank", "ctl.catalog.x", "req.1.1", "get.1.1.x", "out.1.1.a.b.c"]
        {
            for (name, value) in HEADERS {
                let (mut headers, reply) = (HeaderMap::new(), self.client.new_inbox());
                headers.insert(name, value);
                let asked = self.client.publish_with_reply_and_headers(
                    subject,
                    reply,
                    headers,
                    "{{{{".into(),
                );
                asked.await.unwrap();
            }
        }
        self.client.flush().await.unwrap();
    }

    /// Stores commands that cannot be read, or say impossible things.
    async fn store_nonsense(&self) {
        for (number, (name, value)) in HEADERS.into_iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("n-{number}"));
            headers.insert(name, value);
            self.store("cmd.mallory.account.m-2.deposit", headers, r#"{"amount":1}"#).await;
        }
        for subject in ["cmd.M.a.b.c", "cmd.mallory.ACCOUNT.m.open", "cmd.mallory.account.m.OPEN"] {
            self.store(subject, HeaderMap::new(), "{").await;
        }
    }
}

#[tokio::test]
async fn no_hostile_input_stops_what_all_share() {
    let mut dev = Dev::start(&[]);
    app::deploy_bank(&dev);
    app::deploy(&dev, &app::Files::one("blobs", BLOBS));
    let mut victim = Victim { http: dev.http("victim"), deposited: 0 };
    victim.http.command("v-1", "open", &[], r#"{"owner":"Vic","team":"red"}"#).await.ok();
    victim.goes_on("nothing").await;
    let mallory = Mallory::of(&dev).await;

    let demo = dev.http("demo");
    for id in COLLIDING {
        let grown = demo.send("POST", &format!("/v1/commands/blob/{id}/grow"), &JSON, "{}").await;
        grown.ok();
    }
    victim.goes_on("two ids that collide").await;
    let report = verify(&dev).await;
    assert_eq!((&report["broken"], report["not_checked"].as_u64()), (&Value::Null, Some(0)));

    let end = "/v1/events?after=1-0-18446744073709551615";
    demo.get(end).await.problem(400, "invalid-parameter");
    demo.get("/v1/aggregates/blob/x?at_version=18446744073709551615").await.problem(404, NONE);
    victim.goes_on("a position beyond every log").await;

    mallory.ask_nonsense().await;
    victim.goes_on("questions that make no sense").await;
    mallory.store_nonsense().await;
    victim.goes_on("commands that make no sense").await;

    for (subject, body) in [
        ("evt.junk".to_owned(), "junk"),
        ("evt.1.victim.account.v-1".to_owned(), "in another slot"),
        (event_subject("mallory", "account", "m-1"), "junk"),
        (event_subject("mallory", "account", "m-3"), "{}"),
    ] {
        mallory.store(&subject, HeaderMap::new(), body).await;
        victim.goes_on(&subject).await;
    }
    mallory.store(&event_subject("flexcore", "application", "blobs"), HeaderMap::new(), "x").await;
    victim.goes_on("a deployment that cannot be read").await;
    app::deploy(&dev, &app::Files::one("others", &BLOBS.replace("blob", "other")));
    victim.goes_on("another deployment").await;

    // It is all visible.
    let report = verify(&dev).await;
    say(&report.to_string());
    assert_eq!(report["breaks"], 5, "{report}");
    let degraded = eventually("a readiness that says it", async || {
        let ready = demo.get("/readyz").await;
        let text = String::from_utf8_lossy(&ready.body).into_owned();
        let both = text.contains("held back") && text.contains("cannot be read here");
        if ready.status == 200 && both { Ok(text) } else { Err(text) }
    });
    assert!(degraded.await.contains("degraded"));

    // A process that starts now is not stopped by it either.
    dev.terminate();
    dev.start_again();
    victim.http = dev.http("victim");
    victim.goes_on("a start").await;
    let blob = format!("/v1/commands/blob/{}/grow", COLLIDING[0]);
    dev.http("demo").send("POST", &blob, &JSON, "{}").await.ok();
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const NONE: &str = "no-such-aggregate";

/// The output of `verify --json`, for a whole log and for a broken one.
async fn verify(dev: &Dev) -> Value {
    let output = dev.run_async(&["verify", "--json"]).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}
