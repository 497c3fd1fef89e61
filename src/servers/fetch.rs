//! Fetching pinned packages through pip and npm into a cache, each checked against its SHA-256.
//!
//! Several processes may want the same package at once (tests run in parallel): a lock file lets one
//! of them fetch, beside its place, and a rename makes it visible whole or not at all.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{Error, account, io_error, output::output};

/// Where a package comes from.
#[derive(Debug, Clone, Copy)]
pub enum Registry {
    /// A wheel, through `python3 -m pip download`.
    PipWheel,
    /// A source archive, through `python3 -m pip download`.
    PipSource,
    /// A package of npm's registry, through `npm pack`.
    Npm,
}

/// A package at one version, with the hash that it must have.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Where from.
    pub registry: Registry,
    /// Its name there.
    pub name: &'static str,
    /// Its version, exactly.
    pub version: &'static str,
    /// SHA-256 of the archive, in hexadecimal.
    pub sha256: &'static str,
    /// Size of the archive in megabytes, to tell a person how long it may take.
    pub megabytes: u32,
}

impl Package {
    /// The folder `<cache>/<name>-<version>` with the unpacked package; fetches it if it is not there.
    ///
    /// Blocks. Fails with [`Error::Fetch`] when pip, npm, tar or the network cannot serve, and with
    /// [`Error::Hash`] when what came is something else.
    pub fn fetch(&self, cache: &Path) -> Result<PathBuf, Error> {
        self.fetch_then(cache, |_| Ok(()))
    }

    /// As [`Self::fetch`]; `finish` gets the unpacked package before anybody else sees it.
    pub(crate) fn fetch_then(
        &self,
        cache: &Path,
        finish: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        once(cache, &self.label(), |partial| {
            tracing::info!("fetching {} {} ({} MB)…", self.name, self.version, self.megabytes);
            let archives = partial.join("archive");
            std::fs::create_dir_all(&archives).map_err(io_error("create a cache folder"))?;
            self.download(&archives)?;
            let archive = only_file(&archives)?;
            self.check(&archive)?;
            self.unpack(&archive, partial)?;
            std::fs::remove_dir_all(&archives).map_err(io_error("remove an archive"))?;
            finish(partial)
        })
    }

    /// True if it is there, so that nothing needs to be fetched.
    pub(crate) fn is_in(&self, cache: &Path) -> bool {
        cache.join(self.label()).exists()
    }

    fn label(&self) -> String {
        format!("{}-{}", self.name.trim_start_matches('@').replace('/', "-"), self.version)
    }

    fn download(&self, into: &Path) -> Result<(), Error> {
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-input"];
        let pip = [&pip[..], &["--disable-pip-version-check", "--dest", "."]].concat();
        let exact = format!("{}=={}", self.name, self.version);
        let at = format!("{}@{}", self.name, self.version);
        match self.registry {
            Registry::PipWheel => output(
                "python3",
                &[&pip[..], &["--only-binary", ":all:", &exact]].concat(),
                Some(into),
            ),
            Registry::PipSource => output(
                "python3",
                &[&pip[..], &["--no-binary", ":all:", &exact]].concat(),
                Some(into),
            ),
            // npm's own cache may lie where we cannot write.
            Registry::Npm => {
                output("npm", &["pack", "--silent", "--cache", "../npm-cache", &at], Some(into))
            }
        }
        .map_err(|reason| Error::Fetch { what: exact, reason })
        .map(drop)
    }

    fn check(&self, archive: &Path) -> Result<(), Error> {
        let got = sha256(archive)?;
        if got == self.sha256 {
            return Ok(());
        }
        let what = format!("{} {}", self.name, self.version);
        Err(Error::Hash { what, expected: self.sha256.to_owned(), got })
    }

    fn unpack(&self, archive: &Path, into: &Path) -> Result<(), Error> {
        match self.registry {
            Registry::PipWheel => unzip(archive, into),
            Registry::PipSource => {
                run("python3", &["-m", "tarfile", "-e", text(archive)?, text(into)?])
            }
            Registry::Npm => {
                let there = ["-C", text(into)?];
                run("tar", &[&["--no-same-owner", "-xzf", text(archive)?][..], &there].concat())?;
                let cache = into.join("npm-cache");
                if cache.exists() {
                    std::fs::remove_dir_all(cache).map_err(io_error("remove npm's cache"))?;
                }
                Ok(())
            }
        }
    }
}

/// Unpacks a zip file with Python's `zipfile`, which every pip comes with.
pub fn unzip(archive: &Path, into: &Path) -> Result<(), Error> {
    run("python3", &["-m", "zipfile", "-e", text(archive)?, text(into)?])
}

/// The folder `<cache>/<label>`. If it is not there, `make` fills a folder beside it, in one process
/// at a time, which then gets that name. Blocks.
pub fn once(
    cache: &Path,
    label: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let place = cache.join(label);
    if place.exists() {
        return Ok(place);
    }
    account::passable_folder(cache)?;
    let lock = cache.join(format!(".{label}.lock"));
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&lock)
        .map_err(io_error(&format!("open {}", lock.display())))?;
    lock.lock().map_err(io_error("lock the cache"))?;
    if place.exists() {
        return Ok(place);
    }
    let partial = cache.join(format!(".{label}.partial"));
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(io_error("remove a half-fetched package"))?;
    }
    std::fs::create_dir(&partial).map_err(io_error("create a cache folder"))?;
    make(&partial)?;
    std::fs::rename(&partial, &place).map_err(io_error("put a package into the cache"))?;
    Ok(place)
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let what = program.to_owned();
    output(program, arguments, None).map(drop).map_err(|reason| Error::Fetch { what, reason })
}

/// A path as text; paths that are not UTF-8 are refused.
pub(crate) fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::Path(path.to_owned()))
}

fn only_file(folder: &Path) -> Result<PathBuf, Error> {
    let mut files = std::fs::read_dir(folder).map_err(io_error("read the fetched archive"))?;
    let reason = "nothing was downloaded".to_owned();
    let what = folder.display().to_string();
    files.next().and_then(Result::ok).map(|file| file.path()).ok_or(Error::Fetch { what, reason })
}

fn sha256(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(io_error("read the fetched archive"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer).map_err(io_error("read the fetched archive"))?;
        if count == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_archive_is_refused_by_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.whl");
        std::fs::write(&archive, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let registry = Registry::PipWheel;
        let mut package = Package { registry, name: "a", version: "1", sha256: abc, megabytes: 1 };
        package.check(&archive).unwrap();
        package.sha256 = "00";
        assert!(matches!(package.check(&archive), Err(Error::Hash { got, .. }) if got == abc));
    }

    #[test]
    fn many_at_once_make_it_one_time_and_a_failure_leaves_nothing_visible() {
        let folder = tempfile::tempdir().unwrap();
        let made = std::sync::atomic::AtomicUsize::new(0);
        once(folder.path(), "thing", |_| Err(Error::NoAccount)).expect_err("make failed");
        assert!(!folder.path().join("thing").exists());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let place = once(folder.path(), "thing", |partial| {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::fs::write(partial.join("file"), "x").map_err(io_error("write"))
                    });
                    assert!(place.unwrap().join("file").exists());
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
