//! `flexcore dev`: what it says when it serves, how it ends, and what it leaves behind.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    Dev, app, eventually,
    process::{descendants, flexcore, is_alive, texts, wait_until},
};

#[tokio::test]
async fn the_ready_file_leads_to_everything() {
    let dev = Dev::shared();
    let ready = &dev.ready;
    let mode = std::fs::metadata(dev.ready_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a token");
    assert_eq!(ready.tenant, "demo");
    let key = std::fs::read_to_string(&ready.signing_key).unwrap();
    assert!(ready.signing_key.is_absolute() && key.contains("PRIVATE KEY"));
    let http = crate::support::Http::new(&ready.http, &ready.token);
    assert_eq!(http.get("/readyz").await.ok(), json!({"status": "ready"}));
    assert_eq!(http.get("/v1/query/accounts?limit=1").await.status, 200, "the token is good");
    let nats = async_nats::connect(&ready.nats).await.unwrap();
    let jetstream = async_nats::jetstream::new(nats);
    let stream = jetstream.get_stream("FLEX_EVENTS").await.unwrap();
    let config = &stream.cached_info().config;
    assert!(config.deny_delete && config.deny_purge);
    let monitor = crate::support::Http::new(&ready.nats_monitor, "");
    let varz = monitor.get("/varz").await.ok();
    assert_eq!(varz["jetstream"]["config"]["sync_always"], json!(true));
    let mut sql = PgConnection::connect(&ready.postgres).await.unwrap();
    sqlx::query("select 1 from rm.accounts limit 1").execute(&mut sql).await.unwrap();
}

#[tokio::test]
async fn sigterm_ends_it_whole_and_a_restart_keeps_everything() {
    let mut dev = Dev::start(&[]);
    app::deploy_bank(&dev);
    let http = dev.http("demo");
    http.command("a-1", "open", &[], r#"{"owner":"Ann","team":"red"}"#).await.ok();
    let deposited = http.command("a-1", "deposit", &[], r#"{"amount":7}"#).await.ok();
    let position = deposited["position"].as_str().unwrap();
    let rows = http.rows(&format!("/v1/query/accounts?min_position={position}")).await;
    let events = http.get("/v1/aggregates/account/a-1/events").await.ok();
    let children = descendants(dev.pid());
    assert!(children.len() >= 2, "nats-server and Postgres at least: {children:?}");
    dev.terminate();
    assert!(!dev.ready_file().exists(), "nobody is ready any more");
    let left: Vec<u32> = children.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert_eq!(left, [0; 0], "processes are left");

    dev.start_again();
    let http = dev.http("demo");
    let again = http.rows(&format!("/v1/query/accounts?min_position={position}")).await;
    assert_eq!(again, rows);
    assert_eq!(again[0]["deposited"], json!(7));
    assert_eq!(http.get("/v1/aggregates/account/a-1/events").await.ok(), events);
    let state = http.get("/v1/aggregates/account/a-1").await;
    assert_eq!((state.header("etag"), &state.ok()["state"]["balance"]), ("\"2\"", &json!(7)));
    let more = http.command("a-1", "deposit", &[("if-match", "\"2\"")], r#"{"amount":1}"#).await;
    assert_eq!(more.ok()["version"], json!(3), "the application is still in force");
}

#[tokio::test]
async fn a_second_one_on_the_same_data_is_refused_and_harms_nobody() {
    let dev = Dev::shared();
    let mut second = flexcore();
    second.arg("dev").arg("--data").arg(dev.data());
    let output = tokio::task::spawn_blocking(move || second.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (_, err) = texts(&output);
    assert!(err.contains("in use") && err.contains("another flexcore runs"), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    assert_eq!(dev.http("demo").get("/readyz").await.status, 200);
    assert!(dev.ready_file().exists() && dev.data().join("dev.json").exists());
}

#[tokio::test]
async fn sigkill_leaves_no_server_behind() {
    let mut dev = Dev::start(&[]);
    let children = descendants(dev.pid());
    let nats = dev.nats().await;
    dev.kill();
    wait_until("servers gone", || !children.iter().any(|pid| is_alive(*pid)));
    eventually("the broker's port to be closed", async || match nats.connection_state() {
        async_nats::connection::State::Connected => Err("still connected".to_owned()),
        _ => Ok(()),
    })
    .await;
}
