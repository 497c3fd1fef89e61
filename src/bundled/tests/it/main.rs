//! The bundled plugins on the real host, with real servers at the other end.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod csv;
mod http;
mod mail;
mod postgres;

use flexcore_sdk::testing::Kit;

/// The executable with all of them.
const PLUGINS: &str = env!("CARGO_BIN_EXE_flexcore-plugins");

/// A plugin as its manifest starts it, with networks that are permitted.
fn kit(name: &str, networks: &[&str]) -> Kit {
    let kit = Kit::new(PLUGINS).argument(name);
    networks.iter().fold(kit, |kit, network| kit.argument(format!("--network={network}")))
}

#[tokio::test]
async fn each_is_a_plugin() {
    for name in ["http", "postgres", "mail", "csv"] {
        kit(name, &[]).conforms().await;
    }
}

#[test]
fn people_are_told_what_it_is_for() {
    for arguments in [&[][..], &["nothing"], &["http", "postgres"], &["http", "--network=x"]] {
        let ended = std::process::Command::new(PLUGINS).args(arguments).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains("--network=") || said.contains("no network"), "{said}");
    }
}
