//! HashiCorp's own host with a plugin on our library.

use std::process::Output;

use tokio::process::Command;

use crate::{
    PATIENCE,
    base::{MARK, mark, run},
    fixtures,
    harness::within,
};

async fn host(arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(fixtures::go_host()?);
    command.args(arguments).arg(fixtures::rust().file).env(MARK, mark()).kill_on_drop(true);
    Some(within(PATIENCE, command.output()).await.unwrap())
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn it_runs_our_plugin_with_and_without_tls() {
    run(async {
        for tls in ["-mtls=false", "-mtls=true"] {
            let Some(output) = host(&[tls]).await else { return };
            let (said, told) = texts(&output);
            let lines: Vec<_> = said.lines().collect();
            let expected = ["version 2", "unary a HELLO", "stream 100", "callback host says 42"];
            assert_eq!(lines, [&expected[..], &["ended true"]].concat(), "{tls}: {told}");
            // It warns of a plugin that it had to kill.
            assert!(!told.contains("gracefully"), "{tls}: {told}");
        }
    });
}

#[test]
fn it_refuses_our_plugin_where_the_versions_differ() {
    run(async {
        let Some(output) = host(&["-version=9"]).await else { return };
        let (said, _) = texts(&output);
        assert!(said.contains("Plugin version: 1, Client versions: [9]"), "{said}");
    });
}

#[test]
fn our_plugin_refuses_a_host_with_another_cookie() {
    run(async {
        let Some(output) = host(&["-cookie=another"]).await else { return };
        let (said, told) = texts(&output);
        assert!(!output.status.success(), "{said} {told}");
        assert!(said.contains("Unrecognized remote plugin message"), "{said}");
    });
}
