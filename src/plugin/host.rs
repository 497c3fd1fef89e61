//! A host's side: starting a plugin's process and shaking hands with it, or taking over one that
//! runs; asking whether it is well; ending it.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::OnceCell, time::timeout};
use tokio_util::task::AbortOnDropHandle;

mod attached;
mod call;
mod controller;
mod folder;
mod health;
mod reattach;
mod stdio;

use attached::Attached;
use folder::Folder;
pub use reattach::Reattach;

pub use crate::process::{Ended, Output};
use crate::{
    Broker, Connection, Error,
    broker::{Reach, connect},
    guard::{Bounds, Held, Measure, MeasureState, Sandbox, no_user_for},
    handshake::{Asked, Cookie, Handshake},
    identity::Identity,
    limits::{
        ANSWER_BYTES_MAX, CHECK_WAIT, DIAL_WAIT, GIVE_UP_WAIT, LAST_WORDS_WAIT, SHUTDOWN_WAIT,
    },
    mux::Mux,
    process::{Checked, Process, Run},
    transport::Address,
};

/// All that starting a plugin takes.
pub struct Start {
    /// The plugin's file, with its checksum compared. A plugin of a host that is root is root
    /// without its powers: unless it is a copy, the file and what it needs have to be open to such
    /// a user.
    pub file: Checked,
    /// The executable that stands between host and plugin, by its absolute path: see
    /// [`crate::guard`]. It is executed by that path at each start: whoever may write to it is the
    /// host.
    pub guard: PathBuf,
    /// Arguments of the plugin.
    pub arguments: Vec<OsString>,
    /// Environment variables of the plugin, beside the handshake's. It gets none of the host's.
    pub environment: Vec<(OsString, OsString)>,
    /// The magic cookie that the plugin expects.
    pub cookie: Cookie,
    /// The versions of the plugin's own contract that the host speaks.
    pub versions: Vec<u32>,
    /// True for TLS with certificates that both sides make for this run (AutoMTLS). A plugin that
    /// does not do it is refused. Without it the system tells whether a process of the plugin is at
    /// the other end of a Unix socket; who is at a port of TCP nobody tells, and a plugin may name
    /// any port of this machine.
    pub tls: bool,
    /// True for all connections as streams of one. A plugin that does not do it is refused.
    pub multiplex: bool,
    /// Longest time until the plugin's first line; see [`crate::limits::START_WAIT`].
    pub start_wait: Duration,
    /// Largest message that the plugin may answer with, in bytes, unless the caller has a limit of
    /// its own; see [`crate::limits::ANSWER_BYTES_MAX`]. Every call under way may take as much.
    pub answer_bytes_max: usize,
    /// The most that the process may use.
    pub bounds: Bounds,
    /// What the process is kept from.
    pub sandbox: Sandbox,
    /// Gets all that the plugin prints. It has to return at once: a plugin stands still while its
    /// output is not taken.
    pub output: Output,
}

/// A running plugin. It is a cheap clone: when the last one is dropped, a plugin that was started
/// is killed with all its children, and one that was reattached is left alone.
#[derive(Clone)]
pub struct Plugin(Arc<Inner>);

/// In the order in which it is dropped: the process goes first, its folder last.
struct Inner {
    life: Life,
    _stdio: AbortOnDropHandle<()>,
    broker: Broker,
    connection: Connection,
    address: Address,
    version: u32,
    pid: u32,
    reattach: Option<Reattach>,
    stopped: OnceCell<Ended>,
    folder: Folder,
}

enum Life {
    Started(Process),
    Attached(Attached),
}

impl Plugin {
    /// Starts a plugin, shakes hands with it, connects, and asks whether it is well. Fails when one
    /// of these fails or takes too long; then nothing of the plugin is left, and the error has the
    /// last that it said.
    pub async fn start(start: Start) -> Result<Self, Error> {
        let Start { file, guard, arguments, mut environment, start_wait, bounds, .. } = start;
        let (sandbox, held) = possible(start.sandbox);
        let mut folder = Folder::of(sandbox.user)?;
        let plugins = folder.plugins();
        let identity = start.tls.then(Identity::new).transpose()?;
        let asked = Asked {
            cookie: start.cookie,
            versions: start.versions,
            multiplex: start.multiplex,
            client_certificate_pem: identity.as_ref().map(|identity| identity.pem().to_owned()),
            socket_folder: plugins.clone(),
        };
        environment.extend(asked.environment());
        let process = Process::spawn(Run {
            guard: &guard,
            file: &file,
            arguments: &arguments,
            environment: &environment,
            folder: &plugins,
            whole_folder: folder.whole(),
            bounds,
            sandbox: &sandbox,
            held,
            output: Arc::clone(&start.output),
        })
        .await?;
        if !start.tls {
            // Certificates would show as much, and at ports, too.
            folder.guarded_by(process.guard());
        }
        let line = match process.first_line(start_wait).await {
            Ok(line) => line,
            Err(error) => {
                // It is being killed. Nothing is left then, unless the system cannot end it.
                let _ = timeout(GIVE_UP_WAIT, process.ended()).await;
                return Err(error);
            }
        };
        let identity = identity.as_ref();
        let way = Way { identity, folder: &folder, answer_bytes_max: start.answer_bytes_max };
        let begun = begin(&line, &asked, way, process.held(), start.output).await;
        let (Handshake { version, address, .. }, linked) = match begun {
            Ok(begun) => begun,
            Err(error) => return Err(with_last_words(error, &process).await),
        };
        let pid = process.pid();
        // Whoever takes it over dials its own user's sockets.
        let is_plain = !start.tls && !start.multiplex && sandbox.user.is_none();
        let at = Reattach { version, address, pid, test: false };
        Ok(Self::new(Life::Started(process), linked, at, is_plain, folder))
    }

    /// Takes over a plugin that another host started, or that runs in a debugger. Fails if the
    /// process is gone, or the plugin does not answer at its address. Its printed output is read
    /// and dropped.
    pub async fn reattach(at: Reattach) -> Result<Self, Error> {
        let attached = Attached::new(&at)?;
        let folder = Folder::new()?;
        let Reattach { version, address, .. } = at.clone();
        let handshake = Handshake { version, address, certificate: None, multiplexed: false };
        let way = Way { identity: None, folder: &folder, answer_bytes_max: ANSWER_BYTES_MAX };
        let linked = link(&handshake, way, Arc::new(|_| {})).await?;
        Ok(Self::new(Life::Attached(attached), linked, at, true, folder))
    }

    /// `is_plain`: another host can take it over.
    fn new(life: Life, linked: Linked, at: Reattach, is_plain: bool, folder: Folder) -> Self {
        let Linked { connection, broker, stdio } = linked;
        let Reattach { version, address, pid, .. } = at.clone();
        let reattach = is_plain.then_some(at);
        let stopped = OnceCell::new();
        Self(Arc::new(Inner {
            life,
            _stdio: stdio,
            broker,
            connection,
            address,
            version,
            pid,
            reattach,
            stopped,
            folder,
        }))
    }

    /// The connection for generated clients. When the plugin has ended, each call fails at once.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.0.connection
    }

    /// The place where the plugin takes connections.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// The version that the plugin chose among those that the host speaks.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.0.version
    }

    /// The plugin's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// More connections, in both directions.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.0.broker
    }

    /// The part of its sandbox that holds. Nobody knows of a plugin that another host has started,
    /// and nothing was asked for.
    #[must_use]
    pub fn sandbox(&self) -> &Held {
        match &self.0.life {
            Life::Started(process) => process.held(),
            Life::Attached(attached) => attached.held(),
        }
    }

    /// Asks whether the plugin is well. Fails with [`Error::NotServing`] if it says that it is not,
    /// and if it does not answer within [`CHECK_WAIT`]. A plugin that has no health checks is well
    /// if it says so.
    pub async fn check(&self) -> Result<(), Error> {
        health::check(&self.0.connection, CHECK_WAIT).await
    }

    /// Waits until the plugin has ended, by itself or not. A reattached one has ended for this host
    /// when its process or its connection has.
    pub async fn ended(&self) -> Ended {
        self.0.ended().await
    }

    /// Ends the plugin: asks it to, waits, then makes it. Returns when it has ended, after 14
    /// seconds at most. Once begun, it goes on even if nobody waits for the result; if it is called
    /// again, it returns the same.
    pub async fn stop(&self) -> Ended {
        let inner = Arc::clone(&self.0);
        let stopped =
            tokio::spawn(async move { inner.stopped.get_or_init(|| inner.stop()).await.clone() });
        // A runtime that shuts down drops the task, and the last clone of the plugin with it.
        stopped.await.unwrap_or_else(|_| unknown())
    }

    /// What another host needs for taking the plugin over; none with TLS, a multiplexer, or a user
    /// of its own.
    #[must_use]
    pub fn reattachable(&self) -> Option<Reattach> {
        self.0.reattach.clone()
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { pid, version, .. } = &*self.0;
        f.debug_struct("Plugin").field("pid", pid).field("version", version).finish_non_exhaustive()
    }
}

impl Inner {
    async fn ended(&self) -> Ended {
        match &self.life {
            Life::Started(process) => process.ended().await,
            Life::Attached(attached) => {
                tokio::select! {
                    () = attached.ended() => {}
                    () = self.connection.closed() => {}
                }
                unknown()
            }
        }
    }

    async fn stop(&self) -> Ended {
        let ended = match &self.life {
            Life::Started(process) => {
                // Both have the same time, so that a plugin that does not answer gets no more.
                let told = controller::shut_down(&self.connection, SHUTDOWN_WAIT);
                let (_, ended) = tokio::join!(told, process.stop());
                ended
            }
            // Whoever controls it ends it.
            Life::Attached(attached) if attached.is_test() => unknown(),
            Life::Attached(attached) => {
                let heard = controller::shut_down(&self.connection, SHUTDOWN_WAIT).await;
                attached.stop(heard).await;
                unknown()
            }
        };
        self.connection.close();
        self.folder.remove().await;
        ended
    }
}

/// The end of a process that is no child of ours.
fn unknown() -> Ended {
    Ended { status: None, said: String::new(), is_clean: false }
}

struct Linked {
    connection: Connection,
    broker: Broker,
    stdio: AbortOnDropHandle<()>,
}

/// The part of a sandbox that a guard can try to make, and what is known not to hold.
fn possible(mut sandbox: Sandbox) -> (Sandbox, Held) {
    let mut held = Held::default();
    // Folders and sockets of a plugin have an owner before there is a guard.
    if let Some(reason) = sandbox.user.and_then(no_user_for) {
        sandbox.user = None;
        sandbox.no_privileges = true;
        held.set(Measure::User, MeasureState::NotAvailable(reason));
    }
    (sandbox, held)
}

/// Fails if the plugin listens at a port of a network of its own: the host's port with the same
/// number is another one, where somebody else may listen.
fn is_reachable(address: &Address, held: &Held) -> Result<(), Error> {
    match address {
        Address::Tcp(port) if held.holds(Measure::Network) => {
            let reason = "it has no network: let it listen at a Unix socket, or give it one";
            Err(Error::Address { address: port.to_string(), reason: reason.to_owned() })
        }
        _ => Ok(()),
    }
}

/// What connecting to a plugin takes of this side.
struct Way<'a> {
    identity: Option<&'a Identity>,
    folder: &'a Folder,
    answer_bytes_max: usize,
}

/// Reads a plugin's first line and connects.
async fn begin(
    line: &[u8],
    asked: &Asked,
    way: Way<'_>,
    held: &Held,
    output: Output,
) -> Result<(Handshake, Linked), Error> {
    let handshake = Handshake::parse(line, asked)?;
    is_reachable(&handshake.address, held)?;
    let linked = link(&handshake, way, output).await?;
    Ok((handshake, linked))
}

/// Connects to a plugin, opens the streams that it expects to be open, and asks whether it is well.
async fn link(handshake: &Handshake, way: Way<'_>, output: Output) -> Result<Linked, Error> {
    let Way { identity, folder, answer_bytes_max } = way;
    let tls = match (identity, &handshake.certificate) {
        (Some(identity), Some(certificate)) => Some(identity.pinned(certificate)?),
        _ => None,
    };
    let linked = async {
        let owner = folder.owner();
        let io = handshake.address.dial_to(owner).await?;
        let (connection, reach) = if handshake.multiplexed {
            let mux = Mux::client(io);
            let connection = connect(mux.open().await?, tls.as_ref()).await?;
            (connection, Reach::Multiplexed { mux, tls })
        } else {
            let folder = folder.hosts();
            (connect(io, tls.as_ref()).await?, Reach::Plain { folder, owner, tls })
        };
        let connection = connection.with_answer_bytes_max(answer_bytes_max);
        let broker = Broker::host(connection.clone(), reach);
        let stdio = AbortOnDropHandle::new(tokio::spawn(stdio::follow(connection.clone(), output)));
        health::check(&connection, DIAL_WAIT).await?;
        Ok::<_, Error>(Linked { connection, broker, stdio })
    };
    linked.await.map_err(|error| {
        let (_, address) = handshake.address.parts();
        match error {
            Error::Unreachable { reason, .. } => Error::Unreachable { address, reason },
            Error::Late { .. } | Error::Ended | Error::Status { .. } => {
                Error::Unreachable { address, reason: error.to_string() }
            }
            error => error,
        }
    })
}

/// Ends a plugin that failed to start, and adds the last that it said. It may be ending by itself,
/// and its exit status then says more than all that the host saw.
async fn with_last_words(error: Error, process: &Process) -> Error {
    let by_itself = timeout(LAST_WORDS_WAIT, process.ended()).await;
    process.kill();
    let words = match by_itself {
        Ok(ended) => format!("It has ended: {ended}"),
        Err(_) => {
            // Nothing is left then, unless the system cannot end it.
            let _ = timeout(GIVE_UP_WAIT, process.ended()).await;
            process.said()
        }
    };
    add(error, &words)
}

fn add(error: Error, words: &str) -> Error {
    let add = |reason: String| format!("{reason}. {words}");
    match error {
        Error::Handshake { reason, line } => Error::Handshake { reason: add(reason), line },
        Error::Address { address, reason } => Error::Address { address, reason: add(reason) },
        Error::Unreachable { address, reason } => {
            Error::Unreachable { address, reason: add(reason) }
        }
        Error::Tls(reason) => Error::Tls(add(reason)),
        // It says all that there is to say.
        error => error,
    }
}

#[cfg(test)]
mod tests;
