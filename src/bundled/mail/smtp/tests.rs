//! Servers that do what none should do.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::{
    conversation::{LINE_BYTES_MAX, REPLY_LINES_MAX},
    *,
};
use crate::mail::account::Settings;

/// One step of a server: what it waits for, and what it says then.
type Step = (&'static str, &'static str);

fn account() -> Account {
    let settings = json!({
        "host": "mail.example.com", "senders": ["@example.com"], "user": "ada", "password": "s3cr3t",
    });
    let settings: Settings = serde_json::from_value(settings).unwrap();
    Account::new(settings).unwrap()
}

fn message() -> Written {
    Written {
        from: "ada@example.com".to_owned(),
        recipients: vec!["bob@example.org".to_owned(), "eve@example.org".to_owned()],
        bytes: b"Subject: x\r\n\r\n.\r\nQUIT\r\n".to_vec(),
    }
}

/// A server that follows these steps, and what it has read in the end.
fn server(steps: Vec<Step>) -> (DuplexStream, tokio::task::JoinHandle<String>) {
    let (ours, mut theirs) = duplex(64 * 1024);
    let task = tokio::spawn(async move {
        let (mut all, mut seen) = (String::new(), 0);
        for (awaited, said) in steps {
            while !all.get(seen..).unwrap().contains(awaited) {
                let mut bytes = [0; 1024];
                let read = theirs.read(&mut bytes).await.unwrap();
                if read == 0 {
                    return all;
                }
                all.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            }
            seen = all.len();
            theirs.write_all(said.as_bytes()).await.unwrap();
        }
        all
    });
    (ours, task)
}

const OFFERS: &str = "250-mail\r\n250-SIZE 100000\r\n250 AUTH PLAIN LOGIN\r\n";

/// All that goes well, up to and without the answer to the message.
fn well() -> Vec<Step> {
    vec![
        ("EHLO [127.0.0.1]\r\n", OFFERS),
        ("AUTH PLAIN ", "235 ok\r\n"),
        ("MAIL FROM:<ada@example.com> SIZE=", "250 ok\r\n"),
        ("RCPT TO:<bob@example.org>\r\n", "250 ok\r\n"),
        ("RCPT TO:<eve@example.org>\r\n", "251 ok\r\n"),
        ("DATA\r\n", "354 go on\r\n"),
    ]
}

/// The same, where the step number `at` is answered otherwise and the last.
fn otherwise(at: usize, said: &'static str) -> Vec<Step> {
    let mut steps = well();
    steps.truncate(at + 1);
    steps[at].1 = said;
    steps
}

async fn handed_over(steps: Vec<Step>) -> (Result<String, Failure>, String) {
    let (stream, server) = server(steps);
    let ends = Instant::now() + Duration::from_secs(5);
    let conversation = Conversation::new(stream, ends);
    let result = hand_over(conversation, "[127.0.0.1]", &account(), &message()).await;
    (result, server.await.unwrap())
}

#[tokio::test]
async fn a_message_is_handed_over_as_it_is_and_the_dot_in_it_ends_nothing() {
    let mut steps = well();
    steps.push(("\r\n.\r\n", "250 2.0.0 queued as 7\r\n"));
    steps.push(("QUIT\r\n", "221 bye\r\n"));
    let (result, read) = handed_over(steps).await;
    assert_eq!(result.unwrap(), "250 2.0.0 queued as 7");
    assert!(read.contains("\r\n\r\n..\r\nQUIT\r\n.\r\nQUIT\r\n"), "{read}");
    assert_eq!(read.matches("\r\n.\r\n").count(), 1);
}

#[tokio::test]
async fn each_refusal_says_if_it_lasts_and_nothing_is_sent() {
    for at in 1..6 {
        for (said, temporary) in [("451 later\r\n", true), ("554 never\r\n", false)] {
            let (result, read) = handed_over(otherwise(at, said)).await;
            let failure = result.unwrap_err();
            assert_eq!(failure.temporary, temporary, "{at}: {failure}");
            assert!(!read.contains("Subject"), "{read}");
            assert!(!failure.message.contains("s3cr3t"));
        }
    }
    let (result, _) = handed_over(otherwise(4, "550 5.1.1 unknown\r\n")).await;
    let failure = result.unwrap_err();
    assert_eq!((&*failure.code, &*failure.details), ("refused", &br#"{"recipient":1}"#[..]));
}

#[tokio::test]
async fn a_server_that_repeats_the_password_is_not_quoted() {
    let secret = "535 AGFkYQBzM2NyM3Q= s3cr3t\r\n";
    let (result, _) = handed_over(otherwise(1, secret)).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.code, "login_refused");
    assert!(!failure.message.contains("s3cr3t") && !failure.message.contains("AGFk"), "{failure}");
}

#[tokio::test]
async fn a_login_by_steps_is_one_too() {
    let mut steps = well();
    let login = steps.splice(
        0..2,
        [
            ("EHLO", "250-x\r\n250 AUTH LOGIN\r\n"),
            ("AUTH LOGIN\r\n", "334 VXNlcm5hbWU6\r\n"),
            ("YWRh\r\n", "334 UGFzc3dvcmQ6\r\n"),
            ("czNjcjN0\r\n", "235 ok\r\n"),
            ("MAIL FROM:<ada@example.com>\r\n", "250 ok\r\n"),
        ],
    );
    drop(login);
    steps.remove(5);
    steps.push(("\r\n.\r\n", "250 ok\r\n"));
    let (result, _) = handed_over(steps).await;
    assert_eq!(result.unwrap(), "250 ok");
    let (result, _) = handed_over(vec![("EHLO", "250-x\r\n250 AUTH GSSAPI\r\n")]).await;
    assert_eq!(result.unwrap_err().code, "no_login");
}

#[tokio::test]
async fn what_is_not_known_is_said_to_be_unknown() {
    let (result, read) = handed_over({
        let mut steps = well();
        // It has all of it, and is gone.
        steps.push(("\r\n.\r\n", ""));
        steps
    })
    .await;
    let failure = result.unwrap_err();
    assert_eq!(failure.code, "outcome_unknown");
    assert!(!failure.temporary, "sending it again may send it twice");
    assert!(read.ends_with("\r\n.\r\n"));
    // It answers: then it is known.
    for (said, temporary) in [("452 full\r\n", true), ("554 spam\r\n", false)] {
        let mut steps = well();
        steps.push(("\r\n.\r\n", said));
        let failure = handed_over(steps).await.0.unwrap_err();
        assert_ne!(failure.code, "outcome_unknown");
        assert_eq!(failure.temporary, temporary);
    }
}

#[tokio::test]
async fn a_message_that_is_larger_than_the_server_takes_is_not_sent() {
    let (result, read) = handed_over(vec![("EHLO", "250-x\r\n250 SIZE 10\r\n")]).await;
    assert_eq!(result.unwrap_err().code, "too_large");
    assert!(!read.contains("MAIL"));
}

#[tokio::test]
async fn words_in_the_clear_do_not_pass_for_words_with_tls() {
    let steps = vec![
        ("EHLO", "250-x\r\n250 STARTTLS\r\n"),
        ("STARTTLS\r\n", "220 go on\r\n250-evil\r\n250 AUTH LOGIN\r\n"),
    ];
    let (stream, _server) = server(steps);
    let ends = Instant::now() + Duration::from_secs(5);
    let failure = start_tls(Conversation::new(stream, ends), "x").await.unwrap_err();
    assert_eq!(failure.code, "no_mail_server");
    let (stream, _server) = server(vec![("EHLO", "250-x\r\n250 SIZE\r\n")]);
    let failure = start_tls(Conversation::new(stream, ends), "x").await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("no_tls", false));
}

#[tokio::test]
async fn nothing_that_a_server_sends_grows_without_end() {
    let long = "2".repeat(LINE_BYTES_MAX * 4);
    let many = "250-x\r\n".repeat(REPLY_LINES_MAX * 2);
    for said in [long, many, "HTTP/1.1 400 Bad Request\r\n".to_owned()] {
        let (ours, mut theirs) = duplex(64 * 1024);
        theirs.write_all(said.as_bytes()).await.unwrap();
        let mut conversation = Conversation::new(ours, Instant::now() + Duration::from_secs(5));
        assert_eq!(conversation.greeting().await.unwrap_err().code, "no_mail_server");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for_without_end() {
    let (ours, _theirs) = duplex(64);
    let mut conversation = Conversation::new(ours, Instant::now() + Duration::from_millis(20));
    let failure = conversation.greeting().await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("late", true));
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_accepted() {
    let own = rcgen::generate_simple_self_signed(vec!["other.example.com".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(crate::trusted::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (ours, theirs) = duplex(64 * 1024);
    let accepted = tokio::spawn(acceptor.accept(theirs));
    let Security::StartTls(secure) = account().security else { panic!("as it is unless said") };
    let ends = Instant::now() + Duration::from_secs(5);
    let failure = secured(&secure, ours, ends).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("bad_certificate", false));
    accepted.await.unwrap().unwrap_err();
}
