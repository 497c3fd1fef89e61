//! A file of commands on its way to the broker.

use std::collections::BTreeMap;

use flexcore_domain::command::header;
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

/// Publishes these lines; returns what it says, and true when all are stored.
async fn published(servers: &Servers, lines: &[String], more: &[&str]) -> (String, bool) {
    let place = folder();
    let file = place.path().join("commands.ndjson");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (mut publish, url) = (flexcore(), servers.nats_url());
    publish.args(["publish", "--tenant", "t", "--nats", &url, "--lines"]).arg(&file).args(more);
    let output = tokio::task::spawn_blocking(move || publish.output().unwrap()).await.unwrap();
    let (out, err) = texts(&output);
    (out + &err, output.status.success())
}

/// What publishing these lines says of its failure, and how many commands the queue has got by then.
async fn failed(servers: &Servers, store: &EventStore, lines: &[String]) -> (String, u64) {
    let queue = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    let (said, all) = published(servers, lines, &[]).await;
    assert!(!all, "{said}");
    let before = queue.cached_info().state.messages;
    (said, queue.get_info().await.unwrap().state.messages - before)
}

/// The ids of the commands in the queue from a place on, by aggregate.
async fn ids(store: &EventStore, from: u64) -> BTreeMap<String, Vec<String>> {
    let queue = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for sequence in from..=queue.cached_info().state.last_sequence {
        let stored = queue.get_raw_message(sequence).await.unwrap();
        let id = stored.headers.get(header::OWN_COMMAND_ID).unwrap().to_string();
        let aggregate = stored.subject.rsplit('.').nth(1).unwrap();
        all.entry(aggregate.to_owned()).or_default().push(id);
    }
    all
}

/// It was to be sent again with the same id, a random one that nobody was told.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_stored_is_told_with_its_id() {
    let (servers, _store) = start().await;
    let (mut publish, url) = (flexcore(), servers.nats_url());
    publish.args(["publish", "--tenant", "t", "--nats", &url, "a", "1", "c"]);
    publish.arg(format!("\"{}\"", "x".repeat(3_000)));
    let output = tokio::task::spawn_blocking(move || publish.output().unwrap()).await.unwrap();
    let (out, err) = texts(&output);
    assert!(!output.status.success(), "{out}{err}");
    let (_, told) = err.split_once("publishing the command ").expect("it says which");
    let id = told.split([':', '\n', ' ']).next().unwrap();
    assert_eq!(id.len(), "01890a5d-ac96-774b-bcce-b302099a8057".len(), "{err}");
    servers.stop().await;
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

    let mut lines = [line(1, 10), line(2, 3_000), line(3, 10), line(4, 3_000), "5".to_owned()];
    let (said, stored) = failed(&servers, &store, &lines).await;
    assert_eq!(stored, 2, "{said}");
    for part in [
        "line 2 is not stored, nor are 1 behind it; the 1 commands before it are stored, \
         and 1 behind it, the last one in line 3",
        "line 5 is not published",
        "message size exceeds maximum",
    ] {
        assert!(said.contains(part), "{said}");
    }
    // Lines without an id had another random one each time, and what was stored was done twice.
    let (_, run) = said.split_once("--run ").expect("it says how to go on");
    let run = run.split([';', ':', ' ', '\n']).next().unwrap();
    (lines[1], lines[3], lines[4]) = (line(2, 10), line(4, 10), line(5, 10));
    let (said, all) = published(&servers, &lines, &["--run", run]).await;
    assert!(all, "{said}");
    // The first line of another file was taken for the first of this one, and nothing was done.
    let (said, all) = published(&servers, &[line(1, 11)], &["--run", run]).await;
    assert!(all, "{said}");
    let ids = ids(&store, 1_001).await;
    assert_eq!(ids.values().map(Vec::len).collect::<Vec<_>>(), [3, 1, 2, 1, 1], "{ids:?}");
    let (one, three) = (&ids["1"], &ids["3"]);
    assert!(one[0] == one[1] && three[0] == three[1] && one[1] != one[2], "{ids:?}");
    servers.stop().await;
}

/// Lines 1 to 9 of such a run were stored before line 10 had an id that was too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_name_is_too_long_publishes_nothing() {
    let (servers, store) = start().await;
    let lines = [line(1, 10)];
    let (said, all) = published(&servers, &lines, &["--run", &"r".repeat(101)]).await;
    assert!(!all && said.contains("more than 100 characters"), "{said}");
    let mut queue = store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    assert_eq!(queue.info().await.unwrap().state.messages, 0);
    let (said, all) = published(&servers, &lines, &["--run", &"r".repeat(100)]).await;
    assert!(all, "{said}");
    assert_eq!(queue.info().await.unwrap().state.messages, 1);
    servers.stop().await;
}

/// Only an error told the name: who ended it, and published the file again, had everything done twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_tells_its_name_also_when_nothing_fails() {
    let (servers, store) = start().await;
    let lines = [line(1, 10)];
    let (said, all) = published(&servers, &lines, &[]).await;
    assert!(all, "{said}");
    let (_, run) = said.split_once("--run ").expect("it says its name");
    let run = run.split_whitespace().next().unwrap();
    let (said, all) = published(&servers, &lines, &["--run", run]).await;
    assert!(all && !said.contains("--run"), "its user knows that name: {said}");
    let ids = ids(&store, 1).await;
    assert!(ids["1"].len() == 2 && ids["1"][0] == ids["1"][1], "{ids:?}");

    let named = line(2, 10).replace('}', r#","command_id":"own"}"#);
    let (said, all) = published(&servers, &[named], &[]).await;
    assert!(all && !said.contains("--run"), "no id hangs on it: {said}");
    servers.stop().await;
}
