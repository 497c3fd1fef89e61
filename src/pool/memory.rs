//! The memory of a process and of all that it has started, as `/proc` tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Bytes in memory of the process and all below it; pages that they share count for each. 0 where
/// it has ended, and where `/proc` does not tell. It blocks for some milliseconds.
pub(crate) fn of_tree(root: u32) -> u64 {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for pid in processes() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut tree, mut found) = (BTreeSet::new(), vec![root]);
    while let Some(pid) = found.pop() {
        if tree.insert(pid) {
            found.extend(children.get(&pid).into_iter().flatten());
        }
    }
    tree.into_iter().filter_map(resident_bytes).sum()
}

fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let named = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    named.collect()
}

/// The process that has started it, or who it was given to. The name before it may be anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    behind_name.split(' ').nth(1)?.parse().ok()
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes.saturating_mul(1_024))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_takes_memory_until_it_ends() {
        let own = std::process::id();
        let mut child = Command::new("sleep").arg("30").stdin(Stdio::null()).spawn().unwrap();
        assert_eq!(parent(child.id()), Some(own));
        assert!(of_tree(own) > 0 && of_tree(child.id()) > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of_tree(child.id()), 0);
    }
}
