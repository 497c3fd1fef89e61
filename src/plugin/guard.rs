//! The guard: a small process between a host and a plugin, so that nothing of a plugin outlives its
//! host, however that ends.
//!
//! It holds one end of a socket whose other end only the host has. When the host ends, by SIGKILL
//! too, the kernel closes that, and the guard kills the plugin and all that the plugin has started.
//! A process that left the plugin's group, or whose parent has ended, is found as well: the guard
//! is the one to whom orphans below it are given (`PR_SET_CHILD_SUBREAPER`). Should the guard
//! itself be killed, the plugin is killed by the kernel (`PR_SET_PDEATHSIG`), and its group by the
//! host; what left the group lives on then, unless the plugin has processes of its own
//! ([`Measure::Processes`]): these the kernel kills with their guard. The guard also removes the
//! plugin's folder.
//!
//! A plugin that means harm is of its host's user, unless it has one of its own
//! ([`Measure::User`]). Then it can signal the host, and kill or stop its guard: what it has put
//! into sessions of their own outlives it, and where the guard is stopped, and nobody continues it,
//! the plugin outlives a host that is killed. [`Measure::Processes`] keeps it from all that. It has
//! none of root's powers, whatever is asked for, and so the memory, environment and files of a host
//! that is root are closed to it; another host closes its own by [`be_private`].
//!
//! Here is also done what keeps a plugin from files, networks, processes and privileges
//! ([`Sandbox`]). What of it holds depends on the machine, and is told to the host ([`Held`]).
//!
//! All this is per process and has to happen in it, between `fork` and `exec`, where Rust allows no
//! code without `unsafe`. So the guard starts itself a second time: `watch` is the process that
//! stays, `launch` the one that becomes the plugin, and `first` is between the two the first of a
//! plugin's own processes.
//!
//! The guard is an executable of its own, `flexcore-plugin-guard`, or any other whose `main` begins
//! with
//!
//! ```no_run
//! # fn main() -> std::process::ExitCode {
//! if let Some(code) = flexcore_plugin::guard::entered() {
//!     return code;
//! }
//! // A host's next step.
//! flexcore_plugin::guard::be_private().ok();
//! # std::process::ExitCode::SUCCESS
//! # }
//! ```

mod apart;
mod bounds;
mod confine;
mod files;
pub(crate) mod group;
mod held;
mod launch;
mod orders;
pub(crate) mod removal;
mod sandbox;
mod talk;
mod tree;
mod watch;

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Write as _},
    process::ExitCode,
};

use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior};

use apart::Apart;
pub use bounds::Bounds;
pub(crate) use confine::no_user_for;
pub use held::{Held, Measure, MeasureState};
pub(crate) use orders::{Orders, Way, carried};
pub use sandbox::{Files, Sandbox, User};
pub(crate) use talk::{KILL, Report, TERM, hand_over};
pub(crate) use tree::is_below;

/// The first argument of a process that is a guard.
pub const ARGUMENT: &str = "plugin-guard";

/// The second argument of the process that stays.
pub(crate) const WATCH: &str = "watch";

/// The second argument of the process that stays among the plugin's own processes.
const FIRST: &str = "first";

/// The second argument of the process that becomes the plugin.
const LAUNCH: &str = "launch";

/// Exit status when the plugin could not be started: as with `env`, `timeout` and others.
const FAILED: u8 = 125;

/// Is a guard, if this process was started as one: it returns what `main` has to return. To be
/// called before anything else, above all before the first thread.
pub fn entered() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let is_guard = arguments.next().is_some_and(|first| first == ARGUMENT);
    is_guard.then(|| run(arguments))
}

/// Closes this process's memory, environment and descriptors to other processes of its user, its
/// plugins among them. For a host, behind [`entered`]; a guard does so itself. From then on it
/// leaves no core, and only root can debug it. Processes that it starts are open again.
pub fn be_private() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Is a guard, told so by the arguments behind [`ARGUMENT`], which only this crate writes. Returns
/// the plugin's exit status, 128 and the signal that ended it, or 125 to 127 if it could not be
/// started. Standard input is the socket to the host; the other two are the plugin's.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut words = arguments.into_iter();
    let step = words.next().unwrap_or_default();
    match step.to_str() {
        Some(WATCH) => Orders::parse(words).map_or_else(misused, |orders| {
            watch::watch(&orders).unwrap_or_else(|error| not_guarded(&error))
        }),
        Some(FIRST) => match (number(words.next()), Orders::parse(words)) {
            (Some(outside), Some(orders)) => {
                watch::first(&orders, outside).unwrap_or_else(|error| not_guarded(&error))
            }
            _ => misused(),
        },
        Some(LAUNCH) => {
            let (guard, apart) = (number(words.next()), Apart::parse(words.next()));
            match (guard, apart, Orders::parse(words)) {
                (Some(guard), Some(apart), Some(orders)) => {
                    let error = launch::launch(&orders, guard, &apart);
                    let program = orders.program.display();
                    // The file was opened already: another one is meant.
                    let missing = match error.kind() {
                        ErrorKind::NotFound => {
                            "; the interpreter or the loader that it names is not there"
                        }
                        _ => "",
                    };
                    let reason = format!("cannot execute {program}: {error}{missing}");
                    failed(launch::code(&error), &reason)
                }
                _ => misused(),
            }
        }
        _ => misused(),
    }
}

fn not_guarded(error: &io::Error) -> ExitCode {
    failed(FAILED, &format!("cannot guard: {error}"))
}

fn number(word: Option<OsString>) -> Option<Pid> {
    let number = word?.to_str()?.parse::<i32>().ok()?;
    // A negative one would be a group.
    if number > 0 { Pid::from_raw(number) } else { None }
}

fn misused() -> ExitCode {
    failed(FAILED, "it is started by a host of plugins, and not by hand")
}

/// Says on standard error, which is read as the plugin's, why there is no plugin.
fn failed(code: u8, reason: &str) -> ExitCode {
    // Nobody is left to be told where this fails.
    drop(writeln!(io::stderr(), "flexcore-plugin-guard: {reason}"));
    ExitCode::from(code)
}
