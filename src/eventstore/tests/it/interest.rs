//! Readers that follow some aggregates, and read nothing of the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::HeaderMap;
use flexcore_domain::{AggregateName, Commit, Hash, Slot, command::header};
use flexcore_eventstore::{
    Error, EventStore, Expected, Filter, Interest, Read, Subscription, subject, topology,
};
use futures::TryStreamExt as _;

use crate::{PATIENCE, broker::commit, key, start};

fn other(id: &str) -> Commit {
    let mut other = commit(id);
    let tenant = other.key.tenant().clone();
    let kind = AggregateName::parse("other").unwrap();
    other.key = flexcore_domain::AggregateKey::new(tenant, kind, other.key.id().clone());
    other
}

/// Somebody writes to the log who may not: a commit that follows from nothing.
async fn forge(store: &EventStore, commit: &Commit) {
    let encoded = commit.encode(&Hash::ZERO);
    let mut headers = HeaderMap::new();
    headers.insert(header::HASH, encoded.hash.to_string());
    let (to, body) = (subject(&commit.key), encoded.body.into());
    let sent = store.jetstream().publish_with_headers(to, headers, body).await.unwrap();
    sent.await.unwrap();
}

async fn append(store: &EventStore, commit: &Commit) -> u64 {
    store.append(commit, Expected::default()).await.unwrap().sequence
}

fn counters(slots: impl IntoIterator<Item = Slot>) -> Filter {
    let mut interest = Interest::default();
    interest.add(key("any").aggregate(), slots);
    Filter::Of(Arc::new(interest))
}

/// The sequences of what comes until everything was seen.
async fn read(store: &EventStore, subscription: &mut Subscription) -> Vec<u64> {
    let (end, began) = (store.last_sequence().await.unwrap(), Instant::now());
    let mut sequences = Vec::new();
    while subscription.seen(0).await.unwrap() < end {
        assert!(began.elapsed() < PATIENCE, "{sequences:?}");
        match subscription.next_batch(100, Duration::from_millis(50)).await.unwrap() {
            Read::Commits(commits) => sequences.extend(commits.iter().map(|c| c.sequence)),
            broken @ Read::Broken(_) => panic!("of somebody else: {broken:?}"),
        }
    }
    sequences
}

/// Number of messages that the broker has handed to the log's only consumer.
async fn handed_out(store: &EventStore) -> u64 {
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let consumers: Vec<_> = log.consumers().try_collect().await.unwrap();
    let [consumer] = &consumers[..] else { panic!("{consumers:?}") };
    consumer.delivered.consumer_sequence
}

/// Every reader once read, decoded and hashed the whole log.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_handed_what_it_follows_and_nothing_else() {
    let (servers, store) = start().await;
    let mut own = Vec::new();
    for round in 0..3 {
        for number in 0..9 {
            append(&store, &other(&format!("o{round}-{number}"))).await;
        }
        own.push(append(&store, &commit(&format!("A{round}"))).await);
    }
    // Damage that would stop a reader that looks at it.
    let mut damaged = other("damaged");
    damaged.events[0].version = 7;
    append(&store, &other("damaged")).await;
    forge(&store, &damaged).await;
    let mut log = store.subscribe(counters(Slot::all()), 1).await.unwrap();
    assert_eq!(read(&store, &mut log).await, own);
    assert_eq!(handed_out(&store).await, 3, "of 32");
    assert_eq!(log.seen(0).await.unwrap(), 32, "to the end, of which nothing came");
    servers.stop().await;
}

/// Of 65 subjects and more the consumer takes fewer, and lets through what is passed over.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_widened_filter_lets_through_is_passed_over() {
    let (servers, store) = start().await;
    let mut interest = Interest::default();
    let half = || Slot::all().filter(|slot| slot.number() % 2 == 0);
    for kind in ["counter", "other", "third"] {
        interest.add(&AggregateName::parse(kind).unwrap(), half());
    }
    let mut own = Vec::new();
    for number in 0..40 {
        let next = commit(&format!("A{number}"));
        let sequence = append(&store, &next).await;
        own.extend(next.key.slot().number().is_multiple_of(2).then_some(sequence));
    }
    let mut log = store.subscribe(Filter::Of(Arc::new(interest)), 1).await.unwrap();
    assert_eq!(read(&store, &mut log).await, own);
    assert!(own.len() < 40);
    assert_eq!(handed_out(&store).await, 40);
    servers.stop().await;
}

/// Somebody who waits for a commit must not be told that it was seen while it is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_read_yet_was_not_seen() {
    let (servers, store) = start().await;
    let slot = key("A").slot();
    let elsewhere = (0..).map(|n| format!("B{n}")).find(|id| key(id).slot() != slot).unwrap();
    let mut log = store.subscribe(counters([slot]), 1).await.unwrap();
    assert_eq!(log.seen(0).await.unwrap(), 0);
    append(&store, &commit(&elsewhere)).await;
    assert_eq!((log.seen(0).await.unwrap(), log.read_to()), (1, 0));
    append(&store, &other("o")).await;
    let own = append(&store, &commit("A")).await;
    append(&store, &other("p")).await;
    assert_eq!(log.seen(0).await.unwrap(), own - 1);
    // Where there was nothing it is not looked again.
    assert_eq!(log.seen(own).await.unwrap(), own + 1);
    let read = log.next_batch(1, PATIENCE).await.unwrap();
    assert!(matches!(&read, Read::Commits(commits) if commits.len() == 1), "{read:?}");
    assert_eq!(log.seen(0).await.unwrap(), own + 1);
    servers.stop().await;
}

/// A reader of a part of the log cannot see that a message of another part is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_log_is_found_by_who_reads_a_part_of_it() {
    let (servers, store) = start().await;
    append(&store, &commit("A")).await;
    append(&store, &other("o")).await;
    append(&store, &other("p")).await;
    let log = store.subscribe(counters(Slot::all()), 1).await.unwrap();
    assert_eq!(log.seen(0).await.unwrap(), 0, "A is on its way");
    let jetstream = store.jetstream();
    let stream = jetstream.get_stream(topology::EVENTS).await.unwrap();
    let config = stream.cached_info().config.clone();
    jetstream.delete_stream(topology::EVENTS).await.unwrap();
    let lax = async_nats::jetstream::stream::Config { deny_delete: false, ..config };
    let stream = jetstream.create_stream(lax).await.unwrap();
    for id in ["a", "b", "c"] {
        forge(&store, &other(id)).await;
    }
    stream.delete_message(2).await.unwrap();
    assert!(matches!(log.seen(0).await.unwrap_err(), Error::Gap { .. }));
    servers.stop().await;
}
