use serde_json::{Value, json};

use super::*;
use crate::mail::account::Settings;

fn account() -> Account {
    let settings = json!({ "host": "mail.example.com", "senders": ["@example.com"] });
    let settings: Settings = serde_json::from_value(settings).unwrap();
    Account::new(settings).unwrap()
}

/// A short message with these fields beside.
fn written(change: Value) -> Result<Written, Failure> {
    let mut message = json!({
        "from": "Ada <ada@example.com>", "to": ["bob@example.org"], "subject": "Hello",
    });
    let Value::Object(change) = change else { panic!("{change}") };
    let fields = message.as_object_mut().unwrap();
    fields.extend(change);
    if !fields.contains_key("html") {
        fields.entry("text").or_insert_with(|| json!("Hi"));
    }
    let message: Message = serde_json::from_value(message).unwrap();
    message.written(&account(), "1@example.com")
}

fn text(change: Value) -> String {
    String::from_utf8(written(change).unwrap().bytes).unwrap()
}

fn refused(change: Value) -> String {
    let shown: String = change.to_string().chars().take(200).collect();
    let Err(failure) = written(change) else { panic!("{shown}") };
    assert!(!failure.temporary, "{failure}");
    failure.code
}

/// The lines of the head.
fn head(text: &str) -> Vec<&str> {
    text.split("\r\n\r\n").next().unwrap().split("\r\n").collect()
}

#[test]
fn the_head_says_who_writes_what_to_whom() {
    let text = text(json!({ "cc": ["Carl <carl@example.org>"], "reply_to": "desk@example.com" }));
    let head = head(&text);
    for line in [
        "From: Ada <ada@example.com>",
        "To: bob@example.org",
        "Cc: Carl <carl@example.org>",
        "Reply-To: desk@example.com",
        "Subject: Hello",
        "Message-ID: <1@example.com>",
        "MIME-Version: 1.0",
    ] {
        let name = line.split(':').next().unwrap();
        let plain = |line: &str| line.replace('"', "");
        assert!(head.iter().any(|found| plain(found) == line), "{line}: {head:?}");
        assert_eq!(head.iter().filter(|found| found.starts_with(name)).count(), 1, "{name}");
    }
    assert!(head.iter().any(|line| line.starts_with("Date: ")));
}

#[test]
fn blind_copies_are_sent_and_named_nowhere() {
    let written = written(json!({ "to": [], "bcc": ["eve@example.org"] })).unwrap();
    assert_eq!(written.recipients, ["eve@example.org"]);
    assert!(!String::from_utf8(written.bytes).unwrap().contains("eve@"));
}

#[test]
fn no_field_adds_a_header_or_a_recipient() {
    let line = "x\r\nBcc: eve@example.org";
    assert_eq!(refused(json!({ "subject": line })), "bad_subject");
    assert_eq!(refused(json!({ "subject": "x\ny" })), "bad_subject");
    assert_eq!(refused(json!({ "subject": "x\u{85}y" })), "bad_subject");
    for address in [
        "ada@example.com\r\nBcc: eve@example.org",
        "Ada\nBcc: eve@example.org <ada@example.com>",
        "\"ada@example.com> SIZE=1\r\nRCPT TO:<eve\"@example.org",
        "\"a b\"@example.com",
        "ada@example.com, eve@example.org",
        "ada@example.com> <eve@example.org",
        "<ada@example.com>x",
        "ada",
        "",
        "@example.com",
        "ada@",
        "ädä@example.com",
        "=?utf-8?q?Eve?= <ada@example.com>",
    ] {
        for field in ["from", "reply_to"] {
            let code = refused(json!({ field: address }));
            assert!(["bad_address", "sender_not_allowed"].contains(&&*code), "{address}: {code}");
        }
        for field in ["to", "cc", "bcc"] {
            if address == "ada@example.com> <eve@example.org" {
                continue;
            }
            assert_eq!(refused(json!({ field: [address] })), "bad_address", "{address:?}");
        }
    }
    for attachment in [
        json!({ "name": "a\r\nX: y", "content": "" }),
        json!({ "name": "../a", "content": "" }),
        json!({ "name": "a\"; x=\"", "content": "" }),
        json!({ "name": "", "content": "" }),
        json!({ "name": "=?utf-8?q?a=2Eexe?=", "content": "" }),
        json!({ "name": "a", "content": "", "type": "text/plain\r\nX: y" }),
        json!({ "name": "a", "content": "", "type": "Multipart/mixed" }),
        json!({ "name": "a", "content": "", "type": "message/rfc822" }),
        json!({ "name": "a", "content": "", "type": "x" }),
        json!({ "name": "a", "content": "!" }),
    ] {
        assert_eq!(refused(json!({ "attachments": [attachment] })), "bad_message");
    }
    assert_eq!(refused(json!({ "text": "a\u{0}b" })), "bad_message");
}

#[test]
fn another_sender_than_the_configured_is_refused() {
    assert_eq!(refused(json!({ "from": "ada@example.net" })), "sender_not_allowed");
    assert_eq!(refused(json!({ "from": "<ada@example.com.evil.net>" })), "sender_not_allowed");
}

#[test]
fn numbers_are_limited() {
    let many = |number| json!(vec!["bob@example.org"; number]);
    written(json!({ "to": many(RECIPIENTS_MAX) })).unwrap();
    assert_eq!(refused(json!({ "to": many(RECIPIENTS_MAX + 1) })), "bad_recipients");
    assert_eq!(refused(json!({ "cc": many(RECIPIENTS_MAX) })), "bad_recipients");
    assert_eq!(refused(json!({ "to": [] })), "bad_recipients");
    written(json!({ "subject": "ü".repeat(SUBJECT_CHARACTERS_MAX) })).unwrap();
    assert_eq!(
        refused(json!({ "subject": "x".repeat(SUBJECT_CHARACTERS_MAX + 1) })),
        "bad_subject"
    );
    let attachments = vec![json!({ "name": "a", "content": "" }); ATTACHMENTS_MAX + 1];
    assert_eq!(refused(json!({ "attachments": attachments })), "bad_message");
    // Each line gets a CR.
    assert_eq!(refused(json!({ "text": "1234567\n".repeat(1 << 20) })), "too_large");
}

#[test]
fn other_signs_are_written_in_ascii() {
    let text = text(json!({
        "from": "Zoë Å <ada@example.com>",
        "subject": "Grüße 🎉",
        "text": "Schöne Grüße",
        "html": "<p>Schöne Grüße</p>",
        "attachments": [{ "name": "Grüße.txt", "content": "AAEC/w==", "type": "text/plain" }],
    }));
    assert!(text.is_ascii());
    assert!(text.contains("Content-Type: multipart/mixed"));
    assert!(text.contains("Content-Type: multipart/alternative"));
    assert!(text.contains("AAEC/w=="), "bytes arrive as they were");
    assert!(text.lines().all(|line| line.len() <= 998), "no line is too long");
}

/// It was sent as it is, and read as another.
#[test]
fn a_subject_that_looks_encoded_is_read_as_it_is() {
    for subject in ["=?utf-8?q?Eve?=", "a =?utf-8?b?RXZl?= ü", &"=?ü ".repeat(100)] {
        let text = text(json!({ "subject": subject }));
        assert!(text.is_ascii());
        let (_, behind) = text.split_once("Subject: ").unwrap();
        let mut lines = behind.split("\r\n");
        let mut read = Vec::new();
        let mut line = lines.next().unwrap();
        while let Some(word) = line.trim_start().strip_prefix("=?utf-8?b?") {
            assert!("Subject: ".len() + line.len() <= 78, "{line}");
            read.extend(STANDARD.decode(word.strip_suffix("?=").unwrap()).unwrap());
            line = lines.next().unwrap();
        }
        assert_eq!(String::from_utf8(read).unwrap(), *subject);
        assert!(line.contains(": ") && !line.starts_with(' '), "the next header: {line}");
    }
    assert!(text(json!({ "subject": "a = b?" })).contains("Subject: a = b?\r\n"));
}

/// It took five minutes.
#[test]
fn a_text_of_line_ends_is_written_at_once() {
    let began = std::time::Instant::now();
    for end in ["\n", "\r", "\r\n"] {
        let lines = 1_000_000;
        let text = text(json!({ "text": end.repeat(lines) }));
        assert_eq!(text.split("\r\n\r\n").next().unwrap().matches("Subject").count(), 1);
        assert!(text.ends_with("\r\n\r\n"));
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn an_id_is_that_of_one_call() {
    let id_of = |tenant, key| id(tenant, key, "example.com");
    assert_eq!(id_of("acme", "k1"), id_of("acme", "k1"));
    assert_ne!(id_of("acme", "k1"), id_of("acme", "k2"));
    assert_ne!(id_of("acme", "k1"), id_of("other", "k1"));
    assert_ne!(id_of("acme", ""), id_of("acme", ""), "without a key each is another");
    assert!(id_of("a\r\n", "\r\n>").bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(id_of("acme", "k1").ends_with("@example.com"));
}
