//! Plugins, installed and managed over HTTP. No worker runs them.

use std::time::Duration;

use flexcore_definition::{Application, SourceFile};
use flexcore_domain::{ActorName, Name};
use flexcore_eventstore::catalog;
use serde_json::json;

use crate::{
    JSON,
    support::{Answer, Gateway, bearer, settings, start, token},
};

const FORM: &str = "Content-Type: multipart/form-data; boundary=x\r\n";

fn form(manifest: &str, file: &str) -> String {
    let part = |name: &str, data: &str| {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{data}\r\n")
    };
    format!("{}{}--x--\r\n", part("manifest", manifest), part("file", file))
}

fn manifest(version: &str) -> String {
    format!("name: greeter\nversion: {version}\nfile: it\n")
}

/// As a token of the platform.
async fn as_platform(gateway: &Gateway, asked: (&str, &str), more: &str, body: &str) -> Answer {
    let token = token("flexcore", Duration::from_secs(60));
    let headers = format!("Authorization: Bearer {token}\r\n{more}");
    gateway.send(asked.0, asked.1, &headers, body).await
}

async fn put(gateway: &Gateway, manifest: &str, file: &str) -> Answer {
    as_platform(gateway, ("PUT", "/v1/plugins/greeter"), FORM, &form(manifest, file)).await
}

/// Deploys an application whose commands the plugin decides.
async fn needs_it(gateway: &Gateway) {
    let text = "aggregate: quote\ncommands:\n  ask: { decide: { plugin: greeter } }\nevents:\n  \
                asked: { evolve: (state) => state }\n";
    let file = SourceFile { path: "quote.yaml".to_owned(), text: text.to_owned() };
    let application = Application::read(Name::parse("quotes").unwrap(), vec![file]).unwrap();
    let before = catalog::deployment(&gateway.store, &application.name).await.unwrap();
    let actor = ActorName::parse("alice").unwrap();
    catalog::deploy(&gateway.store, &application, &before, &actor, 1).await.unwrap();
}

async fn is_for_the_platform_alone(gateway: &Gateway) {
    let whole = form(&manifest("0.1.0"), "#!/bin/sh\n");
    for (method, path, more, body) in [
        ("PUT", "/v1/plugins/greeter", FORM, whole.as_str()),
        ("POST", "/v1/plugins/greeter", JSON, "{\"do\":\"restart\"}"),
        ("DELETE", "/v1/plugins/greeter", "", ""),
        ("GET", "/v1/plugin-logs/greeter", "", ""),
    ] {
        let headers = format!("{}{more}", bearer());
        let refused = gateway.send(method, path, &headers, body).await;
        refused.problem(403, "forbidden");
        gateway.send(method, path, more, body).await.problem(401, "unauthenticated");
    }
}

async fn installs_and_upgrades(gateway: &Gateway) {
    let first = put(gateway, &manifest("0.1.0"), "#!/bin/sh\n").await;
    assert_eq!(first.status, 200, "{first:?}");
    let first = first.json();
    assert_eq!((&first["number"], &first["bytes"]), (&json!(1), &json!(10)));
    assert_eq!((&first["is_new"], &first["former_version"]), (&json!(true), &json!(null)));
    assert_eq!(first["picked_up_ms"], json!(null), "no worker is there: {first}");
    let same = put(gateway, &manifest("0.1.0"), "#!/bin/sh\n").await.json();
    assert_eq!((&same["number"], &same["is_new"]), (&json!(1), &json!(false)));
    let second = put(gateway, &manifest("0.2.0"), "#!/bin/sh\n").await.json();
    assert_eq!((&second["number"], &second["former_version"]), (&json!(2), &json!("0.1.0")));
    let restart =
        as_platform(gateway, ("POST", "/v1/plugins/greeter"), JSON, "{\"do\":\"restart\"}");
    assert_eq!(restart.await.json(), json!({"name": "greeter", "number": 3}));
    let lines = as_platform(gateway, ("GET", "/v1/plugin-logs/greeter"), "", "").await;
    assert_eq!(lines.json(), json!({ "lines": [] }));
}

async fn refuses_what_is_wrong(gateway: &Gateway) {
    let other = put(gateway, "name: other\nversion: 0.1.0\nfile: it\n", "").await;
    let told = other.problem(422, "invalid-manifest");
    assert!(told["detail"].as_str().unwrap().contains("name is other"), "{told}");
    let wrong = put(gateway, "name: greeter\nversion: 0.1.0\nfile: ../it\nfoo: 1\n", "").await;
    let errors = wrong.problem(422, "invalid-manifest")["errors"].to_string();
    for line in ["plugin.yaml:3", "plugin.yaml:4"] {
        assert!(errors.contains(line), "{line}: {errors}");
    }
    let plugin = ("PUT", "/v1/plugins/greeter");
    as_platform(gateway, plugin, FORM, "--x--\r\n").await.problem(422, "invalid-manifest");
    as_platform(gateway, plugin, FORM, "--x\r\n").await.problem(400, "bad-request");
    as_platform(gateway, plugin, JSON, "{}").await.problem(415, "unsupported-media-type");
    let upper = ("PUT", "/v1/plugins/Greeter");
    as_platform(gateway, upper, FORM, "").await.problem(400, "invalid-name");
    let large = format!("{FORM}Content-Length: {}\r\n", 300 << 20);
    let headers =
        format!("Authorization: Bearer {}\r\n{large}", token("flexcore", Duration::from_secs(60)));
    let request = format!(
        "PUT /v1/plugins/greeter HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
    );
    gateway.raw(request.as_bytes()).await.problem(413, "payload-too-large");
    for body in ["", "{", "{}", "{\"do\":\"stop\"}", "{\"do\":\"restart\",\"now\":true}"] {
        let refused = as_platform(gateway, ("POST", "/v1/plugins/greeter"), JSON, body).await;
        refused.problem(400, "malformed-json");
    }
    let restart = "{\"do\":\"restart\"}";
    let none = as_platform(gateway, ("POST", "/v1/plugins/none"), JSON, restart).await;
    none.problem(404, "unknown-plugin");
    let none = as_platform(gateway, ("GET", "/v1/plugin-logs/none"), "", "").await;
    none.problem(404, "unknown-plugin");
}

async fn removes_what_nobody_needs(gateway: &Gateway) {
    let plugin = "/v1/plugins/greeter";
    let wrong = as_platform(gateway, ("DELETE", "/v1/plugins/greeter?force=perhaps"), "", "").await;
    wrong.problem(400, "invalid-parameter");
    needs_it(gateway).await;
    let needed = as_platform(gateway, ("DELETE", plugin), "", "").await;
    let told = needed.problem(409, "plugin-needed");
    assert!(told["detail"].as_str().unwrap().contains("quotes (quote.yaml:3)"), "{told}");
    let forced = as_platform(gateway, ("DELETE", "/v1/plugins/greeter?force=true"), "", "").await;
    assert_eq!(forced.json(), json!({"name": "greeter", "removed": true}));
    as_platform(gateway, ("DELETE", plugin), "", "").await.problem(404, "unknown-plugin");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_managed_by_the_platform() {
    let gateway = start(settings()).await;
    is_for_the_platform_alone(&gateway).await;
    installs_and_upgrades(&gateway).await;
    refuses_what_is_wrong(&gateway).await;
    removes_what_nobody_needs(&gateway).await;
    gateway.servers.stop().await;
}
