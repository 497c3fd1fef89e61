//! Every write to the broker with the largest message that it takes, one byte less and one more. A
//! message that is too large must be refused at once, and delay nothing: an outage is waited for,
//! but this never ends.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_definition::{Application, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandId, CommandName, Commit, Hash,
    Name, Outcome, Tenant, Violation,
    command::{KEPT_BYTES_MAX, header},
    limits::{COMMIT_BYTES_MAX, FINGERPRINTS_PER_BLOCK, QUEUED_BYTES_MAX},
};
use flexcore_eventstore::{
    Error, EventStore, Expected, Profile, catalog,
    snapshot::{Block, OlderCommands, Snapshot},
    subject, topology,
};
use flexcore_queue::Stamp;
use flexcore_servers::Sync;
use futures::future::join_all;
use serde_json::value::RawValue;

use crate::{broker, key, start, start_as};

/// Around a limit: whether that much is taken.
fn around(most: usize) -> [(usize, bool); 3] {
    [(most - 1, true), (most, true), (most + 1, false)]
}

/// A JSON text of so many bytes.
fn json(bytes: usize) -> Box<RawValue> {
    RawValue::from_string(format!("\"{}\"", "x".repeat(bytes - 2))).unwrap()
}

/// A commit whose envelope takes so many bytes.
fn commit(id: &str, bytes: usize) -> Commit {
    let mut commit = broker::commit(id);
    let envelope = commit.encode(&Hash::ZERO).body.len() - commit.events[0].data.get().len();
    commit.events[0].data = json(bytes - envelope);
    assert_eq!(commit.encode(&Hash::ZERO).body.len(), bytes);
    commit
}

fn is_too_large<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::TooLarge(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn commits() {
    for (profile, sync) in [(Profile::Relaxed, Sync::Lazy), (Profile::PowerLoss, Sync::Always)] {
        let (servers, store) = start_as(profile, sync).await;
        for (bytes, is_taken) in around(COMMIT_BYTES_MAX) {
            let one = commit(&format!("one-{bytes}"), bytes);
            let appended = store.append(&one, Expected::default()).await;
            assert_eq!(appended.is_ok(), is_taken, "{profile} {bytes}: {appended:?}");
            assert_eq!(is_too_large(&appended), !is_taken, "{profile} {bytes}: {appended:?}");
        }
        // In one batch, where there are batches: a message that is too large takes no other with
        // it.
        let small = (0..8).map(|number| broker::commit(&format!("small-{number}")));
        let all: Vec<_> = small.chain([commit("large", COMMIT_BYTES_MAX + 1)]).collect();
        let appended = join_all(all.iter().map(|it| store.append(it, Expected::default()))).await;
        let (last, others) = appended.split_last().unwrap();
        assert!(is_too_large(last), "{profile}: {last:?}");
        assert!(others.iter().all(Result::is_ok), "{profile}: {others:?}");
        servers.stop().await;
    }
}

/// A server that takes less than a commit may have.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_takes_counts_and_a_stream_that_takes_less_is_told() {
    let (servers, store) = start_as(Profile::PowerLoss, Sync::Always).await;
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let mut config = log.cached_info().config.clone();
    config.max_message_size = 2_000;
    store.jetstream().update_stream(config).await.unwrap();
    let small = (0..8).map(|number| broker::commit(&format!("small-{number}")));
    let all: Vec<_> = small.chain([commit("large", 3_000)]).collect();
    let appended = join_all(all.iter().map(|it| store.append(it, Expected::default()))).await;
    let (last, others) = appended.split_last().unwrap();
    assert!(is_too_large(last), "{last:?}");
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    servers.stop().await;
}

/// Header block of so many bytes, in several headers.
fn headers(bytes: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut left = bytes - "NATS/1.0\r\n\r\n".len();
    for number in 10_u32.. {
        let name = format!("X-Filler-{number}");
        let line = name.len() + ": \r\n".len();
        let value = (left - line).min(10_000);
        // None is left with too few bytes for a line of its own.
        let value = if left - line - value < 100 { left - line } else { value };
        headers.insert(name.as_str(), "x".repeat(value));
        left -= line + value;
        if left == 0 {
            return headers;
        }
    }
    unreachable!("there are numbers enough")
}

#[tokio::test(flavor = "multi_thread")]
async fn commands() {
    let (servers, store) = start().await;
    let (counter, name) = (key("c1"), CommandName::parse("add").unwrap());
    let publisher = store.command_publisher();
    let id = CommandId::parse("c-1").unwrap();
    let own = "NATS/1.0\r\n\r\n".len() + format!("{}: c-1\r\n", header::OWN_COMMAND_ID).len();
    for (bytes, is_taken) in around(QUEUED_BYTES_MAX) {
        let payload = "x".repeat(bytes - own);
        let stored = publisher.publish(&counter, &name, &id, HeaderMap::new(), payload).await;
        assert_eq!(stored.is_ok(), is_taken, "{bytes}: {stored:?}");
        assert_eq!(is_too_large(&stored), !is_taken, "{bytes}: {stored:?}");
    }
    // From a client of its own: told at once, not put aside later.
    for (bytes, is_taken) in around(QUEUED_BYTES_MAX) {
        let body = vec![b'x'; bytes - 30_000];
        let subject = "cmd.acme.counter.c1.add";
        let sent = store.jetstream().publish_with_headers(subject, headers(30_000), body.into());
        let stored = sent.await.unwrap().await;
        assert_eq!(stored.is_ok(), is_taken, "{bytes}: {stored:?}");
        if let Err(error) = stored {
            assert!(error.to_string().contains("message size exceeds maximum"), "{error}");
        }
    }
    servers.stop().await;
}

/// The last message in FLEX_DEAD.
async fn last_dead(store: &EventStore) -> (HeaderMap, Bytes) {
    let dead = store.jetstream().get_stream(topology::DEAD).await.unwrap();
    let last = dead.get_last_raw_message_by_subject("dead.>").await.unwrap();
    (last.headers, last.payload)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_aside() {
    let (servers, store) = start().await;
    let max_payload = store.client().max_payload();
    let reason = "not JSON ".repeat(1_000);
    let bury = async |headers: Option<HeaderMap>, body: usize| {
        let body = Bytes::from(vec![b'x'; body]);
        store.bury("command", &reason, "cmd.a.b.c.d", headers.as_ref(), body).await.unwrap();
        last_dead(&store).await
    };
    // As much is kept of what is too large as is kept whole.
    let most = bury(None, max_payload).await.1.len();
    for (size, is_whole) in around(most) {
        let (kept, body) = bury(None, size).await;
        assert_eq!(kept.get(header::DEAD_BODY_BYTES).is_none(), is_whole, "{size}");
        assert_eq!(body.len(), size.min(most), "{size}");
    }
    // The last that the client library lets through, with and without headers that fill it, and one more.
    for size in [1_000, 300_000, max_payload - 1, max_payload, max_payload + 1] {
        let (kept, body) = bury(None, size).await;
        let cut = kept.get(header::DEAD_BODY_BYTES).map(|value| value.as_str().to_owned());
        assert_eq!(cut, (body.len() < size).then(|| size.to_string()), "{size}");
        assert!(body.len() > size - 1_000, "{} of {size}", body.len());
        let (kept, body) = bury(Some(headers(65_535)), size - 65_535.min(size)).await;
        assert!(kept.get(header::DEAD_HEADERS_LEFT_OUT).is_some(), "{size}: {}", body.len());
    }
    // The largest event of a projection, with the longest names.
    let long = AggregateKey::new(
        Tenant::parse(&"t".repeat(40)).unwrap(),
        AggregateName::parse(&"a".repeat(40)).unwrap(),
        AggregateId::parse(&"i".repeat(128)).unwrap(),
    );
    let (kind, event) = (format!("projection.{}.63", "r".repeat(40)), vec![b'x'; COMMIT_BYTES_MAX]);
    store.bury(&kind, &reason, &subject(&long), None, event.into()).await.unwrap();
    let (kept, body) = last_dead(&store).await;
    assert_eq!(body.len(), COMMIT_BYTES_MAX);
    assert!(kept.get(header::DEAD_BODY_BYTES).is_none(), "it is cut");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes() {
    let (servers, store) = start().await;
    let (counter, id) = (key("c1"), CommandId::parse("c-1").unwrap());
    let (most, max_payload) = (KEPT_BYTES_MAX, store.client().max_payload());
    let of = Stamp { sequence: u64::MAX, stored_ms: i64::MAX };
    for length in [most - 1, most, most + 1, max_payload, 4 * max_payload] {
        let told = Outcome::Dead { reason: "x".repeat(length) };
        store.save_outcome(&counter, &id, of, &told).await.unwrap();
        let kept = store.outcome(&counter, &id).await.unwrap().unwrap();
        assert_eq!(kept, told.clone().kept(), "{length}");
        assert_eq!(kept == told, length <= most, "{length}");
    }
    // The largest that there can be.
    let text = || "\u{1}".repeat(4 * most);
    let violations = (0..1_000).map(|_| Violation { field: text(), reason: text() }).collect();
    let told = Outcome::InvalidPayload { violations };
    store.save_outcome(&counter, &id, of, &told).await.unwrap();
    assert_eq!(store.outcome(&counter, &id).await.unwrap(), Some(told.kept()));
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots() {
    let (servers, store) = start().await;
    let snapshot = |state: usize| Snapshot {
        fingerprint: String::new(),
        version: 1,
        sequence: 1,
        hash: Hash::ZERO,
        time_ms: 0,
        state: json(state),
        commands: Vec::new(),
        older: older(0),
    };
    let frame = serde_json::to_vec(&snapshot(2)).unwrap().len() - 2;
    for (bytes, is_taken) in around(store.client().max_payload()) {
        let counter: AggregateKey = key(&format!("c{bytes}"));
        let saved = store.save_snapshot(&counter, &snapshot(bytes - frame)).await;
        assert_eq!(saved.is_ok(), is_taken, "{bytes}: {saved:?}");
        assert_eq!(is_too_large(&saved), !is_taken, "{bytes}: {saved:?}");
        assert_eq!(store.snapshot(&counter).await.unwrap().is_some(), is_taken, "{bytes}");
    }
    servers.stop().await;
}

/// So many full blocks of fingerprints, each as large as they come.
fn older(blocks: usize) -> OlderCommands {
    let count = FINGERPRINTS_PER_BLOCK;
    let block = Block { prints: vec![u32::MAX; count], sequences: vec![u64::MAX; count] };
    OlderCommands {
        secret: [7; 16].into(),
        full: blocks,
        open: Block::default(),
        blocks: std::iter::repeat_n(Arc::new(block), blocks).collect(),
        kept: 0,
    }
}

/// They are messages of their own beside the snapshot, which is of no use without one of them.
#[tokio::test(flavor = "multi_thread")]
async fn full_blocks_of_fingerprints() {
    let (servers, store) = start().await;
    let counter = key("c1");
    let snapshot = Snapshot {
        fingerprint: String::new(),
        version: 1,
        sequence: 1,
        hash: Hash::ZERO,
        time_ms: 0,
        state: json(2),
        commands: Vec::new(),
        older: older(3),
    };
    store.save_snapshot(&counter, &snapshot).await.unwrap();
    let read = store.snapshot(&counter).await.unwrap().unwrap().older;
    assert_eq!(read, OlderCommands { kept: 3, ..snapshot.older.clone() });
    // As another worker's memory has it.
    let other = OlderCommands { secret: [8; 16].into(), full: 1, ..older(1) };
    let other = Snapshot { older: other, ..snapshot.clone() };
    store.save_snapshot(&counter, &other).await.unwrap();
    assert!(store.snapshot(&counter).await.unwrap().is_some());
    let kept = OlderCommands { kept: 3, ..snapshot.older.clone() };
    store.save_snapshot(&counter, &Snapshot { older: kept, ..snapshot }).await.unwrap();
    assert!(store.snapshot(&counter).await.unwrap().is_none(), "the first block is another's");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments() {
    let (servers, store) = start().await;
    let deploy = async |text: usize| {
        let file = SourceFile { path: "a.yaml".to_owned(), text: "#".repeat(text) };
        // One of its own each time: none is read back.
        let application = Application {
            name: Name::parse(&format!("a{text}")).unwrap(),
            version: 0,
            files: vec![file],
            aggregates: BTreeMap::new(),
            read_models: BTreeMap::new(),
            queries: BTreeMap::new(),
        };
        let before = catalog::deployment(&store, &application.name).await.unwrap();
        let actor = ActorName::parse("test").unwrap();
        catalog::deploy(&store, &application, &before, &actor, 0).await
    };
    let Err(Error::TooLarge(why)) = deploy(COMMIT_BYTES_MAX).await else { panic!("it is taken") };
    assert!(why.contains("divide the application"), "{why}");
    let told = why.split_once("it takes ").and_then(|(_, rest)| rest.split(' ').next());
    let envelope = told.unwrap().parse::<usize>().unwrap() - COMMIT_BYTES_MAX;
    for (bytes, is_taken) in around(COMMIT_BYTES_MAX) {
        let deployed = deploy(bytes - envelope).await;
        assert_eq!(deployed.is_ok(), is_taken, "{bytes}: {deployed:?}");
        assert_eq!(is_too_large(&deployed), !is_taken, "{bytes}: {deployed:?}");
    }
    servers.stop().await;
}
