//! Removing a folder that a plugin filled. `fs::remove_dir_all` goes down with the folders, and a
//! plugin can nest them until stack and file descriptors run out. Here a folder within a folder is
//! moved to the top before it is emptied, so that there is one level and nothing is remembered.
//! Everything goes by file descriptors: a plugin that is just being killed cannot put a link in the
//! place of a folder.

use std::{ffi::CString, io, os::fd::AsRawFd as _, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Dir, DirEntry, Mode, OFlags, chmod, openat, renameat, unlinkat},
    io::Errno,
};

/// The end of a removal that did not fail.
#[derive(Debug, PartialEq)]
pub(crate) enum Done {
    All,
    /// It took all the steps that it may take.
    Part,
}

enum Stop {
    NoStepsLeft,
    Failed(io::Error),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno.into())
    }
}

/// Removes the folder, in so many steps at most. It is fine if there is none.
pub(crate) fn remove(path: &Path, steps_max: usize) -> io::Result<Done> {
    let top = match openat(CWD, path, OFlags::PATH | FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Done::All),
        opened => opened?,
    };
    let removed = readable(top).map_err(Stop::from).and_then(|top| {
        let mut removal = Removal { top, steps_left: steps_max, moved: 0 };
        loop {
            while removal.round()? {}
            match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Somebody has just put something there.
                Err(Errno::NOTEMPTY | Errno::EXIST) => removal.step()?,
                Err(error) => return Err(error.into()),
            }
        }
    });
    match removed {
        Ok(()) => Ok(Done::All),
        Err(Stop::NoStepsLeft) => Ok(Done::Part),
        // Host and guard both remove it, and the other one has done so.
        Err(Stop::Failed(error)) if error.kind() == io::ErrorKind::NotFound => Ok(Done::All),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// The last part of a path is a folder, and no link to one.
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Removal {
    top: OwnedFd,
    steps_left: usize,
    /// Part of the next name for a folder that is moved to the top.
    moved: u64,
}

impl Removal {
    /// Removes what there is now, except what it moves to the top meanwhile. False if there was
    /// nothing.
    fn round(&mut self) -> Result<bool, Stop> {
        let mut some = false;
        for name in Names::of(&self.top)? {
            let name = name?;
            some = true;
            self.step()?;
            if !unlink(&self.top, &name)? {
                match self.flatten(&name) {
                    // Somebody else removes it, too.
                    Err(Stop::Failed(error)) if error.kind() == io::ErrorKind::NotFound => {}
                    flattened => flattened?,
                }
                match unlinkat(&self.top, &name, AtFlags::REMOVEDIR) {
                    // Somebody still writes into it: the next round removes that.
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(some)
    }

    /// Empties a folder at the top; the folders in it come to the top.
    fn flatten(&mut self, name: &CString) -> Result<(), Stop> {
        let folder = open(&self.top, name)?;
        for inner in Names::of(&folder)? {
            let inner = inner?;
            self.step()?;
            if !unlink(&folder, &inner)? {
                // Only a folder that its owner may write can be moved.
                open(&folder, &inner)?;
                self.lift(&folder, &inner)?;
            }
        }
        Ok(())
    }

    fn lift(&mut self, from: &OwnedFd, name: &CString) -> Result<(), Stop> {
        loop {
            let to = format!("moved-{}", self.moved);
            self.moved += 1;
            match renameat(from, name, &self.top, to) {
                Ok(()) => return Ok(()),
                // The plugin gave something this name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => self.step()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn step(&mut self) -> Result<(), Stop> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(Stop::NoStepsLeft)?;
        Ok(())
    }
}

/// Removes what is no folder. False if it is one.
fn unlink(folder: &OwnedFd, name: &CString) -> Result<bool, Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

fn open(folder: &OwnedFd, name: &CString) -> Result<OwnedFd, Errno> {
    readable(openat(folder, name, OFlags::PATH | FOLDER, Mode::empty())?)
}

/// The same folder, opened for reading, even if its owner took the right to from itself.
fn readable(folder: OwnedFd) -> Result<OwnedFd, Errno> {
    // The file descriptor names the folder itself, whatever has its name by now. Without /proc, or
    // as somebody else's folder, it keeps its rights, and reading it may fail.
    let _ = chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), Mode::RWXU);
    openat(&folder, c".", OFlags::RDONLY | FOLDER, Mode::empty())
}

/// The names in a folder, without `.` and `..`.
struct Names(Dir);

impl Names {
    fn of(folder: &OwnedFd) -> Result<Self, Errno> {
        Dir::read_from(folder).map(Self)
    }
}

impl Iterator for Names {
    type Item = Result<CString, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        let is_own = |name: &CString| matches!(name.as_bytes(), b"." | b"..");
        let name = |entry: Result<DirEntry, Errno>| entry.map(|entry| entry.file_name().to_owned());
        let mut names = self.0.by_ref().map(name);
        names.find(|name| !name.as_ref().is_ok_and(is_own))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    /// A folder that no test removes if the code does.
    fn folder() -> PathBuf {
        tempfile::tempdir().unwrap().keep()
    }

    #[test]
    fn all_goes_that_is_in_it_and_nothing_else() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let top = folder();
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir_all(top.join("a/d")).unwrap();
        fs::write(top.join("a/b/file"), "x").unwrap();
        fs::write(top.join("moved-0"), "it has the name that is given first").unwrap();
        fs::create_dir_all(top.join("moved-1/x")).unwrap();
        symlink(outside.path(), top.join("a/link")).unwrap();
        symlink(outside.path(), top.join("link")).unwrap();
        symlink("nowhere", top.join("a/b/broken")).unwrap();
        for (path, mode) in [("a/b", 0o500), ("a/d", 0o000), ("a", 0o300)] {
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(remove(&top, usize::MAX).unwrap(), Done::All);
        assert!(!top.exists());
        assert!(outside.path().join("kept").exists());
        assert_eq!(remove(&top, usize::MAX).unwrap(), Done::All, "gone is gone");
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let link = outside.path().join("link");
        symlink(outside.path(), &link).unwrap();
        assert!(remove(&link, usize::MAX).is_err());
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn folders_nested_deeper_than_a_path_is_long_go_step_by_step() {
        let top = folder();
        // Each turn puts all before it into one more folder.
        fs::create_dir(top.join("0")).unwrap();
        for depth in 1..3_000 {
            let outer = top.join(depth.to_string());
            fs::create_dir(&outer).unwrap();
            fs::rename(top.join((depth - 1).to_string()), outer.join("in")).unwrap();
        }
        assert_eq!(remove(&top, 10).unwrap(), Done::Part);
        assert_eq!(remove(&top, usize::MAX).unwrap(), Done::All);
        assert!(!top.exists());
    }
}
