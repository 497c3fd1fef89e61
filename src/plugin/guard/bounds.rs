//! What a plugin may use of the machine.

use std::{ffi::OsString, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a plugin may use of the machine, by the kernel's limits on processes. Where there is none,
/// the host's own limit holds. None is raised above the host's hard limit; a soft one that is lower
/// than a number here is raised to it. They hold for every process that the plugin starts, too.
///
/// Cores have the limit 0: a crash must not put a plugin's memory on a disk. A program that the
/// system calls at crashes (`core_pattern` with a pipe) is called all the same, and decides itself;
/// systemd-coredump keeps to the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Address space of each process, in bytes (`RLIMIT_AS`). Runtimes reserve more than they use:
    /// a Go plugin needs about 1 GiB.
    pub memory_bytes: Option<u64>,
    /// Processor time of each process, in seconds, over its whole life (`RLIMIT_CPU`): SIGXCPU, and
    /// SIGKILL a second later.
    pub cpu_s: Option<u64>,
    /// Open files of each process (`RLIMIT_NOFILE`).
    pub files: Option<u64>,
    /// Processes and threads of the plugin's user altogether, those that are not the plugin's
    /// included (`RLIMIT_NPROC`). The kernel does not apply it to root.
    pub processes: Option<u64>,
}

/// The word for no limit.
const NONE: &str = "-";

impl Bounds {
    /// As four words of a command line.
    pub(super) fn words(&self) -> [OsString; 4] {
        [self.memory_bytes, self.cpu_s, self.files, self.processes].map(|most| {
            most.map_or_else(|| OsString::from(NONE), |most| OsString::from(most.to_string()))
        })
    }

    pub(super) fn parse(words: &mut impl Iterator<Item = OsString>) -> Option<Self> {
        let mut next = || match words.next()?.to_str()? {
            NONE => Some(None),
            number => number.parse().ok().map(Some),
        };
        let (memory_bytes, cpu_s, files, processes) = (next()?, next()?, next()?, next()?);
        Some(Self { memory_bytes, cpu_s, files, processes })
    }

    /// Binds the calling process, and all that it becomes and starts.
    pub(super) fn apply(&self) -> io::Result<()> {
        limit(Resource::Core, 0, 0)?;
        for (resource, most) in [
            (Resource::As, self.memory_bytes),
            (Resource::Nofile, self.files),
            (Resource::Nproc, self.processes),
        ] {
            if let Some(most) = most {
                limit(resource, most, most)?;
            }
        }
        // The soft limit is a signal that says what happened, unlike SIGKILL.
        self.cpu_s.map_or(Ok(()), |most| limit(Resource::Cpu, most, most.saturating_add(1)))
    }
}

/// Sets a limit. Whoever may do less already is not given more, which only root could do.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) };
    Ok(setrlimit(resource, limit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_survive_a_command_line() {
        let some = Bounds { cpu_s: Some(3), processes: Some(0), ..Bounds::default() };
        let all = Bounds {
            memory_bytes: Some(u64::MAX),
            cpu_s: Some(1),
            files: Some(2),
            processes: Some(3),
        };
        for bounds in [Bounds::default(), some, all] {
            let mut words = bounds.words().into_iter().chain(["next".into()]);
            assert_eq!(Bounds::parse(&mut words), Some(bounds));
            assert_eq!(words.next(), Some("next".into()));
        }
        let cases: [&[&str]; 4] =
            [&[], &["-", "-", "-"], &["-", "-", "-", "x"], &["-1", "-", "-", "-"]];
        for wrong in cases {
            let mut words = wrong.iter().map(OsString::from);
            assert_eq!(Bounds::parse(&mut words), None, "{wrong:?}");
        }
    }
}
