//! A file of commands on its way to the broker.

use flexcore_eventstore::{EventStore, Profile, Settings, topology};
use flexcore_servers::{Options, Servers, Sync, Want};

use crate::support::process::{cache, flexcore, folder, texts};

/// Longest message that the queue takes here, in bytes.
const MESSAGE_BYTES_MAX: i32 = 2_000;

/// A broker with the queue, and nobody who empties it.
async fn start() -> (Servers, EventStore) {
    let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache()) };
    let servers = Servers::start(&options).await.unwrap();
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let settings = Settings { profile: Profile::Relaxed, replicas: 1, monitor_urls: Vec::new() };
    let store = EventStore::open(client, settings).await.unwrap();
    let queue = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    let mut config = queue.cached_info().config.clone();
    config.max_message_size = MESSAGE_BYTES_MAX;
    store.jetstream().update_stream(config).await.unwrap();
    (servers, store)
}

fn line(number: usize, bytes: usize) -> String {
    let payload = "x".repeat(bytes);
    format!(r#"{{"aggregate":"a","id":"{number}","command":"c","payload":"{payload}"}}"#)
}

/// What publishing these lines says of its failure, and how many commands the queue has got by then.
async fn failed(servers: &Servers, store: &EventStore, lines: &[String]) -> (String, u64) {
    let queue = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    let place = folder();
    let file = place.path().join("commands.ndjson");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (mut publish, url) = (flexcore(), servers.nats_url());
    publish.args(["publish", "--tenant", "t", "--nats", &url, "--lines"]).arg(&file);
    let output = tokio::task::spawn_blocking(move || publish.output().unwrap()).await.unwrap();
    let (out, err) = texts(&output);
    assert!(!output.status.success(), "{out}{err}");
    let before = queue.cached_info().state.messages;
    (err, queue.get_info().await.unwrap().state.messages - before)
}

/// Those that were on their way were dropped with the process, and nobody heard what the broker said
/// of them. Blank lines were not counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_before_a_bad_line_is_stored_or_told() {
    let (servers, store) = start().await;
    let mut lines: Vec<String> = (1..=1_000).map(|number| line(number, 10)).collect();
    lines.extend([String::new(), "no command".to_owned(), line(1_003, 10)]);
    let (said, stored) = failed(&servers, &store, &lines).await;
    assert_eq!(stored, 1_000, "{said}");
    assert!(said.contains("line 1002 is not published"), "{said}");
    assert!(said.contains("the 1000 commands before it are stored"), "{said}");

    let lines = [line(1, 10), line(2, 3_000), line(3, 10), line(4, 3_000), "5".to_owned()];
    let (said, stored) = failed(&servers, &store, &lines).await;
    assert_eq!(stored, 2, "{said}");
    for part in [
        "line 2 is not stored, nor are 1 behind it; 2 commands are stored",
        "line 5 is not published",
        "message size exceeds maximum",
    ] {
        assert!(said.contains(part), "{said}");
    }
    servers.stop().await;
}
