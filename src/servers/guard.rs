//! A server process that cannot outlive this one.
//!
//! Between us and the server stands a small shell script, `guard.sh`: portable, needs no `unsafe`,
//! and works after SIGKILL because it watches a pipe. The server's standard error goes to a file
//! that is locked (`flock`) through the very descriptor which script and server inherit: as long as
//! any of them lives, Postgres's backends included, nobody else gets the lock. So "are the servers
//! of a dead process gone?" is asked of the kernel, not of a pid file.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::{Error, account::Account, io_error};

const SCRIPT: &str = include_str!("guard.sh");
/// Time between two looks at a process that starts or ends.
pub(crate) const POLL: Duration = Duration::from_millis(5);
/// Longest time that a server of a dead flexcore may take to end: its guard kills it after five
/// seconds.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(12);
/// Larger files of standard error are cut at the next start.
const STDERR_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Longest time that a dropped server may take to end: its guard would kill it after five seconds,
/// and some time is added.
const DROP_WAIT: Duration = Duration::from_secs(6);

/// A program to run, and the way to end it.
pub(crate) struct Plan<'a> {
    /// The program and its arguments.
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<String>,
    /// What its environment has beside ours.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Whom it runs as; `None` = as we do.
    pub(crate) account: Option<Account>,
    /// The locked file that takes its standard error.
    pub(crate) stderr: PathBuf,
    /// The signal that ends it at once, without damage.
    pub(crate) last_signal: &'static str,
    /// A folder to remove if we die without stopping it.
    pub(crate) remove: Option<PathBuf>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Guarded {
    pid: u32,
    guard: Child,
    /// One line = one signal; closed = end it.
    signals: Option<ChildStdin>,
    last_signal: &'static str,
}

impl Guarded {
    /// Starts it, after waiting until nobody holds the lock of its standard error any more.
    pub(crate) async fn start(plan: Plan<'_>) -> Result<Self, Error> {
        let stderr = lock(&plan.stderr).await?;
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "guard", plan.last_signal])
            .arg(plan.remove.unwrap_or_default())
            .arg(plan.program)
            .args(&plan.arguments)
            .envs(plan.environment)
            // Ours may be a folder that the account cannot enter.
            .current_dir("/")
            // Ctrl-C on the terminal is for flexcore, which then ends its servers in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        if let Some(account) = plan.account {
            command.uid(account.uid).gid(account.gid);
        }
        let mut guard = command.spawn().map_err(io_error("start sh"))?;
        let signals = guard.stdin.take();
        let stdout = guard.stdout.take().expect("BUG: stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(io_error("read the guard's answer"))?;
        let Ok(pid) = line.trim().parse() else {
            let reason = format!("its guard answered {line:?} in place of a process id");
            return Err(Error::Start { server: name(plan.program), reason, log: String::new() });
        };
        Ok(Self { pid, guard, signals, last_signal: plan.last_signal })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.guard.try_wait().ok().flatten()
    }

    /// Sends a signal, such as `TERM`. A server that has ended does not mind.
    pub(crate) fn signal(&mut self, name: &str) {
        if let Some(pipe) = &mut self.signals {
            // The write fails only when the guard has ended, and the server before it.
            drop(writeln!(pipe, "{name}"));
        }
    }

    /// Sends the signals in turn, waiting for the time beside each; at last SIGKILL.
    pub(crate) async fn end(&mut self, steps: &[(&str, Duration)]) {
        for (name, wait) in steps {
            self.signal(name);
            let start = Instant::now();
            while start.elapsed() < *wait {
                if self.ended().is_some() {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
            tracing::warn!(pid = self.pid, signal = name, "server did not end in time");
        }
        self.signal("KILL");
        while self.ended().is_none() {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Guarded {
    /// Ends the server and waits for it, some milliseconds as a rule.
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal(self.last_signal);
        let start = Instant::now();
        while self.ended().is_none() && start.elapsed() < DROP_WAIT {
            std::thread::sleep(POLL);
        }
        // Closing the pipe lets the guard finish what the signal did not.
        self.signals = None;
    }
}

/// Opens and locks the file that takes a server's standard error.
async fn lock(path: &Path) -> Result<File, Error> {
    let file = open(path)?;
    let start = Instant::now();
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(io_error("lock a log")(error)),
            Err(TryLockError::WouldBlock) if start.elapsed() > PREDECESSOR_WAIT => {
                return Err(Error::InUse { path: path.to_owned() });
            }
            Err(TryLockError::WouldBlock) => {
                if !told && start.elapsed() > Duration::from_secs(1) {
                    tracing::info!(log = %path.display(), "waiting for an earlier server to end");
                    told = true;
                }
                tokio::time::sleep(POLL).await;
            }
        }
    }
    if file.metadata().map_err(io_error("read a log's size"))?.len() > STDERR_BYTES_MAX {
        file.set_len(0).map_err(io_error("cut a log"))?;
    }
    Ok(file)
}

/// Waits until nothing of a killed server is left, children included.
pub(crate) async fn wait_until_gone(stderr: &Path) -> Result<(), Error> {
    lock(stderr).await.map(drop)
}

fn open(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(io_error(&format!("open {}", path.display())))
}

/// The name of a program, for messages.
pub(crate) fn name(program: &Path) -> String {
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// The last lines of a log, for messages.
pub(crate) fn last_lines(path: &Path) -> String {
    last_lines_after(path, 0)
}

/// The last lines of what a log got after its first `before` bytes.
pub(crate) fn last_lines_after(path: &Path, before: u64) -> String {
    const LINES: usize = 12;
    const BYTES: usize = 16 * 1024;
    let bytes = std::fs::read(path).unwrap_or_default();
    // A log that was cut meanwhile is shorter.
    let before = usize::try_from(before).unwrap_or(0);
    let from = if before > bytes.len() { 0 } else { before };
    let bytes = &bytes[from.max(bytes.len().saturating_sub(BYTES))..];
    let text = String::from_utf8_lossy(bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
