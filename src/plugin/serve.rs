//! A plugin's side: what go-plugin's `Serve` does, for plugins written in Rust.
//!
//! It checks that a host has started it, agrees on a version, listens, prints the first line, and
//! serves the author's gRPC services with those that every plugin has: health, the broker, the
//! printed output, the end, and reflection.

use std::{fmt, io, io::Write as _, path::PathBuf, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::Routes;

use crate::{
    Broker, Cookie, Error,
    broker::Reach,
    connection::{self, Calls, secured, serve_secured},
    handshake::{Handshake, negotiate},
    identity::{Identity, Tls},
    limits::{SERVE_ACCEPT_PAUSE, SERVE_CONNECTIONS_MAX, SERVE_DRAIN_WAIT, SERVE_FLUSH_WAIT},
    mux::Mux,
    transport::{BoxIo, Owner},
};

mod by_hand;
mod describe;
mod door;
mod invitation;
mod standard;
mod stdio;

use by_hand::ByHand;
use describe::{Described, Reflect, ReflectAlpha};
use door::Door;
use invitation::Invitation;
use standard::{Controller, Health};
pub use stdio::Stdio;

/// Makes the services of one version. They may call back their host, and print for it.
pub type RoutesFn = Box<dyn FnOnce(Broker, Stdio) -> Routes + Send>;

/// What a plugin serves.
pub struct Serve {
    /// Its host's cookie.
    pub cookie: Cookie,
    /// For each version of its contract the services; at least one.
    pub versions: Vec<(u32, RoutesFn)>,
    /// With them, hosts can call it with JSON.
    pub descriptors: Option<Descriptors>,
    /// Where it listens.
    pub network: Network,
}

/// A plugin's contract, as the compiler of Protocol Buffers writes it.
#[derive(Clone, Debug)]
pub struct Descriptors {
    /// An encoded `google.protobuf.FileDescriptorSet` with all imports.
    pub set: Vec<u8>,
    /// Full names of the services in it that the plugin serves: others are its host's.
    pub services: Vec<String>,
}

/// Where a plugin listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// At a Unix socket in the host's folder.
    #[default]
    Unix,
    /// At a port of the host's choice, on loopback.
    Tcp,
}

impl Serve {
    /// A plugin of the host with this cookie, at a Unix socket, without a version.
    #[must_use]
    pub fn new(cookie: Cookie) -> Self {
        Self { cookie, versions: Vec::new(), descriptors: None, network: Network::Unix }
    }

    /// With the services of a version. Health, reflection and those of go-plugin itself are there
    /// anyway, and must not be among them.
    #[must_use]
    pub fn version(
        mut self,
        version: u32,
        routes: impl FnOnce(Broker, Stdio) -> Routes + Send + 'static,
    ) -> Self {
        self.versions.push((version, Box::new(routes)));
        self
    }

    /// With the descriptors of its contract, an encoded `google.protobuf.FileDescriptorSet`, and
    /// the full names of the services in it that it serves.
    #[must_use]
    pub fn descriptors(mut self, set: Vec<u8>, services: &[&str]) -> Self {
        let services = services.iter().map(|name| (*name).to_owned()).collect();
        self.descriptors = Some(Descriptors { set, services });
        self
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions: Vec<u32> = self.versions.iter().map(|(version, _)| *version).collect();
        f.debug_struct("Serve").field("versions", &versions).finish_non_exhaustive()
    }
}

/// Serves until the host says `Shutdown`, or SIGTERM comes; calls under way then have
/// [`SERVE_DRAIN_WAIT`] to end. With one connection for everything, also until that ends. It prints
/// the first line to the standard output, which is the host's from then on, and ignores SIGINT: in
/// a terminal, Ctrl-C goes to the host and all its plugins, and the host decides.
///
/// Fails where no host has started it, with a text for the standard error (exit then with status
/// 1), and where it cannot listen.
pub async fn serve(serve: Serve) -> Result<(), Error> {
    let invitation = Invitation::read(&serve.cookie, |name| std::env::var_os(name))?;
    let stop = CancellationToken::new();
    let _signals = signals(stop.clone())?;
    run(serve, invitation, stop, print).await
}

fn signals(stop: CancellationToken) -> Result<AbortOnDropHandle<()>, Error> {
    let listen = |kind| signal(kind).map_err(Error::system("listen for signals"));
    // Whoever listens for it once is not ended by it any more.
    drop(listen(SignalKind::interrupt())?);
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        terminate.recv().await;
        stop.cancel();
    })))
}

fn print(line: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
    printed.map_err(Error::system("print the first line"))
}

async fn run(
    serve: Serve,
    invitation: Invitation,
    stop: CancellationToken,
    say: impl FnOnce(&str) -> Result<(), Error> + Send,
) -> Result<(), Error> {
    let Serve { versions, descriptors, network, .. } = serve;
    let known: Vec<u32> = versions.iter().map(|(version, _)| *version).collect();
    let version = negotiate(&known, invitation.versions.as_deref());
    let own = versions.into_iter().find(|(number, _)| *number == version);
    let (_, own) =
        own.ok_or_else(|| Error::Contract("a plugin serves at least one version".to_owned()))?;
    let described = descriptors.as_ref().map(Described::new).transpose()?.map(Arc::new);
    let (tls, certificate) = match &invitation.certificate {
        Some(host) => {
            let identity = Identity::new()?;
            (Some(identity.pinned(host)?), Some(identity.der().to_vec()))
        }
        None => (None, None),
    };
    let door = match network {
        Network::Unix => Door::unix(&invitation.folder)?,
        Network::Tcp => Door::tcp(invitation.ports.clone()).await?,
    };
    let multiplexed = invitation.multiplex;
    let handshake =
        Handshake { version, address: door.address().clone(), certificate, multiplexed };
    say(&handshake.line(multiplexed))?;
    let served = Served { door, tls, described, stop };
    if multiplexed {
        served.in_one_connection(own).await;
    } else {
        served.in_connections(own, invitation.folder).await;
    }
    Ok(())
}

struct Served {
    door: Door,
    tls: Option<Tls>,
    described: Option<Arc<Described>>,
    stop: CancellationToken,
}

impl Served {
    /// Serves whoever connects.
    async fn in_connections(&self, own: RoutesFn, folder: PathBuf) {
        let (owner, tls) = (Owner::OwnOrRoot, self.tls.clone());
        let (routes, broker) = self.routes(own, Reach::Plain { folder, owner, tls });
        let mut connections = JoinSet::new();
        while let Some(accepted) = self.stop.run_until_cancelled(self.door.accept()).await {
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok(_) if connections.len() >= SERVE_CONNECTIONS_MAX => {}
                Ok(io) => {
                    let (tls, routes) = (self.tls.clone(), routes.clone());
                    let stop = self.stop.clone();
                    connections.spawn(async move {
                        let calls = Calls::default();
                        let served = serve_secured(io, tls.as_ref(), routes, stop, calls);
                        if let Err(error) = served.await {
                            tracing::debug!(%error, "a connection failed");
                        }
                    });
                }
                Err(_) => sleep(SERVE_ACCEPT_PAUSE).await,
            }
        }
        broker.close();
        let ended = async { while connections.join_next().await.is_some() {} };
        // Whatever is still under way is cut off.
        let _ = timeout(SERVE_DRAIN_WAIT, ended).await;
    }

    /// Serves the first host that connects, in streams of that connection, until it ends: nobody
    /// else can come.
    async fn in_one_connection(&self, own: RoutesFn) {
        while let Some(accepted) = self.stop.run_until_cancelled(self.door.accept()).await {
            let Ok(io) = accepted else {
                sleep(SERVE_ACCEPT_PAUSE).await;
                continue;
            };
            let begun = self.stop.run_until_cancelled(begin(io, self.tls.as_ref())).await;
            match begun {
                Some(Ok((mux, io))) => return self.in_streams(own, mux, io).await,
                // It was no host: another may come.
                Some(Err(error)) => tracing::debug!(%error, "a connection did not begin"),
                None => return,
            }
        }
    }

    /// Serves the main connection in the first stream, and ends with it. hashicorp's library takes
    /// a later stream that no knock came before as the next main connection; here the broker closes
    /// it. No host makes one: the calls of the broker and of the printed output last as long as the
    /// plugin, and keep the first stream open.
    async fn in_streams(&self, own: RoutesFn, mux: Mux, io: BoxIo) {
        let (routes, broker) = self.routes(own, Reach::Multiplexed { mux, tls: self.tls.clone() });
        let mut served = std::pin::pin!(connection::serve(io, routes, self.stop.clone()));
        tokio::select! {
            _ = &mut served => return,
            () = self.stop.cancelled() => broker.close(),
        }
        let _ = timeout(SERVE_DRAIN_WAIT, served).await;
        sleep(SERVE_FLUSH_WAIT).await;
    }

    /// The author's services and those of every plugin.
    fn routes(&self, own: RoutesFn, reach: Reach) -> (Routes, Broker) {
        let (broker, start_stream) = Broker::plugin(reach);
        let (stdio, printed) = stdio::pair(self.stop.clone());
        let mut routes = own(broker.clone(), stdio)
            .add_service(ByHand(Health))
            .add_service(ByHand(Controller(self.stop.clone())))
            .add_service(ByHand(printed))
            .add_service(start_stream);
        if let Some(described) = &self.described {
            routes = routes
                .add_service(ByHand(Reflect(Arc::clone(described))))
                .add_service(ByHand(ReflectAlpha(Arc::clone(described))));
        }
        (routes, broker)
    }
}

/// A multiplexed connection and the first of its streams, which is the host's main connection.
async fn begin(io: BoxIo, tls: Option<&Tls>) -> Result<(Mux, BoxIo), Error> {
    let mux = Mux::server(io);
    let stream = mux.accept().await?;
    Ok((mux, secured(stream, tls).await?))
}

#[cfg(test)]
mod tests;
