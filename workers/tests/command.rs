//! The command worker on a real broker.

use std::{path::Path, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use flexcore_cluster::{Kind, Member, Owners};
use flexcore_domain::{
    AggregateId, AggregateKey, AggregateName, Catalog, Command, CommandName, Context, Decider,
    Decision, Event, Refusal, State, Tenant, command::header,
};
use flexcore_eventstore::{EventStore, Profile};
use flexcore_servers::{Options, Servers, Sync, Want};
use flexcore_workers::command;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A decider with a bug.
struct Panics;

impl Decider for Panics {
    fn decide(
        &mut self,
        _: &State,
        _: &CommandName,
        _: &RawValue,
        _: &Context,
    ) -> Result<Decision, Refusal> {
        panic!("a bug, on purpose");
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

/// A lane that had panicked once left its slots without an answer until somebody noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_panics_ends_the_worker() {
    let cache = std::env::var("FLEXCORE_CACHE").unwrap_or_else(|_| {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers-cache");
        cache.to_string_lossy().into_owned()
    });
    let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache) };
    let servers = Servers::start(&options).await.unwrap();
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let settings = flexcore_eventstore::Settings {
        profile: Profile::Relaxed,
        replicas: 1,
        monitor_urls: vec![servers.nats_monitor_url()],
    };
    let store = EventStore::open(client.clone(), settings).await.unwrap();
    let settings = command::Settings {
        native: Arc::new(|_| Some(Box::new(Panics))),
        ..command::Settings::default()
    };
    let (_deployed, catalog) = watch::channel(Arc::new(Catalog::default()));
    let stop = CancellationToken::new();
    let membership = flexcore_cluster::Settings::new("test", "worker", [Kind::Command]);
    let member = Member::join(&client, membership).await.unwrap();
    let worker = tokio::spawn(command::run(store, catalog, member, settings, stop));
    let key = AggregateKey::new(
        Tenant::parse("acme").unwrap(),
        AggregateName::parse("counter").unwrap(),
        AggregateId::parse("c1").unwrap(),
    );
    let name = CommandName::parse("add").unwrap();
    let owners = Owners::attach(&client).await.unwrap();
    // Until the worker has subscribed, nobody gets the request.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !worker.is_finished() {
        assert!(tokio::time::Instant::now() < deadline, "the worker goes on without its lane");
        let question = |epoch, _| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, "c-1");
            (Command::request_subject(epoch, &key, &name), headers)
        };
        let within = Duration::from_millis(200);
        let slot = key.slot().number();
        let _ = owners.ask(Kind::Command, slot, within, "{}".into(), question).await;
    }
    let error = worker.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("lane"), "{error}");
    servers.stop().await;
}
