//! The embedded Postgres.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Error,
    account::{self, Account},
    fetch::{once, text},
    find::Found,
    guard::{self, Guarded, POLL, Plan},
    io_error,
};

/// The superuser of the embedded Postgres and its database.
const USER: &str = "flexcore";
const DATABASE: &str = "postgres";
/// Crash recovery of a busy database takes seconds; longer needs a person.
const READY_WAIT: Duration = Duration::from_secs(60);
/// Longest time for the last checkpoint, and after it for a hard stop.
const STOP_WAIT: Duration = Duration::from_secs(20);
const QUIT_WAIT: Duration = Duration::from_secs(6);
/// Number of attempts at a free port, or at the old port when it must be that one.
const PORT_TRIES: u32 = 20;

/// Differences from Postgres's own defaults, for a machine with two cores and a few gigabytes.
/// `fsync`, `full_page_writes` and `synchronous_commit` stay on: a checkpoint commits with its
/// rows.
const SETTINGS: [(&str, &str); 12] = [
    ("listen_addresses", "127.0.0.1"),
    // A socket's path may have 107 bytes, and the data folder is anywhere: TCP only.
    ("unix_socket_directories", ""),
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("password_encryption", "scram-sha-256"),
    ("max_connections", "100"),
    ("shared_buffers", "128MB"),
    // Rebuilding a read model writes gigabytes: checkpoints by time, not by size.
    ("max_wal_size", "2GB"),
    ("checkpoint_completion_target", "0.9"),
    // Planning the few large queries is cheaper than compiling them.
    ("jit", "off"),
    ("log_checkpoints", "off"),
    ("timezone", "UTC"),
];

/// A Postgres of our own, on loopback. Dropping it ends it.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    folder: PathBuf,
    account: Option<Account>,
    password: String,
    port: u16,
    /// True if the port was asked for, so that no other one will do.
    port_fixed: bool,
    remove: Option<PathBuf>,
    process: Option<Guarded>,
}

impl Postgres {
    /// `folder` is all its own; when root, it belongs to the account that Postgres runs as.
    pub(crate) async fn start(
        found: &Found,
        cache: &Path,
        folder: PathBuf,
        port: Option<u16>,
        temporary: bool,
    ) -> Result<Self, Error> {
        let account = account::for_postgres()?;
        account::own_folder(&folder, account)?;
        // An earlier server of this folder must be gone before anything in it is touched.
        guard::wait_until_gone(&folder.join("postgres.log")).await?;
        let (found, cache, at) = (found.clone(), cache.to_owned(), folder.clone());
        let bin = found.path.clone();
        let create = move || create(&found, &cache, &at, account, temporary);
        let password =
            tokio::task::spawn_blocking(create).await.expect("BUG: creating panicked")?;
        let mut postgres = Self {
            bin,
            remove: temporary.then(|| folder.clone()),
            folder,
            account,
            password,
            port: port.unwrap_or(0),
            port_fixed: port.is_some(),
            process: None,
        };
        postgres.run().await?;
        // From now on clients know the port.
        postgres.port_fixed = true;
        Ok(postgres)
    }

    /// `postgres://flexcore:<password>@127.0.0.1:<port>/postgres`; stays the same after
    /// [`Self::start_again`].
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{DATABASE}", self.password, self.port)
    }

    /// The postmaster's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::pid)
    }

    /// Kills it with SIGKILL and waits until its backends are gone, too. For tests of faults.
    pub async fn kill(&mut self) -> Result<(), Error> {
        if let Some(mut process) = self.process.take() {
            process.end(&[]).await;
        }
        guard::wait_until_gone(&self.log()).await
    }

    /// Starts it again with the same port and data, after [`Self::kill`] or [`Self::stop`].
    pub async fn start_again(&mut self) -> Result<(), Error> {
        self.stop().await;
        self.run().await
    }

    /// Ends it in order: clients are cut off and a checkpoint is written; after 20 seconds it ends
    /// without, as in a crash.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end(&[("INT", STOP_WAIT), ("QUIT", QUIT_WAIT)]).await;
        }
    }

    /// A port that was free a moment ago may be taken when Postgres wants it: tries again.
    async fn run(&mut self) -> Result<(), Error> {
        for attempt in 1.. {
            if !self.port_fixed {
                self.port = free_port()?;
            }
            match self.run_once().await {
                Err(Error::Start { log, .. })
                    if attempt < PORT_TRIES && log.contains("Address already in use") =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                done => return done,
            }
        }
        unreachable!("the loop ends by returning")
    }

    async fn run_once(&mut self) -> Result<(), Error> {
        let data = self.folder.join("data");
        let mut arguments = arguments(&data)?;
        arguments.extend(["-p".to_owned(), self.port.to_string()]);
        let before = std::fs::metadata(self.log()).map_or(0, |meta| meta.len());
        let program = self.bin.join("postgres");
        let mut process = Guarded::start(Plan {
            program: &program,
            arguments,
            environment: Vec::new(),
            account: self.account,
            stderr: self.log(),
            // SIGKILL would leave its shared memory behind.
            last_signal: "QUIT",
            remove: self.remove.clone(),
        })
        .await?;
        let start = Instant::now();
        while !ready(&data, process.pid()) {
            let reason = match process.ended() {
                Some(status) => format!("it ended at once ({status})"),
                None if start.elapsed() > READY_WAIT => "it did not get ready in time".to_owned(),
                None => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            };
            let log = guard::last_lines_after(&self.log(), before);
            return Err(Error::Start { server: "postgres".to_owned(), reason, log });
        }
        self.process = Some(process);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }
}

/// The parts for starting a Postgres by hand: elsewhere, under other limits, or with another end.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The server's program.
    pub program: PathBuf,
    /// Its arguments but for the port (`-p`); of a setting given twice the last counts.
    pub arguments: Vec<String>,
    /// The data folder.
    pub data: PathBuf,
    /// User and group that it has to run as; `None`: as we do.
    pub account: Option<(u32, u32)>,
    /// User, password and database, as in `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub login: (String, String, String),
}

/// Finds or fetches Postgres and makes the data folder `data` in `folder`, if there is none. Blocks
/// meanwhile. Fails when it cannot be had.
pub fn parts(cache: &Path, folder: &Path) -> Result<Parts, Error> {
    let cache = crate::find::postgres_cache(cache)?;
    let found = crate::find::postgres(&cache, crate::Sources::Any)?;
    let account = account::for_postgres()?;
    account::own_folder(folder, account)?;
    let password = create(&found, &cache, folder, account, false)?;
    let data = folder.join("data");
    Ok(Parts {
        program: found.path.join("postgres"),
        arguments: arguments(&data)?,
        data,
        account: account.map(|account| (account.uid, account.gid)),
        login: (USER.to_owned(), password, DATABASE.to_owned()),
    })
}

fn arguments(data: &Path) -> Result<Vec<String>, Error> {
    let mut arguments = vec!["-D".to_owned(), text(data)?.to_owned()];
    for (name, value) in SETTINGS {
        arguments.extend(["-c".to_owned(), format!("{name}={value}")]);
    }
    Ok(arguments)
}

/// The postmaster writes its state on the eighth line of its file; an old file has another pid.
fn ready(data: &Path, pid: u32) -> bool {
    let Ok(file) = std::fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let mut lines = file.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
        && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io_error("find a free port"))?;
    listener.local_addr().map(|address| address.port()).map_err(io_error("find a free port"))
}

/// Makes the data folder if there is none, from a template in the cache: copying takes a quarter of
/// the time of `initdb`. Gives the password.
fn create(
    found: &Found,
    cache: &Path,
    folder: &Path,
    account: Option<Account>,
    temporary: bool,
) -> Result<String, Error> {
    let user = account.map_or("own", |account| account.name);
    // The last number changes with what `initdb` is told below.
    let label = format!("postgres-template-{}-{user}-1", found.version);
    let template = once(cache, &label, |partial| init(found, partial, account))?;
    let data = folder.join("data");
    // Written last, so a copy that was cut short is made again.
    let marker = folder.join("password");
    if !marker.exists() {
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(io_error("remove a half-made data folder"))?;
        }
        run_as(account, Path::new("cp"), &["-Rp", text(&template.join("data"))?, text(&data)?])?;
        if !temporary {
            let initdb = found.path.join("initdb");
            run_as(account, &initdb, &["--sync-only", "-D", text(&data)?])?;
        }
        let password = template.join("password");
        run_as(account, Path::new("cp"), &["-p", text(&password)?, text(&marker)?])?;
    }
    check_version(found, &data)?;
    std::fs::read_to_string(&marker).map_err(io_error("read Postgres's password"))
}

fn init(found: &Found, partial: &Path, account: Option<Account>) -> Result<(), Error> {
    tracing::info!("preparing a Postgres {} data folder…", found.version);
    account::own_folder(partial, account)?;
    let password = partial.join("password");
    std::fs::write(&password, random_hex()?).map_err(io_error("write Postgres's password"))?;
    if let Some(account) = account {
        std::os::unix::fs::chown(&password, Some(account.uid), Some(account.gid))
            .map_err(io_error("write Postgres's password"))?;
    }
    run_as(account, Path::new("chmod"), &["600", text(&password)?])?;
    let data = partial.join("data");
    let arguments = [
        &["--pgdata", text(&data)?, "--username", USER, "--pwfile", text(&password)?][..],
        &["--auth", "scram-sha-256", "--data-checksums", "--no-sync"],
        // Orders as bytes do, on every machine; no dependency on the system's locales.
        &["--encoding", "UTF8", "--locale", "C"],
    ];
    run_as(account, &found.path.join("initdb"), &arguments.concat())
}

/// 128 bits of the kernel's randomness.
fn random_hex() -> Result<String, Error> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(io_error("read /dev/urandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A data folder belongs to one major version.
fn check_version(found: &Found, data: &Path) -> Result<(), Error> {
    let doing = format!("read {}/PG_VERSION", data.display());
    let made = std::fs::read_to_string(data.join("PG_VERSION")).map_err(io_error(&doing))?;
    if made.trim() == found.version.0.to_string() {
        return Ok(());
    }
    let (made, found) = (made.trim().to_owned(), found.version.to_string());
    Err(Error::DataVersion { path: data.to_owned(), made, found })
}

/// Runs a program to its end as the account.
fn run_as(account: Option<Account>, program: &Path, arguments: &[&str]) -> Result<(), Error> {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    let server = guard::name(program);
    let done = command.output().map_err(io_error(&format!("run {server}")))?;
    if done.status.success() {
        return Ok(());
    }
    let reason = format!("it failed ({})", done.status);
    let log = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(Error::Start { server, reason, log })
}
