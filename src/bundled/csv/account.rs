//! A tenant's object store: where it is, and who asks.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{
    ConnectErrorKind, ConnectOptions, ServerAddr,
    jetstream::{self, Context},
};
use flexcore_sdk::Failure;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::Deserialize;

use super::bridge::Way;
use crate::{
    reach::{self, Networks},
    trusted,
};

/// Longest time for one connection. 5 s.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Messages that may wait for being looked at: one answer at a time is asked for.
const WAITING_MAX: usize = 64;

/// What a tenant configures.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    url: String,
    credentials: Option<String>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    authorities: Option<String>,
    #[serde(default)]
    networks: Vec<String>,
}

/// What calls use of the settings.
pub(super) struct Account {
    server: ServerAddr,
    login: Login,
    tls: ClientConfig,
    networks: Networks,
}

/// A connection, and what carries it.
pub(super) struct Connected {
    pub(super) context: Context,
    pub(super) way: Way,
}

/// Who asks.
enum Login {
    Nobody,
    User(String, String),
    Token(String),
    Credentials(String),
}

impl Account {
    /// Fails where the settings contradict each other, or name what is not permitted here.
    pub(super) fn new(settings: Settings) -> Result<Self, Failure> {
        let server: Result<ServerAddr, _> = settings.url.parse();
        let server =
            server.map_err(|_| bad("`url` is one such as nats://nats.example.com:4222"))?;
        if server.is_websocket() || server.host().is_empty() {
            return Err(bad("`url` begins with nats:// or tls://, and has a host"));
        }
        if server.has_user_pass() || server.password().is_some() {
            // It would be shown, and told to whoever reads the settings.
            return Err(bad("`url` is without user and password: set `user` and `password`"));
        }
        let Settings { credentials, user, password, token, .. } = settings;
        let login = match (credentials, user, password, token) {
            (None, None, None, None) => Login::Nobody,
            (None, Some(user), Some(password), None) => Login::User(user, password),
            (None, None, None, Some(token)) => Login::Token(token),
            (Some(credentials), None, None, None) => Login::Credentials(credentials),
            _ => return Err(bad("set `credentials`, `token`, or `user` with `password`")),
        };
        login.options()?;
        let tls = tls(server.host(), settings.authorities.as_deref())?;
        let networks = Networks::parse(&settings.networks)?;
        Ok(Self { server, login, tls, networks })
    }

    /// A connection of this call alone: a few milliseconds more, and nothing that is kept, shared, or
    /// has to notice that the settings have changed.
    pub(super) async fn connect(&self, tenant: &str) -> Result<Connected, Failure> {
        let (host, port) = (self.server.host(), self.server.port());
        let stream = reach::connect(tenant, host, port, &self.networks).await?;
        let way = Way::over(stream).await;
        let way = way.map_err(|error| Failure::passing("no_connection", error))?;
        // It leads to the very address that was checked. Servers that this one tells of are not dialled.
        let server: Result<ServerAddr, _> = format!("nats://{}", way.address).parse();
        let server = server.map_err(|error| Failure::new("bad_address", error))?;
        let options = self.login.options()?;
        let options = options
            .name("flexcore csv")
            .ignore_discovered_servers()
            .max_reconnects(Some(1_usize))
            .connection_timeout(CONNECT_WAIT)
            .local_address(way.from)
            .subscription_capacity(WAITING_MAX)
            .require_tls(self.server.tls_required())
            .tls_client_config(self.tls.clone());
        let client = options.connect(server).await.map_err(|error| {
            let message = format!("the object store cannot be reached: {error}");
            match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    Failure::new("login_refused", "NATS does not accept the configured login")
                }
                _ if way.meter.is_over() => too_large(),
                _ => Failure::passing("no_connection", message),
            }
        })?;
        Ok(Connected { context: jetstream::new(client), way })
    }
}

/// Of a broker that sends without end, or is none.
pub(super) fn too_large() -> Failure {
    Failure::new("too_large", "the object store sends more than this plugin takes")
}

impl Login {
    fn options(&self) -> Result<ConnectOptions, Failure> {
        let options = ConnectOptions::new();
        Ok(match self {
            Self::Nobody => options,
            Self::User(user, password) => options.user_and_password(user.clone(), password.clone()),
            Self::Token(token) => options.token(token.clone()),
            Self::Credentials(text) => options
                .credentials(text)
                .map_err(|_| bad("`credentials` is the text of a file of credentials"))?,
        })
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").finish_non_exhaustive()
    }
}

fn bad(message: &str) -> Failure {
    Failure::new("bad_configuration", message)
}

/// TLS with the host that is configured, though an address of this machine is dialled.
fn tls(host: &str, authorities: Option<&str>) -> Result<ClientConfig, Failure> {
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| bad("the host of `url` is no name of a host, and no address"))?;
    let roots = Arc::new(trusted::roots(authorities)?);
    let inner = WebPkiServerVerifier::builder_with_provider(roots, trusted::provider()).build();
    let inner = inner.map_err(|error| Failure::new("bad_authorities", error))?;
    let config = ClientConfig::builder_with_provider(trusted::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new("no_tls", error))?;
    let verifier = Arc::new(Named { inner, name });
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Checks certificates as usual, for a name that is not the one that was dialled.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Self { inner, name } = self;
        inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn account(settings: Value) -> Result<Account, Failure> {
        Account::new(serde_json::from_value(settings).unwrap())
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for good in [
            json!({ "url": "nats://nats.example.com" }),
            json!({ "url": "tls://nats.example.com:4222", "user": "u", "password": "p" }),
            json!({ "url": "nats://192.0.2.1:4222", "token": "t" }),
            json!({ "url": "nats://[2001:db8::1]:4222" }),
        ] {
            account(good).unwrap();
        }
        for bad in [
            json!({ "url": "http://nats.example.com" }),
            json!({ "url": "ws://nats.example.com" }),
            json!({ "url": "nats://" }),
            json!({ "url": "nats://user:s3cr3t@nats.example.com" }),
            json!({ "url": "nats://t0k3n@nats.example.com" }),
            json!({ "url": "nats://nats.example.com", "user": "u" }),
            json!({ "url": "nats://nats.example.com", "user": "u", "password": "p", "token": "t" }),
            json!({ "url": "nats://nats.example.com", "credentials": "s3cr3t" }),
        ] {
            let failure = account(bad.clone()).unwrap_err();
            assert_eq!(failure.code, "bad_configuration", "{bad}");
            assert!(!failure.message.contains("s3cr3t"), "{failure}");
        }
    }

    #[tokio::test]
    async fn an_address_inside_is_not_dialled() {
        for url in ["nats://127.0.0.1:4222", "nats://[::1]:4222", "nats://169.254.169.254:80"] {
            let connected = account(json!({ "url": url })).unwrap().connect("test").await;
            let failure = connected.map(drop).unwrap_err();
            assert_eq!((&*failure.code, failure.temporary), ("not_allowed", false), "{url}");
        }
    }
}
