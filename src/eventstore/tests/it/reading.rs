//! Reading in bulk on a real broker.

use std::sync::atomic::Ordering;

use flexcore_domain::{AggregateKey, Commit, Event, EventName};
use flexcore_eventstore::{Before, EventStore, Expected, LOAD_COMMITS_MAX};
use futures::future::join_all;
use serde_json::value::RawValue;

use crate::{broker::commit, key, key_of, start};

/// Appends commits of so many events, each with so many bytes.
async fn fill(store: &EventStore, key: &AggregateKey, commits: u64, events: u64, bytes: usize) {
    let data = RawValue::from_string(format!("\"{}\"", "x".repeat(bytes))).unwrap();
    let mut expected = Expected::default();
    for number in 0..commits {
        let event = |version| Event {
            event: EventName::parse("departed").unwrap(),
            version,
            schema_version: 1,
            data: data.clone(),
        };
        let first = number * events + 1;
        let events = (first..first + events).map(event).collect();
        let commit = Commit { key: key.clone(), events, ..commit("none") };
        let appended = store.append(&commit, expected).await.unwrap();
        expected = Expected { sequence: appended.sequence, hash: appended.hash };
    }
}

/// Reads everything page by page. Returns how many commits each page had.
async fn pages(store: &EventStore, key: &AggregateKey) -> Vec<usize> {
    let (mut after, mut pages) = (0, Vec::new());
    loop {
        let page = store.read_page(key, after, LOAD_COMMITS_MAX).await.unwrap();
        pages.push(page.commits.len());
        after = page.commits.last().map_or(after, |last| last.sequence);
        if !page.more {
            return pages;
        }
    }
}

/// The broker had sent all of them for each question, 80 MB at a time, and cut us off as too slow.
#[tokio::test(flavor = "multi_thread")]
async fn questions_about_a_large_aggregate_do_not_cut_anybody_off() {
    let (servers, store) = start().await;
    let (large, small) = (key_of("flood", "large"), key_of("calm", "small"));
    fill(&store, &large, 80, 1, 900_000).await;
    fill(&store, &small, 2, 1, 10).await;
    let pages_client = async_nats::connect(servers.nats_url()).await.unwrap();
    let streams_client = async_nats::connect(servers.nats_url()).await.unwrap();
    let commands = store.command_queue().reading.clone();
    let store = store.read_over(&pages_client, &streams_client, commands).await.unwrap();
    let flood = join_all((0..32).map(|_| pages(&store, &large)));
    let calm = async {
        for _ in 0..100 {
            assert_eq!(store.load(&small, 0).await.unwrap().len(), 2);
            assert_eq!(pages(&store, &small).await, [2]);
        }
    };
    let (flood, ()) = tokio::join!(flood, calm);
    for pages in flood {
        assert_eq!(pages.iter().sum::<usize>(), 80);
        assert!(pages.iter().all(|commits| *commits <= 2), "{pages:?}");
    }
    for client in [store.client(), &pages_client, &streams_client] {
        assert_eq!(client.statistics().connects.load(Ordering::Relaxed), 1, "cut off");
    }
    servers.stop().await;
}

/// A message that is larger than a page still comes, and small ones come in one page.
#[tokio::test(flavor = "multi_thread")]
async fn pages_are_bounded_in_bytes_and_leave_nothing_out() {
    let (servers, store) = start().await;
    let (large, small) = (key("large"), key("small"));
    fill(&store, &large, 3, 1, 900_000).await;
    fill(&store, &small, 600, 1, 10).await;
    let page = store.load_page(&large, 0).await.unwrap();
    assert_eq!((page.commits.len(), page.more), (1, true), "256 KiB");
    assert_eq!(store.load(&large, 0).await.unwrap().len(), 3);
    assert_eq!(pages(&store, &large).await.iter().sum::<usize>(), 3);
    assert_eq!(pages(&store, &small).await.iter().sum::<usize>(), 600);
    let page = store.read_page(&small, 0, 10).await.unwrap();
    assert_eq!((page.commits.len(), page.more), (10, true));
    servers.stop().await;
}

/// The last page had cost as much as all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_version_is_found_without_reading_the_early_ones() {
    let (servers, store) = start().await;
    let (long, other) = (key("long"), key("other"));
    fill(&store, &other, 100, 1, 10).await;
    fill(&store, &long, 1_000, 3, 10).await;
    for after in [0, 255, 256, 1_499, 1_500, 2_000, 2_998, 2_999, 3_000, 9_999] {
        let place = store.before_version(&long, after).await.unwrap();
        assert!(place.version <= after && after.min(3_000) - place.version <= 260, "{place:?}");
        let next = store.read_page(&long, place.sequence, 1).await.unwrap();
        match next.commits.first() {
            Some(next) => assert_eq!(next.commit.version_before(), place.version),
            None => assert_eq!(place.version, 3_000),
        }
    }
    let end = store.before_version(&long, 3_000).await.unwrap();
    assert_eq!(end, Before { sequence: 1_100, version: 3_000 });
    assert_eq!(store.before_version(&key("none"), 5_000).await.unwrap(), Before::default());
    servers.stop().await;
}
