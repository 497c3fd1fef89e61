//! The conversation with a mail server (RFC 5321): STARTTLS, AUTH, one message. It is our own, since
//! the library that writes the messages takes what came in the clear for what comes after STARTTLS,
//! and reads a line of any length.

mod conversation;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flexcore_sdk::Failure;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use self::conversation::{Conversation, Reply, late};
use super::{
    account::{Account, Login, Secure, Security},
    message::Written,
    stuffed::stuffed,
};
use crate::reach;

/// Longest wait for the server's goodbye. 1 s: the message is with it by then.
const GOODBYE_WAIT: Duration = Duration::from_secs(1);
/// What ends a message.
const END: &[u8] = b".\r\n";

/// Hands a message to the account's server, and returns its last words. A failure that may pass means
/// that the server has not taken it; where that is not known, the failure is `outcome_unknown`.
pub(super) async fn deliver(
    tenant: &str,
    account: &Account,
    message: &Written,
    ends: Instant,
) -> Result<String, Failure> {
    let connected = reach::connect(tenant, &account.host, account.port, &account.networks);
    let stream = timeout_at(ends, connected).await.map_err(|_| late())??;
    let name = stream.local_addr().map_or_else(|_| "localhost".to_owned(), literal);
    match &account.security {
        Security::Open => {
            let mut server = Conversation::new(stream, ends);
            server.greeting().await?;
            hand_over(server, &name, account, message).await
        }
        Security::Implicit(secure) => {
            let mut server = Conversation::new(secured(secure, stream, ends).await?, ends);
            server.greeting().await?;
            hand_over(server, &name, account, message).await
        }
        Security::StartTls(secure) => {
            let mut server = Conversation::new(stream, ends);
            server.greeting().await?;
            let stream = start_tls(server, &name).await?;
            let server = Conversation::new(secured(secure, stream, ends).await?, ends);
            hand_over(server, &name, account, message).await
        }
    }
}

/// How this side calls itself: its address, since it has no name that others could look up.
fn literal(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => format!("[{}]", address.ip()),
        SocketAddr::V6(address) => format!("[IPv6:{}]", address.ip()),
    }
}

async fn start_tls<S>(mut server: Conversation<S>, name: &str) -> Result<S, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offers = server.hello(name).await?;
    if !offers.start_tls {
        let message = "the mail server does not offer STARTTLS, and nothing is sent without TLS";
        return Err(Failure::new("no_tls", message));
    }
    server.command("STARTTLS", "STARTTLS", &[220]).await?;
    server.into_stream()
}

async fn secured<S>(secure: &Secure, stream: S, ends: Instant) -> Result<TlsStream<S>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(Arc::clone(&secure.config));
    let shaken = timeout_at(ends, connector.connect(secure.name.clone(), stream)).await;
    shaken.map_err(|_| late())?.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(inner, Some(rustls::Error::InvalidCertificate(_))) {
            let message = format!("the mail server's certificate is not accepted: {error}");
            return Failure::new("bad_certificate", message);
        }
        Failure::passing("no_tls", format!("no TLS with the mail server: {error}"))
    })
}

/// From the first word on the connection that is to be used, to the last.
async fn hand_over<S>(
    mut server: Conversation<S>,
    name: &str,
    account: &Account,
    message: &Written,
) -> Result<String, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offers = server.hello(name).await?;
    let bytes = stuffed(&message.bytes);
    if offers.size.is_some_and(|most| most > 0 && length(&bytes) > most) {
        let message = format!("the message has {} bytes, more than the server takes", bytes.len());
        return Err(Failure::new("too_large", message));
    }
    if let Some(login) = &account.login {
        log_in(&mut server, login, offers.plain, offers.login).await?;
    }
    let size = if offers.size.is_some() { format!(" SIZE={}", bytes.len()) } else { String::new() };
    let mail = format!("MAIL FROM:<{}>{size}", message.from);
    server.command("MAIL", &mail, &[250]).await?;
    for (number, recipient) in message.recipients.iter().enumerate() {
        let command = format!("RCPT TO:<{recipient}>");
        let taken = server.command("RCPT", &command, &[250, 251]).await;
        // All or none: nobody would know whom to send it again.
        taken.map_err(|failure| of_recipient(failure, number))?;
    }
    server.command("DATA", "DATA", &[354]).await?;
    server.write(&bytes).await?;
    let answer = finish(&mut server).await?;
    let _ = timeout(GOODBYE_WAIT, server.command("QUIT", "QUIT", &[221])).await;
    Ok(answer)
}

/// From here on the server may have the whole message.
async fn finish<S>(server: &mut Conversation<S>) -> Result<String, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let unknown = |failure: Failure| {
        let message = format!(
            "the server has the whole message, and did not say whether it takes it: {}. It may \
             arrive or not; receivers can tell a second one by its Message-ID",
            failure.message
        );
        Failure::new("outcome_unknown", message)
    };
    server.write(END).await.map_err(unknown)?;
    let reply = server.reply().await.map_err(unknown)?;
    reply.held_to("the message", &[250])?;
    Ok(reply.to_string())
}

async fn log_in<S>(
    server: &mut Conversation<S>,
    login: &Login,
    plain: bool,
    by_steps: bool,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Login { user, password } = login;
    let last = if plain {
        let secret = STANDARD.encode(format!("\0{user}\0{password}"));
        format!("AUTH PLAIN {secret}")
    } else if by_steps {
        let steps = ["AUTH LOGIN".to_owned(), STANDARD.encode(user)];
        for step in &steps {
            let reply = server.asked(step).await?;
            checked_login(&reply, 334)?;
        }
        STANDARD.encode(password)
    } else {
        let message = "the mail server offers no login with a password (PLAIN or LOGIN)";
        return Err(Failure::new("no_login", message));
    };
    let reply = server.asked(&last).await?;
    checked_login(&reply, 235)
}

/// The server's own words are left out: it knows the password.
fn checked_login(reply: &Reply, expected: u16) -> Result<(), Failure> {
    match reply.code {
        code if code == expected => Ok(()),
        code @ 400..500 => Err(Failure::passing(
            "login_deferred",
            format_args!("the login is answered with {code}"),
        )),
        code => {
            let message = format!("the login is answered with {code}: look at user and password");
            Err(Failure::new("login_refused", message))
        }
    }
}

/// The recipient is told by its number among `to`, `cc` and `bcc`, from 0 on.
fn of_recipient(failure: Failure, number: usize) -> Failure {
    failure.details(&json!({ "recipient": number }))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
