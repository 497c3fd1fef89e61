//! The bundled plugins on the real host, with real servers at the other end.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod csv;
mod http;
mod mail;
mod postgres;

use std::sync::Arc;

use flexcore_sdk::testing::Kit;
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// The executable with all of them.
const PLUGINS: &str = env!("CARGO_BIN_EXE_flexcore-plugins");

/// A plugin as its manifest starts it, with networks that are permitted.
fn kit(name: &str, networks: &[&str]) -> Kit {
    let kit = Kit::new(PLUGINS).argument(name);
    networks.iter().fold(kit, |kit, network| kit.argument(format!("--network={network}")))
}

/// TLS of a server, and its certificate for `localhost`, in PEM.
fn tls() -> (TlsAcceptor, String) {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), own.cert.pem())
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
