//! Servers that die: the roles as processes of their own, a broker and a Postgres that are killed
//! under them and started again.

use std::{path::Path, sync::Arc, time::Duration};

use flexcore_auth::Verifier;
use flexcore_cluster::Member;
use flexcore_eventstore::{EventStore, Profile};
use flexcore_installation::{Installation, Roles};
use flexcore_readmodel::ReadModels;
use flexcore_servers::{Options, Servers, Sync, Want};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Http,
    cluster::{Cluster, free_address},
    eventually,
    load::{self, Load},
    process::{Process, cache, flexcore, folder, texts},
    seed,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_die_under_load_lose_nothing() {
    let seed = seed("faults");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new().await;
    // Down at the start: the roles wait, and say what for.
    cluster.servers.nats.kill().await.unwrap();
    cluster.servers.postgres.as_mut().unwrap().kill().await.unwrap();
    cluster.start("gateway", "gateway");
    cluster.start("worker", "worker");
    eventually("the roles to say what they wait for", async || {
        let waiting =
            cluster.roles.iter().all(|role| role.log().contains("waiting for the servers"));
        if waiting { Ok(()) } else { Err(cluster.tails()) }
    })
    .await;
    cluster.servers.nats.start_again().await.unwrap();
    cluster.servers.postgres.as_mut().unwrap().start_again().await.unwrap();
    cluster.readiness("ready", "").await;
    cluster.deploy_bank().await;
    let target = cluster.target();
    load::open(&target).await;
    let load = Load::start(seed, 6, 2, target);
    for round in 0..6 {
        load.goes_on(20).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
        let down = Duration::from_millis(random.random_range(100..1_500));
        if round % 2 == 0 {
            cluster.servers.nats.kill().await.unwrap();
            if round == 0 {
                cluster.readiness("not ready", "nats").await;
            }
            tokio::time::sleep(down).await;
            cluster.servers.nats.start_again().await.unwrap();
        } else {
            cluster.servers.postgres.as_mut().unwrap().kill().await.unwrap();
            if round == 1 {
                cluster.readiness("degraded", "postgres").await;
            }
            tokio::time::sleep(down).await;
            cluster.servers.postgres.as_mut().unwrap().start_again().await.unwrap();
        }
        cluster.readiness("ready", "").await;
    }
    load.goes_on(20).await;
    let history = load.finish().await;
    let accepted =
        history.iter().filter(|sent| matches!(sent.fate, load::Fate::Accepted(_))).count();
    assert!(accepted > 100, "there was load: {accepted}");
    cluster.place().check(&history).await;
    for role in &mut cluster.roles {
        role.terminate();
    }
}

/// What balancers and alarms are told of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_told_by_health_and_metrics_until_there_is_room() {
    let mut cluster = Cluster::new().await;
    cluster.start("gateway", "gateway");
    cluster.readiness("ready", "").await;
    let client = async_nats::connect(cluster.servers.nats_url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let (name, subjects) = ("FILLER".to_owned(), vec!["filler".to_owned()]);
    let filler = async_nats::jetstream::stream::Config { name, subjects, ..Default::default() };
    jetstream.create_stream(filler).await.unwrap();
    for _ in 0..10 {
        let stored = jetstream.publish("filler", vec![b'x'; 900_000].into()).await.unwrap();
        stored.await.unwrap();
    }
    let gateway = Http::new(&cluster.target().http, "");
    let alarm = async |full: &str| {
        eventually("the metric", async || {
            let answer = gateway.try_send("GET", "/metrics", &[], "").await?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let said = text.lines().any(|line| line == format!("flexcore_broker_full {full}"));
            if said { Ok(()) } else { Err(text) }
        })
        .await;
    };
    alarm("0").await;
    // Less than a tenth of it is left.
    cluster.servers.nats.start_again_with_room(9_900_000).await.unwrap();
    cluster.readiness("degraded", "storage").await;
    alarm("1").await;
    cluster.servers.nats.raise_room(64 << 30).unwrap();
    cluster.readiness("ready", "").await;
    alarm("0").await;
}

/// The names of the log's aggregates fill it, until the kernel kills the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_nears_the_limit_of_its_memory_is_told_by_health_metrics_and_log() {
    let mut cluster = Cluster::new().await;
    let metrics = free_address();
    cluster.start("gateway", "gateway");
    cluster.start_with("worker", "worker", &["--metrics-http", &metrics]);
    cluster.readiness("ready", "").await;
    // It takes more than three quarters of this as soon as it runs.
    cluster.servers.nats.start_again_with_memory(16 << 20).await.unwrap();
    cluster.readiness("degraded", "memory").await;
    let worker = Http::new(&metrics, "");
    let told = async |is_near: u8| {
        let alarm = format!("flexcore_capacity_alarm{{limit=\"memory\"}} {is_near}");
        eventually("the alarm", async || {
            let answer = worker.try_send("GET", "/metrics", &[], "").await?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            if text.lines().any(|line| line == alarm) { Ok(text) } else { Err(text) }
        })
        .await
    };
    assert!(told(1).await.contains("} 16777216"), "the server's limit");
    eventually("the worker's word on it", async || {
        let log = cluster.roles[1].log();
        if log.contains("a server nears the limit of its memory") { Ok(()) } else { Err(log) }
    })
    .await;
    cluster.servers.nats.start_again_with_memory(8 << 30).await.unwrap();
    cluster.readiness("ready", "").await;
    told(0).await;
}

/// It once went on by what had been deployed so far, beside others that knew better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_hears_of_no_deployment_any_more_ends() {
    let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let membership = flexcore_cluster::Settings::new("test", "gateway", []);
    let member = Member::join(&client, membership).await.unwrap();
    let settings = flexcore_eventstore::Settings {
        profile: Profile::Relaxed,
        replicas: 1,
        monitor_urls: Vec::new(),
    };
    let store = EventStore::open(client, settings).await.unwrap();
    let nowhere = "postgres://nobody:nothing@127.0.0.1:1/none";
    let read_models = ReadModels::connect(nowhere, Default::default()).await.unwrap();
    let (deployed, catalog) = tokio::sync::watch::channel(Arc::default());
    let (_installed, plugins) = tokio::sync::watch::channel(Arc::default());
    let ended = Default::default();
    let installation = Installation { store, read_models, catalog, plugins, member, ended };
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let verifier = Verifier::new(Vec::new(), "flexcore", "flexcore");
    let mut roles = Roles::new(CancellationToken::new());
    roles.gateway(&installation, http, None, verifier, Arc::new(String::new));
    let ended = tokio::spawn(roles.ended());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!ended.is_finished());
    drop(deployed);
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("not followed any more"));
    servers.stop().await;
}

#[tokio::test]
async fn a_broker_that_does_not_sync_is_refused_under_power_loss() {
    let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let folder = folder();
    let run = async |monitor: &[&str], profile: &str| {
        let mut command = flexcore();
        command.args(["worker", "command", "--postgres", "postgres://127.0.0.1:1/none"]);
        command.args(["--nats", &servers.nats_url(), "--profile", profile]).args(monitor);
        command.arg("--data").arg(folder.path());
        let log = folder.path().join(format!("{profile}.log"));
        let mut worker = Process::start(command, &log, Path::new(""));
        eventually("the worker to refuse or to go on", async || match worker.ended() {
            Some(status) => Ok((Some(status), worker.log())),
            None if worker.log().contains("waiting for the servers") => Ok((None, worker.log())),
            None => Err(worker.log()),
        })
        .await
    };
    let monitor = servers.nats_monitor_url();
    let (status, log) = run(&["--nats-monitor", &monitor], "power-loss").await;
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{log}");
    assert!(log.contains("does not sync") && log.contains("sync_interval: always"), "{log}");
    let (status, log) = run(&[], "power-loss").await;
    assert_eq!(status.and_then(|status| status.code()), Some(1), "what can't be checked: {log}");
    assert!(log.contains("--nats-monitor"), "{log}");
    // With the other profile it goes on, says what that means, and waits for Postgres.
    let (status, log) = run(&[], "relaxed").await;
    assert!(status.is_none() && log.contains("may be lost in a power cut"), "{log}");
    servers.stop().await;
}

#[tokio::test]
async fn without_servers_a_tool_says_what_to_do() {
    let folder = folder();
    for arguments in [["verify", "--json"], ["query", "flights"], ["dead", "list"]] {
        let mut command = flexcore();
        let output = command.arg("--data").arg(folder.path()).args(arguments).output().unwrap();
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {out}");
        assert!(err.contains("flexcore dev") && !err.contains("panicked"), "{arguments:?}: {err}");
    }
    assert_eq!(
        json!(std::fs::read_dir(folder.path()).unwrap().count()),
        json!(0),
        "nothing is made"
    );
}
