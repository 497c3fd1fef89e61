//! The log on three brokers, one of which is behind.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use flexcore_eventstore::{EventStore, Expected, Profile, Settings, topology};
use flexcore_servers::{Nats, Options, Servers, Sync, Want};
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{PATIENCE, broker::commit, cache, key};

/// Three brokers are one cluster within this time, and each answers direct gets some seconds later.
const CLUSTER_WITHIN: Duration = Duration::from_secs(60);
/// Long enough for the others to go on without the one that is paused, and short enough for nobody to
/// be taken for dead.
const PAUSE: Duration = Duration::from_millis(300);
/// Aggregates with a commit that the paused broker does not have.
const AGGREGATES: usize = 16;

fn signal(server: &Nats, name: &str) {
    let pid = server.pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// The log, over a connection to these brokers alone.
async fn store_at(servers: &[&Nats]) -> EventStore {
    let urls: Vec<String> = servers.iter().map(|server| server.url()).collect();
    let options = async_nats::ConnectOptions::new().ignore_discovered_servers();
    let client = options.connect(urls).await.unwrap();
    let settings = Settings { profile: Profile::Relaxed, replicas: 3, monitor_urls: Vec::new() };
    let began = Instant::now();
    loop {
        match EventStore::open(client.clone(), settings.clone()).await {
            Ok(store) => return store,
            // Brokers that have just been started elect a leader first.
            Err(error) => assert!(began.elapsed() < CLUSTER_WITHIN, "{error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns once the broker answers direct gets by itself. Until then it passes them on.
async fn answers_direct_gets(server: &Nats) {
    let host = server.monitor_url().replace("http://", "");
    let subject = format!("$JS.API.DIRECT.GET.{}", topology::EVENTS);
    let began = Instant::now();
    loop {
        let mut stream = TcpStream::connect(&host).await.unwrap();
        let ask = format!("GET /subsz?subs=1&limit=10000&test={subject} HTTP/1.0\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        if answer.contains(&format!("\"subject\": \"{subject}\"")) {
            return;
        }
        assert!(began.elapsed() < CLUSTER_WITHIN, "{answer}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// A broker answers direct gets from its own copy, which may be behind: after a restart, or by as much
/// as the time to the next heartbeat. Whoever decides on that refuses what is in the log already.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_has_every_commit_that_was_acknowledged_whichever_broker_is_asked() {
    let (sync, want) = (Sync::Lazy, Want::Nats);
    let options = Options { nats_servers: 3, sync, want, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let all: Vec<&Nats> = servers.nats_all().collect();
    let any = store_at(&all).await;
    let log = any.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let leader = log.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
    let behind = (0..3).find(|number| format!("flexcore-{number}") != leader).unwrap();
    let others: Vec<&Nats> = (0..3).filter(|number| *number != behind).map(|n| all[n]).collect();
    let (behind, others) = (all[behind], store_at(&others).await);
    let asks = store_at(&[behind]).await;
    answers_direct_gets(behind).await;

    let keys: Vec<_> = (0..AGGREGATES).map(|number| key(&format!("A{number}"))).collect();
    let append = async |number: usize, version: u64, expected: Expected| {
        let mut next = commit(&format!("A{number}"));
        next.events[0].version = version;
        let appended = others.append(&next, expected).await.unwrap();
        Expected { sequence: appended.sequence, hash: appended.hash }
    };
    let firsts = join_all((0..AGGREGATES).map(|n| append(n, 1, Expected::default()))).await;
    assert!(asks.load(&keys[0], 0).await.unwrap().len() == 1);
    signal(behind, "STOP");
    let seconds = firsts.into_iter().enumerate().map(|(n, first)| append(n, 2, first));
    join_all(seconds).await;
    // They wait in its socket, beside what the others have sent, which has further to go.
    let loads = tokio::spawn(async move { join_all(keys.iter().map(|k| asks.load(k, 0))).await });
    tokio::time::sleep(PAUSE).await;
    signal(behind, "CONT");
    let loaded = tokio::time::timeout(PATIENCE, loads).await.unwrap().unwrap();
    let counts: Vec<usize> = loaded.into_iter().map(|commits| commits.unwrap().len()).collect();
    assert_eq!(counts, vec![2; AGGREGATES]);
    servers.stop().await;
}
