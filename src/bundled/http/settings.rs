//! What a tenant configures of `http`.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use flexcore_sdk::Failure;
use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use url::{Host, Url};

use super::headers;
use crate::{reach::Networks, trusted::client};

/// Most hosts, and most secrets, of one configuration.
const ENTRIES_MAX: usize = 256;
/// Who asks, where nobody says otherwise.
const USER_AGENT: &str = concat!("flexcore-http/", env!("CARGO_PKG_VERSION"));

/// TLS for all configurations without authorities of their own. Nothing of a configuration is in it.
static USUAL: LazyLock<Result<Arc<ClientConfig>, Failure>> =
    LazyLock::new(|| client(None).map(Arc::new));

/// The schema of the configuration.
pub(super) fn schema() -> Value {
    let pattern = "A host: `api.example.com`, `*.example.com` for all below it, `*` for all. Behind it \
        a port, or `:*` for all ports; without one, 80 and 443.";
    json!({
        "type": "object",
        "required": ["hosts"],
        "additionalProperties": false,
        "properties": {
            "hosts": {
                "type": "array",
                "maxItems": ENTRIES_MAX,
                "items": { "type": "string", "description": pattern },
                "description": "Hosts that may be called, and no others.",
            },
            "headers": {
                "type": "object",
                "additionalProperties": { "type": "string" },
                "description": "Sent with each request whose caller does not say otherwise.",
            },
            "secrets": {
                "type": "array",
                "maxItems": ENTRIES_MAX,
                "description": "Headers that are sent to some hosts alone, whatever a caller says.",
                "items": {
                    "type": "object",
                    "required": ["host", "header", "value"],
                    "additionalProperties": false,
                    "properties": {
                        "host": { "type": "string", "description": pattern },
                        "header": { "type": "string" },
                        "value": { "type": "string", "writeOnly": true },
                        "plain": { "type": "boolean", "description": "Sent without TLS, too." },
                    },
                },
            },
            "networks": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Networks beside the internet, such as 10.1.0.0/16. Whoever runs the \
                    installation has to permit them.",
            },
            "authorities": {
                "type": "string",
                "description": "Certificates of the only authorities to trust, as PEM; those that \
                    browsers trust unless said otherwise.",
            },
        },
    })
}

/// The configuration as it comes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Given {
    hosts: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    secrets: Vec<GivenSecret>,
    #[serde(default)]
    networks: Vec<String>,
    authorities: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenSecret {
    host: String,
    header: String,
    value: String,
    #[serde(default)]
    plain: bool,
}

/// The configuration, checked.
pub(super) struct Settings {
    hosts: Vec<HostPattern>,
    headers: HeaderMap,
    secrets: Vec<Secret>,
    pub(super) networks: Networks,
    pub(super) tls: Arc<ClientConfig>,
}

/// A header for some hosts alone.
struct Secret {
    host: HostPattern,
    name: HeaderName,
    value: HeaderValue,
    plain: bool,
}

impl Settings {
    /// Fails where something of it cannot be used; nothing of it is quoted, since callers see the
    /// failure.
    pub(super) fn new(given: Given) -> Result<Self, Failure> {
        if given.hosts.len() > ENTRIES_MAX || given.secrets.len() > ENTRIES_MAX {
            return Err(unfit(format!("at most {ENTRIES_MAX} hosts, and as many secrets")));
        }
        let hosts = (1..).zip(&given.hosts);
        let hosts = hosts.map(|(number, text)| HostPattern::parse(text, "hosts", number));
        let hosts = hosts.collect::<Result<_, _>>();
        let secrets = (1..).zip(given.secrets);
        let secrets = secrets.map(|(number, given)| Secret::new(given, number));
        let secrets = secrets.collect::<Result<_, _>>();
        Ok(Self {
            hosts: hosts?,
            headers: headers::all(&given.headers)?,
            secrets: secrets?,
            networks: Networks::parse(&given.networks)?,
            tls: tls(given.authorities.as_deref())?,
        })
    }

    /// Fails where this host may not be called.
    pub(super) fn check(&self, url: &Url) -> Result<(), Failure> {
        if self.hosts.iter().any(|pattern| pattern.fits(url)) {
            return Ok(());
        }
        let at = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let message = format!("{at} is none of the hosts that the configuration allows");
        Err(Failure::new("not_allowed", message))
    }

    /// The headers of a request: a secret goes before the caller's, and the caller's before others.
    pub(super) fn headers_for(&self, url: &Url, given: &HeaderMap) -> HeaderMap {
        let mut headers = self.headers.clone();
        for (name, value) in given {
            headers.insert(name, value.clone());
        }
        headers::add(&mut headers, header::USER_AGENT, USER_AGENT);
        // Nothing here unpacks anything.
        headers::add(&mut headers, header::ACCEPT_ENCODING, "identity");
        for secret in &self.secrets {
            if secret.host.fits(url) && (secret.plain || url.scheme() == "https") {
                headers.insert(&secret.name, secret.value.clone());
            }
        }
        headers
    }
}

impl Secret {
    fn new(given: GivenSecret, number: usize) -> Result<Self, Failure> {
        let host = HostPattern::parse(&given.host, "secrets", number)?;
        let (name, mut value) = headers::header(&given.header, &given.value)?;
        // It is not shown where headers are.
        value.set_sensitive(true);
        Ok(Self { host, name, value, plain: given.plain })
    }
}

/// Hosts, and ports of them.
#[derive(Debug, PartialEq, Eq)]
struct HostPattern {
    names: HostNames,
    ports: Ports,
}

#[derive(Debug, PartialEq, Eq)]
enum HostNames {
    All,
    Below(String),
    One(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Ports {
    Usual,
    All,
    One(u16),
}

impl HostPattern {
    /// The host of an entry of this list. Fails where it is none.
    fn parse(text: &str, list: &str, number: usize) -> Result<Self, Failure> {
        Self::read(text).ok_or_else(|| {
            unfit(format!(
                "entry {number} of `{list}` has no host, such as api.example.com, \
                 *.example.com:8443 or *"
            ))
        })
    }

    fn read(text: &str) -> Option<Self> {
        // An address of IPv6 has colons in it, and brackets around it.
        let end = text.rfind(']').map_or(0, |at| at + 1);
        let (name, ports) = match text.get(end..)?.rfind(':') {
            Some(at) => (text.get(..end + at)?, port(text.get(end + at + 1..)?)?),
            None => (text, Ports::Usual),
        };
        if name != "*" && name.strip_prefix("*.").unwrap_or(name).contains('*') {
            return None;
        }
        let names = match name.strip_prefix("*.") {
            Some(below) => match Host::parse(below).ok()? {
                Host::Domain(below) => HostNames::Below(format!(".{}", plain(&below))),
                Host::Ipv4(_) | Host::Ipv6(_) => return None,
            },
            None if name == "*" => HostNames::All,
            None => HostNames::One(text_of(&Host::parse(name).ok()?)),
        };
        Some(Self { names, ports })
    }

    fn fits(&self, url: &Url) -> bool {
        let (Some(host), Some(port)) = (host(url), url.port_or_known_default()) else {
            return false;
        };
        let is_named = match &self.names {
            HostNames::All => true,
            HostNames::Below(end) => host.len() > end.len() && host.ends_with(end.as_str()),
            HostNames::One(name) => *name == host,
        };
        let has_port = match self.ports {
            Ports::All => true,
            Ports::Usual => matches!(port, 80 | 443),
            Ports::One(one) => one == port,
        };
        is_named && has_port
    }
}

fn port(text: &str) -> Option<Ports> {
    if text == "*" { Some(Ports::All) } else { text.parse().ok().map(Ports::One) }
}

/// The host of an address, as it is looked up and compared: without brackets and a last dot.
pub(super) fn host(url: &Url) -> Option<String> {
    url.host().map(|host| text_of(&host))
}

fn text_of<S: AsRef<str>>(host: &Host<S>) -> String {
    match host {
        Host::Domain(name) => plain(name.as_ref()).to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

fn plain(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// TLS with these authorities, or with those that browsers trust.
fn tls(authorities: Option<&str>) -> Result<Arc<ClientConfig>, Failure> {
    if authorities.is_none() {
        return USUAL.clone();
    }
    client(authorities).map(Arc::new)
}

fn unfit(message: String) -> Failure {
    Failure::new("bad_configuration", message)
}
