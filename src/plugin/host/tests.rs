use std::process::{Child, Command};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::*;
use crate::{connection, guard::User, limits::TERM_WAIT, transport::Listener};

/// A plugin of some other making: gRPC at a socket, and nothing of go-plugin. Its process is
/// another one, which only sleeps.
struct Foreign {
    at: Reattach,
    process: Child,
    serving: AbortOnDropHandle<()>,
    _folder: Folder,
}

impl Foreign {
    fn new(test: bool) -> Self {
        let folder = Folder::new().unwrap();
        let listener = Listener::bind(&folder.plugins()).unwrap();
        let address = listener.address().clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok(io) = listener.accept().await {
                let stop = CancellationToken::new();
                connections.spawn(connection::serve(io, Routes::default(), stop));
            }
        });
        let process = Command::new("sleep").arg("60").spawn().unwrap();
        let at = Reattach { version: 3, address, pid: process.id(), test };
        Self { at, process, serving: AbortOnDropHandle::new(serving), _folder: folder }
    }

    fn is_there(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_plugin_with_nothing_of_go_plugin_is_taken_over_and_ended() {
    let mut foreign = Foreign::new(false);
    let plugin = Plugin::reattach(foreign.at.clone()).await.unwrap();
    assert_eq!((plugin.version(), plugin.pid()), (3, foreign.at.pid));
    assert_eq!(plugin.reattachable(), Some(foreign.at.clone()));
    plugin.check().await.unwrap();
    assert!(matches!(plugin.broker().dial(1).await, Err(Error::Broker(_))));
    assert!(timeout(Duration::from_millis(20), plugin.ended()).await.is_err());
    assert!(foreign.is_there());
    let (one, other) = (plugin.clone(), plugin.clone());
    tokio::join!(one.stop(), other.stop());
    assert!(!foreign.is_there());
    assert!(plugin.ended().await.status.is_none(), "it is nobody's child here");
    assert!(plugin.check().await.is_err());
    plugin.stop().await;
}

#[tokio::test]
async fn a_reattached_plugin_lives_on_when_it_is_dropped() {
    let mut foreign = Foreign::new(false);
    let first = Plugin::reattach(foreign.at.clone()).await.unwrap();
    let second = Plugin::reattach(foreign.at.clone()).await.unwrap();
    drop(first);
    second.check().await.unwrap();
    drop(second);
    assert!(foreign.is_there());
    Plugin::reattach(foreign.at.clone()).await.unwrap().check().await.unwrap();
}

#[tokio::test]
async fn a_plugin_under_somebody_elses_control_is_left_alone_by_a_stop() {
    let mut foreign = Foreign::new(true);
    let plugin = Plugin::reattach(foreign.at.clone()).await.unwrap();
    plugin.stop().await;
    assert!(foreign.is_there());
    assert!(plugin.check().await.is_err(), "the connection is closed");
    plugin.ended().await;
}

#[tokio::test]
async fn a_plugin_has_ended_with_its_process_or_its_connection() {
    let mut foreign = Foreign::new(false);
    let plugin = Plugin::reattach(foreign.at.clone()).await.unwrap();
    foreign.process.kill().unwrap();
    timeout(TERM_WAIT, plugin.ended()).await.unwrap();
    let foreign = Foreign::new(false);
    let plugin = Plugin::reattach(foreign.at.clone()).await.unwrap();
    foreign.serving.abort();
    timeout(TERM_WAIT, plugin.ended()).await.unwrap();
    let begun = Instant::now();
    assert!(plugin.check().await.is_err());
    assert!(begun.elapsed() < CHECK_WAIT / 2, "it fails at once");
}

#[tokio::test]
async fn the_connection_lives_on_without_the_socket() {
    let foreign = Foreign::new(false);
    let plugin = Plugin::reattach(foreign.at.clone()).await.unwrap();
    let Address::Unix(path) = &foreign.at.address else { unreachable!() };
    std::fs::remove_file(path).unwrap();
    plugin.check().await.unwrap();
    let gone = Plugin::reattach(foreign.at.clone()).await;
    assert!(matches!(gone, Err(Error::Unreachable { .. })));
}

#[test]
fn an_error_has_what_the_plugin_said_where_that_helps() {
    let text = |error| add(error, "It said: oh no").to_string();
    let (address, reason) = ("/s".to_owned(), "refused".to_owned());
    let unreachable = text(Error::Unreachable { address: address.clone(), reason: reason.clone() });
    assert!(unreachable.contains("refused. It said: oh no"), "{unreachable}");
    assert!(text(Error::Tls("wrong".to_owned())).ends_with("wrong. It said: oh no"));
    assert!(text(Error::Address { address, reason }).contains("It said"));
    let line = "hello".to_owned();
    assert!(text(Error::Handshake { reason: "garbage".to_owned(), line }).contains("It said"));
    assert!(!text(Error::Version { chosen: 9, offered: vec![1] }).contains("It said"));
}

#[test]
fn root_is_no_user_of_a_plugins_own() {
    let user = Some(User { uid: 0, gid: 0 });
    let (sandbox, held) = possible(Sandbox { user, no_network: true, ..Sandbox::default() });
    let left = Sandbox { no_privileges: true, no_network: true, ..Sandbox::default() };
    assert_eq!(sandbox, left, "root's powers go, too");
    assert!(matches!(held.of(Measure::User), MeasureState::NotAvailable(_)));
    assert_eq!(*held.of(Measure::Network), MeasureState::NotAsked, "the guard finds out");
}

#[test]
fn a_port_is_not_dialled_of_a_plugin_with_a_network_of_its_own() {
    let port = Address::parse("tcp", "127.0.0.1:10000").unwrap();
    let socket = Address::parse("unix", "/tmp/plugin").unwrap();
    let mut held = Held::default();
    is_reachable(&port, &held).unwrap();
    held.set(Measure::Network, MeasureState::NotAvailable("no".to_owned()));
    is_reachable(&port, &held).unwrap();
    held.set(Measure::Network, MeasureState::Holds);
    is_reachable(&socket, &held).unwrap();
    assert!(matches!(is_reachable(&port, &held), Err(Error::Address { .. })));
}
