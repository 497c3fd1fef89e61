//! The secret that seals senders, and what may be done to streams without losing it.

use flexcore_domain::{CommandId, CommandName, Secret, Vouched};
use flexcore_eventstore::{EventStore, topology};
use flexcore_servers::Servers;

use crate::{key, start};

/// Where earlier versions made the secret.
const FORMER: &str = "$KV.flex_queue.secret";
const OWN: &str = "$KV.flex_secrets.seal";

/// As a process that starts now has it.
async fn anew(servers: &Servers, store: &EventStore) -> Secret {
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let store = EventStore::open(client, store.settings().clone()).await.unwrap();
    store.secret().unwrap()
}

async fn put(store: &EventStore, subject: &'static str, secret: &str) {
    let sent = store.jetstream().publish(subject, secret.to_owned().into()).await.unwrap();
    sent.await.unwrap();
}

/// An operator is told to delete it where the queue has lost its end. The stored commands that are done
/// again then were recorded as sent by `nats:…`.
#[tokio::test(flavor = "multi_thread")]
async fn seals_hold_when_the_progress_bucket_is_deleted() {
    let (servers, store) = start().await;
    let (key, name, id) =
        (key("c1"), CommandName::parse("add").unwrap(), CommandId::parse("a").unwrap());
    let sent = Vouched { actor: "alice", key: &key, name: &name, id: &id, payload: b"{}" };
    let seal = sent.seal(&store.secret().unwrap());
    store.jetstream().delete_stream(topology::PROGRESS).await.unwrap();
    assert!(sent.has_seal(&anew(&servers, &store).await, &seal));
    // The start has made the bucket again: the process that was there all the time claims slots.
    store.command_queue().claim(key.slot().number(), 1).await.unwrap();
    servers.stop().await;
}

/// Processes of both versions run side by side in a rolling upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn the_secret_of_an_earlier_version_is_taken_over_and_stays_where_it_was() {
    let (servers, store) = start().await;
    let before = Secret::from([7; 16]);
    store.jetstream().delete_stream(topology::SECRETS).await.unwrap();
    put(&store, FORMER, &before.to_string()).await;
    let both = tokio::join!(anew(&servers, &store), anew(&servers, &store));
    assert_eq!(both, (before, before));
    let progress = store.jetstream().get_stream(topology::PROGRESS).await.unwrap();
    let left = progress.get_last_raw_message_by_subject(FORMER).await.unwrap();
    assert_eq!(left.payload, before.to_string());
    store.jetstream().delete_stream(topology::PROGRESS).await.unwrap();
    assert_eq!(anew(&servers, &store).await, before);
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_agree_and_a_deleted_secret_is_never_used_again() {
    let (servers, store) = start().await;
    let first = store.secret().unwrap();
    put(&store, FORMER, &first.to_string()).await;
    // As `nats kv del flex_secrets seal` leaves it.
    put(&store, OWN, "").await;
    let (one, other) = tokio::join!(anew(&servers, &store), anew(&servers, &store));
    assert_eq!(one, other);
    assert_ne!(one, first);
    servers.stop().await;
}
