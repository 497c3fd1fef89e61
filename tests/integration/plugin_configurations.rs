//! Configurations of plugins' tenants, secrets included: set, checked, sealed, given to the plugin, shown and removed.

use std::{fs, path::Path, process::Output};

use async_nats::jetstream;
use flexcore_domain::plugin_configuration::{CONFIGURATION_BYTES_MAX, MASK};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Answer, Dev, Http, eventually, process::texts};

const STREAM: &str = "KV_flex_plugin_configurations";
const SECRET: &str = "5ecret-t0ken";

/// The plugin of the SDK's tests under this name, installed and ready.
async fn installed(dev: &Dev, name: &str) -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let manifest = format!("name: {name}\nversion: 0.1.0\nfile: lab\n");
    fs::write(folder.path().join("plugin.yaml"), manifest).unwrap();
    let own = Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-sdk-lab");
    let file = folder.path().join("lab");
    fs::hard_link(&own, &file).or_else(|_| fs::copy(&own, &file).map(drop)).unwrap();
    dev.json(&["plugin", "install", folder.path().to_str().unwrap(), "--json"]);
    eventually("the plugin to be ready", async || {
        let output = dev.run_async(&["plugin", "show", name, "--json"]).await;
        if output.status.success() { Ok(()) } else { Err(texts(&output).1) }
    })
    .await;
    folder
}

/// Sets a configuration by the command line.
async fn configure(dev: &Dev, name: &str, tenant: &str, configuration: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("configuration.json");
    fs::write(&file, configuration).unwrap();
    let path = file.to_str().unwrap();
    dev.run_async(&["plugin", "configure", name, "--tenant", tenant, path]).await
}

async fn settings(http: &Http, name: &str) -> Answer {
    let headers = [("content-type", "application/json")];
    http.send("POST", &format!("/v1/plugins/{name}/settings"), &headers, "null").await
}

/// Waits until a call has this outcome: changes reach workers a moment later.
async fn until(http: &Http, name: &str, what: &str, is: impl Fn(&Answer) -> bool) {
    eventually(what, async || {
        let answer = settings(http, name).await;
        if is(&answer) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

fn is_url(answer: &Answer, url: &str) -> bool {
    answer.status == 200 && answer.json() == json!(url)
}

fn is_failure(answer: &Answer, code: &str, said: &str) -> bool {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    body["code"] == code && body["detail"].as_str().is_some_and(|detail| detail.contains(said))
}

async fn stored(dev: &Dev, key: &str) -> Vec<u8> {
    let stream = jetstream::new(dev.nats().await).get_stream(STREAM).await.unwrap();
    let subject = format!("$KV.flex_plugin_configurations.{key}");
    stream.get_last_raw_message_by_subject(&subject).await.unwrap().payload.to_vec()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_tenant_is_configured_shown_without_secrets_and_configured_no_more() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "configured").await;
    let (acme, globex) = (dev.http("acme"), dev.http("globex"));
    until(&acme, "configured", "no configuration", |answer| {
        is_failure(answer, "not_configured", "")
    })
    .await;
    let first = json!({"url": "https://one", "token": SECRET}).to_string();
    let output = configure(&dev, "configured", "acme", &first).await;
    assert!(output.status.success(), "{:?}", texts(&output));
    until(&acme, "configured", "the first one", |answer| is_url(answer, "one")).await;
    let other = settings(&globex, "configured").await;
    assert!(is_failure(&other, "not_configured", ""), "{other:?}");
    let shown = ["plugin", "configuration", "configured", "--tenant", "acme"];
    let shown: Value = dev.json(&shown);
    assert_eq!(shown, json!({"url": "https://one", "token": MASK}));
    assert!(!holds(&stored(&dev, "configured.acme").await, SECRET), "it is sealed");
    let second = json!({"url": "https://two", "token": SECRET}).to_string();
    assert!(configure(&dev, "configured", "acme", &second).await.status.success());
    until(&acme, "configured", "the second one", |answer| is_url(answer, "two")).await;
    dev.succeed(&["plugin", "restart", "configured"]);
    until(&acme, "configured", "it after a restart", |answer| is_url(answer, "two")).await;
    let removed = ["plugin", "configure", "configured", "--tenant", "acme", "--remove"];
    assert!(dev.succeed(&removed).contains("configured no more"));
    until(&acme, "configured", "its end", |answer| is_failure(answer, "not_configured", "")).await;
    assert!(dev.succeed(&removed).contains("was not configured"));
}

#[tokio::test]
async fn over_http_a_tenant_has_its_own_configuration_alone() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "own").await;
    let (acme, globex) = (dev.http("acme"), dev.http("globex"));
    let path = "/v1/plugin-configurations/own";
    let headers = [("content-type", "application/json")];
    let configuration = json!({"url": "https://a", "token": SECRET}).to_string();
    let set = acme.send("PUT", path, &headers, configuration).await.ok();
    assert_eq!(set["configuration"], json!({"url": "https://a", "token": MASK}));
    until(&acme, "own", "its configuration", |answer| is_url(answer, "a")).await;
    assert_eq!(acme.get(path).await.ok(), set);
    let others = globex.get(path).await.ok();
    assert_eq!(others["configuration"], Value::Null);
    assert_eq!(others["schema"]["properties"]["token"]["writeOnly"], json!(true));
    let wrong = json!({"url": 7, "token": SECRET}).to_string();
    let refused = acme.send("PUT", path, &headers, wrong).await;
    let problem = refused.problem(422, "invalid-input").to_string();
    assert!(problem.contains("/url") && !problem.contains(SECRET), "{problem}");
    until(&acme, "own", "the one before", |answer| is_url(answer, "a")).await;
    let unknown = acme.get("/v1/plugin-configurations/not_there").await;
    unknown.problem(404, "unknown-plugin");
    for _ in 0..2 {
        assert_eq!(acme.send("DELETE", path, &[], "").await.status, 204);
    }
    until(&acme, "own", "its end", |answer| is_failure(answer, "not_configured", "")).await;
}

/// Whoever got it, changed it and put it lost the secrets: the masks were stored and sent.
#[tokio::test]
async fn what_was_shown_and_changed_keeps_its_secrets_when_it_is_put() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "edited").await;
    let acme = dev.http("acme");
    let path = "/v1/plugin-configurations/edited";
    let put = async |configuration: Value| {
        let headers = [("content-type", "application/json")];
        acme.send("PUT", path, &headers, configuration.to_string()).await
    };
    let none = put(json!({"url": "https://a", "token": MASK})).await;
    let problem = none.problem(422, "invalid-input").to_string();
    assert!(problem.contains("/token"), "{problem}");
    put(json!({"url": "https://a", "token": SECRET})).await.ok();
    let mut shown = acme.get(path).await.ok()["configuration"].clone();
    assert_eq!(shown, json!({"url": "https://a", "token": MASK}));
    shown["url"] = json!("https://edited");
    assert_eq!(put(shown.clone()).await.ok()["configuration"], shown);
    until(&acme, "edited", "the change", |answer| is_url(answer, "edited")).await;
    let wrong = put(json!({"url": MASK, "token": MASK})).await;
    let problem = wrong.problem(422, "invalid-input").to_string();
    assert!(problem.contains("/url") && !problem.contains("/token"), "{problem}");
}

#[tokio::test]
async fn a_configuration_that_the_plugin_does_not_work_with_refuses_its_tenant_alone() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "picky").await;
    let (acme, globex) = (dev.http("acme"), dev.http("globex"));
    for (tenant, url) in [("acme", "http://plain"), ("globex", "https://b")] {
        let configuration = json!({"url": url}).to_string();
        assert!(configure(&dev, "picky", tenant, &configuration).await.status.success());
    }
    let is_refused =
        |answer: &Answer| is_failure(answer, "unconfigured", "no_https: only https is allowed");
    until(&acme, "picky", "a refusal", is_refused).await;
    until(&globex, "picky", "the other tenant", |answer| is_url(answer, "b")).await;
    let mended = json!({"url": "https://mended"}).to_string();
    assert!(configure(&dev, "picky", "acme", &mended).await.status.success());
    until(&acme, "picky", "what was mended", |answer| is_url(answer, "mended")).await;
}

#[tokio::test]
async fn what_was_sealed_for_a_tenant_opens_for_no_other() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "moved").await;
    let configuration = json!({"url": "https://a", "token": SECRET}).to_string();
    assert!(configure(&dev, "moved", "acme", &configuration).await.status.success());
    let sealed = stored(&dev, "moved.acme").await;
    let jetstream = jetstream::new(dev.nats().await);
    let subject = "$KV.flex_plugin_configurations.moved.globex";
    jetstream.publish(subject, sealed.into()).await.unwrap().await.unwrap();
    let globex = dev.http("globex");
    let is_refused = |answer: &Answer| is_failure(answer, "unconfigured", "cannot open");
    until(&globex, "moved", "a refusal", is_refused).await;
    // What to do was in the log alone, and whoever asked was told to try again.
    let shown = globex.get("/v1/plugin-configurations/moved").await.ok();
    assert!(shown["unfit"].as_str().unwrap().contains("set it again"), "{shown}");
    assert_eq!(shown["configuration"], Value::Null);
    until(&dev.http("acme"), "moved", "its own", |answer| is_url(answer, "a")).await;
}

#[tokio::test]
async fn without_the_key_of_the_workers_nothing_is_stored() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "keyless").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.json");
    fs::write(&file, json!({"url": "https://a", "token": SECRET}).to_string()).unwrap();
    let (path, other) = (file.to_str().unwrap(), "ab".repeat(32));
    let plain = ["plugin", "configure", "keyless", "--tenant", "acme", path];
    for (more, said) in [
        (["--nats", &dev.ready.nats], "has no key for secrets"),
        (["--secrets-key", &other], "sealed with another key"),
    ] {
        let output = dev.run_async(&[&plain[..], &more[..]].concat()).await;
        let (out, err) = texts(&output);
        assert!(!output.status.success() && err.contains(said), "{out}{err}");
        assert!(!err.contains(SECRET) && !err.contains(&other), "{err}");
    }
    let shown = dev.json(&["plugin", "configuration", "keyless", "--tenant", "acme", "--json"]);
    assert_eq!(shown["configuration"], Value::Null);
}

#[tokio::test]
async fn the_largest_configuration_is_taken_and_a_larger_one_is_refused() {
    let dev = Dev::shared();
    let _folder = installed(&dev, "large").await;
    let of = |bytes: usize| {
        let without = json!({"url": "https://a", "token": ""}).to_string();
        json!({"url": "https://a", "token": "x".repeat(bytes - without.len())}).to_string()
    };
    let output = configure(&dev, "large", "acme", &of(CONFIGURATION_BYTES_MAX)).await;
    assert!(output.status.success(), "{:?}", texts(&output));
    until(&dev.http("acme"), "large", "it", |answer| is_url(answer, "a")).await;
    let output = configure(&dev, "large", "acme", &of(CONFIGURATION_BYTES_MAX + 1)).await;
    assert!(!output.status.success() && texts(&output).1.contains("65536 bytes"), "{output:?}");
    let headers = [("content-type", "application/json")];
    let path = "/v1/plugin-configurations/large";
    let large = of(CONFIGURATION_BYTES_MAX + 1);
    let refused = dev.http("acme").send("PUT", path, &headers, large).await;
    refused.problem(413, "payload-too-large");
}
