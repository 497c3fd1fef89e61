//! `mail` and a real mail server: aiosmtpd.

use std::{ffi::OsString, io::Write as _, path::Path, process::Stdio, time::Duration};

use flexcore_sdk::testing::{Context, Running};
use flexcore_servers::fetch::{Package, Registry};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::kit;

const LOOPBACK: &str = "127.0.0.0/8";
const PATIENCE: Duration = Duration::from_secs(20);

/// The mail server's package and what it imports.
const PACKAGES: [Package; 3] = [
    Package {
        registry: Registry::PipWheel,
        name: "aiosmtpd",
        version: "1.4.6",
        sha256: "72c99179ba5aa9ae0abbda6994668239b64a5ce054471955fe75f581d2592475",
        megabytes: 1,
    },
    Package {
        registry: Registry::PipWheel,
        name: "atpublic",
        version: "5.1",
        sha256: "135783dbd887fbddb6ef032d104da70c124f2b44b9e2d79df07b9da5334825e3",
        megabytes: 1,
    },
    Package {
        registry: Registry::PipWheel,
        name: "attrs",
        version: "26.1.0",
        sha256: "c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309",
        megabytes: 1,
    },
];

/// A mail server that runs. When it is dropped, it is killed.
struct MailServer {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    /// Its certificate, in PEM.
    certificate: String,
    _folder: TempDir,
}

impl MailServer {
    async fn start(mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = own.cert.pem();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        std::fs::write(&cert, &certificate).unwrap();
        std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/smtp_server.py");
        let mut process = Command::new("python3")
            .arg(script)
            .arg(mode)
            .args([cert, key])
            .env("PYTHONPATH", modules())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let port = port.expect("the mail server starts").parse().unwrap();
        Self { _process: process, lines, port, certificate, _folder: folder }
    }

    /// What it got next.
    async fn received(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line.expect("it runs")).unwrap()
    }

    fn settings(&self, tls: &str) -> Value {
        let mut settings = json!({
            "host": "127.0.0.1",
            "port": self.port,
            "tls": tls,
            "senders": ["@example.com"],
            "networks": [LOOPBACK],
        });
        if tls != "none" {
            settings["authorities"] = json!(self.certificate);
            settings["user"] = json!("ada");
            settings["password"] = json!("s3cr3t");
        }
        settings
    }
}

/// Where Python finds the packages.
fn modules() -> OsString {
    let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
    let folders = PACKAGES.map(|package| package.fetch(&cache).unwrap());
    std::env::join_paths(folders).unwrap()
}

async fn started(settings: &Value) -> Running {
    let plugin = kit("mail", &[LOOPBACK]).start().await;
    plugin.configure(settings).await.unwrap();
    plugin
}

fn message(to: &str) -> Value {
    json!({
        "from": "Ada <ada@example.com>",
        "to": [to],
        "subject": "Grüße",
        "text": "Hello\n.\nAda",
    })
}

#[tokio::test]
async fn a_message_arrives_with_tls_and_a_login() {
    for mode in ["starttls", "implicit"] {
        let mut server = MailServer::start(mode).await;
        let plugin = started(&server.settings(mode)).await;
        let sent = plugin.call("send", message("bob@example.org")).await.unwrap();
        assert_eq!(sent["answer"], "250 2.0.0 queued as 7");
        assert_eq!(sent["recipients"], 1);
        let received = server.received().await;
        assert_eq!(received["login"], true);
        assert_eq!(received["from"], "ada@example.com");
        assert_eq!(received["to"], json!(["bob@example.org"]));
        let content = received["content"].as_str().unwrap();
        let id = sent["message_id"].as_str().unwrap();
        assert!(content.contains(&format!("Message-ID: <{id}>\r\n")), "{content}");
        assert!(content.contains("\r\n.\r\n"), "a dot alone is a line like another: {content}");
        assert!(!plugin.logged().iter().any(|line| format!("{line:?}").contains("s3cr3t")));
        plugin.stop().await;
    }
}

#[tokio::test]
async fn each_attempt_of_a_call_has_the_same_message_id() {
    let mut server = MailServer::start("none").await;
    let plugin = started(&server.settings("none")).await;
    let mut ids = Vec::new();
    for key in ["a", "a", "b"] {
        let context = Context { idempotency_key: key.to_owned(), ..plugin.context() };
        let called = plugin.call_as(context, "send", &message("bob@example.org"), PATIENCE).await;
        let sent: Value = serde_json::from_slice(&called.unwrap().unwrap()).unwrap();
        ids.push(sent["message_id"].clone());
        let received = server.received().await;
        assert!(
            received["content"].as_str().unwrap().contains(ids[ids.len() - 1].as_str().unwrap())
        );
    }
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[1], ids[2]);
    plugin.stop().await;
}

#[tokio::test]
async fn a_refusal_lasts_or_passes_and_then_nobody_gets_the_message() {
    let mut server = MailServer::start("starttls").await;
    let plugin = started(&server.settings("starttls")).await;
    for (to, code, temporary) in [("nobody", "refused", false), ("later", "deferred", true)] {
        let mut message = message("bob@example.org");
        message["cc"] = json!([format!("{to}@example.org")]);
        let failure = plugin.call("send", message).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), (code, temporary), "{failure}");
        assert_eq!(&*failure.details, br#"{"recipient":1}"#);
    }
    // One that is larger than the server takes.
    let mut large = message("bob@example.org");
    large["text"] = json!("12345678\n".repeat(20_000));
    assert_eq!(plugin.call("send", large).await.unwrap_err().code, "too_large");
    plugin.call("send", message("eve@example.org")).await.unwrap();
    assert_eq!(server.received().await["to"], json!(["eve@example.org"]), "the first that it got");
    plugin.stop().await;
}

#[tokio::test]
async fn a_server_that_is_gone_with_the_message_leaves_it_open_what_became_of_it() {
    let mut server = MailServer::start("none").await;
    let plugin = started(&server.settings("none")).await;
    let failure = plugin.call("send", message("crash@example.org")).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("outcome_unknown", false), "{failure}");
    server.received().await;
    let port = server.port;
    drop(server);
    let mut settings = json!({
        "host": "127.0.0.1", "tls": "none", "senders": ["@example.com"], "networks": [LOOPBACK],
    });
    settings["port"] = json!(port);
    plugin.configure(&settings).await.unwrap();
    let failure = plugin.call("send", message("bob@example.org")).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("no_connection", true), "{failure}");
    plugin.stop().await;
}

#[tokio::test]
async fn nobody_else_gets_the_password() {
    let server = MailServer::start("starttls").await;
    let plugin = started(&server.settings("starttls")).await;
    let failed = async |change: Value| {
        let mut settings = server.settings("starttls");
        settings.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        settings.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        plugin.configure(&settings).await.unwrap();
        let failure = plugin.call("send", message("bob@example.org")).await.unwrap_err();
        assert!(!failure.message.contains("s3cr3t"), "{failure}");
        (failure.code, failure.temporary)
    };
    let wrong = failed(json!({ "password": "other" })).await;
    assert_eq!(wrong, ("login_refused".to_owned(), false));
    let unknown = failed(json!({ "authorities": null })).await;
    assert_eq!(unknown, ("bad_certificate".to_owned(), false));
    let other = failed(json!({ "host": "localhost" })).await;
    assert_eq!(other, ("bad_certificate".to_owned(), false), "its certificate is for an address");
    let outside = failed(json!({ "networks": null })).await;
    assert_eq!(outside, ("not_allowed".to_owned(), false));
    let open = MailServer::start("none").await;
    let stripped = failed(json!({ "port": open.port })).await;
    assert_eq!(stripped, ("no_tls".to_owned(), false), "a server without STARTTLS gets nothing");
    plugin.stop().await;
}

#[tokio::test]
async fn networks_are_permitted_by_whoever_runs_the_plugin() {
    let plugin = kit("mail", &[]).start().await;
    let settings = json!({
        "host": "127.0.0.1", "senders": ["@example.com"], "tls": "none", "networks": [LOOPBACK],
    });
    assert_eq!(plugin.configure(&settings).await.unwrap_err().code, "not_permitted");
    plugin.stop().await;
}

#[tokio::test]
async fn a_server_that_is_silent_is_left_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220-wait\r\n").unwrap();
        // Until the other side has gone.
        drop(std::io::copy(&mut stream, &mut std::io::sink()));
    });
    let settings = json!({
        "host": "127.0.0.1", "port": port, "tls": "none", "senders": ["@example.com"],
        "networks": [LOOPBACK],
    });
    let plugin = started(&settings).await;
    let within = Duration::from_secs(2);
    let called =
        plugin.call_as(plugin.context(), "send", &message("bob@example.org"), within).await;
    let failure = called.unwrap().unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("late", true), "{failure}");
    plugin.stop().await;
    silent.join().unwrap();
}
