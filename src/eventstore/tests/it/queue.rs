//! The queue of asynchronous commands on a real broker.

use std::time::{Duration, Instant};

use async_nats::{
    HeaderMap,
    jetstream::{self, consumer::pull},
};
use flexcore_broker::{
    Error as Unsettled,
    ephemeral::{self, Ephemeral},
};
use flexcore_domain::{AggregateKey, CommandId, CommandName, Slot, command::header};
use flexcore_eventstore::{Error, EventStore, topology};
use flexcore_queue::Claim;
use futures::StreamExt;

use crate::{PATIENCE, key, start};

/// Stores a command for this aggregate.
async fn put(store: &EventStore, key: &AggregateKey, id: &str) {
    let name = CommandName::parse("add").unwrap();
    let id = CommandId::parse(id).unwrap();
    let publisher = store.command_publisher();
    publisher.publish(key, &name, &id, HeaderMap::new(), "{}".to_owned()).await.unwrap();
}

/// Claims a slot's commands for the owner of this epoch.
async fn claimed(store: &EventStore, slot: Slot, epoch: u64) -> Result<Claim, Error> {
    Ok(store.command_queue().claim(slot.number(), epoch).await?)
}

/// Removes what may go. Returns how much that was, and how much is left.
async fn purge(store: &EventStore) -> (u64, u64) {
    let seen = store.command_queue().purge(0).await.unwrap().stored;
    let purged = store.command_queue().purge(seen).await.unwrap();
    assert_eq!(purged.waiting, store.queue_depth().await.unwrap());
    let purged = purged.gone;
    let stream = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    (purged, stream.cached_info().state.messages)
}

/// Publishes what a client would: some commands that share one `Nats-Msg-Id`. Returns those that the
/// broker took for a repetition.
pub(crate) async fn swallowed(store: &EventStore) -> Vec<String> {
    let subjects = ["acme.counter.a", "acme.counter.b", "other.counter.a", "acme.gauge.a"];
    let mut swallowed = Vec::new();
    for aggregate in subjects.into_iter().chain(subjects) {
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, "the-same");
        let subject = format!("cmd.{aggregate}.add");
        let sent = store.jetstream().publish_with_headers(subject, headers, "{}".into());
        if sent.await.unwrap().await.unwrap().duplicate {
            swallowed.push(aggregate.to_owned());
        }
    }
    swallowed
}

/// The broker's own window spans all aggregates and tenants. It acknowledged a message that it did
/// not store.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_share_a_message_id_are_all_stored() {
    let (mut servers, store) = start().await;
    assert_eq!(swallowed(&store).await, Vec::<String>::new());
    assert_eq!(store.queue_depth().await.unwrap(), 8);
    // A stream that a restart reads from the disk has no window either.
    servers.nats.kill().await.unwrap();
    servers.nats.start_again().await.unwrap();
    let began = Instant::now();
    while store.queue_depth().await.is_err() {
        assert!(began.elapsed() < PATIENCE, "not back in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(swallowed(&store).await, Vec::<String>::new());
    assert_eq!(store.queue_depth().await.unwrap(), 16);
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_claim_ends_an_earlier_one() {
    let (servers, store) = start().await;
    let counter = key("c1");
    let slot = counter.slot();
    for id in ["a", "b", "c"] {
        put(&store, &counter, id).await;
    }
    let early = claimed(&store, slot, 5).await.unwrap();
    assert_eq!((early.first(), early.last_before()), (Some((1, 0)), 3));
    let early = early.settle(1).await.unwrap();
    let late = claimed(&store, slot, 8).await.unwrap();
    assert_eq!(late.first(), Some((2, 0)), "the first that is left");
    assert!(matches!(early.settle(2).await, Err(Unsettled::Conflict)));
    assert!(matches!(claimed(&store, slot, 7).await, Err(Error::Conflict)));
    let mut messages = late.messages(10).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, messages.stream.next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap().sequence, 2);
    assert_eq!(messages.reader.handed_out().await.unwrap(), 2);
    let late = late.settle(2).await.unwrap().settle(3).await.unwrap();
    assert_eq!(claimed(&store, slot, 8).await.unwrap().first(), None);
    assert!(matches!(late.settle(3).await, Err(Unsettled::Conflict)), "claimed anew since");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_and_is_not_seen_to_live_on_is_counted() {
    let (servers, store) = start().await;
    let counter = key("c1");
    put(&store, &counter, "a").await;
    let claim = async |epoch| claimed(&store, counter.slot(), epoch).await.unwrap();
    let begun = async |epoch| claim(epoch).await.first().unwrap().1;
    claim(1).await.begin().await.unwrap();
    claim(2).await.begin().await.unwrap();
    assert_eq!(begun(3).await, 2);
    let third = claim(3).await.begin().await.unwrap();
    assert_eq!(begun(3).await, 3);
    assert!(matches!(third.survive().await, Err(Unsettled::Conflict)), "claimed anew since");
    let third = claim(3).await.begin().await.unwrap();
    third.survive().await.unwrap();
    assert_eq!(begun(4).await, 0);
    servers.stop().await;
}

/// Those of owners that were killed stayed as long as the broker kept them, which begins anew with each
/// start of it: in the end it kept no more, and nothing was read.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_next_deletes_the_reader_of_an_owner_that_was_killed() {
    let (servers, store) = start().await;
    let counter = key("c1");
    put(&store, &counter, "a").await;
    for epoch in 1..=5 {
        let claim = claimed(&store, counter.slot(), epoch).await.unwrap();
        let messages = claim.messages(10).await.unwrap();
        until_one_reader(&store, epoch).await;
        // A killed process gives nothing back.
        std::mem::forget(messages.reader);
    }
    servers.stop().await;
}

/// Waits until the queue has one reader, that of the owner of this epoch.
async fn until_one_reader(store: &EventStore, epoch: u64) {
    let readers = async || {
        let stream = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
        stream.cached_info().state.consumer_count
    };
    let began = Instant::now();
    while readers().await != 1 {
        assert!(began.elapsed() < PATIENCE, "epoch {epoch}: {} readers", readers().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The claim was recorded, and nobody knew the reader of the owner before any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_an_answer_deletes_the_reader_of_the_owner_before() {
    let (servers, store) = start().await;
    let slot = key("c1").slot();
    let killed = claimed(&store, slot, 1).await.unwrap();
    let messages = killed.messages(10).await.unwrap();
    std::mem::forget(messages.reader);
    acknowledges_progress(&store, false).await;
    let unheard = claimed(&store, slot, 2).await.err();
    assert!(matches!(unheard, Some(Error::Unavailable(_))), "{unheard:?}");
    acknowledges_progress(&store, true).await;
    assert!(matches!(killed.settle(1).await, Err(Unsettled::Conflict)), "it was recorded");
    let next = claimed(&store, slot, 2).await.unwrap();
    let _messages = next.messages(10).await.unwrap();
    until_one_reader(&store, 2).await;
    servers.stop().await;
}

/// Whether the broker says that it has stored how far the places are settled.
async fn acknowledges_progress(store: &EventStore, is_so: bool) {
    let progress = store.jetstream().get_stream(topology::PROGRESS).await.unwrap();
    let mut config = progress.cached_info().config.clone();
    config.no_ack = !is_so;
    store.jetstream().update_stream(config).await.unwrap();
}

/// Its reader was deleted before it was made, and would be read beside the next owner's.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_makes_no_reader_after_the_next_one_has_come() {
    let (servers, store) = start().await;
    let slot = key("c1").slot();
    let late = claimed(&store, slot, 1).await.unwrap();
    let _next = claimed(&store, slot, 2).await.unwrap();
    assert!(matches!(late.messages(10).await.err(), Some(Unsettled::Conflict)));
    servers.stop().await;
}

/// Nobody else knows the name of a reader that was given back while no server could delete it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_deleted_as_soon_as_somebody_can() {
    let (servers, store) = start().await;
    let client = store.jetstream().client();
    let mut asked = client.subscribe("lame.CONSUMER.DELETE.*.*").await.unwrap();
    let lame = jetstream::with_prefix(client.clone(), "lame");
    let error = |status: u16, code: u16| {
        format!(r#"{{"error":{{"code":{status},"err_code":{code},"description":"no"}}}}"#)
    };
    for (name, answers) in [
        ("r1", [error(503, 10008), error(503, 10008), r#"{"success":true}"#.to_owned()].as_slice()),
        ("r2", [error(503, 10008), error(404, 10014)].as_slice()),
        ("r3", [error(404, 10059)].as_slice()),
    ] {
        ephemeral::delete(&lame, topology::COMMANDS, name.to_owned());
        for answer in answers {
            let request = tokio::time::timeout(PATIENCE, asked.next()).await.unwrap().unwrap();
            assert!(request.subject.ends_with(name), "{}", request.subject);
            client.publish(request.reply.unwrap(), answer.clone().into()).await.unwrap();
        }
        let more = tokio::time::timeout(Duration::from_secs(1), asked.next()).await;
        assert!(more.is_err(), "{name} is deleted, and asked for again");
    }
    servers.stop().await;
}

/// Its creation took effect after its deletion: it stayed as long as the broker keeps a reader that nobody
/// reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_may_yet_be_made_is_deleted_again() {
    let (servers, store) = start().await;
    let client = store.jetstream().client();
    let mut made = client.subscribe("lame.CONSUMER.CREATE.>").await.unwrap();
    let mut deleted = client.subscribe("lame.CONSUMER.DELETE.*.*").await.unwrap();
    let mut lame = jetstream::with_prefix(client.clone(), "lame");
    lame.set_timeout(Duration::from_secs(1));
    let config = pull::Config::default();
    let created = Ephemeral::create(&lame, topology::COMMANDS, "r1".to_owned(), config).await;
    assert!(matches!(created.err(), Some(Unsettled::Unavailable(_))));
    assert!(made.next().await.is_some(), "it was asked for");
    let none = r#"{"error":{"code":404,"err_code":10014,"description":"no"}}"#;
    for answer in [none, r#"{"success":true}"#] {
        let request = tokio::time::timeout(PATIENCE, deleted.next()).await.unwrap().unwrap();
        client.publish(request.reply.unwrap(), answer.into()).await.unwrap();
    }
    let more = tokio::time::timeout(Duration::from_secs(1), deleted.next()).await;
    assert!(more.is_err(), "it is deleted, and asked for again");
    servers.stop().await;
}

/// As after a repair by hand. Sequences start again, and the settled commands were settled in the
/// other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_made_anew_is_read_from_its_beginning() {
    let (servers, store) = start().await;
    let counter = key("c1");
    for id in ["a", "b"] {
        put(&store, &counter, id).await;
    }
    let claim = claimed(&store, counter.slot(), 1).await.unwrap();
    claim.settle(2).await.unwrap();
    let queue = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    let config = queue.cached_info().config.clone();
    store.jetstream().delete_stream(topology::COMMANDS).await.unwrap();
    store.jetstream().create_stream(config).await.unwrap();
    put(&store, &counter, "c").await;
    assert_eq!(purge(&store).await, (0, 1));
    assert_eq!(store.queue_depth().await.unwrap(), 1);
    let claim = claimed(&store, counter.slot(), 2).await.unwrap();
    assert_eq!(claim.first(), Some((1, 0)));
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
    let claim = claimed(&store, one.slot(), 1).await.unwrap();
    let claim = claim.settle(3).await.unwrap();
    assert_eq!(purge(&store).await, (1, 3), "up to the other slot's first");
    assert_eq!(store.queue_depth().await.unwrap(), 3);
    let others = claimed(&store, other.slot(), 1).await.unwrap();
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
