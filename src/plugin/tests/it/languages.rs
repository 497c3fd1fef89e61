//! The whole life of a plugin, whatever it is written in: start, check, calls, callbacks, output,
//! stop.

use std::collections::BTreeSet;

use flexcore_plugin::Level;
use futures::future::join_all;
use serde_json::json;
use tonic::service::Routes;

use crate::{
    PATIENCE,
    base::{alive, run},
    contract::{HostAdder, Transform},
    fixtures::{self, Program},
    harness::{How, Started, start, within},
};

/// Requests of one stream.
const STREAMED: usize = 200;

/// What a plugin's library can do.
#[derive(Clone, Copy)]
struct Can {
    /// The plugin calls the host back.
    call_back: bool,
    /// The plugin's printed output comes through gRPC.
    stdio: bool,
}

const ALL: Can = Can { call_back: true, stdio: true };
/// go-plugin 1.0.1 had no such stream yet.
const OLD_GO: Can = Can { call_back: true, stdio: false };

async fn whole_life(program: &Program, how: How, can: Can) {
    let started = within(PATIENCE, start(program, how)).await.unwrap();
    let plugin = &started.plugin;
    assert_eq!(plugin.version(), 2, "the highest that both speak");
    assert!(alive(plugin.pid()));
    let folder = started.folder();
    within(PATIENCE, plugin.check()).await.unwrap();
    calls(&started).await;
    if can.call_back {
        callbacks(&started).await;
    }
    printed(&started, can.stdio).await;
    let ended = within(PATIENCE, plugin.stop()).await;
    assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    assert!(!alive(plugin.pid()));
    assert!(!folder.is_some_and(|folder| folder.exists()), "its socket is gone");
    let after = within(PATIENCE, Transform::of(plugin).apply("a", "x")).await;
    after.expect_err("there is no plugin any more");
    // Whoever asks later is told the same.
    assert_eq!(within(PATIENCE, plugin.ended()).await.status, ended.status);
    assert_eq!(within(PATIENCE, plugin.stop()).await.status, ended.status);
}

async fn calls(started: &Started) {
    let transform = Transform::of(&started.plugin);
    let answer = within(PATIENCE, transform.apply("a", "hello")).await.unwrap();
    assert_eq!((&*answer.id, &*answer.payload), ("a", &b"HELLO"[..]));
    let answers = within(PATIENCE, transform.streamed(STREAMED)).await;
    let ids: Vec<_> = answers.iter().map(|answer| answer.id.parse::<usize>().unwrap()).collect();
    assert!(ids.iter().copied().eq(0..STREAMED), "{ids:?}");
    assert!(answers.iter().all(|answer| answer.payload == "STREAMED"));
}

/// One after the other, and several at once.
async fn callbacks(started: &Started) {
    let (broker, transform) = (started.plugin.broker(), Transform::of(&started.plugin));
    let call_back = || async {
        let id = broker.next_id();
        let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        let note = transform.call_back(id).await.unwrap();
        drop(accepted);
        (id, note)
    };
    let one = within(PATIENCE, call_back()).await;
    let more = within(PATIENCE, join_all((0..6).map(|_| call_back()))).await;
    let notes = || more.iter().chain([&one]);
    assert!(notes().all(|(_, note)| note == "host says 42"), "{one:?} {more:?}");
    let ids: BTreeSet<_> = notes().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 7, "each has a number of its own");
}

async fn printed(started: &Started, stdio: bool) {
    let transform = Transform::of(&started.plugin);
    within(PATIENCE, transform.apply("log", "x")).await.unwrap();
    let is_logged = |message: &str| message == "structured hello";
    started
        .until("the log line", |all| all.lines.iter().any(|line| is_logged(&line.message)))
        .await;
    {
        let prints = started.prints();
        let line = prints.lines.iter().find(|line| is_logged(&line.message)).unwrap();
        assert!(matches!(line.level, Level::Info));
        assert_eq!(line.module.as_deref(), Some("transform"));
        assert_eq!(line.fields.get("n"), Some(&json!(42)));
    }
    if stdio {
        let has = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
        started.until("stdout", |all| has(&all.stdout, "hello on plugin stdout\n")).await;
        started.until("stderr", |all| has(&all.stderr, "hello on plugin stderr\n")).await;
    }
}

#[test]
fn go() {
    run(async {
        let Some(go) = fixtures::go() else { return };
        whole_life(&go, How::default(), OLD_GO).await;
    });
}

/// Its callbacks do not work with TLS: it dials the host as `unused`. That is an answer like
/// another.
#[test]
fn go_with_tls() {
    run(async {
        let Some(go) = fixtures::go() else { return };
        whole_life(&go, How::tls(), Can { call_back: false, ..OLD_GO }).await;
        let started = start(&go, How::tls()).await.unwrap();
        let (broker, transform) = (started.plugin.broker(), Transform::of(&started.plugin));
        let id = broker.next_id();
        let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        within(PATIENCE, transform.call_back(id)).await.expect_err("no certificate fits");
        drop(accepted);
        calls(&started).await;
        started.plugin.stop().await;
    });
}

#[test]
fn python() {
    run(async {
        let Some(python) = fixtures::python() else { return };
        whole_life(&python, How::default(), ALL).await;
    });
}

#[test]
fn python_with_tls() {
    run(async {
        let Some(python) = fixtures::python() else { return };
        whole_life(&python, How::tls(), ALL).await;
    });
}

#[test]
fn rust() {
    run(whole_life(&fixtures::rust(), How::default(), ALL));
}

#[test]
fn rust_with_tls() {
    run(whole_life(&fixtures::rust(), How::tls(), ALL));
}

#[test]
fn rust_multiplexed() {
    run(whole_life(&fixtures::rust(), How::multiplexed(false), ALL));
}

#[test]
fn rust_at_a_port() {
    run(async {
        for how in [How::default(), How::tls(), How::multiplexed(true)] {
            whole_life(&fixtures::rust_at_a_port(), how, ALL).await;
        }
    });
}

#[test]
fn rust_multiplexed_with_tls() {
    run(whole_life(&fixtures::rust(), How::multiplexed(true), ALL));
}

/// Which of its contracts answers.
#[test]
fn the_version_that_both_speak_is_served() {
    run(async {
        for (offered, agreed) in [(vec![1], "1"), (vec![2, 1], "2"), (vec![7, 1], "1")] {
            let how = How { versions: offered, ..How::default() };
            let started = start(&fixtures::rust(), how).await.unwrap();
            assert_eq!(started.plugin.version().to_string(), agreed);
            let answer =
                within(PATIENCE, Transform::of(&started.plugin).apply("version", "")).await;
            assert_eq!(answer.unwrap().note, agreed);
            within(PATIENCE, started.plugin.stop()).await;
        }
    });
}

/// Behind the first line, the real one is read to the end, too.
#[test]
fn what_is_printed_to_the_real_standard_output_comes_whole() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let printed = Transform::of(&started.plugin).apply("stdout:1000000", "x").await;
        assert_eq!(printed.unwrap().payload, "X");
        started.until("all of it", |all| all.stdout_bytes >= 1_000_000).await;
        within(PATIENCE, started.plugin.stop()).await;
        let prints = started.prints();
        assert_eq!(prints.stdout_bytes, 1_000_000);
        assert!(prints.stdout.iter().all(|byte| *byte == b'y'));
    });
}
