//! Installed plugins, and calls of them. A stand-in of a worker answers what the function's name says.

use std::time::Duration;

use async_nats::Message;
use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_domain::{
    ActorName, Name, PluginDescription, PluginFunction, PluginRefusal, PluginReply, PluginReport,
    PluginStatus,
    command::header as field,
    plugin::{
        INPUT_BYTES_MAX, QUEUE_GROUP, REPORTS_SUBJECT, call_subjects, called_function, header,
    },
};
use flexcore_eventstore::plugins as installed;
use flexcore_gateway::limits;
use futures::StreamExt;
use serde_json::{Value, json, value::RawValue};

use crate::{
    JSON,
    support::{Answer, Gateway, bearer, settings, start, token},
};

/// Records that a plugin is installed. Nobody has its file.
pub(crate) async fn install(gateway: &Gateway, name: &str, more: &str) {
    let text = format!("name: {name}\nversion: 0.1.0\nfile: it\n{more}");
    let source = SourceFile { path: "plugin.yaml".to_owned(), text };
    let manifest = PluginManifest::read(source).unwrap();
    let before = installed::installed(&gateway.store, &manifest.name).await.unwrap();
    let (actor, sha256) = (ActorName::parse("alice").unwrap(), "ab".repeat(32));
    let recorded =
        installed::install(&gateway.store, &manifest, &sha256, 9, &before, &actor, 1).await;
    recorded.unwrap();
}

/// Runs the plugin `greeter`.
async fn work(gateway: &Gateway) {
    let client = async_nats::connect(gateway.servers.nats_url()).await.unwrap();
    let subjects = call_subjects(&Name::parse("greeter").unwrap());
    let calls = client.queue_subscribe(subjects, QUEUE_GROUP.to_owned()).await.unwrap();
    let looks = client.subscribe(REPORTS_SUBJECT).await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        let mut all = futures::stream::select(calls, looks);
        while let Some(message) = all.next().await {
            let Some(reply) = message.reply.clone() else { continue };
            let Some(body) = reply_to(&message) else { continue };
            client.publish(reply, body.into()).await.unwrap();
        }
    });
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn reply_to(message: &Message) -> Option<Vec<u8>> {
    let says = |name: &str| message.headers.as_ref()?.get(name).map(|v| v.as_str().to_owned());
    if message.subject.as_str() == REPORTS_SUBJECT {
        return Some(serde_json::to_vec(&report()).unwrap());
    }
    let input = String::from_utf8(message.payload.to_vec()).unwrap();
    let failed = |temporary, retry_after_ms| PluginReply::Failed {
        code: "no_name".to_owned(),
        message: "It has no name.".to_owned(),
        temporary,
        retry_after_ms,
        details: Some(raw(r#"{"field":"name"}"#)),
    };
    let reply = match called_function(message.subject.as_str())? {
        "greet" => PluginReply::Output(raw(&input)),
        "tell" => {
            let timeout = says("Flexcore-Timeout-Ms").unwrap().parse::<u64>().unwrap();
            let told = json!({
                "tenant": says(header::TENANT), "actor": says(field::ACTOR),
                "key": says(field::OWN_COMMAND_ID), "is_traced": says(field::TRACEPARENT).is_some(),
                "waits_as_asked": (4_000..=5_000).contains(&timeout),
            });
            PluginReply::Output(raw(&told.to_string()))
        }
        "my.v1.Greeter/Greet" => PluginReply::Output(raw("1")),
        "fails" => failed(false, 0),
        "passes" => failed(true, 1_500),
        "garbles" => return Some(b"{".to_vec()),
        "silent" => return None,
        other => {
            // Any other word is that of a refusal.
            let refusal: PluginRefusal = serde_json::from_value(json!(other)).unwrap();
            PluginReply::refused(refusal, "secret host")
        }
    };
    Some(serde_json::to_vec(&reply).unwrap())
}

fn report() -> PluginReport {
    let function = PluginFunction {
        name: "greet".to_owned(),
        summary: "Greets.".to_owned(),
        input_schema: Some(raw(r#"{"type":"object"}"#)),
        output_schema: None,
        idempotent: true,
    };
    let status = PluginStatus {
        name: Name::parse("greeter").unwrap(),
        number: 1,
        version: "0.1.0".to_owned(),
        state: "ready".to_owned(),
        instances: 1,
        ready: 1,
        restarts: 0,
        calls: 3,
        errors: 0,
        under_way: 0,
        p50_ms: 0.5,
        p99_ms: 1.5,
        memory_bytes: 1,
        reason: None,
        description: Some(PluginDescription { functions: vec![function], decides: false }),
        sandbox: vec![],
    };
    PluginReport { member: "worker-1".to_owned(), plugins: vec![status] }
}

async fn call(gateway: &Gateway, path: &str, more: &str, body: &str) -> Answer {
    let headers = format!("{}{JSON}{more}", bearer());
    gateway.send("POST", &format!("/v1/plugins/{path}"), &headers, body).await
}

/// As a token of the platform sees it.
async fn get_as_platform(gateway: &Gateway, path: &str) -> Value {
    let token = token("flexcore", Duration::from_secs(60));
    let header = format!("Authorization: Bearer {token}\r\n");
    gateway.send("GET", path, &header, "").await.json()
}

async fn shows_plugins(gateway: &Gateway) {
    let list = gateway.get("/v1/plugins").await;
    let greeter = json!({"name": "greeter", "version": "0.1.0", "number": 1, "state": "ready"});
    assert_eq!((list.status, list.json()), (200, json!({ "plugins": [greeter] })));
    let one = gateway.get("/v1/plugins/greeter").await.json();
    let function = &one["functions"][0];
    assert_eq!((&function["name"], &function["idempotent"]), (&"greet".into(), &true.into()));
    assert_eq!(function["input_schema"]["type"], "object");
    assert!(one.get("workers").is_none(), "{one}");
    let hidden = gateway.get("/v1/plugins/hidden").await.problem(404, "unknown-plugin");
    assert_eq!(hidden["known"], json!(["greeter"]));
    let all = get_as_platform(gateway, "/v1/plugins").await;
    assert_eq!(all["plugins"][0]["workers"][0]["member"], "worker-1");
    assert_eq!(all["plugins"][1]["name"], "hidden");
    assert_eq!(all["plugins"][1]["state"], "away");
    gateway.get("/v1/plugins?x=1").await.problem(400, "invalid-parameter");
    gateway.get("/v1/plugins/Greeter").await.problem(400, "invalid-name");
    gateway.send("GET", "/v1/plugins", "", "").await.problem(401, "unauthenticated");
}

async fn says_on_whose_behalf(gateway: &Gateway) {
    let more = "Idempotency-Key: k-1\r\nFlexcore-Timeout-Ms: 5000\r\n";
    let told = call(gateway, "greeter/tell", more, "null").await;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.header("idempotency-key"), Some("k-1"));
    let expected = json!({
        "tenant": "acme", "actor": "alice", "key": "k-1", "is_traced": true, "waits_as_asked": true,
    });
    assert_eq!(told.json(), expected);
    let made = call(gateway, "greeter/tell", "Flexcore-Timeout-Ms: 5000\r\n", "null").await;
    assert_eq!(made.header("idempotency-key"), made.json()["key"].as_str());
    let method = call(gateway, "greeter/my.v1.Greeter%2FGreet", "", "{}").await;
    assert_eq!((method.status, method.body.as_str()), (200, "1"));
}

async fn says_what_went_wrong(gateway: &Gateway) {
    let failed = call(gateway, "greeter/fails", "", "{}").await;
    let told = failed.problem(409, "plugin-failed");
    assert_eq!((&told["code"], &told["detail"]), (&"no_name".into(), &"It has no name.".into()));
    assert_eq!(told["details"]["field"], "name");
    assert!(failed.header("idempotency-key").is_some());
    let passes = call(gateway, "greeter/passes", "", "{}").await;
    passes.problem(503, "plugin-failed-for-now");
    assert_eq!(passes.header("retry-after"), Some("2"));
    for (refusal, status, code) in [
        ("unknown_function", 404, "unknown-function"),
        ("invalid_input", 422, "invalid-input"),
        ("not_for_tenant", 404, "unknown-plugin"),
        ("busy", 503, "overloaded"),
        ("away", 503, "unavailable"),
        ("late", 504, "plugin-timeout"),
        ("unknown", 503, "outcome-unknown"),
        ("faulty", 502, "plugin-faulty"),
        ("garbles", 503, "outcome-unknown"),
    ] {
        let refused = call(gateway, &format!("greeter/{refusal}"), "", "{}").await;
        refused.problem(status, code);
        assert!(status < 500 || !refused.body.contains("secret"), "{refused:?}");
    }
    let silent = call(gateway, "greeter/silent", "Flexcore-Timeout-Ms: 300\r\n", "{}").await;
    silent.problem(504, "plugin-timeout");
}

async fn refuses_bad_calls(gateway: &Gateway) {
    for body in ["", "{", "{}x"] {
        call(gateway, "greeter/greet", "", body).await.problem(400, "malformed-json");
    }
    for path in ["Greeter/greet", "greeter/a%20b", "greeter/%2A", "greeter/%3E", "greeter/a..b"] {
        call(gateway, path, "", "{}").await.problem(400, "invalid-name");
    }
    let wait = "Flexcore-Timeout-Ms: soon\r\n";
    call(gateway, "greeter/greet", wait, "{}").await.problem(400, "bad-request");
    let key = "Idempotency-Key: a b\r\n";
    call(gateway, "greeter/greet", key, "{}").await.problem(400, "invalid-header");
    call(gateway, "greeter/greet?x=1", "", "{}").await.problem(400, "invalid-parameter");
    let plain = format!("{}Content-Type: text/plain\r\n", bearer());
    let plain = gateway.send("POST", "/v1/plugins/greeter/greet", &plain, "{}").await;
    plain.problem(415, "unsupported-media-type");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_shown_and_called() {
    let gateway = start(settings()).await;
    assert_eq!(gateway.get("/v1/plugins").await.json(), json!({ "plugins": [] }));
    call(&gateway, "greeter/greet", "", "{}").await.problem(404, "unknown-plugin");
    install(&gateway, "greeter", "").await;
    install(&gateway, "hidden", "tenants: [other]\n").await;
    let nobody = call(&gateway, "greeter/greet", "", "{}").await;
    nobody.problem(503, "unavailable");
    assert_eq!(nobody.header("retry-after"), Some("1"));
    // Nor does a tenant learn which plugins others have.
    let hidden = call(&gateway, "hidden/greet", "", "{}").await.problem(404, "unknown-plugin");
    let none = call(&gateway, "none/greet", "", "{}").await.problem(404, "unknown-plugin");
    assert_eq!(hidden["detail"], none["detail"]);
    work(&gateway).await;
    tokio::time::sleep(limits::PLUGINS_AGE).await;
    shows_plugins(&gateway).await;
    says_on_whose_behalf(&gateway).await;
    says_what_went_wrong(&gateway).await;
    refuses_bad_calls(&gateway).await;
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_input_reaches_its_plugin_and_the_largest_output_comes_back() {
    let gateway = start(settings()).await;
    work(&gateway).await;
    let largest = format!("\"{}\"", "x".repeat(INPUT_BYTES_MAX - 2));
    let answer = call(&gateway, "greeter/greet", "", &largest).await;
    assert_eq!((answer.status, answer.body == largest), (200, true));
    let larger = format!("{largest} ");
    let refused = call(&gateway, "greeter/greet", "", &larger).await;
    refused.problem(413, "payload-too-large");
    gateway.servers.stop().await;
}
