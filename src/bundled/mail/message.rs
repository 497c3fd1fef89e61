//! A message, from what a caller says to what is sent.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flexcore_sdk::Failure;
use lettre::{
    Address,
    address::Envelope,
    message::{
        Attachment, Body, Mailbox, Mailboxes, MessageBuilder, MultiPart, SinglePart,
        header::{Cc, ContentTransferEncoding, ContentType, HeaderName, HeaderValue, ReplyTo, To},
    },
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::account::{Account, NOT_IN_ADDRESSES};

/// Recipients of one message. 100: what every server has to take (RFC 5321, 4.5.3.1.8).
pub(super) const RECIPIENTS_MAX: usize = 100;
/// Longest subject, in characters. 500: a line of a header has 998 bytes.
pub(super) const SUBJECT_CHARACTERS_MAX: usize = 500;
/// Attachments of one message. 20.
pub(super) const ATTACHMENTS_MAX: usize = 20;
/// Largest message as it is sent, in bytes. 8 MiB: an input has 4 MiB, and some texts get longer.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Characters of a wrong address that are shown.
const SHOWN_CHARACTERS: usize = 100;
/// Longest address with a name, in bytes.
const ADDRESS_BYTES_MAX: usize = 1_000;
/// Longest name of an attachment, in bytes: what file systems take.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of a hash that a message id has: two messages never share them by chance.
const ID_BYTES: usize = 16;
/// The type of an attachment that does not say its own.
const BYTES_TYPE: &str = "application/octet-stream";
/// What an encoded word begins with (RFC 2047): readers show another text in its place.
const ENCODED: &str = "=?";
/// Bytes of a text in one encoded word. 42: with 56 in base64 and 12 around them, the line of a subject
/// has 77.
const WORD_BYTES_MAX: usize = 42;

/// What a caller says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    from: String,
    reply_to: Option<String>,
    to: Vec<String>,
    #[serde(default)]
    cc: Vec<String>,
    #[serde(default)]
    bcc: Vec<String>,
    subject: String,
    text: Option<String>,
    html: Option<String>,
    #[serde(default)]
    attachments: Vec<Attached>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attached {
    name: String,
    #[serde(rename = "type")]
    content_type: Option<String>,
    /// In base64.
    content: String,
}

/// What is sent, to whom.
pub(super) struct Written {
    pub(super) from: String,
    pub(super) recipients: Vec<String>,
    pub(super) bytes: Vec<u8>,
}

/// A message's id: the same for every attempt of one call, and for no other call.
pub(super) fn id(tenant: &str, key: &str, domain: &str) -> String {
    if key.is_empty() {
        return format!("{}@{domain}", Uuid::new_v4().simple());
    }
    let hash = Sha256::new().chain_update(tenant).chain_update([0_u8]).chain_update(key).finalize();
    let mut id = String::new();
    for byte in hash.iter().take(ID_BYTES) {
        // Writing to a text does not fail.
        let _ = write!(id, "{byte:02x}");
    }
    format!("{id}@{domain}")
}

impl Message {
    /// The message under this id. Fails where it cannot be sent as it is: it names a sender that the
    /// account does not have, something that is no address, or too much.
    pub(super) fn written(self, account: &Account, id: &str) -> Result<Written, Failure> {
        let from = mailbox(&self.from)?;
        if !account.may_send_as(from.email.as_ref()) {
            let message = "the configuration does not allow messages from this address: add it to \
                           `senders`";
            return Err(Failure::new("sender_not_allowed", message));
        }
        let (to, cc, bcc) = (mailboxes(&self.to)?, mailboxes(&self.cc)?, mailboxes(&self.bcc)?);
        let all: Vec<Address> =
            to.iter().chain(&cc).chain(&bcc).map(|mailbox| mailbox.email.clone()).collect();
        if all.is_empty() || all.len() > RECIPIENTS_MAX {
            let message = format!("a message has 1 to {RECIPIENTS_MAX} recipients");
            return Err(Failure::new("bad_recipients", message));
        }
        let recipients = all.iter().map(Address::to_string).collect();
        let sender = from.email.to_string();
        let envelope = Envelope::new(Some(from.email.clone()), all).map_err(bad)?;
        let mut head = lettre::Message::builder()
            .envelope(envelope)
            .from(from)
            .raw_header(subject(self.subject)?)
            .message_id(Some(format!("<{id}>")));
        if let Some(reply_to) = &self.reply_to {
            head = head.header(ReplyTo::from(Mailboxes::from(mailbox(reply_to)?)));
        }
        if !to.is_empty() {
            head = head.header(To::from(Mailboxes::from(to)));
        }
        if !cc.is_empty() {
            head = head.header(Cc::from(Mailboxes::from(cc)));
        }
        let message = with_body(head, self.text, self.html, self.attachments)?;
        let bytes = message.formatted();
        if bytes.len() > MESSAGE_BYTES_MAX {
            let message = format!("the message has over {} MiB", MESSAGE_BYTES_MAX >> 20);
            return Err(Failure::new("too_large", message));
        }
        Ok(Written { from: sender, recipients, bytes })
    }
}

fn with_body(
    head: MessageBuilder,
    text: Option<String>,
    html: Option<String>,
    attachments: Vec<Attached>,
) -> Result<lettre::Message, Failure> {
    if [&text, &html].into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(bad("a text has no NUL"));
    }
    let (text, html) = (text.map(|text| with_crlf(&text)), html.map(|html| with_crlf(&html)));
    if attachments.len() > ATTACHMENTS_MAX {
        return Err(bad(format_args!("a message has {ATTACHMENTS_MAX} attachments at most")));
    }
    let one = |part: SinglePart, attachments: Vec<Attached>| {
        if attachments.is_empty() {
            return head.clone().singlepart(part).map_err(bad);
        }
        let parts = attached(MultiPart::mixed().singlepart(part), attachments)?;
        head.clone().multipart(parts).map_err(bad)
    };
    match (text, html) {
        (None, None) => Err(bad("a message has `text`, `html`, or both")),
        (Some(text), None) => one(SinglePart::plain(text), attachments),
        (None, Some(html)) => one(SinglePart::html(html), attachments),
        (Some(text), Some(html)) => {
            let both = MultiPart::alternative_plain_html(text, html);
            if attachments.is_empty() {
                return head.multipart(both).map_err(bad);
            }
            let parts = attached(MultiPart::mixed().multipart(both), attachments)?;
            head.multipart(parts).map_err(bad)
        }
    }
}

/// A text whose lines end with CR LF. The library would add each CR by itself, and move all that is
/// behind it: minutes, for a text of line ends.
fn with_crlf(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\r\n")
}

fn attached(mut parts: MultiPart, attachments: Vec<Attached>) -> Result<MultiPart, Failure> {
    for attachment in attachments {
        let Attached { name, content_type, content } = attachment;
        let is_name = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.contains(ENCODED)
            && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | '"'));
        if !is_name {
            return Err(bad("the name of an attachment is that of a file, without folders"));
        }
        let content_type = content_type.as_deref().unwrap_or(BYTES_TYPE);
        let parsed = ContentType::parse(content_type);
        // These are made of parts, which would have to be sent as they are.
        let is_whole = !["multipart/", "message/"].iter().any(|made| starts(content_type, made));
        let Some(content_type) = parsed.ok().filter(|_| is_whole) else {
            return Err(bad("the type of an attachment is one such as application/pdf"));
        };
        let content = STANDARD.decode(content);
        let content = content.map_err(|_| bad("the content of an attachment is in base64"))?;
        // Whatever it is, it arrives as it was.
        let body = Body::new_with_encoding(content, ContentTransferEncoding::Base64);
        let body = body.map_err(|_| bad("an attachment cannot be written"))?;
        parts = parts.singlepart(Attachment::new(name).body(body, content_type));
    }
    Ok(parts)
}

fn starts(text: &str, with: &str) -> bool {
    text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

fn subject(text: String) -> Result<HeaderValue, Failure> {
    if text.chars().count() > SUBJECT_CHARACTERS_MAX || text.chars().any(char::is_control) {
        let message = format!(
            "a subject is one line of {SUBJECT_CHARACTERS_MAX} characters at most, without control \
             characters"
        );
        return Err(Failure::new("bad_subject", message));
    }
    let name = HeaderName::new_from_ascii_str("Subject");
    if !text.contains(ENCODED) {
        return Ok(HeaderValue::new(name, text));
    }
    // The library sends it as it is, since it is ASCII.
    let encoded = encoded(&text);
    Ok(HeaderValue::dangerous_new_pre_encoded(name, text, encoded))
}

/// A text as encoded words, one a line: it is read as it is, whatever it looks like.
fn encoded(text: &str) -> String {
    let mut words = vec![String::new()];
    for sign in text.chars() {
        let is_full = words.last().is_none_or(|word| word.len() + sign.len_utf8() > WORD_BYTES_MAX);
        if is_full {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(sign);
        }
    }
    let words = words.iter().map(|word| format!("=?utf-8?b?{}?=", STANDARD.encode(word)));
    words.collect::<Vec<_>>().join("\r\n ")
}

fn mailboxes(texts: &[String]) -> Result<Vec<Mailbox>, Failure> {
    // Before they are looked at: an input may have a million.
    if texts.len() > RECIPIENTS_MAX {
        let message = format!("a message has 1 to {RECIPIENTS_MAX} recipients");
        return Err(Failure::new("bad_recipients", message));
    }
    texts.iter().map(|text| mailbox(text)).collect()
}

/// `ada@example.com`, or `Ada Lovelace <ada@example.com>`.
fn mailbox(text: &str) -> Result<Mailbox, Failure> {
    let wrong = || {
        let shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
        let message = format!(
            "{shown:?} is no address such as ada@example.com or Ada <ada@example.com>; other signs \
             than ASCII are allowed in the name alone, and `{ENCODED}` nowhere"
        );
        Failure::new("bad_address", message)
    };
    let is_short = text.len() <= ADDRESS_BYTES_MAX;
    if !is_short || text.contains(ENCODED) || text.chars().any(char::is_control) {
        return Err(wrong());
    }
    let (name, address) = match text.trim().strip_suffix('>').and_then(|text| text.rsplit_once('<'))
    {
        Some((name, address)) => (name.trim().trim_matches('"').trim(), address),
        None => ("", text.trim()),
    };
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !NOT_IN_ADDRESSES.contains(&byte);
    if !address.bytes().all(is_plain) {
        return Err(wrong());
    }
    let address: Address = address.parse().map_err(|_| wrong())?;
    Ok(Mailbox::new((!name.is_empty()).then(|| name.to_owned()), address))
}

fn bad(why: impl std::fmt::Display) -> Failure {
    Failure::new("bad_message", why)
}
