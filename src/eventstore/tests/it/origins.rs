//! Streams that belong to another log than the one at hand.

use flexcore_eventstore::{Error, EventStore, Expected, Profile, Settings, topology};
use futures::TryStreamExt;

use crate::{broker::commit, start};

/// Snapshots, outcomes and progress of a log that is gone would be taken for those of the next one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_another_log_is_refused_at_the_start_until_it_is_taken_away() {
    let (servers, store) = start().await;
    store.append(&commit("c1"), Expected::default()).await.unwrap();
    let jetstream = store.jetstream().clone();
    jetstream.delete_stream(topology::EVENTS).await.unwrap();
    let open = async || {
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let monitor_urls = vec![servers.nats_monitor_url()];
        let settings = Settings { profile: Profile::Relaxed, replicas: 1, monitor_urls };
        EventStore::open(client, settings).await
    };
    let mut refused = Vec::new();
    let opened = loop {
        let why = match open().await {
            Ok(store) => break store,
            Err(Error::Misconfigured(why)) => why,
            Err(other) => panic!("{other}"),
        };
        let name = why.split(' ').nth(1).unwrap().to_owned();
        assert!(why.contains(&format!("stream {name} belongs to the log ")), "{why}");
        assert!(why.contains(&format!("nats stream rm {name}")), "{why}");
        assert!(!refused.contains(&name), "{name} was taken away: {why}");
        jetstream.delete_stream(&name).await.unwrap();
        refused.push(name);
    };
    refused.sort();
    let mut others = [
        topology::COMMANDS,
        topology::DEAD,
        topology::OUTCOMES,
        topology::PLUGIN_CONFIGURATIONS,
        topology::PROGRESS,
        topology::SECRETS,
        topology::SNAPSHOTS,
    ];
    others.sort_unstable();
    assert_eq!(refused, others);
    opened.append(&commit("c1"), Expected::default()).await.unwrap();
    servers.stop().await;
}

/// An empty one in its place would hide that it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_the_queue_and_the_secret_are_never_made_anew_while_processes_run() {
    let (servers, store) = start().await;
    let jetstream = store.jetstream();
    for name in [topology::COMMANDS, topology::SECRETS, topology::SNAPSHOTS] {
        jetstream.delete_stream(name).await.unwrap();
    }
    store.remake_streams().await.unwrap();
    for name in [topology::OUTCOMES, topology::EVENTS] {
        jetstream.delete_stream(name).await.unwrap();
    }
    let Err(Error::Misconfigured(why)) = store.remake_streams().await else { panic!("no word") };
    assert!(why.ends_with("FLEX_EVENTS is gone, too"), "{why}");
    let mut left: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
    left.sort_unstable();
    let still =
        [topology::DEAD, topology::PLUGIN_CONFIGURATIONS, topology::PROGRESS, topology::SNAPSHOTS];
    assert_eq!(left, still);
    servers.stop().await;
}
