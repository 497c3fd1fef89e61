//! The size of a real log, and its server's usage.

use flexcore_eventstore::Expected;

use crate::{broker::commit, key, start};

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_size_and_its_servers_are_known() {
    let (_servers, store) = start().await;
    let empty = store.growth().await.unwrap();
    assert_eq!((empty.bytes, empty.aggregates), (0, 0));
    for id in ["UA1", "UA2", "UA3"] {
        store.append(&commit(id), Expected::default()).await.unwrap();
    }
    // A second commit of one of them.
    let known = store.load(&key("UA1"), 0).await.unwrap().remove(0);
    let expected = Expected { sequence: known.sequence, hash: known.hash };
    let mut second = commit("UA1");
    second.events[0].version = 2;
    store.append(&second, expected).await.unwrap();
    let first = store.growth().await.unwrap();
    assert_eq!(first.aggregates, 3);
    assert!(first.bytes > 3 * 300, "{first:?}");
    let used = store.servers_use().await;
    let [server] = used.as_slice() else { panic!("{used:?}") };
    assert!(server.memory_bytes > 1 << 20, "{server:?}");
    assert_eq!(server.memory_bytes_max, 0, "it has no limit: {server:?}");
    assert!(server.store_bytes >= first.bytes, "{server:?}");
    assert_eq!(server.store_bytes_max, 64 << 30, "max_file_store of nats.conf");
}
