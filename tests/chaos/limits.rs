//! Limits: less memory than a process would like, and the most that a hostile tenant may cost the others.

use std::{fs, path::PathBuf};

/// Beside a hostile tenant the others' p99 is at most so many times their p99 of a stretch of the same run
/// without it, and [`BESIDE_HOSTILE_MS`] more. Twice, since the processors are shared by turns: beside one
/// that always wants them, work takes twice as long.
pub(crate) const BESIDE_HOSTILE_TIMES: f64 = 2.0;
/// A quiet p99 is some ten milliseconds. It holds no wait for a function that runs until its limit, and a
/// lane may be held for a second beyond that (ARCHITECTURE.md, the invariants): so it is a second. In a debug
/// build each part of the cluster and the harness itself take several times as long, and all share CI's two
/// cores: p99 is held there only as far as a client waits at all, which is 8 s.
pub(crate) const BESIDE_HOSTILE_MS: f64 = if cfg!(debug_assertions) { 7_500.0 } else { 1_000.0 };
/// Of so many commands of the others beside it one may be turned away, in a debug build: a worker begins none
/// after three quarters of its client's time, and all takes several times as long there.
pub(crate) const TURNED_AWAY_OF: usize = if cfg!(debug_assertions) { 20 } else { usize::MAX };

/// A control group of one process, removed with it by clean.sh.
pub(crate) struct MemoryLimit {
    folder: PathBuf,
    /// The file that counts kills for want of memory.
    events: &'static str,
}

impl MemoryLimit {
    /// Puts a process under a limit. `None`: this kernel or container has no memory control group
    /// to write to.
    pub(crate) fn put(node: &str, pid: u32, bytes: u64) -> Option<Self> {
        let kinds = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
            ("/sys/fs/cgroup", "memory.max", "memory.events"),
        ];
        kinds.into_iter().find_map(|(root, limit, events)| {
            let folder = PathBuf::from(root).join(format!("fcx-{node}"));
            fs::create_dir_all(&folder).ok()?;
            let made = Self { folder, events };
            fs::write(made.folder.join(limit), bytes.to_string()).ok()?;
            fs::write(made.folder.join("cgroup.procs"), pid.to_string()).ok()?;
            Some(made)
        })
    }

    /// Number of processes that the kernel killed for want of memory.
    pub(crate) fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join(self.events)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Only an empty group can go: its process has ended or the run's end will see to it.
        drop(fs::remove_dir(&self.folder));
    }
}
