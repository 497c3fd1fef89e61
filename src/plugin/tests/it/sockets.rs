//! Plugins with a good first line, and something else behind their address.

use std::{fs, process::Stdio, time::Duration};

use flexcore_plugin::{Address, Error, Plugin, Reattach};
use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::sleep,
};

use crate::{
    PATIENCE,
    base::{Base, MARK, mark, run},
    contract::Transform,
    fixtures,
    harness::{How, refused, start, within},
};

/// Plugins that can be connected to, all at once. Each is asked whether it is well, none of them is,
/// and every start is over in time.
async fn are_useless(whats: &[&str]) {
    let starts = whats.iter().copied().map(|what| async move {
        let error =
            refused(&fixtures::fault("listens.py", &[what]), How::default(), PATIENCE).await;
        let fits = matches!(error, Error::Unreachable { .. } | Error::Late { .. });
        assert!(fits, "{what}: {error:?}");
    });
    join_all(starts).await;
}

#[test]
fn peers_that_never_answer_are_no_plugins() {
    run(are_useless(&["never_accepts", "mute", "begins"]));
}

#[test]
fn peers_that_hang_up_or_speak_something_else_are_no_plugins() {
    run(are_useless(&["closes", "leaves", "garbage"]));
}

#[test]
fn frames_without_an_end_do_not_hold_the_host() {
    run(are_useless(&["endless_pings", "endless_settings", "endless_window_updates"]));
}

#[test]
fn large_frames_without_an_end_do_not_hold_the_host() {
    run(are_useless(&["endless_unknown", "endless_headers"]));
}

/// It answers what a host asks, and then sends without end. The host is done with it, and cannot
/// tell it so.
#[test]
fn a_peer_that_reads_nothing_is_left() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let program = fixtures::fault("listens.py", &["deaf"]);
        let mut command = Command::new(program.file);
        command.args(program.arguments).env(MARK, mark());
        command.env("PLUGIN_UNIX_SOCKET_DIR", folder.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        within(PATIENCE, stdout.read_line(&mut line)).await.unwrap();
        let address = Address::Unix(line.split('|').nth(3).unwrap().into());
        let before = Base::settled().await;
        let at = Reattach { version: 1, address, pid: child.id().unwrap(), test: true };
        let plugin = within(PATIENCE, Plugin::reattach(at)).await.unwrap();
        // Until nothing more fits into the socket.
        sleep(Duration::from_secs(1)).await;
        drop(plugin);
        before.comes_back().await;
        child.kill().await.unwrap();
    });
}

#[test]
fn a_socket_that_is_deleted_before_the_dial_is_told() {
    run(async {
        let program = fixtures::around("unlinks.sh", &[]);
        let error = refused(&program, How::default(), PATIENCE).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    });
}

/// The connection is there already, and nobody dials again.
#[test]
fn a_socket_that_is_deleted_later_ends_no_call() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let plugin = &started.plugin;
        let Address::Unix(socket) = plugin.reattachable().unwrap().address else {
            panic!("a plugin of ours listens at a socket")
        };
        fs::remove_file(socket).unwrap();
        let transform = Transform::of(plugin);
        let answer = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
        assert_eq!(answer.payload, "X");
        within(PATIENCE, plugin.check()).await.unwrap();
        let ended = within(PATIENCE, plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}
