//! Plugins that somebody else has started.

use std::process::Stdio;

use flexcore_plugin::{Address, Error, Plugin, Reattach};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tonic::service::Routes;

use crate::{
    PATIENCE,
    base::{MARK, mark, run},
    contract::{HostAdder, Transform},
    fixtures,
    harness::{How, cookie, start, within},
};

/// A plugin that a person has started, and its address, which is below the folder.
async fn by_hand(folder: &TempDir) -> (Child, Reattach) {
    let cookie = cookie(How::default().cookie);
    let mut command = Command::new(fixtures::rust().file);
    command.env(MARK, mark()).env(cookie.key, cookie.value).env("PLUGIN_PROTOCOL_VERSIONS", "1,2");
    command.env("TMPDIR", folder.path()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    within(PATIENCE, stdout.read_line(&mut line)).await.unwrap();
    let fields: Vec<_> = line.trim_end().split('|').collect();
    let ["1", "2", "unix", address, "grpc", ..] = fields[..] else { panic!("{line:?}") };
    let (address, pid) = (Address::Unix(address.into()), child.id().unwrap());
    (child, Reattach { version: 2, address, pid, test: false })
}

async fn works(plugin: &Plugin) {
    within(PATIENCE, plugin.check()).await.unwrap();
    let answer = within(PATIENCE, Transform::of(plugin).apply("a", "x")).await.unwrap();
    assert_eq!(answer.payload, "X");
}

#[test]
fn a_plugin_that_was_started_by_hand_is_taken_over_and_ended() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, at) = by_hand(&folder).await;
        let plugin = within(PATIENCE, Plugin::reattach(at.clone())).await.unwrap();
        assert_eq!((plugin.pid(), plugin.version()), (at.pid, 2));
        works(&plugin).await;
        let id = plugin.broker().next_id();
        let accepted = plugin.broker().accept(id, Routes::new(HostAdder)).await.unwrap();
        let note = within(PATIENCE, Transform::of(&plugin).call_back(id)).await.unwrap();
        assert_eq!(note, "host says 42");
        drop(accepted);
        within(PATIENCE, plugin.stop()).await;
        let status = within(PATIENCE, child.wait()).await.unwrap();
        assert!(status.success(), "{status}");
        let error = within(PATIENCE, Plugin::reattach(at)).await.expect_err("it has ended");
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    });
}

#[test]
fn a_plugin_in_a_debugger_is_left_alone() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, at) = by_hand(&folder).await;
        let at = Reattach { test: true, ..at };
        for _ in 0..2 {
            let plugin = within(PATIENCE, Plugin::reattach(at.clone())).await.unwrap();
            works(&plugin).await;
            within(PATIENCE, plugin.stop()).await;
        }
        assert!(child.try_wait().unwrap().is_none(), "it runs on");
        child.kill().await.unwrap();
    });
}

#[test]
fn a_second_host_takes_part_and_leaves_again() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let at = started.plugin.reattachable().unwrap();
        let written = serde_json::to_string(&at).unwrap();
        let read: Reattach = serde_json::from_str(&written).unwrap();
        let second = within(PATIENCE, Plugin::reattach(read)).await.unwrap();
        works(&second).await;
        drop(second);
        works(&started.plugin).await;
        let third = within(PATIENCE, Plugin::reattach(at)).await.unwrap();
        within(PATIENCE, third.stop()).await;
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
        // The second one is told as well.
        within(PATIENCE, third.ended()).await;
    });
}

#[test]
fn a_plugin_at_a_port_is_taken_over() {
    run(async {
        let started = start(&fixtures::rust_at_a_port(), How::default()).await.unwrap();
        let at = started.plugin.reattachable().unwrap();
        assert!(matches!(at.address, Address::Tcp(_)), "{at:?}");
        let written = serde_json::to_string(&at).unwrap();
        let read: Reattach = serde_json::from_str(&written).unwrap();
        assert_eq!(read, at);
        let second = within(PATIENCE, Plugin::reattach(read)).await.unwrap();
        works(&second).await;
        within(PATIENCE, second.stop()).await;
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}

#[test]
fn the_end_of_a_reattached_plugin_is_noticed() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, at) = by_hand(&folder).await;
        let plugin = within(PATIENCE, Plugin::reattach(at)).await.unwrap();
        works(&plugin).await;
        child.kill().await.unwrap();
        within(PATIENCE, plugin.ended()).await;
        let call = within(PATIENCE, Transform::of(&plugin).apply("a", "x")).await;
        call.expect_err("nobody is there");
    });
}

#[test]
fn a_plugin_with_tls_or_a_multiplexer_cannot_be_taken_over() {
    run(async {
        for how in [How::tls(), How::multiplexed(false), How::multiplexed(true)] {
            let started = start(&fixtures::rust(), how).await.unwrap();
            assert_eq!(started.plugin.reattachable(), None);
            within(PATIENCE, started.plugin.stop()).await;
        }
    });
}
