//! Processes of a plugin's own. The guard that the host has started makes a namespace for them and
//! starts a second guard there, as its first process: `watch::contain` is what the first one does
//! then, and the second one is an ordinary guard. When the second one ends, however it does, the
//! kernel kills every process in the namespace; and the second one ends with the first.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
};

use rustix::{
    process::{Pid, Signal, getegid, geteuid, set_parent_process_death_signal},
    thread::{
        CapabilitySet, UnshareFlags, capabilities, configure_capability_in_ambient_set,
        set_capabilities,
    },
};

use super::tree;

/// The processes among which a plugin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    /// The machine's; nothing else was asked for.
    Shared,
    /// The machine's, for this reason.
    Refused(String),
    /// Its own.
    Own,
}

const SHARED: &str = "shared";
const OWN: &str = "own";
const REFUSED: &str = "refused: ";

impl Apart {
    /// As a word of a command line.
    pub(super) fn word(&self) -> OsString {
        match self {
            Self::Shared => SHARED.into(),
            Self::Own => OWN.into(),
            Self::Refused(reason) => format!("{REFUSED}{reason}").into(),
        }
    }

    pub(super) fn parse(word: Option<OsString>) -> Option<Self> {
        match word?.to_str()? {
            SHARED => Some(Self::Shared),
            OWN => Some(Self::Own),
            refused => Some(Self::Refused(refused.strip_prefix(REFUSED)?.to_owned())),
        }
    }
}

/// Makes namespaces for the calling thread. Those for processes are for its children.
#[expect(deprecated, reason = "the other one is unsafe, for the one flag that is not used here")]
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(flags)?)
}

/// The power to make namespaces. Whoever has not got it may make a namespace of users, where it has
/// it; the user's number stays the same there, so that its files and sockets are still its own. The
/// power is kept by the processes below, until the last of them drops it.
pub(super) fn gain_power() -> io::Result<()> {
    let power = CapabilitySet::SYS_ADMIN;
    if capabilities(None)?.effective.contains(power) {
        return Ok(());
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    // The kernel wants it so before the group can be mapped.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    let mut own = capabilities(None)?;
    own.inheritable |= power;
    set_capabilities(None, own)?;
    Ok(configure_capability_in_ambient_set(power, true)?)
}

/// Makes a namespace for the processes that this one starts from now on: the next one is its first.
pub(super) fn make() -> io::Result<()> {
    unshare(UnshareFlags::NEWPID)
}

/// Ends with the guard outside, as everything in this namespace does then. Fails if that has ended.
pub(super) fn end_with(outside: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent outside has no number in here. But `/proc` is still that of the outside.
    let stat = fs::read("/proc/self/stat")?;
    let parent = tree::family(&String::from_utf8_lossy(&stat)).map(|(parent, _)| parent);
    if parent == Some(outside.as_raw_pid()) {
        return Ok(());
    }
    Err(io::Error::other("the guard outside has ended"))
}

/// The number outside of a child of this process. `/proc` is still that of the outside.
pub(super) fn number_outside(child: Pid) -> io::Result<u32> {
    let own = fs::read_link("/proc/self")?;
    let own = own.to_str().and_then(|own| own.parse().ok());
    let own: u32 = own.ok_or_else(|| io::Error::other("/proc/self leads to no process"))?;
    let is_it = |entry: fs::DirEntry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read(entry.path().join("status")).ok()?;
        let numbers = numbers(&String::from_utf8_lossy(&status))?;
        (numbers == (own, child.as_raw_pid().unsigned_abs())).then_some(number)
    };
    let found = fs::read_dir("/proc")?.find_map(|entry| is_it(entry.ok()?));
    found.ok_or_else(|| io::Error::from(ErrorKind::NotFound))
}

/// The number of a process's parent, as `/proc` has it, and its own in its innermost namespace.
fn numbers(status: &str) -> Option<(u32, u32)> {
    // The name, in the first line, cannot have a line feed: it is written as `\n`.
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let last = |line: &str| line.split_ascii_whitespace().next_back()?.parse().ok();
    Some((last(line("PPid:")?)?, last(line("NSpid:")?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_survives_a_command_line() {
        for apart in [Apart::Shared, Apart::Own, Apart::Refused("no: way".to_owned())] {
            assert_eq!(Apart::parse(Some(apart.word())), Some(apart));
        }
        assert_eq!(Apart::parse(Some("other".into())), None);
        assert_eq!(Apart::parse(None), None);
    }

    #[test]
    fn numbers_are_found_whatever_a_process_is_called() {
        let status =
            "Name:\tNSpid: 9\\nPPid:\t8\nUmask:\t0022\nPid:\t30\nPPid:\t7\nNSpid:\t30\t2\n";
        assert_eq!(numbers(status), Some((7, 2)));
        assert_eq!(numbers("PPid:\t7\nNSpid:\t30\n"), Some((7, 30)));
        for wrong in ["", "PPid:\t7\n", "PPid:\t7\nNSpid:\n", "PPid:\tx\nNSpid:\t1\n"] {
            assert_eq!(numbers(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_child_has_the_same_number_where_there_is_no_namespace() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = number_outside(Pid::from_child(&child));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap(), child.id());
        assert!(number_outside(Pid::INIT).is_err());
    }
}
