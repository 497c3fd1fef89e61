//! More connections through the broker, between real processes: a plugin serves its host, and
//! announces what it serves at a socket or a port.

use flexcore_plugin::Error;
use futures::future::join_all;
use tonic::{Code, service::Routes};

use crate::{
    PATIENCE,
    base::run,
    contract::{HostAdder, Transform},
    fixtures::{self, Program},
    harness::{How, Started, start, within},
};

/// The service that a bare plugin announces at a port.
const ANNOUNCED: u32 = 7;

/// What a plugin's own service says of its version.
const SERVED: &str = "100";

/// The plugin serves itself once more, and its host dials that.
async fn dialled(started: &Started) -> Transform {
    let served = within(PATIENCE, Transform::of(&started.plugin).apply("serve", "")).await;
    let id = served.unwrap().note.parse().unwrap();
    let connection = within(PATIENCE, started.plugin.broker().dial(id)).await;
    Transform::over(connection.unwrap())
}

async fn is_dialled(program: &Program, how: How) {
    let started = start(program, how).await.unwrap();
    let one = dialled(&started).await;
    let more = join_all((0..4).map(|_| dialled(&started))).await;
    for there in more.iter().chain([&one]) {
        let answer = within(PATIENCE, there.apply("version", "x")).await.unwrap();
        assert_eq!((&*answer.note, &answer.payload[..]), (SERVED, &b"X"[..]));
        let answers = within(PATIENCE, there.streamed(20)).await;
        assert_eq!(answers.len(), 20);
    }
    // And both ways at once: what the host dialled calls it back.
    let broker = started.plugin.broker();
    let id = broker.next_id();
    let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
    let note = within(PATIENCE, one.call_back(id)).await.unwrap();
    assert_eq!(note, "host says 42");
    drop(accepted);
    let ended = within(PATIENCE, started.plugin.stop()).await;
    assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    within(PATIENCE, one.apply("a", "x")).await.expect_err("its plugin is gone");
}

#[test]
fn a_host_dials_a_service_of_its_plugin() {
    run(is_dialled(&fixtures::rust(), How::default()));
}

#[test]
fn a_host_dials_a_service_of_its_plugin_with_tls() {
    run(is_dialled(&fixtures::rust(), How::tls()));
}

#[test]
fn a_host_dials_a_service_of_its_plugin_multiplexed() {
    run(is_dialled(&fixtures::rust(), How::multiplexed(false)));
}

#[test]
fn a_host_dials_a_service_of_its_plugin_multiplexed_with_tls() {
    run(is_dialled(&fixtures::rust(), How::multiplexed(true)));
}

#[test]
fn a_service_that_is_announced_at_a_port_is_dialled() {
    run(async {
        let started = start(&fixtures::bare("ends"), How::default()).await.unwrap();
        let connection = within(PATIENCE, started.plugin.broker().dial(ANNOUNCED)).await.unwrap();
        let answer = within(PATIENCE, Transform::over(connection).apply("a", "x")).await;
        // It is the plugin that says so.
        let status = answer.expect_err("it has no such service");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, "a bare plugin has nothing")
        );
        within(PATIENCE, started.plugin.stop()).await;
    });
}

/// They lie in one folder with its own. It harms its own call, and nothing else.
#[test]
fn a_plugin_that_removes_its_hosts_sockets_harms_itself_alone() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let (broker, transform) = (started.plugin.broker(), Transform::of(&started.plugin));
        let id = broker.next_id();
        let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        let removed = within(PATIENCE, transform.apply("delete-socket", "")).await.unwrap();
        assert_eq!(removed.note, "2 removed");
        within(PATIENCE, transform.call_back(id)).await.expect_err("its socket is gone");
        drop(accepted);
        let id = broker.next_id();
        let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        let note = within(PATIENCE, transform.call_back(id)).await.unwrap();
        assert_eq!(note, "host says 42");
        drop(accepted);
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}

#[test]
fn a_number_is_served_once_at_a_time_and_then_again() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let (broker, transform) = (started.plugin.broker(), Transform::of(&started.plugin));
        let id = broker.next_id();
        let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        let twice = broker.accept(id, Routes::new(HostAdder)).await;
        assert!(matches!(twice, Err(Error::Broker(_))), "{twice:?}");
        within(PATIENCE, transform.call_back(id)).await.unwrap();
        drop(accepted);
        let again = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        assert_eq!(within(PATIENCE, transform.call_back(id)).await.unwrap(), "host says 42");
        drop(again);
        within(PATIENCE, started.plugin.stop()).await;
    });
}
