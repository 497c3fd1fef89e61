//! The processes below a guard. A signal that reaches nobody is no fault: whoever it was for has
//! ended.
//!
//! No stranger is ever hit. The number of a direct child is not free for others until the guard has
//! waited for it; the one of a child's child may be at any moment, and so a signal goes to it
//! through a descriptor, behind a second look at who that is.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal,
};

use crate::limits::{PARENTS_MAX, SWEEP_LOOKS_MAX};

/// Sends a signal to the plugin, which must not have been waited for yet, and to its group.
pub(super) fn signal(plugin: Pid, signal: Signal) {
    // It makes the group itself, in its first moments.
    if kill_process_group(plugin, signal).is_err() {
        let _ = kill_process(plugin, signal);
    }
}

/// Sends a signal to orphans that have left the plugin's group.
pub(super) fn signal_strays(plugin: Pid, signal: Signal) {
    let number = plugin.as_raw_nonzero().get();
    for child in children().into_iter().filter(|child| child.group != number) {
        let _ = kill_process(child.pid, signal);
    }
}

/// Kills the group of a plugin that has ended. At once behind the wait for it: the number of an
/// empty group may go to others, but not before all other numbers were given out.
pub(super) fn kill_group(plugin: Pid) {
    let _ = kill_process_group(plugin, Signal::KILL);
}

/// Kills all that is below this process. They are stopped first, until a look finds nobody new: one
/// that is stopped starts nobody, and keeps its place under a limit of processes. So those that
/// multiply faster than they could be killed run out of places. Without a limit they may win, and
/// the host is not told that nothing runs any more.
pub(super) fn kill_all() {
    let mut stopped = BTreeMap::new();
    for _ in 0..SWEEP_LOOKS_MAX {
        let mut found = below();
        found.retain(|one| !stopped.contains_key(&one.identity()));
        if found.is_empty() {
            break;
        }
        for one in found {
            one.signal(Signal::STOP);
            stopped.insert(one.identity(), one);
        }
    }
    for one in stopped.values() {
        one.signal(Signal::KILL);
    }
}

/// Whether a process is another one or below it. All that a plugin has started is below its guard
/// as long as both live: whoever loses its parent is given to the guard. In a namespace of processes
/// that is so, too, seen from outside.
pub(crate) fn is_below(process: u32, top: u32) -> bool {
    let (Ok(process), Ok(top)) = (i32::try_from(process), i32::try_from(top)) else { return false };
    let parent = |number: &i32| Seen::look(*number).map(|seen| seen.parent);
    let mut line = std::iter::successors(Some(process), parent).take(PARENTS_MAX);
    line.any(|number| number == top)
}

/// A process, as one look found it.
#[derive(Debug)]
struct Seen {
    pid: Pid,
    number: i32,
    parent: i32,
    group: i32,
    /// The time at which it was started.
    began: u64,
}

impl Seen {
    fn look(number: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{number}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let ((parent, group), began) = (family(&stat)?, began(&stat)?);
        Some(Self { pid: Pid::from_raw(number)?, number, parent, group, began })
    }

    /// Nobody else has both.
    fn identity(&self) -> (i32, u64) {
        (self.number, self.began)
    }

    fn signal(&self, signal: Signal) {
        if self.parent == getpid().as_raw_nonzero().get() {
            let _ = kill_process(self.pid, signal);
            return;
        }
        // A kernel without such descriptors leaves it to a later look, when it is a direct child.
        let Ok(process) = pidfd_open(self.pid, PidfdFlags::empty()) else { return };
        let again = Self::look(self.number);
        if again.is_some_and(|again| again.identity() == self.identity()) {
            let _ = pidfd_send_signal(&process, signal);
        }
    }
}

/// All processes. Not every kernel has a list of a process's children. Not for the first process of
/// a namespace, which has other numbers than those in `/proc`.
fn all() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let look = |entry: fs::DirEntry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        Seen::look(number)
    };
    entries.filter_map(|entry| look(entry.ok()?)).collect()
}

/// The direct children of this process.
fn children() -> Vec<Seen> {
    let own = getpid().as_raw_nonzero().get();
    let mut all = all();
    all.retain(|one| one.parent == own);
    all
}

/// Its children, their children, and so on.
fn below() -> Vec<Seen> {
    let mut by_parent: HashMap<i32, Vec<Seen>> = HashMap::new();
    for one in all() {
        by_parent.entry(one.parent).or_default().push(one);
    }
    let (mut found, mut parents) = (Vec::new(), vec![getpid().as_raw_nonzero().get()]);
    while let Some(parent) = parents.pop() {
        // Each parent once, whatever changed while this looked.
        let children = by_parent.remove(&parent).unwrap_or_default();
        parents.extend(children.iter().map(|child| child.number));
        found.extend(children);
    }
    found
}

/// Parent and group of a process, from its line in `/proc`.
pub(super) fn family(stat: &str) -> Option<(i32, i32)> {
    // Its name may be anything, brackets and no text included: what counts is behind the last.
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_ascii_whitespace().skip(1);
    let mut number = || fields.next()?.parse().ok();
    Some((number()?, number()?))
}

/// When a process was started, in ticks of the machine's clock.
fn began(stat: &str) -> Option<u64> {
    /// Behind the name: the 22nd of all fields.
    const BEGAN: usize = 19;
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(BEGAN)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        for (stat, expected) in [
            ("7 (sh) S 5 6 7 0 -1", Some((5, 6))),
            ("7 (a) S 1 1 (b) R 5 6 7", Some((5, 6))),
            ("7 (a b\n\u{fffd}) Z 5 6", Some((5, 6))),
            ("7 (()) S 0 -1 0", Some((0, -1))),
            ("", None),
            ("7 (sh)", None),
            ("7 (sh) S", None),
            ("7 (sh) S 5", None),
            ("7 (sh) S x 6", None),
            ("7 sh S 5 6", None),
        ] {
            assert_eq!(family(stat), expected, "{stat:?}");
        }
    }

    #[test]
    fn the_start_is_behind_the_name() {
        let fields: Vec<_> = (3..=52).map(|number| number.to_string()).collect();
        let stat = format!("7 (a) 1 2) {}", fields.join(" "));
        assert_eq!(began(&stat), Some(22));
        assert_eq!(began("7 (sh) S 5 6"), None);
        let own = Seen::look(getpid().as_raw_nonzero().get()).unwrap();
        assert_eq!(own.identity(), Seen::look(own.number).unwrap().identity());
        assert!(own.began > 0);
    }

    #[test]
    fn those_below_are_found_and_a_number_alone_is_not_enough_for_a_signal() {
        // The shell waits for its child.
        let script = "sleep 60 & echo $!; wait; exit 7";
        let mut child = Command::new("sh");
        let child = child.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let (mut told, mut line) = (child.stdout.take().unwrap(), Vec::new());
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            std::io::Read::read_exact(&mut told, &mut byte).unwrap();
            line.extend(byte);
        }
        let number: i32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
        let mut found = below();
        found.retain(|one| one.number == number);
        assert_eq!(found.len(), 1, "{number} is there once");
        let sleeper = &mut found[0];
        assert_eq!(sleeper.parent, Pid::from_child(&child).as_raw_nonzero().get());
        let own = std::process::id();
        let lowest = u32::try_from(number).unwrap();
        assert!(is_below(lowest, own) && is_below(lowest, child.id()) && is_below(own, own));
        assert!(!is_below(own, lowest) && !is_below(child.id(), lowest));
        assert!(!is_below(u32::MAX, own));
        sleeper.began += 1;
        sleeper.signal(Signal::KILL);
        sleeper.began -= 1;
        assert!(child.try_wait().unwrap().is_none(), "that was somebody else");
        sleeper.signal(Signal::KILL);
        if pidfd_open(sleeper.pid, PidfdFlags::empty()).is_err() {
            // It has ended already, or this kernel has no such descriptors.
            let _ = kill_process(sleeper.pid, Signal::KILL);
        }
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn a_child_is_found_whatever_it_is_called() {
        // It says when it has its name, which is no text, and ends with its standard input.
        let script = r"printf '\377) R 1 1' > /proc/self/comm; echo; read -r _";
        let mut child = Command::new("sh");
        let child = child.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let told = child.stdout.as_mut().unwrap();
        std::io::Read::read_exact(told, &mut [0]).unwrap();
        let found = children();
        let pid = Pid::from_child(&child);
        assert!(found.iter().any(|below| below.pid == pid), "{pid} is not among {found:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children().iter().any(|below| below.pid == pid));
    }
}
