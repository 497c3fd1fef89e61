//! States that a process folds from the log of a real broker.

use std::{collections::BTreeMap, future::ready, ops::Range, sync::Arc, time::Duration};

use flexcore_definition::Catalog;
use flexcore_domain::{AggregateKey, AggregateName, Name};
use flexcore_eventstore::{
    Aggregates, EventStore, Expected, Recorded,
    catalog::fold as catalog,
    folded::{Fold, States},
    subject, topology,
};
use futures::TryStreamExt as _;
use tokio::{
    sync::watch::Receiver,
    time::{sleep, timeout},
};

use crate::{
    PATIENCE,
    broker::commit,
    catalog::{application, deployed},
    key, start,
};

/// Each counter's version, or why its commit cannot be read; and the number of commits that said so.
#[derive(Clone, Default)]
struct Counters {
    of: BTreeMap<String, Result<u64, String>>,
    commits: u64,
}

fn counters() -> Fold<Counters> {
    let put = |counters: &mut Counters, recorded: &Recorded| {
        let (id, version) = (recorded.commit.key.id().to_string(), recorded.commit.version());
        counters.of.insert(id, Ok(version));
        counters.commits += 1;
    };
    let unreadable = |counters: &mut Counters, key: &AggregateKey, reason: String| {
        counters.of.insert(key.id().to_string(), Err(reason));
    };
    Fold {
        name: "the counters",
        of: Aggregates { tenant: None, name: AggregateName::parse("counter").unwrap() },
        put,
        unreadable,
        complete: |_, _| Box::pin(ready(Ok(()))),
    }
}

/// Appends commits of these versions to a counter that ends there. Returns where it ends then.
async fn count(store: &EventStore, id: &str, mut last: Expected, versions: Range<u64>) -> Expected {
    for version in versions {
        let mut commit = commit(id);
        commit.events[0].version = version;
        let appended = store.append(&commit, last).await.unwrap();
        last = Expected { sequence: appended.sequence, hash: appended.hash };
    }
    last
}

/// The readers of the log.
async fn readers(store: &EventStore) -> usize {
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    log.consumer_names().try_collect::<Vec<String>>().await.unwrap().len()
}

async fn until_version(counters: &mut Receiver<Arc<Counters>>, id: &str, version: u64) {
    let is = |now: &Arc<Counters>| now.of.get(id) == Some(&Ok(version));
    timeout(PATIENCE, counters.wait_for(is)).await.unwrap().unwrap();
}

/// Each state once had a reader of its own.
#[tokio::test(flavor = "multi_thread")]
async fn states_are_read_by_one_reader_whole_and_after_the_broker_was_away() {
    let (mut servers, store) = start().await;
    deployed(&store, &application("one", "thing", "n")).await.unwrap();
    let end = count(&store, "a", Expected::default(), 1..4).await;
    count(&store, "b", Expected::default(), 1..2).await;
    let mut states = States::default();
    let (catalog, counters) = (states.add(catalog()), states.add(counters()));
    let whole = states.follow(&store).await.unwrap();
    let (mut catalog, mut counters) = (catalog.whole(&whole), counters.whole(&whole));
    assert_eq!(readers(&store).await, 1);
    let one = Name::parse("one").unwrap();
    assert_eq!(catalog.borrow_and_update().applications[&one].version, 1);
    let now = counters.borrow_and_update().clone();
    assert_eq!(now.of, BTreeMap::from([("a".to_owned(), Ok(3)), ("b".to_owned(), Ok(1))]));
    assert_eq!(now.commits, 2, "the last of each is enough");
    // News of one say nothing to who follows the other.
    count(&store, "a", end, 4..5).await;
    until_version(&mut counters, "a", 4).await;
    assert!(!catalog.has_changed().unwrap());
    servers.nats.kill().await.unwrap();
    servers.nats.start_again().await.unwrap();
    while deployed(&store, &application("one", "thing", "m")).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    let is_next = |now: &Arc<Catalog>| now.applications[&one].version > 1;
    timeout(PATIENCE, catalog.wait_for(is_next)).await.unwrap().unwrap();
    count(&store, "c", Expected::default(), 1..3).await;
    until_version(&mut counters, "c", 2).await;
    assert_eq!(readers(&store).await, 1);
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_cannot_be_read_is_news_for_its_state_alone_and_reading_ends_with_the_last() {
    let (servers, store) = start().await;
    let mut states = States::default();
    let (catalog, counters) = (states.add(catalog()), states.add(counters()));
    let whole = states.follow(&store).await.unwrap();
    let (mut catalog, mut counters) = (catalog.whole(&whole), counters.whole(&whole));
    let junk = store.jetstream().publish(subject(&key("a")), "junk".into()).await.unwrap();
    junk.await.unwrap();
    let is_lost = |now: &Arc<Counters>| matches!(now.of.get("a"), Some(Err(_)));
    timeout(PATIENCE, counters.wait_for(is_lost)).await.unwrap().unwrap();
    count(&store, "b", Expected::default(), 1..2).await;
    until_version(&mut counters, "b", 1).await;
    assert!(!catalog.has_changed().unwrap());
    drop(counters);
    deployed(&store, &application("one", "thing", "n")).await.unwrap();
    timeout(PATIENCE, catalog.changed()).await.unwrap().unwrap();
    drop(catalog);
    let ended = async {
        while readers(&store).await > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("nobody follows any more");
    servers.stop().await;
}
