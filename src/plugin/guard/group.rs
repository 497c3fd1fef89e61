//! A plugin's cgroup (version 2): limits for all its processes together. The host makes it, the
//! process that becomes the plugin joins it, and guard and host remove it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Held, Measure, MeasureState, Sandbox};

/// The file that processes are moved by.
const PROCESSES: &str = "cgroup.procs";

/// Makes a plugin's group in the one that the sandbox names, and says which limits hold. None if
/// none is asked for, or none can be made.
pub(crate) fn make(sandbox: &Sandbox, held: &mut Held) -> Option<PathBuf> {
    let limits = [
        (Measure::Memory, "memory.max", sandbox.memory_bytes),
        (Measure::Tasks, "pids.max", sandbox.tasks),
    ];
    let asked = limits.map(|(measure, file, most)| Some((measure, file, most?)));
    let asked: Vec<_> = asked.into_iter().flatten().collect();
    if asked.is_empty() {
        return None;
    }
    let Some(parent) = &sandbox.group else {
        let reason = "the host was given no cgroup to make one for the plugin in";
        for (measure, ..) in asked {
            held.set(measure, MeasureState::NotAvailable(reason.to_owned()));
        }
        return None;
    };
    let folder = match child(parent) {
        Ok(folder) => folder,
        Err(error) => {
            let what = format!("make a cgroup in {}", parent.display());
            for (measure, ..) in asked {
                held.set(measure, MeasureState::of(&what, Err(&error)));
            }
            return None;
        }
    };
    for (measure, file, most) in asked {
        let set = write(&folder, file, &most.to_string());
        held.set(measure, MeasureState::of(&format!("set {file} in {}", folder.display()), set));
    }
    if [Measure::Memory, Measure::Tasks].into_iter().any(|measure| held.holds(measure)) {
        // Swap would be memory, too. A kernel without it has no such file. And when memory is used
        // up, all of the plugin ends, and not a process that the others rely on.
        let _ = write(&folder, "memory.swap.max", "0");
        let _ = write(&folder, "memory.oom.group", "1");
        return Some(folder);
    }
    remove(&folder);
    None
}

/// A new group.
fn child(parent: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Perhaps somebody has done so already, and this user may not.
    let _ = write(parent, "cgroup.subtree_control", "+memory");
    let _ = write(parent, "cgroup.subtree_control", "+pids");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = parent.join(format!("flexcore-plugin-{}-{number}", std::process::id()));
    // Left by a host with the same number, which was killed along with its guard.
    remove(&folder);
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// Puts the calling process in.
pub(super) fn join(folder: &Path) -> io::Result<()> {
    write(folder, PROCESSES, "0")
}

/// Kills all that is in it. Kernels older than 5.14 cannot.
pub(crate) fn kill(folder: &Path) {
    let _ = write(folder, "cgroup.kill", "1");
}

/// Removes it, if nothing is in it any more.
pub(crate) fn remove(folder: &Path) {
    let _ = fs::remove_dir(folder);
}

/// Writes to a file that the kernel has made; in a folder of another kind there is none.
fn write(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(folder.join(file))?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(group: Option<PathBuf>) -> Sandbox {
        Sandbox { group, memory_bytes: Some(1 << 20), tasks: Some(9), ..Sandbox::default() }
    }

    #[test]
    fn nothing_is_made_where_nothing_is_asked_for() {
        let mut held = Held::default();
        let group = Some("/nowhere".into());
        assert_eq!(make(&Sandbox { group, ..Sandbox::default() }, &mut held), None);
        assert_eq!(held, Held::default());
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_told_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        for (group, reason) in [
            (None, "given no cgroup"),
            (Some(folder.path().join("none")), "make a cgroup in"),
            (Some(folder.path().to_owned()), ".max"),
        ] {
            let mut held = Held::default();
            assert_eq!(make(&limited(group), &mut held), None);
            for measure in [Measure::Memory, Measure::Tasks] {
                let MeasureState::NotAvailable(found) = held.of(measure) else { panic!("{held}") };
                assert!(found.contains(reason), "{found}");
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_files_that_are_there_are_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(join(folder.path()).is_err());
        fs::write(folder.path().join(PROCESSES), "").unwrap();
        join(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(PROCESSES)).unwrap(), "0");
        kill(folder.path());
        remove(folder.path());
        assert!(folder.path().exists(), "something is in it");
    }
}
