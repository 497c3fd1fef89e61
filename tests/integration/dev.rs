//! `flexcore dev`: its messages when it serves, its end, and the files that it leaves behind.

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

/// A log that was put away, and an older backup of it, once got half of their rows beside ghosts of the
/// old ones, with all lights green.
#[tokio::test]
async fn rows_of_another_log_are_refused_and_built_from_this_one_when_asked() {
    let mut dev = Dev::start(&[]);
    app::deploy_bank(&dev);
    let open = async |dev: &Dev, id: &str| {
        let http = dev.http("demo");
        let opened = http.command(id, "open", &[], r#"{"owner":"A","team":"red"}"#).await;
        opened.ok()["position"].as_str().unwrap().to_owned()
    };
    let at = open(&dev, "a-1").await;
    dev.http("demo").rows(&format!("/v1/query/accounts?min_position={at}")).await;
    assert!(dev.run(&["verify"]).status.success());
    dev.terminate();
    let (log, aside) = (dev.data().join("nats"), dev.data().join("nats-aside"));
    std::fs::rename(&log, &aside).unwrap();
    dev.start_again();
    app::deploy(&dev, &app::bank());
    let http = dev.http("demo");
    let ready = eventually("a readiness that tells", async || {
        let ready = http.get("/readyz").await.ok();
        if ready["status"] == "degraded" { Ok(ready) } else { Err(ready.to_string()) }
    })
    .await;
    let why = ready["missing"][0]["why"].as_str().unwrap();
    assert!(why.contains("flexcore rebuild --from-this-log"), "{ready}");
    eventually("queries to be refused", async || match http.get("/v1/query/accounts").await {
        refused if refused.status == 503 => Ok(()),
        rows => Err(format!("{rows:?}")),
    })
    .await;
    let verified = dev.run(&["verify"]);
    assert!(!verified.status.success());
    assert!(texts(&verified).0.contains("ROWS OF ANOTHER LOG"), "{verified:?}");
    assert!(texts(&dev.run(&["doctor"])).0.contains("of another log"));

    let at = open(&dev, "b-1").await;
    let adopted = dev.succeed(&["rebuild", "--from-this-log"]);
    assert!(adopted.contains("2 read models dropped"), "{adopted}");
    let read = format!("/v1/query/accounts?min_position={at}&fields=account");
    let rows = eventually("rows of this log", async || match http.get(&read).await {
        answer if answer.status == 200 => Ok(answer.json()["rows"].clone()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    assert_eq!(rows, json!([{"account": "b-1"}]), "and no ghosts");
    eventually("readiness", async || match http.get("/readyz").await.ok() {
        ready if ready == json!({"status": "ready"}) => Ok(()),
        ready => Err(ready.to_string()),
    })
    .await;
    assert!(dev.run(&["verify"]).status.success());
}
