//! Less memory than a process would like.

use std::{fs, path::PathBuf};

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
