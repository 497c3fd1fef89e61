//! Installed plugins on a real broker.

use std::sync::Arc;

use bytes::Bytes;
use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_domain::{ActorName, AggregateId, AggregateKey, AggregateName, Name, Tenant};
use flexcore_eventstore::{
    Error, EventStore,
    plugins::{self, InstalledPlugins, PluginBefore, install, installed, remove, restart, watch},
    subject,
    topology::PLUGIN_CONFIGURATIONS,
};
use tokio::{sync::watch::Receiver, time::timeout};

use crate::{
    PATIENCE,
    files::{content, put, sha256},
    start,
};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn actor() -> ActorName {
    ActorName::parse("test").unwrap()
}

fn manifest_with(of: &str, more: &str) -> PluginManifest {
    let text = format!("name: {of}\nversion: '1'\nfile: f\n{more}");
    PluginManifest::read(SourceFile { path: "plugin.yaml".to_owned(), text }).unwrap()
}

fn manifest(of: &str) -> PluginManifest {
    manifest_with(of, "")
}

/// Stores this content as a plugin's file, and installs it.
async fn add(store: &EventStore, of: &str, content: &[u8]) -> u32 {
    let file = put(store, content).await.unwrap();
    let before = installed(store, &name(of)).await.unwrap();
    let bytes = u64::try_from(content.len()).unwrap();
    let manifest = manifest(of);
    let number = install(store, &manifest, &file, bytes, &before, &actor(), 0).await.unwrap();
    put(store, content).await.unwrap();
    number
}

async fn take_off(store: &EventStore, of: &str) -> u32 {
    let of = name(of);
    let before = installed(store, &of).await.unwrap();
    remove(store, &of, &before, &actor(), 0).await.unwrap()
}

async fn is_stored(store: &EventStore, content: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (to, bytes) = (folder.path().join("f"), u64::try_from(content.len()).unwrap());
    match store.fetch_plugin_file(&sha256(content), &to, bytes).await {
        Ok(()) => std::fs::read(to).unwrap() == content,
        Err(Error::PluginFile(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The number of the plugin's event as a follower has it, as soon as it is this one.
async fn until(plugins: &mut Receiver<Arc<InstalledPlugins>>, of: &str, number: Option<u32>) {
    let is =
        |now: &Arc<InstalledPlugins>| now.installed.get(of).map(|plugin| plugin.number) == number;
    timeout(PATIENCE, plugins.wait_for(is)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_followed_and_found_by_who_starts_later() {
    let (servers, store) = start().await;
    let mut live = watch(&store).await.unwrap();
    assert!(live.borrow().installed.is_empty());
    assert_eq!(add(&store, "a", b"one").await, 1);
    until(&mut live, "a", Some(1)).await;
    let before = installed(&store, &name("a")).await.unwrap();
    assert_eq!(restart(&store, &name("a"), &before, &actor(), 0).await.unwrap(), 2);
    until(&mut live, "a", Some(2)).await;
    assert_eq!(add(&store, "a", b"two").await, 3);
    until(&mut live, "a", Some(3)).await;
    let started = watch(&store).await.unwrap().borrow().clone();
    let live_now = live.borrow().clone();
    for plugins in [live_now, started] {
        let plugin = &plugins.installed[&name("a")];
        assert_eq!((plugin.number, plugin.restarts, plugin.bytes), (3, 2, 3));
        assert_eq!((&plugin.sha256, &plugin.manifest), (&sha256(b"two"), &manifest("a")));
    }
    assert_eq!(take_off(&store, "a").await, 4);
    until(&mut live, "a", None).await;
    assert!(watch(&store).await.unwrap().borrow().installed.is_empty());
    let before = installed(&store, &name("a")).await.unwrap();
    assert_eq!((before.number, before.installed), (4, None));
    assert_eq!(add(&store, "a", b"one").await, 5);
    until(&mut live, "a", Some(5)).await;
    assert_eq!(live.borrow().installed[&name("a")].restarts, 5, "processes may not know of 4");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_change_a_plugin_at_once_one_is_told_that_the_other_was_first() {
    let (servers, store) = start().await;
    let (a, file) = (name("a"), put(&store, b"one").await.unwrap());
    let install = async |before: &PluginBefore| {
        plugins::install(&store, &manifest("a"), &file, 3, before, &actor(), 0).await
    };
    let never = installed(&store, &a).await.unwrap();
    for refused in [
        restart(&store, &a, &never, &actor(), 0).await,
        remove(&store, &a, &never, &actor(), 0).await,
    ] {
        assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    }
    assert_eq!(install(&never).await.unwrap(), 1);
    assert!(matches!(install(&never).await, Err(Error::Conflict)));
    let first = installed(&store, &a).await.unwrap();
    // Another plugin is in nobody's way.
    add(&store, "b", b"two").await;
    assert_eq!(remove(&store, &a, &first, &actor(), 0).await.unwrap(), 2);
    for refused in [
        install(&first).await,
        restart(&store, &a, &first, &actor(), 0).await,
        remove(&store, &a, &first, &actor(), 0).await,
    ] {
        assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    }
    assert!(installed(&store, &a).await.unwrap().installed.is_none());
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_with_the_last_plugin_that_needs_it() {
    let (servers, store) = start().await;
    let (one, two) = (content(300_000), content(1_000));
    add(&store, "a", &one).await;
    add(&store, "b", &one).await;
    take_off(&store, "a").await;
    assert!(is_stored(&store, &one).await, "b needs it");
    add(&store, "b", &two).await;
    assert!(is_stored(&store, &one).await, "the one before stays");
    assert!(is_stored(&store, &two).await);
    // The same file with another manifest.
    add(&store, "b", &two).await;
    assert!(is_stored(&store, &one).await && is_stored(&store, &two).await);
    let three = content(2_000);
    add(&store, "b", &three).await;
    assert!(!is_stored(&store, &one).await, "until the next comes");
    assert!(is_stored(&store, &two).await);
    // Back to the one before.
    add(&store, "b", &two).await;
    assert!(is_stored(&store, &two).await && is_stored(&store, &three).await);
    let before = installed(&store, &name("b")).await.unwrap();
    restart(&store, &name("b"), &before, &actor(), 0).await.unwrap();
    take_off(&store, "b").await;
    assert!(!is_stored(&store, &two).await && !is_stored(&store, &three).await);
    add(&store, "b", &two).await;
    assert!(is_stored(&store, &two).await, "and comes with the next");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_stays_while_one_plugin_leaves_it_and_another_takes_it() {
    let (servers, store) = start().await;
    let content = content(600_000);
    add(&store, "a0", &content).await;
    for number in 0..8 {
        let (leaves, comes) = (format!("a{number}"), format!("a{}", number + 1));
        tokio::join!(take_off(&store, &leaves), add(&store, &comes, &content));
        assert!(is_stored(&store, &content).await, "round {number}");
    }
    servers.stop().await;
}

/// A plugin of the same name, by anybody, was given the secrets that tenants had for the one before.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_configurations_go_with_their_plugin_and_with_no_other() {
    let (servers, store) = start().await;
    let tenants = ["acme", "globex"].map(|tenant| Tenant::parse(tenant).unwrap());
    let configure = async |of: &str| {
        for tenant in &tenants {
            let sealed = Bytes::from_static(b"sealed");
            store.put_plugin_configuration(&name(of), tenant, sealed).await.unwrap();
        }
    };
    let left = async |of: &str| {
        let mut left = 0;
        for tenant in &tenants {
            let found = store.plugin_configuration(&name(of), tenant).await.unwrap();
            left += usize::from(found.is_some());
        }
        left
    };
    // As a removal that was interrupted leaves them.
    configure("a").await;
    add(&store, "a", b"one").await;
    assert_eq!(left("a").await, 0, "an installation gets none of them");
    configure("a").await;
    add(&store, "b", b"two").await;
    configure("b").await;
    add(&store, "a", b"three").await;
    plugins::forget_configurations(&store, &name("a")).await.unwrap();
    assert_eq!(left("a").await, 2, "an upgrade keeps them");
    take_off(&store, "a").await;
    assert_eq!((left("a").await, left("b").await), (0, 2));
    let stream = store.jetstream().get_stream(PLUGIN_CONFIGURATIONS).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 2, "not even marks are left");
    // Also when the first removal ended too early.
    configure("a").await;
    plugins::forget_configurations(&store, &name("a")).await.unwrap();
    assert_eq!((left("a").await, left("b").await), (0, 2));
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_listed_and_others_are_in_force() {
    let (servers, store) = start().await;
    add(&store, "a", b"one").await;
    let mut live = watch(&store).await.unwrap();
    let key = AggregateKey::new(
        Tenant::parse(Tenant::PLATFORM).unwrap(),
        AggregateName::parse(plugins::AGGREGATE).unwrap(),
        AggregateId::parse("a").unwrap(),
    );
    for junk in ["junk", "[]", "{}"] {
        store.jetstream().publish(subject(&key), junk.into()).await.unwrap().await.unwrap();
    }
    add(&store, "b", b"two").await;
    until(&mut live, "b", Some(1)).await;
    let started = watch(&store).await.unwrap().borrow().clone();
    let live_now = live.borrow().clone();
    for plugins in [live_now, started] {
        let unreadable: Vec<_> = plugins.unreadable.keys().map(Name::as_str).collect();
        assert_eq!(unreadable, ["a"]);
        assert!(plugins.installed.contains_key("b"));
    }
    let unread = installed(&store, &name("a")).await;
    assert!(matches!(unread, Err(Error::Corrupt { .. })), "{unread:?}");
    // It may be what that one needs.
    take_off(&store, "b").await;
    assert!(is_stored(&store, b"two").await);
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_manifest_is_one_message() {
    const MOST: usize = 256 << 10;
    let (servers, store) = start().await;
    let file = put(&store, b"one").await.unwrap();
    let frame = manifest_with("a", "#\n").source.text.len();
    let add = async |of: &str, filler: &str| {
        let manifest = manifest_with(of, &format!("#{}\n", filler.repeat(MOST - frame)));
        assert_eq!(manifest.source.text.len(), MOST);
        let before = installed(&store, &name(of)).await.unwrap();
        install(&store, &manifest, &file, 3, &before, &actor(), 0).await
    };
    assert_eq!(add("a", "x").await.unwrap(), 1);
    // As JSON twice as long.
    assert_eq!(add("b", "\"").await.unwrap(), 1);
    let plugins = watch(&store).await.unwrap().borrow().clone();
    assert_eq!(plugins.installed.len(), 2);
    servers.stop().await;
}
