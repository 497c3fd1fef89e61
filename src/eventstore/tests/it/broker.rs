//! The log on a real broker that goes away.

use std::{
    io::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use async_nats::{ConnectOptions, HeaderMap, connection::State};
use flexcore_domain::{ActorName, CommandHash, CommandId, Commit, Event, EventName, Provenance};
use flexcore_eventstore::{
    Error, EventStore, Expected, Profile, REQUEST_TIMEOUT, Settings,
    renewed::{Connection, Renewed, watched},
    subject, topology,
};
use flexcore_servers::Sync;
use futures::future::join_all;
use serde_json::value::RawValue;

use crate::{PATIENCE, key, start, start_as};

/// Batches that the broker takes at a time for a stream.
const BATCHES_MAX: usize = 50;

/// The first commit of an aggregate.
pub(crate) fn commit(id: &str) -> Commit {
    let event = Event {
        event: EventName::parse("departed").unwrap(),
        version: 1,
        schema_version: 1,
        data: RawValue::from_string("{}".to_owned()).unwrap(),
    };
    Commit {
        key: key(id),
        command_id: CommandId::parse("c").unwrap(),
        command_hash: CommandHash::of("", ""),
        provenance: Provenance::of(ActorName::parse("alice").unwrap()),
        time_ms: 0,
        events: vec![event],
    }
}

async fn until(store: &EventStore, state: State) {
    let began = Instant::now();
    while store.client().connection_state() != state {
        assert!(began.elapsed() < PATIENCE, "not {state:?} in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Without a connection the client library keeps messages back, and sends them with the next one:
/// perhaps after somebody else has taken the slot over.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_an_append_is_refused_at_once_and_never_sent() {
    let (mut servers, store) = start().await;
    let none = Expected::default();
    assert_eq!(store.append(&commit("UA1"), none).await.unwrap().sequence, 1);
    servers.nats.kill().await.unwrap();
    until(&store, State::Disconnected).await;
    let began = Instant::now();
    let refused = store.append(&commit("UA2"), none).await;
    let took = began.elapsed();
    servers.nats.start_again().await.unwrap();
    until(&store, State::Connected).await;
    // It comes after everything that the client has kept back.
    let after = store.append(&commit("UA3"), none).await.unwrap();
    assert_eq!(after.sequence, 2, "the one that was refused has been sent late");
    assert!(matches!(&refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(took < REQUEST_TIMEOUT / 5, "{took:?}");
    servers.stop().await;
}

/// As when so many workers are under way.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_broker_takes_no_more_batches_commits_go_out_one_by_one() {
    let (servers, store) = start_as(Profile::PowerLoss, Sync::Always).await;
    for batch in 0..BATCHES_MAX {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", format!("other-{batch}"));
        headers.insert("Nats-Batch-Sequence", "1");
        let subject = subject(&key(&format!("O{batch}")));
        store.client().publish_with_headers(subject, headers, "{}".into()).await.unwrap();
    }
    let commits: Vec<_> =
        (0..2 * BATCHES_MAX).map(|number| commit(&format!("A{number}"))).collect();
    let appended = commits.iter().map(|commit| store.append(commit, Expected::default()));
    let mut sequences: Vec<u64> =
        join_all(appended).await.into_iter().map(|appended| appended.unwrap().sequence).collect();
    sequences.sort_unstable();
    assert!(sequences.into_iter().eq(1..=2 * BATCHES_MAX as u64), "each once, and nothing else");
    servers.stop().await;
}

/// As when the stream's leader has died with its last messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_does_not_hold_up_those_behind_it() {
    let (servers, store) = start_as(Profile::PowerLoss, Sync::Always).await;
    let stream = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let config = stream.cached_info().config.clone();
    store.jetstream().delete_stream(topology::EVENTS).await.unwrap();
    // Somebody hears it, so that the broker does not say that nobody does.
    let mut heard = store.client().subscribe("evt.>").await.unwrap();
    let (lost, none) = (commit("lost"), Expected::default());
    let began = Instant::now();
    let lost = store.append(&lost, none);
    let next = async {
        futures::StreamExt::next(&mut heard).await.unwrap();
        store.jetstream().create_stream(config).await.unwrap();
        (store.append(&commit("next"), none).await, began.elapsed())
    };
    let (lost, (next, took)) = tokio::join!(lost, next);
    assert!(matches!(&lost, Err(Error::Unavailable(_))), "{lost:?}");
    assert_eq!(next.unwrap().sequence, 1);
    assert!(took < REQUEST_TIMEOUT / 2, "{took:?}");
    servers.stop().await;
}

/// The broker would drop an aggregate's oldest commit in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_keeps_less_than_everything_is_refused() {
    let (servers, store) = start().await;
    let log = store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let mut config = log.cached_info().config.clone();
    config.max_messages_per_subject = 1_000;
    store.jetstream().update_stream(config).await.unwrap();
    let settings = Settings {
        profile: Profile::Relaxed,
        replicas: 1,
        monitor_urls: vec![servers.nats_monitor_url()],
    };
    let refused = EventStore::open(store.client().clone(), settings).await;
    let Err(Error::Misconfigured(why)) = refused else { panic!("it is taken") };
    assert!(why.contains("FLEX_EVENTS has max_msgs_per_subject"), "{why}");
    assert!(why.contains("nats stream edit FLEX_EVENTS"), "{why}");
    servers.stop().await;
}

async fn connection(url: &str) -> Result<Connection, String> {
    let (options, ended) = watched(ConnectOptions::new(), |_| {});
    let client = options.connect(url).await.map_err(|error| error.to_string())?;
    Ok(Connection { client, ended })
}

/// It panics over a carriage return within a value, and from then on every call failed, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_ended_for_good_is_told_and_made_anew() {
    let (servers, _store) = start().await;
    let url = servers.nats_url();
    let first = connection(&url).await.unwrap();
    let heard = first.client.subscribe("s").await.unwrap();
    first.client.flush().await.unwrap();
    assert!(!first.ended.is_cancelled());
    // No client would send it.
    let mut stream = TcpStream::connect(url.trim_start_matches("nats://")).unwrap();
    let connect = r#"{"verbose":false,"headers":true}"#;
    let headers = "NATS/1.0\r\nA: b\rC: d\r\n\r\n";
    let size = headers.len();
    let sent = format!("CONNECT {connect}\r\nHPUB s {size} {size}\r\n{headers}\r\n");
    stream.write_all(sent.as_bytes()).unwrap();
    tokio::time::timeout(PATIENCE, first.ended.cancelled()).await.unwrap();
    first.client.flush().await.unwrap_err();
    let renewed = Renewed::new(first.clone(), move || {
        let url = url.clone();
        Box::pin(async move { connection(&url).await })
    });
    renewed.context().await.unwrap().client().flush().await.unwrap();
    assert!(!renewed.is_away());
    let away = Renewed::new(first, || {
        Box::pin(std::future::ready(Err::<Connection, _>("no room".to_owned())))
    });
    assert!(away.context().await.is_err() && away.is_away());
    drop((heard, stream));
    servers.stop().await;
}
