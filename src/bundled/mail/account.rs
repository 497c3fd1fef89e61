//! A tenant's mail server, and what may be sent through it.

use std::{fmt, sync::Arc};

use flexcore_sdk::Failure;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::Deserialize;

use crate::{reach::Networks, trusted};

/// Senders that a configuration may name. 100: a list that a person reads.
pub(super) const SENDERS_MAX: usize = 100;
/// Longest sender, in bytes: 64 before the sign, and 255 behind it (RFC 5321, 4.5.3.1).
pub(super) const SENDER_BYTES_MAX: usize = 320;
/// Signs that would need quotes in an address, or end it. Hardly anybody has them there.
pub(super) const NOT_IN_ADDRESSES: &[u8] = b"<>()[]\\,;:\"";

/// What a tenant configures.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    host: String,
    port: Option<u16>,
    #[serde(default)]
    tls: Secured,
    user: Option<String>,
    password: Option<String>,
    senders: Vec<String>,
    authorities: Option<String>,
    #[serde(default)]
    networks: Vec<String>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Secured {
    #[default]
    StartTls,
    Implicit,
    None,
}

impl Secured {
    /// As RFC 6409 and RFC 8314 have it; without TLS a relay is meant.
    fn port(self) -> u16 {
        match self {
            Self::StartTls => 587,
            Self::Implicit => 465,
            Self::None => 25,
        }
    }
}

/// What calls use of the settings.
pub(super) struct Account {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) security: Security,
    pub(super) login: Option<Login>,
    pub(super) networks: Networks,
    senders: Vec<String>,
}

/// How the connection is kept from others.
pub(super) enum Security {
    /// It begins in the clear, and nothing is sent unless it changes to TLS.
    StartTls(Secure),
    /// It begins with TLS.
    Implicit(Secure),
    /// It is not: for a relay in a network that is trusted.
    Open,
}

/// The server's name, and whom to believe that it is the one.
pub(super) struct Secure {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

/// Who sends.
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

impl Account {
    /// Fails where the settings contradict each other, or name what is not permitted here.
    pub(super) fn new(settings: Settings) -> Result<Self, Failure> {
        let Settings { host, port, tls, user, password, senders, authorities, networks } = settings;
        if senders.is_empty() || senders.len() > SENDERS_MAX {
            let message = format!("`senders` has to have 1 to {SENDERS_MAX} entries");
            return Err(bad(&message));
        }
        if !senders.iter().all(|sender| is_sender(sender)) {
            return Err(bad("each of `senders` is an address, or a domain such as `@example.com`"));
        }
        let login = login(user, password, tls)?;
        let security = match tls {
            Secured::StartTls => Security::StartTls(secure(&host, authorities.as_deref())?),
            Secured::Implicit => Security::Implicit(secure(&host, authorities.as_deref())?),
            Secured::None => Security::Open,
        };
        let networks = Networks::parse(&networks)?;
        let port = port.unwrap_or_else(|| tls.port());
        Ok(Self { host, port, security, login, networks, senders })
    }

    /// True if messages may come from this address.
    pub(super) fn may_send_as(&self, address: &str) -> bool {
        let domain = address.rfind('@').and_then(|at| address.get(at..)).unwrap_or_default();
        self.senders.iter().any(|sender| {
            sender.eq_ignore_ascii_case(address) || sender.eq_ignore_ascii_case(domain)
        })
    }

    /// The domain of the first sender: what message ids end with.
    pub(super) fn domain(&self) -> &str {
        let first = self.senders.first().map_or("", String::as_str);
        first.rsplit('@').next().unwrap_or_default()
    }
}

/// True for an address, and for a domain behind `@`. It becomes part of message ids.
fn is_sender(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !NOT_IN_ADDRESSES.contains(&byte);
    let halves = text.split_once('@');
    let has_halves = halves.is_some_and(|(_, domain)| !domain.is_empty() && !domain.contains('@'));
    has_halves && text.len() <= SENDER_BYTES_MAX && text.bytes().all(is_plain)
}

fn login(
    user: Option<String>,
    password: Option<String>,
    tls: Secured,
) -> Result<Option<Login>, Failure> {
    let (user, password) = match (user, password) {
        (None, None) => return Ok(None),
        (Some(user), Some(password)) => (user, password),
        _ => return Err(bad("`user` and `password` go together")),
    };
    if tls == Secured::None {
        return Err(bad("a password is not sent without TLS: set `tls` to starttls or implicit"));
    }
    if user.contains('\0') || password.contains('\0') {
        return Err(bad("`user` and `password` have no NUL"));
    }
    Ok(Some(Login { user, password }))
}

fn secure(host: &str, authorities: Option<&str>) -> Result<Secure, Failure> {
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| bad("`host` is no name of a host, and no address"))?;
    Ok(Secure { config: Arc::new(trusted::client(authorities)?), name })
}

fn bad(message: &str) -> Failure {
    Failure::new("bad_configuration", message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn account(change: Value) -> Result<Account, Failure> {
        let mut settings = json!({ "host": "mail.example.com", "senders": ["a@example.com"] });
        let Value::Object(change) = change else { panic!("{change}") };
        settings.as_object_mut().unwrap().extend(change);
        Account::new(serde_json::from_value(settings).unwrap())
    }

    #[test]
    fn ports_are_those_of_the_way_to_connect() {
        for (tls, port) in [("starttls", 587), ("implicit", 465), ("none", 25)] {
            assert_eq!(account(json!({ "tls": tls })).unwrap().port, port);
        }
        let starttls = account(json!({})).unwrap();
        assert!(matches!(starttls.security, Security::StartTls(_)), "unless said otherwise");
        assert_eq!(account(json!({ "port": 2525 })).unwrap().port, 2525);
    }

    #[test]
    fn a_password_never_goes_without_tls_and_never_alone() {
        let both = json!({ "user": "u", "password": "p" });
        account(both.clone()).unwrap();
        for bad in [
            json!({ "user": "u", "password": "p", "tls": "none" }),
            json!({ "user": "u" }),
            json!({ "password": "p" }),
            json!({ "user": "u\u{0}x", "password": "p" }),
            json!({ "host": "no host" }),
            json!({ "senders": [] }),
            json!({ "senders": ["example.com"] }),
            json!({ "senders": ["ü@example.com"] }),
            json!({ "senders": ["x@example.com\r\nBcc: eve@example.org"] }),
            json!({ "senders": ["@example.com\n"] }),
            json!({ "senders": ["@example .com"] }),
            json!({ "senders": ["@example.com>"] }),
            json!({ "senders": ["ada@"] }),
            json!({ "senders": ["a@b@example.com"] }),
            json!({ "senders": [format!("@{}", "x".repeat(SENDER_BYTES_MAX))] }),
        ] {
            let Err(failure) = account(bad.clone()) else { panic!("{bad}") };
            assert_eq!(failure.code, "bad_configuration", "{bad}");
        }
    }

    #[test]
    fn a_sender_is_an_address_or_a_domain() {
        let account = account(json!({ "senders": ["a@example.com", "@example.org"] })).unwrap();
        for may in ["a@example.com", "A@Example.COM", "any@example.org"] {
            assert!(account.may_send_as(may), "{may}");
        }
        for not in ["b@example.com", "a@example.com.evil.net", "a@sub.example.org", "x", ""] {
            assert!(!account.may_send_as(not), "{not}");
        }
        assert_eq!(account.domain(), "example.com");
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let login = Login { user: "u".to_owned(), password: "s3cr3t".to_owned() };
        assert!(!format!("{login:?}").contains("s3cr3t"));
    }
}
