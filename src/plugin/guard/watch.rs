//! The process that stays: it starts the plugin, listens to the host, and sweeps up.

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, set_child_subreaper, wait};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines, Take},
    signal::unix::{Signal as Signals, SignalKind, signal},
};

use super::{
    ARGUMENT, FIRST, KILL, LAUNCH, Orders, Report, TERM,
    apart::{self, Apart},
    be_private, group, removal, talk, tree,
};
use crate::limits::{FOLDER_STEPS_MAX, REPORT_BYTES_MAX, SWEEP_PAUSE};

/// Name among processes.
const NAME: &std::ffi::CStr = c"plugin-guard";

/// Added to a signal's number in an exit status, as shells do.
const BY_SIGNAL: i32 = 128;

/// The lowest number of a descriptor behind the standard streams.
const BEHIND_STREAMS: i32 = 3;

/// Runs a plugin until it ends or is to end, and then until nothing of it is left. Where the plugin
/// gets processes of its own, another guard does that, among those.
pub(super) fn watch(orders: &Orders) -> io::Result<ExitCode> {
    // What whoever started the host has left open for its children, and the host did not close: a
    // socket that it listens at, or a pipe of `make`. None of it is the plugin's.
    close_fds::set_fds_cloexec(BEHIND_STREAMS, &[]);
    let sandbox = &orders.sandbox;
    // A new namespace of users has no other user in it.
    let needs_power = sandbox.no_network || sandbox.own_processes;
    if needs_power && sandbox.user.is_none() {
        // Without it, what needs it says so.
        let _ = apart::gain_power();
    }
    let made = sandbox.own_processes.then(apart::make);
    // Behind that: a process that is private cannot map its users.
    be_private()?;
    let code = match made {
        Some(Ok(())) => contain(orders),
        Some(Err(error)) => {
            let reason = format!("cannot make processes of its own: {error}");
            stay(orders, &Apart::Refused(reason))
        }
        None => stay(orders, &Apart::Shared),
    };
    if code.is_ok() {
        report(&host()?, &Report::Clean);
    }
    if let Some(group) = &orders.group {
        group::remove(group);
    }
    remove(&orders.folder);
    code
}

/// The socket to the host.
fn host() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Removes the plugin's folder. The guard does so, since it is there when the host was killed, and
/// since nobody writes there any more. A host that lives tells of what is left.
fn remove(folder: &Path) {
    // Some file systems keep the folder that a process is in.
    drop(std::env::set_current_dir("/"));
    drop(removal::remove(folder, FOLDER_STEPS_MAX));
}

/// The same, as the first of the plugin's own processes.
pub(super) fn first(orders: &Orders, outside: Pid) -> io::Result<ExitCode> {
    apart::end_with(outside)?;
    be_private()?;
    stay(orders, &Apart::Own)
}

/// Starts the guard of the new namespace, which talks to the host from now on, and waits for its
/// end. Returns its exit status: the plugin's.
fn contain(orders: &Orders) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let mut ends = signal(SignalKind::child())?;
        outlive_signals()?;
        let first = this_again(FIRST).args(orders.words()).stdin(Stdio::inherit()).spawn()?;
        let first = Pid::from_child(&first);
        let mut ended = reap(first);
        while ended.is_none() {
            ends.recv().await;
            ended = reap(first);
        }
        Ok::<_, io::Error>(ended.expect("BUG: it was waited for"))
    })?;
    Ok(exit_code(status))
}

fn stay(orders: &Orders, apart: &Apart) -> io::Result<ExitCode> {
    set_child_subreaper(Some(getpid()))?;
    // Only whoever looks at a list of processes misses it.
    let _ = rustix::thread::set_name(NAME);
    let host = host()?;
    let file = talk::receive(&host)?;
    // One thread: the kernel kills the plugin when the thread that started it ends, which must not
    // happen before the whole process does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(guard(orders, apart, host, file)).map(exit_code)
}

fn exit_code(status: WaitStatus) -> ExitCode {
    let code = status.exit_status();
    let code = code.or(status.terminating_signal().map(|number| BY_SIGNAL + number));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Keeps the signals that end a process from doing so: systemd signals every process of a unit. The
/// plugin may need some time then, and so its guard stays; a signal once asked for no longer ends
/// the process.
fn outlive_signals() -> io::Result<()> {
    for kind in
        [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()]
    {
        drop(signal(kind)?);
    }
    Ok(())
}

async fn guard(
    orders: &Orders,
    apart: &Apart,
    host: UnixStream,
    file: OwnedFd,
) -> io::Result<WaitStatus> {
    let mut ends = signal(SignalKind::child())?;
    outlive_signals()?;
    let (child, launch) = start(orders, apart, file)?;
    let plugin = Plugin { pid: Pid::from_child(&child), is_apart: *apart == Apart::Own, orders };
    host.set_nonblocking(true)?;
    let mut told = Told { reports: host.try_clone()?, launch: Some(lines(launch)?) };
    let mut host = tokio::net::UnixStream::from_std(host)?;
    let number = plugin.number()?;
    let mut is_there = true;
    let status = loop {
        tokio::select! {
            _ = ends.recv() => if let Some(status) = reap(plugin.pid) {
                break status;
            },
            line = told.next(), if told.launch.is_some() => told.pass_on(line, number),
            order = host.read_u8(), if is_there => match order {
                Ok(TERM) => plugin.signal(Signal::TERM),
                order => {
                    // Anything but an order is the end of the host.
                    is_there = matches!(order, Ok(KILL));
                    plugin.signal(Signal::KILL);
                }
            },
        }
    };
    while told.launch.is_some() {
        let line = told.next().await;
        told.pass_on(line, number);
    }
    tree::kill_group(plugin.pid);
    report(&told.reports, &Report::Ended(status.as_raw()));
    // With this process the kernel ends all the others of its namespace.
    if !plugin.is_apart {
        sweep(&plugin, &mut ends).await;
    }
    Ok(status)
}

/// The plugin's process, from before it is one.
struct Plugin<'a> {
    pid: Pid,
    /// Its processes have a namespace, and this is the first one there.
    is_apart: bool,
    orders: &'a Orders,
}

impl Plugin<'_> {
    /// Its number for the host.
    fn number(&self) -> io::Result<u32> {
        if self.is_apart {
            return apart::number_outside(self.pid);
        }
        Ok(self.pid.as_raw_pid().unsigned_abs())
    }

    fn signal(&self, signal: Signal) {
        tree::signal(self.pid, signal);
        if signal == Signal::KILL {
            self.kill_group();
        }
        if !self.is_apart {
            tree::signal_strays(self.pid, signal);
        }
    }

    fn kill_group(&self) {
        if let Some(group) = &self.orders.group {
            group::kill(group);
        }
    }
}

type FromLaunch = Lines<BufReader<Take<tokio::net::UnixStream>>>;

fn lines(launch: UnixStream) -> io::Result<FromLaunch> {
    launch.set_nonblocking(true)?;
    let launch = tokio::net::UnixStream::from_std(launch)?;
    Ok(BufReader::new(launch.take(REPORT_BYTES_MAX)).lines())
}

/// What the host is told of the plugin's start.
struct Told {
    reports: UnixStream,
    /// What the process that becomes the plugin says, until it is executed or ends.
    launch: Option<FromLaunch>,
}

impl Told {
    /// Its next line; none at the end. Cancel-safe.
    async fn next(&mut self) -> Option<String> {
        self.launch.as_mut()?.next_line().await.ok()?
    }

    fn pass_on(&mut self, line: Option<String>, number: u32) {
        match line {
            // It has nothing else to tell.
            Some(line) => {
                if let Some(measure @ Report::Measure(..)) = Report::parse(&line) {
                    report(&self.reports, &measure);
                }
            }
            None => {
                self.launch = None;
                report(&self.reports, &Report::Started(number));
            }
        }
    }
}

/// Starts this executable once more, to become the plugin. Its standard input is a socket, from
/// which it takes the file: that is the one descriptor that a process without `unsafe` can take
/// over by its number, and the one that the plugin does not get.
fn start(orders: &Orders, apart: &Apart, file: OwnedFd) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    talk::hand_over(&ours, file.as_fd())?;
    let mut command = this_again(LAUNCH);
    command.arg(apart.word()).args(orders.words()).stdin(Stdio::from(OwnedFd::from(theirs)));
    Ok((command.spawn()?, ours))
}

/// This executable once more, for another step, with the number of this process.
fn this_again(step: &str) -> Command {
    // The same file as this process's, even if another has taken its place meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("flexcore-plugin-guard").args([ARGUMENT, step]).arg(getpid().to_string());
    command
}

/// Tells the host; if it is gone, nobody listens. It never waits: a host that does not read has the
/// room of a socket left.
fn report(mut host: &UnixStream, report: &Report) {
    drop(host.write_all(report.line().as_bytes()));
}

/// Waits for whoever has ended, orphans included, and returns the plugin's status if it was among
/// them.
fn reap(plugin: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == plugin {
            ended = Some(status);
        }
    }
    ended
}

/// Kills what the plugin has left behind, until there is nothing. A process that the kernel does
/// not let go of, for a disk that hangs, keeps the guard here; the host does not wait that long.
async fn sweep(plugin: &Plugin<'_>, ends: &mut Signals) {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => {
                plugin.kill_group();
                tree::kill_all();
                // One that has ended may mean orphans that are ours now.
                drop(tokio::time::timeout(SWEEP_PAUSE, ends.recv()).await);
            }
            // No children: all below were, or have become, ours.
            Err(_) => return,
        }
    }
}
