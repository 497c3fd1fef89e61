//! A plugin's process: started through a [`guard`], listened to, and ended with all that it
//! started.
//!
//! The plugin inherits nothing of the host: no environment variable, since those may be secrets, no
//! descriptor but its standard streams, no terminal. A script that was copied has its own file
//! open, too. Its standard input is empty. What it prints is
//! read for ever, so that it never stands still with a full pipe, and is handed on at once; nothing
//! is queued. Every wait here has a limit.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, ErrorKind, Write as _},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Take},
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    Error,
    guard::{self, Bounds, Held, Measure, Orders, Report, Sandbox},
    limits::{
        DRAIN_WAIT, FOLDER_WAIT, GIVE_UP_WAIT, GUARD_WAIT, HANDSHAKE_BYTES_MAX, KILL_WAIT,
        REPORT_BYTES_MAX, SHOWN_CHARACTERS_MAX, SHUTDOWN_WAIT, TERM_WAIT,
    },
    logs::Line,
};

mod checked;
mod promised;
mod streams;

pub use checked::Checked;
use promised::{Group, Promised};
use streams::{First, Said, read_logs, read_stdout};

/// Where programs are that a plugin starts by their names, unless the caller says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Takes what a plugin prints. The plugin waits while it runs: it should return at once.
pub type Output = Arc<dyn Fn(Printed) + Send + Sync>;

/// Something that a plugin printed.
#[derive(Clone, Debug, PartialEq)]
pub enum Printed {
    /// A line of its log, from standard error.
    Log(Line),
    /// Bytes of standard output behind the first line, or that its code printed there.
    Stdout(Bytes),
    /// Bytes that its code printed on standard error, where go-plugin tells them from its log.
    Stderr(Bytes),
}

/// The end of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit status or signal; `None` if nobody saw it.
    pub status: Option<ExitStatus>,
    /// The last lines of its standard error.
    pub said: String,
    /// True if nothing that it started runs any more. False if something does, since it multiplies
    /// faster than it can be killed, or waits for a disk; and if nobody could see, since the guard
    /// was killed or the plugin was reattached.
    pub is_clean: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}; {}", last_words(&self.said)),
            None => write!(f, "ended, nobody saw how; {}", last_words(&self.said)),
        }
    }
}

/// What to run, and how.
pub(crate) struct Run<'a> {
    /// The guard's executable, by its absolute path.
    pub(crate) guard: &'a Path,
    pub(crate) file: &'a Checked,
    pub(crate) arguments: &'a [OsString],
    /// All of the plugin's environment, beside `PATH`, `HOME` and `TMPDIR`, which it may set, too.
    /// Of two entries with the same name the later one counts.
    pub(crate) environment: &'a [(OsString, OsString)],
    /// The plugin's own folder, for its user alone: where it runs, its home, and the place for its
    /// temporary files. Plugins older than go-plugin 1.5 have their sockets there.
    pub(crate) folder: &'a Path,
    /// That folder, or the one that it is in: what the guard removes at the end.
    pub(crate) whole_folder: &'a Path,
    pub(crate) bounds: Bounds,
    /// What the guard is asked for.
    pub(crate) sandbox: &'a Sandbox,
    /// What is known already not to hold.
    pub(crate) held: Held,
    pub(crate) output: Output,
}

/// A running plugin. When this is dropped, it is killed with all that it started.
pub(crate) struct Process {
    pid: u32,
    guard: u32,
    /// The guard listens at its other end.
    control: UnixStream,
    first: watch::Receiver<Option<First>>,
    ended: watch::Receiver<Option<Ended>>,
    said: Arc<Said>,
    held: Held,
    /// The plugin has been killed, or is to be.
    killed: CancellationToken,
}

impl Process {
    /// Starts the plugin. Fails where the guard has no absolute path or does not start, and where
    /// something of its sandbox is demanded and does not hold; where the plugin itself does not
    /// start, it ends early, and says why on standard error.
    pub(crate) async fn spawn(run: Run<'_>) -> Result<Self, Error> {
        let what = || format!("start the plugin's guard {}", run.guard.display());
        let failed = |error| Error::system(what())(error);
        if !run.guard.is_absolute() {
            // The plugin's folder is where it would be looked for.
            let source = io::Error::new(ErrorKind::InvalidInput, "a guard's path is absolute");
            return Err(Error::File { path: run.guard.to_owned(), source });
        }
        let mut promised = Promised::new(run.sandbox, &run.held)?;
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        guard::hand_over(&control, run.file.file()).map_err(failed)?;
        let group = promised.group.as_ref().map(Group::path);
        let mut child = command(&run, group, theirs).spawn().map_err(failed)?;
        let guard = child.id().expect("BUG: it was not waited for");
        let mut reports = Reports::new(&control).map_err(failed)?;

        let said = Arc::new(Said::default());
        let (first_line, first) = watch::channel(None);
        let stdout = child.stdout.take().expect("BUG: stdout is piped");
        let stderr = child.stderr.take().expect("BUG: stderr is piped");
        let readers = [
            tokio::spawn(read_stdout(stdout, first_line, Arc::clone(&run.output))),
            tokio::spawn(read_logs(stderr, Arc::clone(&said), run.output.clone())),
        ]
        .map(AbortOnDropHandle::new);

        let started = timeout(GUARD_WAIT, reports.started(&mut promised)).await;
        let Ok(Some(pid)) = started else {
            // It says why on standard error.
            drop((control, reports));
            give_up(child, readers).await;
            return Err(failed(io::Error::other(said.last_words())));
        };
        if let Err(error) = promised.check() {
            // The guard has not executed it.
            drop((control, reports));
            give_up(child, readers).await;
            return Err(error);
        }
        let Promised { held, group, .. } = promised;
        let (end, ended) = watch::channel(None);
        let killed = CancellationToken::new();
        let is_apart = held.holds(Measure::Processes);
        let watched = Watched {
            pid,
            guard: child,
            reports,
            readers,
            group,
            is_apart,
            killed: killed.clone(),
        };
        let last = Arc::clone(&said);
        tokio::spawn(async move {
            let (status, is_clean) = watched.until_the_end().await;
            end.send_replace(Some(Ended { status, said: last.text(), is_clean }));
        });
        Ok(Self { pid, guard, control, first, ended, said, held, killed })
    }

    /// The process of the plugin itself.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The guard: all that the plugin starts is below it.
    pub(crate) fn guard(&self) -> u32 {
        self.guard
    }

    /// The part of its sandbox that holds.
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// The first line of standard output, without its end. Where there is none in this time, or one
    /// that is too long, or the plugin ends before it, the plugin is killed.
    pub(crate) async fn first_line(&self, wait: Duration) -> Result<Bytes, Error> {
        let line = tokio::select! {
            // A line that was printed counts, even if the process ended right behind it.
            biased;
            first = self.first() => first.map_err(too_long),
            ended = self.ended() => {
                let status = ended.status.map_or_else(|| "unknown".to_owned(), |s| s.to_string());
                Err(Error::EndedEarly { status, said: last_words(&ended.said) })
            }
            () = sleep(wait) => Err(Error::Silent { waited: wait, said: self.said() }),
        };
        if line.is_err() {
            self.kill();
        }
        line
    }

    async fn first(&self) -> First {
        let mut first = self.first.clone();
        let found = first.wait_for(Option::is_some).await.map(|found| (*found).clone());
        match found {
            Ok(Some(first)) => first,
            // Standard output is closed. While the process lives that is like silence.
            _ => std::future::pending().await,
        }
    }

    /// Waits until the plugin has ended, by itself or not. Then nothing that it started runs any
    /// more, or [`Ended::is_clean`] is false; its folder is gone, unless there is much in it; and
    /// all that it printed has been handed on, unless somebody else holds its pipes.
    pub(crate) async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let found = ended.wait_for(Option::is_some).await.map(|found| (*found).clone());
        match found {
            Ok(Some(ended)) => ended,
            // The runtime ends, and with it the task that would see the end of the plugin.
            _ => self.unseen(),
        }
    }

    /// Ends the plugin, which has been asked to end: it has some time for that, then SIGTERM, then
    /// SIGKILL. Returns when it has ended, or the system cannot end it.
    pub(crate) async fn stop(&self) -> Ended {
        if let Ok(ended) = timeout(SHUTDOWN_WAIT, self.ended()).await {
            return ended;
        }
        self.order(guard::TERM);
        if let Ok(ended) = timeout(TERM_WAIT, self.ended()).await {
            return ended;
        }
        self.kill();
        let ended = timeout(GIVE_UP_WAIT, self.ended()).await;
        ended.unwrap_or_else(|_| self.unseen())
    }

    /// An end that nobody saw.
    fn unseen(&self) -> Ended {
        Ended { status: None, said: self.said.text(), is_clean: false }
    }

    /// Kills the plugin at once with all that it started, and does not wait for its end.
    pub(crate) fn kill(&self) {
        self.order(guard::KILL);
        self.killed.cancel();
    }

    /// The last lines of standard error, for an error's text, or that there are none.
    pub(crate) fn said(&self) -> String {
        self.said.last_words()
    }

    fn order(&self, order: u8) {
        // A guard that has ended needs none.
        drop((&self.control).write_all(&[order]));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard sees the end of the stream, although the task that reads from it holds it, too.
        drop(self.control.shutdown(Shutdown::Write));
        self.killed.cancel();
    }
}

fn last_words(said: &str) -> String {
    match said {
        "" => "it printed nothing on standard error".to_owned(),
        said => format!("the last on its standard error: {said}"),
    }
}

fn too_long(beginning: Bytes) -> Error {
    let line = String::from_utf8_lossy(&beginning).chars().take(SHOWN_CHARACTERS_MAX).collect();
    let reason = format!("it has more than {HANDSHAKE_BYTES_MAX} bytes");
    Error::Handshake { reason, line }
}

/// The guard's command line. Its socket is not in the host any more when this has been run.
fn command(run: &Run<'_>, group: Option<&Path>, socket: UnixStream) -> Command {
    let folder = run.folder.as_os_str();
    let orders = Orders {
        way: run.file.way(),
        bounds: run.bounds,
        sandbox: run.sandbox.clone(),
        group: group.map(Path::to_owned),
        folder: run.whole_folder.to_owned(),
        program: run.file.path().as_os_str().to_owned(),
        arguments: run.arguments.to_vec(),
    };
    let own = [("PATH", OsStr::new(PATH)), ("HOME", folder), ("TMPDIR", folder)];
    let own = own.map(|(name, value)| (OsStr::new(name), value));
    let callers = run.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let variables = own.into_iter().chain(callers);
    let mut command = Command::new(run.guard);
    command
        .args([guard::ARGUMENT, guard::WATCH])
        .args(orders.words())
        .env_clear()
        .envs(variables.map(|(name, value)| (guard::carried(name), value)))
        .current_dir(run.folder)
        // Ctrl-C on the terminal is for the host, which then ends its plugins in order.
        .process_group(0)
        .stdin(OwnedFd::from(socket))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What the guard tells.
struct Reports(BufReader<Take<tokio::net::UnixStream>>);

impl Reports {
    fn new(control: &UnixStream) -> io::Result<Self> {
        control.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(control.try_clone()?)?;
        Ok(Self(BufReader::new(stream.take(REPORT_BYTES_MAX))))
    }

    /// The next report; none when the guard is gone.
    async fn next(&mut self) -> Option<Report> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.ok()?;
        Report::parse(&line)
    }

    /// The number of the plugin, once the guard has told all about its sandbox; none if it told
    /// something else.
    async fn started(&mut self, promised: &mut Promised<'_>) -> Option<u32> {
        while let Some(report) = self.next().await {
            match report {
                Report::Measure(measure, answer) => promised.answer(measure, answer),
                Report::Started(pid) => return Some(pid),
                Report::Ended(_) | Report::Clean => break,
            }
        }
        None
    }
}

/// What is watched while a plugin runs.
struct Watched {
    pid: u32,
    guard: Child,
    reports: Reports,
    readers: [AbortOnDropHandle<()>; 2],
    group: Option<Group>,
    /// The plugin has processes of its own, which the kernel kills with their guard.
    is_apart: bool,
    killed: CancellationToken,
}

impl Watched {
    /// Waits for the end of the plugin, then of all that it started, then of what these printed.
    /// A guard that does not do its work, because somebody killed or stopped it, is done without.
    /// Returns the plugin's status, and whether nothing that it started runs any more.
    async fn until_the_end(mut self) -> (Option<ExitStatus>, bool) {
        let killed = self.killed.clone();
        let late = async move {
            killed.cancelled().await;
            sleep(KILL_WAIT).await;
        };
        let report = tokio::select! {
            report = self.reports.next() => report,
            () = late => None,
        };
        let end = match report {
            Some(Report::Ended(status)) => (Some(ExitStatus::from_raw(status)), self.swept().await),
            // Somebody killed the guard among the plugin's own processes, and so all of these.
            Some(Report::Clean) => (None, self.clean().await),
            Some(Report::Started(_) | Report::Measure(..)) | None => {
                (None, self.without_guard().await)
            }
        };
        drain(self.readers).await;
        end
    }

    /// Waits until nothing runs of a plugin that has ended. False if that takes too long.
    async fn swept(&mut self) -> bool {
        match timeout(KILL_WAIT, self.reports.next()).await {
            Ok(Some(Report::Clean)) => self.clean().await,
            _ => {
                tracing::warn!(pid = self.pid, "processes of a plugin do not end");
                false
            }
        }
    }

    /// Nothing runs, and the guard removes the folder. If much is in that, it is not waited for.
    async fn clean(&mut self) -> bool {
        drop(timeout(FOLDER_WAIT, self.guard.wait()).await);
        true
    }

    /// Returns whether nothing of the plugin can run any more.
    async fn without_guard(&mut self) -> bool {
        tracing::warn!(pid = self.pid, "a plugin is killed, since its guard does not answer");
        // The number is the plugin's as long as its guard has not waited for it. If that is dead,
        // so is the plugin, unless it has seen to it that it is not killed; and a number just used
        // does not come again soon. What has left the group is out of reach.
        let pid = i32::try_from(self.pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        if let Some(group) = &self.group {
            group.kill();
        }
        // With the guard the kernel kills the plugin, whatever group that is in.
        drop(self.guard.start_kill());
        timeout(KILL_WAIT, self.guard.wait()).await.is_ok() && self.is_apart
    }
}

/// Waits for the end of a guard that no host listens to. One that does not end is none, or has been
/// stopped, and is killed.
async fn give_up(mut guard: Child, readers: [AbortOnDropHandle<()>; 2]) {
    if timeout(KILL_WAIT, guard.wait()).await.is_err() {
        drop(guard.start_kill());
        drop(timeout(KILL_WAIT, guard.wait()).await);
    }
    drain(readers).await;
}

/// Reads what is left in the pipes. Whoever holds their other ends after the plugin's end is not
/// waited for.
async fn drain(readers: [AbortOnDropHandle<()>; 2]) {
    for reader in readers {
        drop(timeout(DRAIN_WAIT, reader).await);
    }
}

#[cfg(test)]
mod tests;
