//! The process that becomes the plugin.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, Stdio},
    time::Instant,
};

use rustix::{
    process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid},
    thread::set_no_new_privs,
};

use super::{
    MeasureState, Orders, Report, Way, apart::Apart, confine::confine, orders::uncarried, talk,
};
use crate::limits::{FILE_BUSY_PAUSE, FILE_BUSY_WAIT, OOM_SCORE_MORE};

/// The highest score that the kernel takes.
const OOM_SCORE_MAX: i32 = 1_000;

/// Becomes the plugin. Returns only where that failed, and then why.
pub(super) fn launch(orders: &Orders, guard: Pid, apart: &Apart) -> io::Error {
    let Prepared { mut command, file: _file, guard: _guard } = match prepare(orders, guard, apart) {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let began = Instant::now();
    loop {
        let error = command.exec();
        // Whoever writes the file, or a process that was forked while somebody did, is still there.
        let is_busy = error.kind() == ErrorKind::ExecutableFileBusy;
        if !is_busy || began.elapsed() > FILE_BUSY_WAIT {
            return error;
        }
        std::thread::sleep(FILE_BUSY_PAUSE);
    }
}

/// The exit status for an error of [`launch`], as shells have it.
pub(super) fn code(error: &io::Error) -> u8 {
    if error.kind() == ErrorKind::NotFound { 127 } else { 126 }
}

struct Prepared {
    command: Command,
    /// Held until `exec`: the command's path stands for it.
    file: Option<OwnedFd>,
    /// Held as long, so that the guard sees by its end that the plugin has been executed.
    guard: UnixStream,
}

fn prepare(orders: &Orders, guard: Pid, apart: &Apart) -> io::Result<Prepared> {
    end_with(guard)?;
    // A session, and not just a group: then no process of the plugin can join the host's group, and
    // none has the host's terminal.
    setsid()?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let file = talk::receive(&socket)?;
    be_the_first_to_go();
    // Programs that run as another user, such as sudo, would be out of the guard's reach.
    set_no_new_privs(true)?;
    let held = confine(orders, apart, file.as_fd())?;
    for (measure, answer) in held.iter().filter(|(_, answer)| **answer != MeasureState::NotAsked) {
        (&socket).write_all(Report::Measure(measure, answer.clone()).line().as_bytes())?;
    }
    // The host has seen to those that are not in the guard's hands.
    for measure in orders.sandbox.demanded.iter().copied() {
        if let answer @ MeasureState::NotAvailable(_) = held.of(measure) {
            return Err(io::Error::other(format!("{measure} is demanded, and {answer}")));
        }
    }
    // A change of the user has undone it.
    end_with(guard)?;
    let (program, file) = executable(orders, file)?;
    let mut command = Command::new(program);
    command.arg0(&orders.program).args(&orders.arguments).stdin(Stdio::null());
    command.env_clear().envs(environment());
    // The last, so that there are files to open before.
    orders.bounds.apply()?;
    Ok(Prepared { command, file, guard: socket })
}

/// The plugin's environment: what its guard carries.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let own = |(name, value): (OsString, OsString)| Some((uncarried(&name)?.to_owned(), value));
    std::env::vars_os().filter_map(own)
}

/// Ends with its guard. It outlives `exec`, since no privileges come with that, and means the
/// thread that started this process: the guard has only one. Fails if the guard has ended.
fn end_with(guard: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A guard that was gone before has left this process to others, and no signal will come.
    if getppid() == Some(guard) {
        return Ok(());
    }
    Err(io::Error::other("its guard has ended"))
}

/// When memory runs out, the kernel ends the plugin rather than its guard or its host. A plugin that
/// cannot be marked so runs without.
fn be_the_first_to_go() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let own = std::fs::read_to_string(SCORE).ok().and_then(|score| score.trim().parse().ok());
    let score = own.unwrap_or(0_i32).saturating_add(OOM_SCORE_MORE).min(OOM_SCORE_MAX);
    drop(std::fs::write(SCORE, score.to_string()));
}

/// The path to execute, and the descriptor that it leads to. A binary goes by its descriptor even
/// where it could go by its path: libc has a shell run what the kernel does not know, such as a
/// binary for another processor; that shell finds this path closed.
fn executable(orders: &Orders, file: OwnedFd) -> io::Result<(OsString, Option<OwnedFd>)> {
    let file = match orders.way {
        Way::Path => return Ok((orders.program.clone(), None)),
        // Closed when it is executed.
        Way::Binary => file,
        // Stays open.
        Way::Script => rustix::io::dup(&file)?,
    };
    Ok((format!("/proc/self/fd/{}", file.as_raw_fd()).into(), Some(file)))
}
