//! Readers of the log, whose messages are lost on their way.

use std::time::{Duration, Instant};

use async_nats::Subscriber;
use flexcore_domain::AggregateName;
use flexcore_eventstore::{
    Aggregates, Error, EventStore, Expected, Filter, Read, Subscription, topology,
};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::{PATIENCE, broker::commit, key, start};

/// Another reader asks for one message of the log's only consumer, and gets the next.
async fn steal(store: &EventStore) -> Subscriber {
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let names: Vec<String> = log.consumer_names().try_collect().await.unwrap();
    let [name] = &names[..] else { panic!("{names:?}") };
    let client = store.client();
    let reply = client.new_inbox();
    let stolen = client.subscribe(reply.clone()).await.unwrap();
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{name}", topology::EVENTS);
    client.publish_with_reply(next, reply, "".into()).await.unwrap();
    client.flush().await.unwrap();
    stolen
}

/// Reads until so many commits have come; gives their aggregates.
async fn read(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let (began, mut ids) = (Instant::now(), Vec::new());
    while ids.len() < count {
        assert!(began.elapsed() < 3 * PATIENCE, "{ids:?}");
        let read = subscription.next_batch(10, PATIENCE).await.unwrap();
        let Read::Commits(batch) = read else { panic!("{read:?}") };
        ids.extend(batch.iter().map(|recorded| recorded.commit.key.id().as_str().to_owned()));
    }
    ids
}

/// As when the server dies to which the reader, or the stream, is connected.
async fn commits_that_are_lost_are_read_again(filter: Filter, ids: &[&str]) {
    let (servers, store) = start().await;
    let mut subscription = store.subscribe(filter, 1).await.unwrap();
    let mut stolen = steal(&store).await;
    for id in ids {
        store.append(&commit(id), Expected::default()).await.unwrap();
    }
    let lost = tokio::time::timeout(PATIENCE, stolen.next()).await.unwrap().unwrap();
    assert!(lost.status.is_none(), "{lost:?}");
    assert_eq!(read(&mut subscription, ids.len()).await, ids);
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_commit_that_is_lost_on_its_way_is_read_again() {
    let tenant = key("any").tenant().clone();
    commits_that_are_lost_are_read_again(Filter::Tenant(tenant), &["A1", "A2", "A3"]).await;
}

/// It would be taken for a damaged log.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_lost_on_its_way_is_no_gap() {
    commits_that_are_lost_are_read_again(Filter::Everything, &["A1", "A2", "A3"]).await;
}

/// Nothing comes after it that would show it.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_commit_is_read_when_it_was_lost_on_its_way() {
    commits_that_are_lost_are_read_again(Filter::Everything, &["A1"]).await;
}

/// Each is a decision of the brokers' cluster.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_go_at_once_are_made_anew_with_pauses() {
    let (servers, store) = start().await;
    let mut created = {
        let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.{}.*", topology::EVENTS);
        store.client().subscribe(subject).await.unwrap()
    };
    let mut subscription = store.subscribe(Filter::Everything, 1).await.unwrap();
    let reading = tokio::spawn(async move { read(&mut subscription, 1).await });
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        let advisory = tokio::time::timeout(PATIENCE, created.next()).await.unwrap().unwrap();
        log.delete_consumer(advisory.subject.rsplit('.').next().unwrap()).await.unwrap();
    }
    // The second at once, then 100, 200 and 400 ms.
    assert!(began.elapsed() > Duration::from_millis(650), "{:?}", began.elapsed());
    store.append(&commit("A1"), Expected::default()).await.unwrap();
    assert_eq!(reading.await.unwrap(), ["A1"]);
    servers.stop().await;
}

/// It was waited for like an outage, for ever, and nobody was told: who follows the deployments went on by
/// those of the log before.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_replaced_by_another_is_not_waited_for() {
    let (servers, store) = start().await;
    store.append(&commit("A1"), Expected::default()).await.unwrap();
    let nobodys = Aggregates { tenant: None, name: AggregateName::parse("nobodys").unwrap() };
    let mut subscription = store.subscribe(Filter::LastOf(vec![nobodys]), 1).await.unwrap();
    let mut whole = store.subscribe(Filter::Everything, 1).await.unwrap();
    assert_eq!(read(&mut whole, 1).await, ["A1"]);
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let config = log.cached_info().config.clone();
    store.jetstream().delete_stream(topology::EVENTS).await.unwrap();
    store.jetstream().create_stream(config).await.unwrap();
    let wait = Duration::from_millis(200);
    // It ends before the last read place: that may be a leader that does not know yet.
    for _ in 0..5 {
        let read = whole.next_batch(10, wait).await.unwrap();
        assert!(matches!(&read, Read::Commits(none) if none.is_empty()), "{read:?}");
    }
    store.append(&commit("B1"), Expected::default()).await.unwrap();
    let began = Instant::now();
    let refused = loop {
        match whole.next_batch(10, wait).await {
            Ok(Read::Commits(none)) if none.is_empty() => assert!(began.elapsed() < PATIENCE),
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::Misconfigured(_))), "{refused:?}");
    // A reader that has read nothing so far has nothing to compare.
    let read = subscription.next_batch(10, wait).await.unwrap();
    assert!(matches!(read, Read::Commits(none) if none.is_empty()));
    servers.stop().await;
}
