//! A plugin's file, and the certainty that what is executed is what was checked.

use std::{
    fs::{File, Permissions},
    io::{self, ErrorKind, Read, Seek as _, Write},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{
        AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags, accessat, fcntl_add_seals, memfd_create,
    },
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{
    Error,
    guard::Way,
    limits::{FILE_BYTES_MAX, FILE_HEAD_BYTES, READ_BYTES},
};

/// The name of a copy, for whoever looks at a process's memory.
const NAME: &str = "plugin";

/// A plugin's file that has been read and hashed. It is a cheap clone, and can be started many
/// times, however the file on disk changes meanwhile.
#[derive(Clone, Debug)]
pub struct Checked {
    path: PathBuf,
    sha256: [u8; 32],
    way: Way,
    file: Arc<File>,
}

impl Checked {
    /// Opens, reads and hashes a file. Fails if it is no regular file, if this user may not execute
    /// it, if it is neither a binary for Linux nor a script that begins with `#!`, and if its hash
    /// is not the expected one. It blocks while it reads: some 0.1 s for 100 MB.
    ///
    /// **With an expected hash** a copy of the file is executed: whoever may write to the file
    /// could change it after it was hashed. The copy lies in memory as long as this or a clone
    /// lives, and counts as the host's there: a limit of the host's cgroup has to leave room for
    /// it, 700 MB for the largest ones. The kernel lets nobody change it. A plugin that looks for
    /// files beside itself by its own path finds none then: `/proc/self/exe` leads to the copy, and
    /// a script's `$0` is `/proc/self/fd/N`. Where the system forbids executing files in memory
    /// (`vm.memfd_noexec=2`, SELinux), the copy is a file without a name in the folder for
    /// temporary files, whose file system must allow execution. Another process of the same user
    /// could still change that one.
    ///
    /// **Without one** nothing was promised, and the file is executed where it lies, a script by
    /// its path.
    pub fn open(path: &Path, expected_sha256: Option<[u8; 32]>) -> Result<Self, Error> {
        // The plugin starts in another folder.
        let path = std::path::absolute(path).map_err(wrong(path))?;
        let mut original = regular(&path)?;
        let (sha256, file, way) = match expected_sha256 {
            None => {
                let read = copy(&path, &mut original, &mut io::sink())?;
                let way = if read.is_script { Way::Path } else { Way::Binary };
                (read.sha256, original, way)
            }
            Some(expected) => {
                let (read, file) = copied(&path, &mut original)?;
                if read.sha256 != expected {
                    let (expected, found) = (hex(&expected), hex(&read.sha256));
                    return Err(Error::Checksum { path, expected, found });
                }
                let way = if read.is_script { Way::Script } else { Way::Binary };
                (read.sha256, file, way)
            }
        };
        Ok(Self { path, sha256, way, file: Arc::new(file) })
    }

    /// The file's absolute path, which is also the plugin's name for itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The hash of what was read.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }
}

/// What was read from a file.
struct WasRead {
    sha256: [u8; 32],
    /// A script; else it is a binary.
    is_script: bool,
}

fn wrong(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// Opens a file that may be executed.
fn regular(path: &Path) -> Result<File, Error> {
    // A named pipe would have us wait for whoever writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| wrong(path)(errno.into()))?);
    let about = file.metadata().map_err(wrong(path))?;
    if !about.is_file() {
        return Err(wrong(path)(io::Error::other("it is no regular file")));
    }
    // The copy grows in memory only after this; the loop that reads counts once more.
    fits(about.len())?;
    is_executable(&file).map_err(wrong(path))?;
    Ok(file)
}

fn fits(size: u64) -> Result<(), Error> {
    Error::at_most("a plugin's file", clamped(size), clamped(FILE_BYTES_MAX))
}

fn clamped(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// Fails if this user may not execute it. A file system that is mounted with `noexec` counts.
fn is_executable(file: &File) -> io::Result<()> {
    let access = rustix::fs::Access::EXEC_OK;
    Ok(accessat(CWD, through(file), access, AtFlags::empty())?)
}

/// The path that leads to an open file, whatever has become of its name.
fn through(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Reads all of a file, hashes it, and writes it to another.
fn copy(path: &Path, from: &mut impl Read, to: &mut impl Write) -> Result<WasRead, Error> {
    let (mut hash, mut size, mut head) = (Sha256::new(), 0, Vec::new());
    let mut piece = vec![0; READ_BYTES];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(wrong(path)(error)),
        };
        size += count as u64;
        fits(size)?;
        head.extend(piece[..count].iter().take(FILE_HEAD_BYTES.saturating_sub(head.len())));
        hash.update(&piece[..count]);
        to.write_all(&piece[..count]).map_err(Error::system("copy a plugin's file"))?;
    }
    let is_script = is_script(&head).map_err(|reason| wrong(path)(io::Error::other(reason)))?;
    Ok(WasRead { sha256: hash.finalize().into(), is_script })
}

/// Whether a file that begins so is a script, or else a binary for this kind of machine, or for its
/// predecessor of 32 bits, which most kernels run, too. Fails if it is neither: the kernel would
/// refuse it, and a shell would try to read it then.
fn is_script(head: &[u8]) -> Result<bool, &'static str> {
    if head.starts_with(b"#!") {
        return Ok(true);
    }
    let Some(elf) = head.strip_prefix(b"\x7fELF") else {
        return Err("it is neither a binary for Linux nor a script that begins with #!");
    };
    let Some(machines) = machines(std::env::consts::ARCH) else { return Ok(false) };
    let machine = elf.get(14..16).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    if machine.is_some_and(|machine| machines.contains(&machine)) {
        return Ok(false);
    }
    Err("it is a binary for another kind of machine, or a damaged one")
}

/// The kinds whose binaries run on this one, as elf.h numbers them. None for one that is not listed
/// here: the kernel decides.
fn machines(architecture: &str) -> Option<[u16; 2]> {
    match architecture {
        "x86_64" => Some([62, 3]),
        "aarch64" => Some([183, 40]),
        _ => None,
    }
}

/// A copy that nobody can change, or the next best.
fn copied(path: &Path, original: &mut File) -> Result<(WasRead, File), Error> {
    if let Some(mut copy_in_memory) = in_memory() {
        let read = copy(path, original, &mut copy_in_memory)?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let sealed = fcntl_add_seals(&copy_in_memory, seals).map_err(io::Error::from);
        sealed.map_err(Error::system("seal the copy of a plugin's file"))?;
        return Ok((read, copy_in_memory));
    }
    original.rewind().map_err(wrong(path))?;
    copied_to_disk(path, original, &std::env::temp_dir())
}

/// An empty file in memory that can be executed and sealed. None if the system does not let us.
fn in_memory() -> Option<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels older than 6.3 do not know the flag, and need none.
    let file = match memfd_create(NAME, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(NAME, flags),
        other => other,
    };
    let file = File::from(file.ok()?);
    is_executable(&file).is_ok().then_some(file)
}

/// A copy without a name, in this folder.
fn copied_to_disk(
    path: &Path,
    original: &mut File,
    folder: &Path,
) -> Result<(WasRead, File), Error> {
    let what = || format!("execute a copy of a plugin in {}", folder.display());
    let failed = |error| Error::system(what())(error);
    let mut writable = tempfile::tempfile_in(folder).map_err(failed)?;
    let read = copy(path, original, &mut writable)?;
    writable.set_permissions(Permissions::from_mode(0o555)).map_err(failed)?;
    // A file that is open for writing cannot be executed.
    let readable = File::open(through(&writable)).map_err(failed)?;
    drop(writable);
    is_executable(&readable).map_err(failed)?;
    Ok((read, readable))
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::OpenOptionsExt as _};

    use super::*;

    const SCRIPT: &[u8] = b"#!/bin/sh\nexit 0\n";

    fn hash(bytes: &[u8]) -> Option<[u8; 32]> {
        Some(Sha256::digest(bytes).into())
    }

    fn written(folder: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = folder.join(format!("{mode:o}"));
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn content(checked: &Checked) -> Vec<u8> {
        fs::read(through(&checked.file)).unwrap()
    }

    #[test]
    fn a_copy_stays_what_it_was_when_it_was_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), SCRIPT, 0o755);
        let checked = Checked::open(&path, hash(SCRIPT)).unwrap();
        let same_file = fs::OpenOptions::new().write(true).open(&path);
        same_file.unwrap().write_all(b"#!/bin/sh\nrm -r x\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(content(&checked), SCRIPT);
        assert_eq!((checked.way(), checked.path()), (Way::Script, path.as_path()));
        assert_eq!(Some(checked.sha256()), hash(SCRIPT));
        if in_memory().is_some() {
            let mut copy: &File = &checked.file;
            assert!(copy.write_all(b"x").is_err() && copy.set_len(0).is_err());
            let again = fs::OpenOptions::new().write(true).open(through(copy));
            assert!(again.and_then(|mut file| file.write_all(b"x")).is_err());
            assert_eq!(content(&checked), SCRIPT);
        }
    }

    #[test]
    fn a_copy_on_disk_has_no_name_and_is_not_open_for_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), SCRIPT, 0o755);
        let copies = tempfile::tempdir().unwrap();
        let mut original = regular(&path).unwrap();
        let (read, mut copy) = copied_to_disk(&path, &mut original, copies.path()).unwrap();
        assert_eq!((Some(read.sha256), read.is_script), (hash(SCRIPT), true));
        assert_eq!(fs::read(through(&copy)).unwrap(), SCRIPT);
        assert!(copy.write_all(b"x").is_err());
        assert_eq!(fs::read_dir(copies.path()).unwrap().count(), 0);
        let nowhere = copied_to_disk(&path, &mut original, &copies.path().join("nowhere"));
        assert!(matches!(nowhere, Err(Error::System { .. })));
    }

    #[test]
    fn another_hash_is_told_with_both() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), SCRIPT, 0o755);
        let Err(Error::Checksum { expected, found, .. }) = Checked::open(&path, hash(b"x")) else {
            panic!("it is another file");
        };
        assert_eq!((expected, found), (hex(&hash(b"x").unwrap()), hex(&hash(SCRIPT).unwrap())));
    }

    #[test]
    fn without_a_hash_the_file_itself_is_executed() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), SCRIPT, 0o755);
        let script = Checked::open(&path, None).unwrap();
        assert_eq!((script.way(), Some(script.sha256())), (Way::Path, hash(SCRIPT)));
        let binary = Checked::open(&std::env::current_exe().unwrap(), None).unwrap();
        assert_eq!(binary.way(), Way::Binary);
        assert!(binary.path().is_absolute());
    }

    #[test]
    fn what_cannot_be_executed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let fifo = folder.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let socket = folder.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut text = fs::OpenOptions::new();
        let text = text.write(true).create_new(true).mode(0o700).open(folder.join("text"));
        text.unwrap().write_all(b"echo hello\n").unwrap();
        let mut foreign = b"\x7fELF\x02\x01\x01".to_vec();
        foreign.resize(64, 0xf3);
        for (path, expected) in [
            (folder.join("missing"), "No such file"),
            (folder.to_owned(), "no regular file"),
            (fifo, "no regular file"),
            (socket, ""),
            (PathBuf::from("/dev/null"), "no regular file"),
            (written(folder, SCRIPT, 0o644), "ermission denied"),
            (written(folder, b"", 0o755), "neither"),
            (folder.join("text"), "neither"),
            (written(folder, b"#", 0o711), "neither"),
            (written(folder, b"\x7fEL", 0o700), "neither"),
            (written(folder, b"\x7fELF\x02\x01\x01", 0o500), "damaged"),
            (written(folder, &foreign, 0o501), "another kind of machine"),
        ] {
            for expected_sha256 in [None, hash(SCRIPT)] {
                let error = Checked::open(&path, expected_sha256).unwrap_err();
                assert!(matches!(error, Error::File { .. }), "{}: {error}", path.display());
                assert!(error.to_string().contains(expected), "{}: {error}", path.display());
            }
        }
    }

    #[test]
    fn binaries_of_32_bits_are_taken_and_those_of_other_machines_are_not() {
        let head = |machine: u16| {
            let mut head = b"\x7fELF".to_vec();
            head.resize(FILE_HEAD_BYTES - 2, 0);
            head.extend(machine.to_le_bytes());
            head
        };
        let Some(own) = machines(std::env::consts::ARCH) else { return };
        for machine in own {
            assert_eq!(is_script(&head(machine)), Ok(false), "{machine}");
        }
        // MIPS, RISC-V, and the others that are listed.
        let listed = ["x86_64", "aarch64"].into_iter().filter_map(machines).flatten();
        for machine in listed.chain([8, 243]).filter(|machine| !own.contains(machine)) {
            assert!(is_script(&head(machine)).is_err(), "{machine}");
        }
        assert_eq!((machines("x86_64"), machines("aarch64")), (Some([62, 3]), Some([183, 40])));
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), SCRIPT, 0o755);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        let error = Checked::open(&path, None).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}
