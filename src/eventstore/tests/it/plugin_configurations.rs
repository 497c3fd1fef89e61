//! Configurations of plugins: stored sealed, followed by their numbers, and taken away.

use std::time::Duration;

use async_nats::jetstream::consumer::{Consumer, pull};
use bytes::Bytes;
use flexcore_domain::{Name, Tenant, plugin_configuration::CONFIGURATION_BYTES_MAX};
use flexcore_eventstore::{
    Error,
    plugin_configurations::{ConfigurationNumbers, Locked, SEALED_BYTES_MAX},
    sealed::SecretsKey,
    topology::PLUGIN_CONFIGURATIONS,
};
use futures::TryStreamExt as _;
use tokio::time::{sleep, timeout};

use crate::start;

fn plugin() -> Name {
    Name::parse("http").unwrap()
}

fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).unwrap()
}

/// Waits until the number is another one than this.
async fn changed(numbers: &ConfigurationNumbers, from: u64) -> u64 {
    let look = async {
        loop {
            let number = numbers.of(&plugin(), "acme");
            if number != from {
                return number;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), look).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_stored_followed_and_taken_away() {
    let (servers, store) = start().await;
    let sealing = store.clone().with_secrets_key(Some(SecretsKey::generate()));
    let (acme, plugin) = (tenant("acme"), plugin());
    let put = async |json: &[u8]| {
        let sealed = sealing.seal_plugin_configuration(&plugin, &acme, json).unwrap();
        store.put_plugin_configuration(&plugin, &acme, sealed).await.unwrap();
    };
    let (none, changes) = ConfigurationNumbers::learn(&store).await.unwrap();
    assert_eq!(none.of(&plugin, "acme"), 0);
    drop(changes);
    put(br#"{"a":1}"#).await;
    let (numbers, changes) = ConfigurationNumbers::learn(&store).await.unwrap();
    let following = tokio::spawn(changes.follow());
    let first = numbers.of(&plugin, "acme");
    assert!(first > 0 && numbers.of(&plugin, "globex") == 0);
    put(br#"{"a":2}"#).await;
    let second = changed(&numbers, first).await;
    let sealed = store.plugin_configuration(&plugin, &acme).await.unwrap().unwrap();
    let opened = sealing.open_plugin_configuration(&plugin, &acme, &sealed).unwrap();
    assert_eq!(opened, &br#"{"a":2}"#[..]);
    let globex = tenant("globex");
    assert!(sealing.open_plugin_configuration(&plugin, &globex, &sealed).is_err());
    let no_key = store.open_plugin_configuration(&plugin, &acme, &sealed);
    assert_eq!(no_key.unwrap_err(), Locked::NoKey);
    assert!(store.remove_plugin_configuration(&plugin, &acme).await.unwrap());
    assert!(!store.remove_plugin_configuration(&plugin, &acme).await.unwrap());
    assert!(changed(&numbers, second).await > second);
    assert!(store.plugin_configuration(&plugin, &acme).await.unwrap().is_none());
    following.abort();
    servers.stop().await;
}

/// The next change that is handed to a follower comes to nobody, as when its connection breaks. Another change came
/// behind it, and the end of the stream was known: a revoked secret stayed in use for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_lost_is_known_once_another_one_comes() {
    let (servers, store) = start().await;
    let (numbers, changes) = ConfigurationNumbers::learn(&store).await.unwrap();
    let following = tokio::spawn(changes.follow());
    let stream = store.jetstream().get_stream(PLUGIN_CONFIGURATIONS).await.unwrap();
    let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
    let consumer: Consumer<pull::Config> = stream.get_consumer(&names[0]).await.unwrap();
    // The broker hands changes to those who ask in turn: one of the first two comes here.
    let astray = consumer.batch().max_messages(1).expires(Duration::from_secs(60)).messages();
    let _astray = astray.await.unwrap();
    let tenants = ["acme", "globex", "initech"];
    for name in tenants {
        let sealed = Bytes::from_static(b"sealed");
        store.put_plugin_configuration(&plugin(), &tenant(name), sealed).await.unwrap();
    }
    let all = async {
        while tenants.iter().any(|name| numbers.of(&plugin(), name) == 0) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), all).await.unwrap();
    following.abort();
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_sealed_configuration_is_stored_and_a_larger_one_is_not() {
    let (servers, store) = start().await;
    let sealing = store.clone().with_secrets_key(Some(SecretsKey::generate()));
    let (acme, plugin) = (tenant("acme"), plugin());
    let largest = vec![b' '; CONFIGURATION_BYTES_MAX];
    let sealed = sealing.seal_plugin_configuration(&plugin, &acme, &largest).unwrap();
    assert_eq!(sealed.len(), SEALED_BYTES_MAX);
    store.put_plugin_configuration(&plugin, &acme, sealed).await.unwrap();
    let large = Bytes::from(vec![0; SEALED_BYTES_MAX + 1]);
    let refused = store.put_plugin_configuration(&plugin, &acme, large).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge(_)), "{refused}");
    servers.stop().await;
}
