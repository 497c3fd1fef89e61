//! Effects of one tenant's flood on others' dead letters, outcomes and stored commands.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_domain::{AggregateKey, CommandId, CommandName, Outcome};
use flexcore_eventstore::{Error, EventStore, Profile, Settings, topology};
use flexcore_queue::Stamp;
use futures::{TryStreamExt, future::join_all};

use crate::{PATIENCE, key_of, start};

/// Makes a stream of the log a small one.
async fn shrink(store: &EventStore, name: &str, max_bytes: i64) {
    let stream = store.jetstream().get_stream(name).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_bytes = max_bytes;
    store.jetstream().update_stream(config).await.unwrap();
}

async fn bury(store: &EventStore, tenant: &str, bytes: usize) {
    let subject = format!("cmd.{tenant}.counter.c1.add");
    let body = Bytes::from(vec![b'x'; bytes]);
    store.bury("command", "a test", &subject, None, body).await.unwrap();
}

/// Dead messages of a tenant.
async fn dead_of(store: &EventStore, tenant: &str) -> usize {
    let stream = store.jetstream().get_stream(topology::DEAD).await.unwrap();
    let subjects = stream.info_with_subjects(format!("dead.*.{tenant}.>")).await.unwrap();
    let counts: Vec<(String, usize)> = subjects.try_collect().await.unwrap();
    counts.into_iter().map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_letters_evicts_nobody_elses() {
    let (servers, store) = start().await;
    shrink(&store, topology::DEAD, 16 << 20).await;
    for _ in 0..20 {
        bury(&store, "calm", 500).await;
    }
    // Ten times what fits.
    for _ in 0..1_600 {
        bury(&store, "flood", 100 << 10).await;
    }
    assert_eq!(dead_of(&store, "calm").await, 20);
    let flood = dead_of(&store, "flood").await;
    assert!((50..160).contains(&flood), "{flood} of its last are left");
    // A message that names no possible tenant is nobody's, and has no more room than anybody.
    for _ in 0..400 {
        bury(&store, "Nobody", 100 << 10).await;
    }
    assert_eq!(dead_of(&store, "calm").await, 20);
    servers.stop().await;
}

/// A message was taken for its body alone, and one of headers for a small one: nobody had a share.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_dead_letters_count_too() {
    let (servers, store) = start().await;
    shrink(&store, topology::DEAD, 16 << 20).await;
    for _ in 0..20 {
        bury(&store, "calm", 500).await;
    }
    let mut headers = HeaderMap::new();
    for number in 0..6 {
        headers.insert(format!("X-Filler-{number}").as_str(), "x".repeat(10_000));
    }
    // Half as much again as fits.
    for _ in 0..400 {
        let (subject, body) = ("cmd.flood.counter.c1.add", Bytes::new());
        store.bury("command", "a test", subject, Some(&headers), body).await.unwrap();
    }
    assert_eq!(dead_of(&store, "calm").await, 20);
    let flood = dead_of(&store, "flood").await;
    assert!((100..270).contains(&flood), "{flood} of its last are left");
    servers.stop().await;
}

fn key(tenant: &str) -> AggregateKey {
    key_of(tenant, "c1")
}

fn id(number: usize) -> CommandId {
    CommandId::parse(&format!("c-{number}")).unwrap()
}

/// Keeps refusals of so many commands of a tenant.
async fn refuse(store: &EventStore, tenant: &str, numbers: std::ops::Range<usize>) {
    let refused = Outcome::Rejected { code: "closed".to_owned(), message: "x".repeat(100) };
    let ids: Vec<_> = numbers.map(id).collect();
    keep(store, &key(tenant), &ids, &refused).await;
}

/// Waits until this outcome has made room for others.
async fn makes_room(store: &EventStore, key: &AggregateKey, id: &CommandId) {
    let begun = Instant::now();
    while store.outcome(key, id).await.unwrap().is_some() {
        assert!(begun.elapsed() < PATIENCE, "{id:?} is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Keeps this outcome of each of these commands.
async fn keep(store: &EventStore, key: &AggregateKey, ids: &[CommandId], outcome: &Outcome) {
    let of = Stamp { sequence: 1, stored_ms: 1_767_225_600_000 };
    for ids in ids.chunks(64) {
        let saved = ids.iter().map(|id| store.save_outcome(key, id, of, outcome));
        assert!(join_all(saved).await.iter().all(Result::is_ok));
    }
}

/// A process that knows nothing of what others have written.
#[tokio::test(flavor = "multi_thread")]
async fn outcomes_of_before_a_start_count_too() {
    let (servers, before) = start().await;
    shrink(&before, topology::OUTCOMES, 2 << 20).await;
    refuse(&before, "calm", 0..100).await;
    let stream = before.jetstream().get_stream(topology::OUTCOMES).await.unwrap();
    let bytes = async || stream.get_info().await.unwrap().state.bytes;
    let mut flooded = 0;
    while bytes().await < (2 << 20) / 10 * 7 {
        refuse(&before, "flood", flooded..flooded + 128).await;
        flooded += 128;
    }
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let settings = Settings { profile: Profile::Relaxed, replicas: 1, monitor_urls: vec![] };
    let after = EventStore::attach(client, settings).await.unwrap();
    // Many that each have less than a share; with the flood they are more than there is room for.
    for number in 0..12 {
        refuse(&after, &format!("t{number}"), 0..flooded / 20).await;
    }
    makes_room(&after, &key("flood"), &id(0)).await;
    for number in 0..100 {
        let kept = after.outcome(&key("calm"), &id(number)).await.unwrap();
        assert!(kept.is_some(), "{number} is gone");
    }
    assert!(after.outcome(&key("t0"), &id(0)).await.unwrap().is_some());
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_evicts_nobody_elses_outcome() {
    let (servers, store) = start().await;
    shrink(&store, topology::OUTCOMES, 2 << 20).await;
    let (calm, flood) = (key("calm"), key("flood"));
    refuse(&store, "calm", 0..100).await;
    refuse(&store, "flood", 0..32_000).await;
    makes_room(&store, &flood, &id(0)).await;
    for number in 0..100 {
        assert!(store.outcome(&calm, &id(number)).await.unwrap().is_some(), "{number} is gone");
    }
    assert!(store.outcome(&flood, &id(31_999)).await.unwrap().is_some());
    servers.stop().await;
}

/// Some hundred reasons of 12 KB filled the stream, and then whoever had more of the smallest, in less than
/// its share of the bytes, had "most".
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_outcomes_of_one_evict_none_of_the_smallest_of_another() {
    let (servers, store) = start().await;
    shrink(&store, topology::OUTCOMES, 8 << 20).await;
    let stream = store.jetstream().get_stream(topology::OUTCOMES).await.unwrap();
    let small: Vec<_> = (0..2_800).map(id).collect();
    keep(&store, &key_of("c", "1"), &small, &Outcome::Conflict { version: 1 }).await;
    let bytes = stream.get_info().await.unwrap().state.bytes;
    assert!(bytes < (8 << 20) / 16, "{bytes} are more than a share");
    let flood = key_of(&"f".repeat(40), &"i".repeat(128));
    let large: Vec<_> =
        (0..12_000).map(|number| CommandId::parse(&format!("{number:0128}")).unwrap()).collect();
    let reason = "\u{1}".repeat(2_000);
    keep(&store, &flood, &large, &Outcome::Dead { reason }).await;
    makes_room(&store, &flood, &large[0]).await;
    let left = stream.info_with_subjects("outcome.*.c.>").await.unwrap();
    let left: Vec<(String, usize)> = left.try_collect().await.unwrap();
    assert_eq!(left.len(), small.len());
    assert!(store.outcome(&flood, &large[11_999]).await.unwrap().is_some());
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_stored_commands_leaves_room_for_others() {
    let (servers, store) = start().await;
    shrink(&store, topology::COMMANDS, 8 << 20).await;
    let publisher = store.command_publisher();
    let name = CommandName::parse("add").unwrap();
    let send = async |tenant: &str, number: usize, bytes: usize| {
        let payload = format!("\"{}\"", "x".repeat(bytes));
        publisher.publish(&key(tenant), &name, &id(number), HeaderMap::new(), payload).await
    };
    // A first look at the stream.
    send("flood", 0, 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut stored = 0;
    let refused = loop {
        match send("flood", 1 + stored, 100 << 10).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 80, "the queue is full");
    };
    assert!(matches!(refused, Error::TooMuch(_)), "{refused}");
    assert!((38..50).contains(&stored), "{stored} are half of the queue");
    for number in 0..100 {
        send("calm", number, 1 << 10).await.unwrap();
    }
    // The completed part is purged, and work goes on.
    store.jetstream().get_stream(topology::COMMANDS).await.unwrap().purge().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = send("flood", 1_000, 100 << 10).await {
        assert!(matches!(error, Error::TooMuch(_)), "{error}");
        assert!(tokio::time::Instant::now() < deadline, "nothing is purged");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    servers.stop().await;
}
