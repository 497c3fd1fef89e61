//! The log on a real broker that goes away.

use std::time::{Duration, Instant};

use async_nats::connection::State;
use flexcore_domain::{ActorName, CommandHash, CommandId, Commit, Event, EventName};
use flexcore_eventstore::{Error, EventStore, Expected, REQUEST_TIMEOUT};
use serde_json::value::RawValue;

use crate::{PATIENCE, key, start};

/// The first commit of an aggregate.
fn commit(id: &str) -> Commit {
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
        actor: ActorName::parse("alice").unwrap(),
        correlation_id: None,
        causation_id: None,
        traceparent: None,
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

/// The client library keeps back what it is given without a connection, and sends it with the next one:
/// once somebody else has taken the slot over, perhaps.
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
    // It is behind whatever the client has kept back.
    let after = store.append(&commit("UA3"), none).await.unwrap();
    assert_eq!(after.sequence, 2, "the one that was refused has been sent late");
    assert!(matches!(&refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(took < REQUEST_TIMEOUT / 5, "{took:?}");
    servers.stop().await;
}
