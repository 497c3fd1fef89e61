//! Commands and replies.

use std::{fmt, io};

use flexcore_sdk::Failure;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};

/// Longest line of a reply, in bytes. 2 KiB: four times what RFC 5321 allows.
pub(super) const LINE_BYTES_MAX: usize = 2 * 1024;
/// Most lines of a reply. 100: servers offer some twenty extensions.
pub(super) const REPLY_LINES_MAX: usize = 100;
/// Characters of a reply that are told.
const SHOWN_CHARACTERS: usize = 200;
/// Bytes that are read at once.
const READ_BYTES: usize = 4 * 1024;

/// One side of a connection to a mail server. After a failure it is not used any more.
pub(super) struct Conversation<S> {
    stream: S,
    /// Received, and not yet looked at.
    unread: Vec<u8>,
    ends: Instant,
}

/// What a server said.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) lines: Vec<String>,
}

/// What a server can do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Offers {
    pub(super) start_tls: bool,
    /// AUTH PLAIN.
    pub(super) plain: bool,
    /// AUTH LOGIN.
    pub(super) login: bool,
    /// The largest message, in bytes; 0: it does not say.
    pub(super) size: Option<u64>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    pub(super) fn new(stream: S, ends: Instant) -> Self {
        Self { stream, unread: Vec::with_capacity(READ_BYTES), ends }
    }

    /// The server's first words.
    pub(super) async fn greeting(&mut self) -> Result<(), Failure> {
        self.reply().await?.held_to("the connection", &[220])
    }

    pub(super) async fn hello(&mut self, name: &str) -> Result<Offers, Failure> {
        let reply = self.command("EHLO", &format!("EHLO {name}"), &[250]).await?;
        Ok(Offers::read(&reply.lines))
    }

    /// A command that is answered with one of these codes; else it fails, and says which command was
    /// refused.
    pub(super) async fn command(
        &mut self,
        name: &str,
        line: &str,
        codes: &[u16],
    ) -> Result<Reply, Failure> {
        let reply = self.asked(line).await?;
        reply.held_to(name, codes)?;
        Ok(reply)
    }

    /// A line, and whatever is said to it.
    pub(super) async fn asked(&mut self, line: &str) -> Result<Reply, Failure> {
        if !self.unread.is_empty() {
            return Err(broken("it speaks before it is asked"));
        }
        self.write(format!("{line}\r\n").as_bytes()).await?;
        self.reply().await
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout_at(self.ends, written).await.map_err(|_| late())?.map_err(|error| lost(&error))
    }

    pub(super) async fn reply(&mut self) -> Result<Reply, Failure> {
        let mut lines = Vec::new();
        while lines.len() < REPLY_LINES_MAX {
            let (code, is_last, text) = parsed(&self.line().await?)?;
            lines.push(text);
            if is_last {
                return Ok(Reply { code, lines });
            }
        }
        Err(broken("it answers without end"))
    }

    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.unread.len() > LINE_BYTES_MAX {
                return Err(broken("it sends a line without end"));
            }
            let read = timeout_at(self.ends, self.stream.read_buf(&mut self.unread)).await;
            if read.map_err(|_| late())?.map_err(|error| lost(&error))? == 0 {
                return Err(lost(&io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
        }
    }

    /// The stream, for TLS. Fails where the server, or somebody between, has sent more in the clear:
    /// it would pass for what the server says with TLS.
    pub(super) fn into_stream(self) -> Result<S, Failure> {
        if self.unread.is_empty() {
            Ok(self.stream)
        } else {
            Err(broken("it says more in the clear after it has agreed to STARTTLS"))
        }
    }
}

/// The code, if it is the last line, and the text.
fn parsed(line: &str) -> Result<(u16, bool, String), Failure> {
    let wrong = || broken("it does not speak SMTP");
    let (code, rest) = line.split_at_checked(3).ok_or_else(wrong)?;
    if !code.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let code = code.parse().map_err(|_| wrong())?;
    let is_last = !rest.starts_with('-');
    match rest.strip_prefix(['-', ' ']) {
        Some(text) => Ok((code, is_last, text.to_owned())),
        None if rest.is_empty() => Ok((code, true, String::new())),
        None => Err(wrong()),
    }
}

impl Reply {
    /// Fails where the code is another: for now with 4xx, and with 421 in any place, else for good.
    pub(super) fn held_to(&self, what: &str, codes: &[u16]) -> Result<(), Failure> {
        if codes.contains(&self.code) {
            return Ok(());
        }
        let message = format!("the mail server answers {what} with {self}");
        let failure = if (400..500).contains(&self.code) {
            Failure::passing("deferred", message)
        } else {
            Failure::new("refused", message)
        };
        Err(failure.details(&json!({ "code": self.code })))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        let text = self.lines.join(" ");
        let text: String =
            text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARACTERS).collect();
        if text.is_empty() { Ok(()) } else { write!(f, " {text}") }
    }
}

impl Offers {
    /// The first line is a greeting.
    fn read(lines: &[String]) -> Self {
        let mut offers = Self::default();
        for line in lines.iter().skip(1) {
            let line = line.to_ascii_uppercase();
            // Old servers write AUTH=.
            let mut words = line.split([' ', '=']).filter(|word| !word.is_empty());
            match words.next() {
                Some("STARTTLS") => offers.start_tls = true,
                Some("SIZE") => {
                    offers.size =
                        Some(words.next().and_then(|size| size.parse().ok()).unwrap_or(0));
                }
                Some("AUTH") => {
                    for word in words {
                        offers.plain |= word == "PLAIN";
                        offers.login |= word == "LOGIN";
                    }
                }
                _ => {}
            }
        }
        offers
    }
}

/// The caller's time is over.
pub(super) fn late() -> Failure {
    Failure::passing("late", "the mail server did not answer in time")
}

fn lost(error: &io::Error) -> Failure {
    Failure::passing("no_connection", format_args!("the mail server: {error}"))
}

/// Something that no mail server says.
fn broken(what: &str) -> Failure {
    Failure::new("no_mail_server", format_args!("this is no mail server: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_code_and_may_go_on() {
        assert_eq!(parsed("250 ok").unwrap(), (250, true, "ok".to_owned()));
        assert_eq!(parsed("250-SIZE 5").unwrap(), (250, false, "SIZE 5".to_owned()));
        assert_eq!(parsed("250").unwrap(), (250, true, String::new()));
        assert_eq!(parsed("250 ").unwrap(), (250, true, String::new()));
        for wrong in ["", "25", "25x ok", "250_x", "HTTP/2 400", "+50 x", "25ä", "ä50 ok", "250ä"]
        {
            assert_eq!(parsed(wrong).unwrap_err().code, "no_mail_server", "{wrong}");
        }
    }

    #[test]
    fn what_a_server_offers_is_read_from_its_words() {
        let read = |lines: &[&str]| {
            Offers::read(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>())
        };
        let all = read(&["x", "starttls", "SIZE 1000", "AUTH CRAM-MD5 PLAIN LOGIN", "8BITMIME"]);
        let expected = Offers { start_tls: true, plain: true, login: true, size: Some(1000) };
        assert_eq!(all, expected);
        assert_eq!(read(&["STARTTLS"]), Offers::default(), "the first line is a greeting");
        assert!(read(&["x", "AUTH=PLAIN"]).plain);
        assert_eq!(read(&["x", "SIZE"]).size, Some(0));
        assert_eq!(read(&["x", "SIZE many"]).size, Some(0));
    }

    #[test]
    fn replies_are_failures_for_now_or_for_good() {
        for (code, temporary) in [(421, true), (451, true), (550, false), (250, false), (99, false)]
        {
            let reply = Reply { code, lines: vec!["5.7.1 no\u{1b}[0m".to_owned()] };
            let failure = reply.held_to("DATA", &[354]).unwrap_err();
            assert_eq!(failure.temporary, temporary, "{code}");
            assert!(failure.message.contains(&format!("DATA with {code} 5.7.1 no[0m")));
        }
    }
}
