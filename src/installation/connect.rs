//! Connections to the broker that come back by themselves.

use std::{
    fmt, fs, io,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use flexcore_eventstore::{
    self as eventstore,
    renewed::{Connection, Renewed, watched},
};
use flexcore_resilience::Backoff;
use percent_encoding::percent_decode_str;

/// A cut connection is noticed after two of these; the client's own default takes minutes.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Between two tries to reach a server. The first moments of an outage look like many quick tries.
pub(crate) const RETRY: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
/// Requests that may wait inside the client: what the gateway and the lanes have under way.
const CLIENT_CAPACITY: usize = 65_536;
/// Longest wait for one server to take a connection: another one may.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The broker's servers, and the one login for all of them.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Without user and password: these addresses may be shown.
    servers: Vec<ServerAddr>,
    login: Login,
}

/// How to log in to the broker. Its `Debug` tells no secret.
#[derive(Clone, PartialEq, Eq)]
enum Login {
    None,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    /// The text of a file of credentials.
    Credentials(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password { .. } => "Password",
            Self::Token(_) => "Token",
            Self::Credentials(_) => "Credentials",
        })
    }
}

impl Broker {
    /// Takes URLs such as `nats://host:4222`, `nats://user:password@host:4222` or
    /// `nats://token@host:4222`, and a file of credentials instead of a login in them. Fails when a
    /// URL is none, when two URLs have different logins, and when the file cannot be read or is none
    /// of credentials; no error shows a secret.
    pub fn new(urls: &[String], credentials: Option<&Path>) -> anyhow::Result<Self> {
        let mut broker = Self { servers: Vec::new(), login: Login::None };
        for (number, url) in urls.iter().enumerate() {
            let advice = "write nats://host:4222 or nats://user:password@host:4222, with %2C for a \
                          comma, %2F for / and %40 for @ in a password";
            // Not shown: if it cannot be read, nobody knows where its password stands.
            let (server, login) = server(url)
                .with_context(|| format!("server {} of --nats: {advice}", number + 1))?;
            broker.servers.push(server);
            match login {
                Login::None => {}
                login if broker.login == Login::None || broker.login == login => {
                    broker.login = login;
                }
                _ => bail!("the servers of --nats have different logins: give one for all of them"),
            }
        }
        let Some(path) = credentials else { return Ok(broker) };
        if broker.login != Login::None {
            bail!("two logins: give one in --nats or one by --nats-credentials");
        }
        let said = || format!("--nats-credentials {}", path.display());
        let text = fs::read_to_string(path).with_context(said)?;
        ConnectOptions::with_credentials(&text).with_context(said)?;
        broker.login = Login::Credentials(text);
        Ok(broker)
    }

    /// A connection with these options. Fails with [`eventstore::Error::Misconfigured`] when the
    /// broker refuses the login: waiting mends that never.
    #[boxed::async_recursion]
    pub async fn connect(&self, options: ConnectOptions) -> anyhow::Result<Client> {
        let options = match self.login.clone() {
            Login::None => options,
            Login::Password { user, password } => options.user_and_password(user, password),
            Login::Token(token) => options.token(token),
            Login::Credentials(text) => options.credentials(&text)?,
        };
        match options.connect(&self.servers[..]).await {
            Ok(client) => Ok(client),
            Err(error) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    Err(self.refused().into())
                }
                _ => Err(error).with_context(|| {
                    format!(
                        "no connection to the broker at {self}: is it running? `flexcore doctor` \
                         checks"
                    )
                }),
            },
        }
    }

    fn refused(&self) -> eventstore::Error {
        let advice = match &self.login {
            Login::None => {
                "give it in --nats (nats://user:password@host:4222), or --nats-credentials"
            }
            Login::Credentials(_) => "it does not take what --nats-credentials names",
            _ => "it does not take user and password, or the token, in --nats",
        };
        eventstore::Error::Misconfigured(format!("the broker at {self} asks for a login: {advice}"))
    }
}

/// The addresses, with no login.
impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<&str> = self.servers.iter().map(ServerAddr::as_url_str).collect();
        f.write_str(&urls.join(", "))
    }
}

/// The client takes no login from a URL, and logs URLs.
fn server(url: &str) -> io::Result<(ServerAddr, Login)> {
    let server: ServerAddr = url.trim().parse()?;
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let login = match (server.username(), server.password()) {
        (None, None) => Login::None,
        (Some(token), None) => Login::Token(decoded(token)),
        (user, Some(password)) => {
            Login::Password { user: decoded(user.unwrap_or_default()), password: decoded(password) }
        }
    };
    let mut bare = server.into_inner();
    let cleared = bare.set_username("").and_then(|()| bare.set_password(None));
    cleared.map_err(|()| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok((ServerAddr::from_url(bare)?, login))
}

/// A connection to the broker that comes back by itself, with backoff and jitter. Fails as
/// [`Broker::connect`] does.
#[boxed::async_recursion]
pub async fn connect(broker: &Broker) -> anyhow::Result<Client> {
    Ok(connection(broker).await?.client)
}

/// The same, and made anew when its client has ended for good.
pub(crate) async fn renewed(broker: &Broker) -> anyhow::Result<Renewed> {
    let (first, broker) = (connection(broker).await?, broker.clone());
    Ok(Renewed::new(first, move || {
        let broker = broker.clone();
        Box::pin(async move { connection(&broker).await.map_err(|error| format!("{error:#}")) })
    }))
}

/// The same as [`connect`], and one hears when its client has ended for good.
pub(crate) async fn connection(broker: &Broker) -> anyhow::Result<Connection> {
    let troubles = AtomicU32::new(0);
    let options = ConnectOptions::new()
        .name("flexcore")
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(CLIENT_CAPACITY)
        .reconnect_delay_callback(|tries| {
            let tries = u32::try_from(tries).unwrap_or(u32::MAX);
            RETRY.jittered(tries.saturating_add(1))
        });
    let (options, ended) = watched(options, move |event| tell(event, &troubles));
    Ok(Connection { client: broker.connect(options).await?, ended })
}

/// Says what the broker refuses, and why the connection does not come back, less and less often. Without
/// that a login that lacks a permission looks like a broker that does not answer.
fn tell(event: &Event, troubles: &AtomicU32) {
    match event {
        Event::Connected => troubles.store(0, Ordering::Relaxed),
        Event::ServerError(_) | Event::ClientError(_) => {
            let count = troubles.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_power_of_two() {
                tracing::warn!(%event, count, "trouble with the broker");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(urls: &[&str]) -> anyhow::Result<Broker> {
        let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
        Broker::new(&urls, None)
    }

    #[test]
    fn a_login_in_a_url_is_for_all_servers_and_is_never_shown() {
        let given = broker(&["nats://flex:pa%40ss%2Cword@a:4222", "b:4223"]).unwrap();
        let login = Login::Password { user: "flex".to_owned(), password: "pa@ss,word".to_owned() };
        assert_eq!(given.login, login);
        let shown = [given.to_string(), format!("{given:?}"), given.refused().to_string()];
        for shown in shown {
            assert!(!shown.contains("pa@ss") && !shown.contains("pa%40ss"), "{shown}");
            assert!(!shown.contains("flex:"), "{shown}");
        }
        assert_eq!(given.to_string(), "nats://a:4222, nats://b:4223");
        assert_eq!(broker(&["nats://t0ken@a"]).unwrap().login, Login::Token("t0ken".to_owned()));
        assert_eq!(broker(&["a", "b"]).unwrap().login, Login::None);
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_its_password() {
        for urls in [
            &["nats://u:secret@a", "nats://u:secret2@b"][..],
            &["http://u:secret@a"],
            &["nats://u:secret@a:port"],
        ] {
            let error = format!("{:#}", broker(urls).unwrap_err());
            assert!(error.contains("--nats") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn credentials_are_read_at_the_start() {
        let gone = Broker::new(&["a".to_owned()], Some(Path::new("/nowhere.creds"))).unwrap_err();
        assert!(format!("{gone:#}").contains("--nats-credentials /nowhere.creds"), "{gone:#}");
        let two = Broker::new(&["nats://u:p@a".to_owned()], Some(Path::new("/nowhere.creds")));
        assert!(two.unwrap_err().to_string().contains("two logins"));
    }
}
