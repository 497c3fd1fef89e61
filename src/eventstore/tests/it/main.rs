//! The log and the queue on a real broker.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod broken;
mod broker;
mod catalog;
mod files;
mod folded;
mod growth;
mod interest;
mod kept;
mod leaders;
mod origins;
mod plugin_configurations;
mod plugins;
mod queue;
mod reading;
mod replicas;
mod secret;
mod sizes;
mod subscription;

use std::{path::PathBuf, time::Duration};

use flexcore_domain::{AggregateId, AggregateKey, AggregateName, Tenant};
use flexcore_eventstore::{EventStore, Profile, Settings};
use flexcore_servers::{Options, Servers, Sync, Want};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn cache() -> PathBuf {
    flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"))
}

async fn start() -> (Servers, EventStore) {
    start_as(Profile::Relaxed, Sync::Lazy).await
}

async fn start_as(profile: Profile, sync: Sync) -> (Servers, EventStore) {
    let options = Options { sync, want: Want::Nats, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let monitor_urls = vec![servers.nats_monitor_url()];
    let settings = Settings { profile, replicas: 1, monitor_urls };
    (servers, EventStore::open(client, settings).await.unwrap())
}

fn key(id: &str) -> AggregateKey {
    key_of("acme", id)
}

fn key_of(tenant: &str, id: &str) -> AggregateKey {
    AggregateKey::new(
        Tenant::parse(tenant).unwrap(),
        AggregateName::parse("counter").unwrap(),
        AggregateId::parse(id).unwrap(),
    )
}
