//! The queue of asynchronous commands on a real broker.

use std::{path::Path, time::Duration};

use async_nats::HeaderMap;
use flexcore_domain::{AggregateId, AggregateKey, AggregateName, CommandId, CommandName, Tenant};
use flexcore_eventstore::{Error, EventStore, Profile, Settings, topology};
use flexcore_servers::{Options, Servers, Sync, Want};
use futures::StreamExt;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Rig {
    servers: Servers,
    store: EventStore,
}

impl Rig {
    async fn start() -> Self {
        let cache = std::env::var("FLEXCORE_CACHE").unwrap_or_else(|_| {
            let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers-cache");
            cache.to_string_lossy().into_owned()
        });
        let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache) };
        let servers = Servers::start(&options).await.unwrap();
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let settings = Settings {
            profile: Profile::Relaxed,
            replicas: 1,
            monitor_urls: vec![servers.nats_monitor_url()],
        };
        Self { servers, store: EventStore::open(client, settings).await.unwrap() }
    }

    /// Stores a command for the aggregate of this name.
    async fn put(&self, key: &AggregateKey, id: &str) {
        let name = CommandName::parse("add").unwrap();
        let id = CommandId::parse(id).unwrap();
        let publisher = self.store.command_publisher();
        publisher.publish(key, &name, &id, HeaderMap::new(), "{}".to_owned()).await.unwrap();
    }

    async fn waiting(&self) -> u64 {
        let stream = self.store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
        stream.cached_info().state.messages
    }
}

fn key(id: &str) -> AggregateKey {
    AggregateKey::new(
        Tenant::parse("acme").unwrap(),
        AggregateName::parse("counter").unwrap(),
        AggregateId::parse(id).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_claim_ends_an_earlier_one() {
    let rig = Rig::start().await;
    let counter = key("c1");
    let slot = counter.slot();
    for id in ["a", "b", "c"] {
        rig.put(&counter, id).await;
    }
    let early = rig.store.claim_queue(slot, 5).await.unwrap();
    assert_eq!((early.first(), early.last_before()), (Some((1, 1)), 3));
    let early = early.settle(1).await.unwrap();
    let late = rig.store.claim_queue(slot, 8).await.unwrap();
    assert_eq!(late.first(), Some((2, 1)), "the first that is left");
    assert!(matches!(early.settle(2).await, Err(Error::Conflict)));
    assert!(matches!(rig.store.claim_queue(slot, 7).await, Err(Error::Conflict)));
    let mut messages = late.messages(10).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, messages.stream.next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap().info().unwrap().stream_sequence, 2);
    assert_eq!(messages.reader.handed_out().await.unwrap(), 2);
    let late = late.settle(2).await.unwrap().settle(3).await.unwrap();
    assert_eq!(rig.store.claim_queue(slot, 8).await.unwrap().first(), None);
    assert!(matches!(late.settle(3).await, Err(Error::Conflict)), "claimed anew since");
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_every_slot_has_settled_is_purged() {
    let rig = Rig::start().await;
    let (one, other) = (key("c1"), key("c2"));
    assert_ne!(one.slot(), other.slot());
    for (key, id) in [(&one, "a"), (&other, "b"), (&one, "c"), (&other, "d")] {
        rig.put(key, id).await;
    }
    assert_eq!(rig.store.queue_depth().await.unwrap(), 4);
    assert_eq!(rig.store.purge_queue().await.unwrap(), 0, "nobody has looked at them");
    let claim = rig.store.claim_queue(one.slot(), 1).await.unwrap();
    let claim = claim.settle(3).await.unwrap();
    assert_eq!(rig.store.purge_queue().await.unwrap(), 1, "up to the other slot's first");
    assert_eq!(rig.store.queue_depth().await.unwrap(), 3);
    let others = rig.store.claim_queue(other.slot(), 1).await.unwrap();
    others.settle(4).await.unwrap();
    assert_eq!(rig.store.queue_depth().await.unwrap(), 0);
    assert_eq!((rig.store.purge_queue().await.unwrap(), rig.waiting().await), (3, 0));
    // A slot that is idle, and behind the others, neither keeps nor loses anything.
    rig.put(&other, "e").await;
    assert_eq!((rig.store.purge_queue().await.unwrap(), rig.waiting().await), (0, 1));
    rig.put(&one, "f").await;
    claim.settle(6).await.unwrap();
    assert_eq!((rig.store.purge_queue().await.unwrap(), rig.waiting().await), (0, 2));
    rig.servers.stop().await;
}
