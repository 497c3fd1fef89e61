//! What a plugin may use of the machine.

use std::{ffi::OsString, fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::MeasureState;

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
    /// included (`RLIMIT_NPROC`). The kernel does not apply it to root: see [`Self::holds_processes`].
    pub processes: Option<u64>,
}

/// Said where the limit of processes does not hold.
const ROOT: &str = "the kernel does not apply it to root, and the plugin runs as root: ask for `sandbox: \
                    { own_user: demand }`";

/// The word for no limit.
const NONE: &str = "-";

impl Bounds {
    /// Whether the limit of processes holds for this process, which was started with it. `None`: there is no such
    /// limit, or it cannot be seen. The other limits hold for everybody.
    #[must_use]
    pub fn holds_processes(&self, pid: u32) -> Option<MeasureState> {
        self.processes?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let users = fs::read_to_string("/proc/self/uid_map").ok()?;
        Some(if is_root(&status, &users)? {
            MeasureState::NotAvailable(ROOT.to_owned())
        } else {
            MeasureState::Holds
        })
    }

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

/// Whether a process is the machine's root, from its `status` and this process's `uid_map`. Root of a namespace of
/// users is another user to the kernel. `None`: the status does not say it.
fn is_root(status: &str, users: &str) -> Option<bool> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let user = line.split_whitespace().next()?;
    let root_is_root = users.lines().any(|line| {
        let mut numbers = line.split_whitespace();
        (numbers.next(), numbers.next()) == (Some("0"), Some("0"))
    });
    Some(user == "0" && root_is_root)
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

    /// `processes: 1` was said to hold for a plugin of root's, which had three threads.
    #[test]
    fn the_limit_of_processes_does_not_hold_for_root() {
        let status = |user: u32| format!("Name:\tx\nUid:\t{user}\t7\t7\t7\nGid:\t0\n");
        let whole = "         0          0 4294967295\n";
        assert_eq!(is_root(&status(0), whole), Some(true));
        assert_eq!(is_root(&status(1000), whole), Some(false));
        assert_eq!(is_root(&status(0), "         0     100000      65536\n"), Some(false));
        assert_eq!(is_root("Name:\tx\n", whole), None);
        let (own, none) = (std::process::id(), Bounds::default());
        assert_eq!(none.holds_processes(own), None);
        let some = Bounds { processes: Some(1), ..none };
        assert!(some.holds_processes(own).is_some());
    }

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
