//! The queue of asynchronous commands on a real broker.

use async_nats::HeaderMap;
use flexcore_domain::{AggregateKey, CommandId, CommandName};
use flexcore_eventstore::{Error, EventStore, topology};
use futures::StreamExt;

use crate::{PATIENCE, key, start};

/// Stores a command for this aggregate.
async fn put(store: &EventStore, key: &AggregateKey, id: &str) {
    let name = CommandName::parse("add").unwrap();
    let id = CommandId::parse(id).unwrap();
    let publisher = store.command_publisher();
    publisher.publish(key, &name, &id, HeaderMap::new(), "{}".to_owned()).await.unwrap();
}

/// Removes what may go. Returns how much that was, and how much is left.
async fn purge(store: &EventStore) -> (u64, u64) {
    let purged = store.purge_queue().await.unwrap();
    let stream = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    (purged, stream.cached_info().state.messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_claim_ends_an_earlier_one() {
    let (servers, store) = start().await;
    let counter = key("c1");
    let slot = counter.slot();
    for id in ["a", "b", "c"] {
        put(&store, &counter, id).await;
    }
    let early = store.claim_queue(slot, 5).await.unwrap();
    assert_eq!((early.first(), early.last_before()), (Some((1, 1)), 3));
    let early = early.settle(1).await.unwrap();
    let late = store.claim_queue(slot, 8).await.unwrap();
    assert_eq!(late.first(), Some((2, 1)), "the first that is left");
    assert!(matches!(early.settle(2).await, Err(Error::Conflict)));
    assert!(matches!(store.claim_queue(slot, 7).await, Err(Error::Conflict)));
    let mut messages = late.messages(10).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, messages.stream.next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap().info().unwrap().stream_sequence, 2);
    assert_eq!(messages.reader.handed_out().await.unwrap(), 2);
    let late = late.settle(2).await.unwrap().settle(3).await.unwrap();
    assert_eq!(store.claim_queue(slot, 8).await.unwrap().first(), None);
    assert!(matches!(late.settle(3).await, Err(Error::Conflict)), "claimed anew since");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_every_slot_has_settled_is_purged() {
    let (servers, store) = start().await;
    let (one, other) = (key("c1"), key("c2"));
    assert_ne!(one.slot(), other.slot());
    for (key, id) in [(&one, "a"), (&other, "b"), (&one, "c"), (&other, "d")] {
        put(&store, key, id).await;
    }
    assert_eq!(store.queue_depth().await.unwrap(), 4);
    assert_eq!(purge(&store).await, (0, 4), "nobody has looked at them");
    let claim = store.claim_queue(one.slot(), 1).await.unwrap();
    let claim = claim.settle(3).await.unwrap();
    assert_eq!(purge(&store).await, (1, 3), "up to the other slot's first");
    assert_eq!(store.queue_depth().await.unwrap(), 3);
    let others = store.claim_queue(other.slot(), 1).await.unwrap();
    others.settle(4).await.unwrap();
    assert_eq!(store.queue_depth().await.unwrap(), 0);
    assert_eq!(purge(&store).await, (3, 0));
    // A slot that is idle, and behind the others, neither keeps nor loses anything.
    put(&store, &other, "e").await;
    assert_eq!(purge(&store).await, (0, 1));
    put(&store, &one, "f").await;
    claim.settle(6).await.unwrap();
    assert_eq!(purge(&store).await, (0, 2));
    servers.stop().await;
}
