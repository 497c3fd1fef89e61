//! Files of plugins on a real broker.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use flexcore_domain::limits::PLUGIN_FILE_BYTES_MAX;
use flexcore_eventstore::{Error, EventStore, topology};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use crate::start;

/// As the store cuts files.
const CHUNK: usize = 256 << 10;

/// Content of so many bytes, no two chunks of which are the same.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    (0_u64..).flat_map(u64::to_le_bytes).take(bytes).collect()
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) async fn put(store: &EventStore, content: &[u8]) -> Result<String, Error> {
    let name = sha256(content);
    store.put_plugin_file(&mut &content[..], &name).await.map(|()| name)
}

/// The subjects of all chunks, each with their number.
async fn chunks(store: &EventStore) -> Vec<(String, usize)> {
    let stream = store.jetstream().get_stream(topology::FILES).await.unwrap();
    let subjects = stream.info_with_subjects("$O.flex_plugins.C.>").await.unwrap();
    subjects.try_collect().await.unwrap()
}

/// Stream sequence of the last message.
async fn last(store: &EventStore) -> u64 {
    let stream = store.jetstream().get_stream(topology::FILES).await.unwrap();
    stream.cached_info().state.last_sequence
}

/// Names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Why the file is not what it should be. There is no half of one then.
async fn refused(store: &EventStore, name: &str, bytes: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let bytes = u64::try_from(bytes).unwrap();
    let fetched = store.fetch_plugin_file(name, &folder.path().join("f"), bytes).await;
    let Err(Error::PluginFile(why)) = fetched else { panic!("{fetched:?}") };
    assert!(why.contains("install the plugin again"), "{why}");
    assert_eq!(names(folder.path()), [""; 0]);
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_back_as_it_was_and_may_be_executed() {
    let (servers, store) = start().await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("f");
    for bytes in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 9 * CHUNK + 5] {
        let content = content(bytes);
        let name = put(&store, &content).await.unwrap();
        store.fetch_plugin_file(&name, &to, u64::try_from(bytes).unwrap()).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == content, "{bytes}");
        assert_eq!(names(folder.path()), ["f"]);
    }
    assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);
    let nowhere = folder.path().join("none").join("f");
    let name = put(&store, b"a").await.unwrap();
    let unwritten = store.fetch_plugin_file(&name, &nowhere, 1).await;
    assert!(matches!(unwritten, Err(Error::LocalFile(_))), "{unwritten:?}");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_is_not_sent_again() {
    let (servers, store) = start().await;
    let content = content(2 * CHUNK);
    let name = put(&store, &content).await.unwrap();
    let before = last(&store).await;
    // It is not even read.
    store.put_plugin_file(&mut tokio::io::empty(), &name).await.unwrap();
    assert_eq!(last(&store).await, before);
    // At once, while it is not there.
    let other = [&content[..], b"x"].concat();
    let (one, two) = tokio::join!(put(&store, &other), put(&store, &other));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(chunks(&store).await.len(), 2, "one each");
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_whole_is_noticed_and_mended_by_the_next_who_has_it() {
    let (servers, store) = start().await;
    let content = content(6 * CHUNK);
    let name = put(&store, &content).await.unwrap();
    let stream = store.jetstream().get_stream(topology::FILES).await.unwrap();
    for gone in [&[6][..], &[1, 2, 3, 4, 5]] {
        for sequence in gone {
            stream.delete_message(*sequence).await.unwrap();
        }
        assert!(refused(&store, &name, content.len()).await.contains("fewer bytes"));
    }
    put(&store, &content).await.unwrap();
    assert_eq!(chunks(&store).await.len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("f");
    let bytes = u64::try_from(content.len()).unwrap();
    store.fetch_plugin_file(&name, &to, bytes).await.unwrap();
    assert!(std::fs::read(&to).unwrap() == content);
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_its_name_says_is_refused() {
    let (servers, store) = start().await;
    let content = content(100);
    let name = sha256(&content);
    assert!(refused(&store, &name, 100).await.contains("is not stored"), "no store of files yet");
    put(&store, b"another").await.unwrap();
    assert!(refused(&store, &name, 100).await.contains("is not stored"));
    let said = store.put_plugin_file(&mut &content[1..], &name).await;
    assert!(matches!(said, Err(Error::PluginFile(_))), "{said:?}");
    assert_eq!(chunks(&store).await.len(), 1, "nothing is left of it");
    put(&store, &content).await.unwrap();
    for bytes in [99, 101] {
        assert!(refused(&store, &name, bytes).await.contains("has 100 bytes"));
    }
    let stream = store.jetstream().get_stream(topology::FILES).await.unwrap();
    let before = chunks(&store).await;
    let another = sha256(b"another");
    let (other, own) = (before.first().unwrap(), before.last().unwrap());
    // Which of the two is whose does not matter: both are overwritten.
    for (body, why) in [(vec![7_u8; 100], "another content"), (vec![7_u8; 101], "more bytes")] {
        for (subject, _) in [other, own] {
            stream.purge().filter(subject.as_str()).await.unwrap();
            let body = Bytes::from(body.clone());
            let sent = store.jetstream().publish(subject.clone(), body).await.unwrap();
            sent.await.unwrap();
        }
        assert!(refused(&store, &name, 100).await.contains(why));
        assert!(refused(&store, &another, 7).await.contains("more bytes"));
    }
    for wrong in ["", "../../etc/passwd", &name.to_uppercase(), &name[1..]] {
        let said = store.put_plugin_file(&mut &content[..], wrong).await;
        assert!(matches!(said, Err(Error::PluginFile(_))), "{said:?}");
    }
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_room_nothing_is_left_of_a_file() {
    let (servers, store) = start().await;
    put(&store, b"small").await.unwrap();
    let stream = store.jetstream().get_stream(topology::FILES).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_bytes = 3 << 19;
    store.jetstream().update_stream(&config).await.unwrap();
    let content = content(8 * CHUNK);
    let said = put(&store, &content).await;
    assert!(matches!(said, Err(Error::NoRoom(_))), "{said:?}");
    assert_eq!(chunks(&store).await.len(), 1);
    config.max_bytes = 4 << 30;
    store.jetstream().update_stream(&config).await.unwrap();
    put(&store, &content).await.unwrap();
    servers.stop().await;
}

/// The time of the host, in seconds, so many hours from now.
fn in_hours(hours: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + hours * 3_600
}

/// Where a sender was interrupted, its chunks stayed for ever.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_nothing_names_are_deleted_when_nobody_can_be_at_work_on_them() {
    let (servers, store) = start().await;
    let content = content(2 * CHUNK);
    let name = put(&store, &content).await.unwrap();
    let whole = chunks(&store).await;
    let sent = store.jetstream().publish("$O.flex_plugins.C.interrupted", "half".into()).await;
    sent.unwrap().await.unwrap();
    store.purge_nobodys_chunks(in_hours(0)).await.unwrap();
    assert_eq!(chunks(&store).await.len(), 2, "it may still be sent");
    store.purge_nobodys_chunks(in_hours(2)).await.unwrap();
    assert_eq!(chunks(&store).await, whole);
    // Marked as deleted, by somebody who died then.
    let stream = store.jetstream().get_stream(topology::FILES).await.unwrap();
    let records = stream.info_with_subjects("$O.flex_plugins.M.>").await.unwrap();
    let (subject, _) = records.try_collect::<Vec<_>>().await.unwrap().pop().unwrap();
    let record = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
    record["deleted"] = true.into();
    let sent = store.jetstream().publish(subject, record.to_string().into()).await;
    sent.unwrap().await.unwrap();
    store.purge_nobodys_chunks(in_hours(0)).await.unwrap();
    assert_eq!(chunks(&store).await, whole, "the mark may be taken back");
    store.purge_nobodys_chunks(in_hours(2)).await.unwrap();
    assert!(chunks(&store).await.is_empty());
    assert!(refused(&store, &name, content.len()).await.contains("is not stored"));
    servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_one_byte_too_many_is_refused() {
    let (servers, store) = start().await;
    let name = sha256(b"any");
    let mut endless = tokio::io::repeat(7).take(PLUGIN_FILE_BYTES_MAX + 1);
    let said = store.put_plugin_file(&mut endless, &name).await;
    assert!(matches!(said, Err(Error::TooLarge(_))), "{said:?}");
    assert_eq!(chunks(&store).await.len(), 0);
    let to = Path::new("/nowhere/f");
    let said = store.fetch_plugin_file(&name, to, PLUGIN_FILE_BYTES_MAX + 1).await;
    assert!(matches!(said, Err(Error::TooLarge(_))), "{said:?}");
    let said = store.fetch_plugin_file(&name, to, PLUGIN_FILE_BYTES_MAX).await;
    assert!(matches!(said, Err(Error::PluginFile(_))), "{said:?}");
    servers.stop().await;
}
