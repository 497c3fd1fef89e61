//! File systems in files, which can be cut as a power failure cuts them.

use std::{fs, path::Path};

use crate::host::{run, try_run};

/// Size of each, in MiB. The files are sparse.
const SIZE_MIB: u64 = 1_024;

fn image(folder: &Path, node: &str) -> String {
    folder.join(format!("{node}.img")).to_str().unwrap().to_owned()
}

fn place(folder: &Path, node: &str) -> String {
    folder.join(node).to_str().unwrap().to_owned()
}

/// Makes a file system for a node and mounts it at the node's folder.
pub(crate) fn mount_new(folder: &Path, node: &str) {
    let image = image(folder, node);
    fs::File::create(&image).unwrap().set_len(SIZE_MIB << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", &image]);
    fs::create_dir_all(place(folder, node)).unwrap();
    mount(folder, node);
}

/// Mounts it; the journal is replayed.
pub(crate) fn mount(folder: &Path, node: &str) {
    run("mount", &["-o", "loop", &image(folder, node), &place(folder, node)]);
}

/// From now on nothing more reaches the disk; what had not reached it is lost. The file systems are
/// cut one right after the other.
pub(crate) fn cut(folder: &Path, nodes: &[&str]) {
    let cut = |node: &&str| format!("xfs_io -x -c shutdown '{}'", place(folder, node));
    let script = nodes.iter().map(cut).collect::<Vec<_>>().join(" & ");
    run("sh", &["-c", &format!("{script} & wait")]);
}

/// Files that take what a file system has left, the largest first, in KiB.
const BALLAST_KIB: [u64; 20] = {
    let mut sizes = [0; 20];
    let mut at = 0;
    while at < 20 {
        sizes[at] = 4 << (19 - at);
        at += 1;
    }
    sizes
};

/// Takes all that is left of a file system, without writing it.
pub(crate) fn fill(folder: &Path, node: &str) {
    for kib in BALLAST_KIB {
        let file = format!("{}/ballast-{kib}", place(folder, node));
        // A write that does not fit is tried with half of its size.
        drop(try_run("fallocate", &["-l", &format!("{kib}KiB"), &file]));
    }
}

/// Gives it back.
pub(crate) fn make_room(folder: &Path, node: &str) {
    for kib in BALLAST_KIB {
        drop(fs::remove_file(format!("{}/ballast-{kib}", place(folder, node))));
    }
}

/// Takes a cut file system away.
pub(crate) fn unmount(folder: &Path, node: &str) {
    let place = place(folder, node);
    for _ in 0..100 {
        if try_run("umount", &[&place]).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    run("umount", &[&place]);
}
