//! Addresses that a tenant may reach: those of the internet, and no others unless whoever runs the
//! installation permits it. A name is looked up once, and only the addresses that were checked then
//! are used: nobody looks it up again to connect.

mod ranges;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use flexcore_sdk::Failure;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::spawn_blocking,
    time::{error::Elapsed, timeout},
};

use self::ranges::{Network, refused};
use crate::places::Places;

/// Networks that one configuration may name. 32: a list that a person reads.
const NETWORKS_MAX: usize = 32;
/// Addresses of one name that are tried. 4: two of each family; more would use up the caller's time.
const ADDRESSES_MAX: usize = 4;
/// Longest time for one address to take a connection. 5 s: the next one is tried then.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for an address of a name. 10 s: twice what a resolver waits for one of its servers.
const LOOK_UP_WAIT: Duration = Duration::from_secs(10);
/// Names that are looked up at once. 128: each has a thread, and the runtime has 512.
const LOOK_UPS_MAX: usize = 128;
/// Those of one tenant; further ones wait. 8: the names of one tenant may have no answer for ever, and
/// the others are to find places then.
const LOOK_UPS_OF_TENANT: usize = 8;
/// Words of resolvers for a name that there is not: asking again is in vain. The library that asks
/// them tells no more than a text.
const NO_SUCH_NAME: [&str; 3] =
    ["Name or service not known", "Name does not resolve", "No address associated"];

/// What whoever runs the installation permits: networks that configurations may name.
static PERMITTED: OnceLock<Vec<Network>> = OnceLock::new();

/// Places of threads that look names up. A thread keeps its place when nobody waits for it any more.
static LOOK_UPS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(LOOK_UPS_MAX)));
/// The same, of each tenant.
static OF_TENANTS: Places = Places::new(LOOK_UPS_OF_TENANT);

/// Networks beside the internet that a tenant's configuration allows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Networks(Vec<Network>);

/// Permits configurations to allow these networks, such as `10.1.0.0/16`. Fails, with a sentence for
/// people, where one of them is no network. To be called once, before anything is configured.
pub(crate) fn permit(networks: &[String]) -> Result<(), String> {
    let read = |text: &String| {
        Network::parse(text).ok_or_else(|| format!("{text:?} is no network, such as 10.1.0.0/16"))
    };
    let networks = networks.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    PERMITTED.set(networks).map_err(|_| "the networks are said twice".to_owned())
}

impl Networks {
    /// Those that a configuration names. Fails where one is none, or is not permitted here.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, Failure> {
        Self::within(texts, PERMITTED.get().map(Vec::as_slice).unwrap_or_default())
    }

    fn within(texts: &[String], permitted: &[Network]) -> Result<Self, Failure> {
        if texts.len() > NETWORKS_MAX {
            let message = format!("a configuration names {NETWORKS_MAX} networks at most");
            return Err(Failure::new("bad_configuration", message));
        }
        let read = |(number, text): (usize, &String)| {
            let network = Network::parse(text).ok_or_else(|| {
                // Callers see it: what a configuration has in its place is not theirs to know.
                let message = format!("entry {number} of `networks` is none, such as 10.1.0.0/16");
                Failure::new("bad_configuration", message)
            })?;
            if permitted.iter().any(|permitted| permitted.covers(&network)) {
                return Ok(network);
            }
            let message = format!(
                "the network {text} is not permitted here: whoever runs this installation has to add \
                 --network={text} to the arguments in the plugin's manifest"
            );
            Err(Failure::new("not_permitted", message))
        };
        (1..).zip(texts).map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Why this address is not to be reached; `None`: it may be.
    fn refuse(&self, address: IpAddr) -> Option<&'static str> {
        let allowed = |address: IpAddr| self.0.iter().any(|network| network.has(address));
        refused(address, allowed)
    }
}

/// A connection of this tenant to a host that may be reached, to one address after the other. The host
/// is a name, or an address without brackets.
pub(crate) async fn connect(
    tenant: &str,
    host: &str,
    port: u16,
    allowed: &Networks,
) -> Result<TcpStream, Failure> {
    let mut failed = nowhere(host);
    for address in addresses(tenant, host, port, allowed).await? {
        let connected = timeout(CONNECT_WAIT, TcpStream::connect(address)).await;
        match connected.map_err(|_: Elapsed| io::Error::from(io::ErrorKind::TimedOut)).flatten() {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Failure::passing("no_connection", format!("{host}: {error}")),
        }
    }
    Err(failed)
}

/// The addresses that may be reached: never none.
async fn addresses(
    tenant: &str,
    host: &str,
    port: u16,
    allowed: &Networks,
) -> Result<Vec<SocketAddr>, Failure> {
    let found = look_up(tenant, host, port).await?;
    let mut why = None;
    let may = |address: &SocketAddr| match allowed.refuse(address.ip()) {
        Some(class) => {
            why = Some(class);
            false
        }
        None => true,
    };
    let may: Vec<_> = found.into_iter().filter(may).take(ADDRESSES_MAX).collect();
    match why {
        // The address itself is not told: callers are not to learn what names lead to inside.
        Some(class) if may.is_empty() => {
            let message = format!("{host} leads to {class}, which is not allowed");
            Err(Failure::new("not_allowed", message))
        }
        _ if may.is_empty() => Err(nowhere(host)),
        _ => Ok(may),
    }
}

async fn look_up(tenant: &str, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let Ok(of_tenant) = timeout(LOOK_UP_WAIT, OF_TENANTS.take(tenant)).await else {
        return Err(Failure::passing("busy", "the tenant's other names have no answer yet"));
    };
    let of_tenant = of_tenant?;
    let Ok(place) = Arc::clone(&LOOK_UPS).try_acquire_owned() else {
        return Err(Failure::passing("busy", "too many names are being looked up"));
    };
    let name = host.to_owned();
    let found = spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        drop((place, of_tenant));
        found
    });
    match timeout(LOOK_UP_WAIT, found).await {
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(error))) => Err(unknown(host, &error)),
        Ok(Err(error)) => Err(Failure::passing("unresolved", format!("{host}: {error}"))),
        Err(_) => Err(Failure::passing("unresolved", format!("{host}: no answer in time"))),
    }
}

fn unknown(host: &str, error: &io::Error) -> Failure {
    let text = error.to_string();
    if NO_SUCH_NAME.iter().any(|words| text.contains(words)) {
        return Failure::new("no_such_host", format!("there is no host {host}"));
    }
    Failure::passing("unresolved", format!("{host}: {text}"))
}

fn nowhere(host: &str) -> Failure {
    Failure::new("no_such_host", format!("{host} has no address"))
}
