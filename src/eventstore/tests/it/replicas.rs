//! The log on three brokers, one of which is behind.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use flexcore_domain::AggregateKey;
use flexcore_eventstore::{EventStore, Expected, Profile, Settings, subject, topology};
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
/// Between two looks whether something has come about.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// Aggregates with a commit that the paused broker does not have.
const AGGREGATES: usize = 16;
/// Times that a broker is paused, until it was behind when it went on.
const ROUNDS_MAX: u64 = 10;

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
        tokio::time::sleep(LOOK_AFTER).await;
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
        tokio::time::sleep(LOOK_AFTER).await;
    }
}

/// Stream sequence of the aggregate's last commit as the broker has it that answers; 0: none.
async fn last_by_direct_get(store: &EventStore, key: &AggregateKey) -> u64 {
    let to = format!("$JS.API.DIRECT.GET.{}.{}", topology::EVENTS, subject(key));
    let answer = store.client().request(to, "".into()).await.unwrap();
    let sequence = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Sequence"));
    sequence.map_or(0, |sequence| sequence.as_str().parse().unwrap())
}

/// A broker answers direct gets from its own copy, which may be behind: after a restart, or by as
/// much as the time to the next heartbeat. A decision on that refuses commands that are in the log
/// already.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_has_every_commit_that_was_acknowledged_whichever_broker_is_asked() {
    let (sync, want) = (Sync::Lazy, Want::Nats);
    let options = Options { nats_servers: 3, sync, want, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let all: Vec<&Nats> = servers.nats_all().collect();
    let any = store_at(&all).await;
    for server in &all {
        answers_direct_gets(server).await;
    }
    let mut lasts = vec![Expected::default(); AGGREGATES];
    for version in 1.. {
        assert!(version <= ROUNDS_MAX, "no broker was ever behind");
        let log = any.jetstream().get_stream(topology::EVENTS).await.unwrap();
        let leader = log.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
        let (ours, others): (Vec<_>, Vec<_>) =
            (0..3).partition(|number| format!("flexcore-{number}") == leader);
        let behind = all[others[0]];
        let others = store_at(&[all[ours[0]], all[others[1]]]).await;
        let asks = store_at(&[behind]).await;
        signal(behind, "STOP");
        let appends = lasts.iter().enumerate().map(async |(number, last)| {
            let mut next = commit(&format!("A{number}"));
            next.events[0].version = version;
            let appended = others.append(&next, *last).await.unwrap();
            Expected { sequence: appended.sequence, hash: appended.hash }
        });
        lasts = join_all(appends).await;
        // All of it waits in its socket, beside what the others have sent, which has further to go.
        let keys: Vec<_> = (0..AGGREGATES).map(|number| key(&format!("A{number}"))).collect();
        let asked = tokio::spawn(async move {
            let of = async |key| tokio::join!(last_by_direct_get(&asks, key), asks.load(key, 0));
            join_all(keys.iter().map(of)).await
        });
        tokio::time::sleep(PAUSE).await;
        signal(behind, "CONT");
        let answers = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
        let (direct, loaded): (Vec<u64>, Vec<_>) = answers.into_iter().unzip();
        for commits in loaded {
            assert_eq!(commits.unwrap().len() as u64, version);
        }
        if direct.iter().zip(&lasts).any(|(sequence, last)| *sequence < last.sequence) {
            break;
        }
    }
    servers.stop().await;
}
