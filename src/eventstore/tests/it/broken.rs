//! A log with faulty content: a break is found, and delays only its own aggregate.

use async_nats::HeaderMap;
use flexcore_domain::{Commit, Hash, command::header};
use flexcore_eventstore::{
    Broken, Error, EventStore, Expected, Filter, LINKS_MAX, Read, Recorded, Subscription, subject,
    verify::verify,
};

use crate::{PATIENCE, broker::commit, key, start};

/// Somebody writes to the log who may not.
async fn publish(store: &EventStore, subject: String, headers: HeaderMap, body: Vec<u8>) {
    let jetstream = store.jetstream();
    let sent = jetstream.publish_with_headers(subject, headers, body.into()).await.unwrap();
    sent.await.unwrap();
}

/// A commit whose link is the one that follows from this hash.
async fn forge(store: &EventStore, commit: &Commit, previous: &Hash) {
    let encoded = commit.encode(previous);
    let mut headers = HeaderMap::new();
    headers.insert(header::HASH, encoded.hash.to_string());
    publish(store, subject(&commit.key), headers, encoded.body).await;
}

fn numbered(id: &str, version: u64) -> Commit {
    let mut next = commit(id);
    next.events[0].version = version;
    next
}

async fn read(subscription: &mut Subscription) -> Result<Vec<Recorded>, Box<Broken>> {
    match subscription.next_batch(10, PATIENCE).await.unwrap() {
        Read::Commits(commits) => Ok(commits),
        Read::Broken(broken) => Err(broken),
    }
}

/// One aggregate's damage once stopped the readers of all.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_is_told_once_and_the_rest_is_read() {
    let (servers, store) = start().await;
    let none = Expected::default();
    let first = store.append(&commit("A"), none).await.unwrap();
    forge(&store, &numbered("A", 2), &Hash::ZERO).await;
    store.append(&commit("B"), none).await.unwrap();
    publish(&store, "evt.hello".to_owned(), HeaderMap::new(), b"hello".to_vec()).await;
    publish(&store, subject(&key("C")), HeaderMap::new(), b"{}".to_vec()).await;
    let mut endless = numbered("D", u64::MAX);
    endless.events.push(endless.events[0].clone());
    forge(&store, &endless, &Hash::ZERO).await;
    forge(&store, &numbered("A", 3), &first.hash).await;
    store.append(&commit("E"), none).await.unwrap();

    let mut log = store.subscribe(Filter::Everything, 1).await.unwrap();
    let ids = |commits: &[Recorded]| -> Vec<String> {
        commits.iter().map(|c| format!("{} {}", c.commit.key.id(), c.sequence)).collect()
    };
    assert_eq!(ids(&read(&mut log).await.unwrap()), ["A 1"]);
    let broken = read(&mut log).await.unwrap_err();
    assert_eq!((broken.sequence, broken.key), (2, Some(key("A"))));
    assert!(broken.commit.is_some() && broken.reason.contains("broken hash chain"));
    assert_eq!(ids(&read(&mut log).await.unwrap()), ["B 3"]);
    let foreign = read(&mut log).await.unwrap_err();
    assert_eq!((foreign.sequence, foreign.key), (4, None));
    for (sequence, id) in [(5, "C"), (6, "D")] {
        let broken = read(&mut log).await.unwrap_err();
        assert_eq!((broken.sequence, broken.key), (sequence, Some(key(id))));
        assert!(broken.commit.is_none() && broken.reason.contains("not a commit"));
    }
    // The reader that folds A has to hold this one back.
    assert_eq!(ids(&read(&mut log).await.unwrap()), ["A 7", "E 8"]);
    assert_eq!(log.read_to(), 8);

    let report = verify(&store, None, LINKS_MAX, |_, _| {}).await.unwrap();
    assert_eq!((report.commits, report.breaks, report.is_whole()), (8, 4, false));
    assert!(report.broken.unwrap().contains("broken hash chain at stream sequence 2"));
    servers.stop().await;
}

/// Messages that are missing may be anybody's: nobody knows what should follow from them.
#[tokio::test(flavor = "multi_thread")]
async fn missing_messages_stop_the_reader_of_everything() {
    let (servers, store) = start().await;
    for id in ["A", "B", "C"] {
        store.append(&commit(id), Expected::default()).await.unwrap();
    }
    let log = store.jetstream().get_stream("FLEX_EVENTS").await.unwrap();
    let mut config = log.cached_info().config.clone();
    store.jetstream().delete_stream("FLEX_EVENTS").await.unwrap();
    (config.deny_delete, config.deny_purge) = (false, false);
    let log = store.jetstream().create_stream(config).await.unwrap();
    for id in ["A", "B", "C"] {
        store.append(&commit(id), Expected::default()).await.unwrap();
    }
    log.delete_message(2).await.unwrap();
    let mut reader = store.subscribe(Filter::Everything, 1).await.unwrap();
    assert_eq!(read(&mut reader).await.unwrap().len(), 1);
    for _ in 0..2 {
        let stopped = reader.next_batch(10, PATIENCE).await;
        assert!(matches!(stopped, Err(Error::Gap { expected: 2, found: 3, .. })), "{stopped:?}");
    }
    let report = verify(&store, None, LINKS_MAX, |_, _| {}).await.unwrap();
    assert!(report.broken.unwrap().starts_with("gap in the log: FLEX_EVENTS jumps to 3"));
    servers.stop().await;
}

/// It once forgot all links at a million aggregates, and called them unbroken.
#[tokio::test(flavor = "multi_thread")]
async fn verify_checks_all_in_little_memory_or_says_what_it_did_not() {
    const AGGREGATES: u64 = 300;
    let (servers, store) = start().await;
    let mut firsts = Vec::new();
    for number in 0..AGGREGATES {
        let first = commit(&format!("A{number}"));
        firsts.push(store.append(&first, Expected::default()).await.unwrap());
    }
    for (number, first) in firsts.iter().enumerate() {
        let expected = Expected { sequence: first.sequence, hash: first.hash };
        store.append(&numbered(&format!("A{number}"), 2), expected).await.unwrap();
    }
    let at_once = verify(&store, None, 2 * AGGREGATES as usize, |_, _| {}).await.unwrap();
    assert_eq!((at_once.passes, at_once.aggregates, at_once.not_checked), (1, AGGREGATES, 0));
    assert!(at_once.is_whole());
    // In a slot there are five aggregates or so, and nowhere 20.
    let mut told = (0, 0);
    let by_slot = verify(&store, None, 40, |read, all| told = (read, all)).await.unwrap();
    assert_eq!((by_slot.passes, by_slot.aggregates, by_slot.not_checked), (2, AGGREGATES, 0));
    assert!(by_slot.is_whole());
    assert_eq!((told, by_slot.commits), ((4 * AGGREGATES, 4 * AGGREGATES), 2 * AGGREGATES));
    // Hardly a slot fits: they are read again, in parts.
    let by_part = verify(&store, None, 6, |read, all| told = (read, all)).await.unwrap();
    assert_eq!((by_part.passes, by_part.aggregates, by_part.not_checked), (3, AGGREGATES, 0));
    assert!(by_part.is_whole());
    assert_eq!((told, by_part.commits), ((4 * AGGREGATES, 4 * AGGREGATES), 2 * AGGREGATES));
    // With almost no memory: the report says so.
    let forgetful = verify(&store, None, 0, |_, _| {}).await.unwrap();
    assert!(forgetful.not_checked > 0, "{forgetful:?}");
    assert!(forgetful.broken.is_none() && !forgetful.is_whole());
    forge(&store, &numbered("A7", 3), &Hash::ZERO).await;
    for links_max in [2 * AGGREGATES as usize, 40, 6] {
        let report = verify(&store, None, links_max, |_, _| {}).await.unwrap();
        assert!(!report.is_whole() && report.breaks == 1, "{report:?}");
        assert!(report.broken.unwrap().contains("broken hash chain"), "{links_max}");
    }
    servers.stop().await;
}

/// The thousandth once stopped the readers of all.
#[tokio::test(flavor = "multi_thread")]
async fn however_many_aggregates_are_broken_the_rest_is_read() {
    let (servers, store) = start().await;
    let jetstream = store.jetstream();
    let mut sent = Vec::new();
    for number in 0..=1_000 {
        let subject = subject(&key(&format!("A{number}")));
        sent.push(jetstream.publish(subject, "junk".into()).await.unwrap());
    }
    for sent in sent {
        sent.await.unwrap();
    }
    store.append(&commit("B"), Expected::default()).await.unwrap();
    let mut log = store.subscribe(Filter::Everything, 1).await.unwrap();
    for _ in 0..=1_000 {
        read(&mut log).await.unwrap_err();
    }
    assert_eq!(read(&mut log).await.unwrap()[0].commit.key, key("B"));
    let report = verify(&store, None, LINKS_MAX, |_, _| {}).await.unwrap();
    assert_eq!((report.commits, report.breaks), (1_002, 1_001));
    servers.stop().await;
}
