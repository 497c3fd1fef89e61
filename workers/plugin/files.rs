//! Files of plugins: in a folder of this machine, and fetched from the broker where they are not there.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flexcore_eventstore::{Error as StoreError, plugins::InstalledPlugin};
use flexcore_plugin::{Checked, Error};
use flexcore_resilience::{Backoff, lasts};
use tokio::task::spawn_blocking;

use super::Shared;

/// The pause before a file is fetched again. 10 s at most: a broker that is back is noticed soon.
const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10) };

/// The pause where this machine is the reason: its disk is full or broken. 5 min at most: a person has to see to
/// it, and each try may read all of the file from the broker.
const AFTER_LOCAL: Backoff =
    Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) };

/// Age of a part of a file that nobody writes any more. One hour: the largest file takes minutes.
const PART_AGE_MIN: Duration = Duration::from_secs(3_600);

/// Why there is no file.
#[derive(Debug)]
enum Missing {
    /// It may be there later.
    Passing(String),
    /// It may be there once this machine can write and read it.
    Local(String),
    /// It will not, until something else is installed.
    Final(String),
}

/// The file of an installed plugin, with its hash compared. Tries again for as long as the broker is away, or
/// this machine's disk fails, and tells the reason each time. Fails with the reason where that would be in vain:
/// the file is gone, is another one, or may not be executed here.
pub(super) async fn fetch(
    shared: &Shared,
    installed: &InstalledPlugin,
    tell: impl Fn(String),
) -> Result<Checked, String> {
    let mut failures = 0_u32;
    loop {
        let missing = match fetch_once(shared, installed).await {
            Ok(file) => return Ok(file),
            Err(missing) => missing,
        };
        failures = failures.saturating_add(1);
        let (reason, pause, is_worth_a_line) = match missing {
            Missing::Final(reason) => return Err(reason),
            Missing::Local(reason) => (reason, AFTER_LOCAL, failures.is_power_of_two()),
            Missing::Passing(reason) => (reason, AGAIN, lasts(failures)),
        };
        if is_worth_a_line {
            let plugin = installed.manifest.name.as_str();
            tracing::warn!(plugin, reason, failures, "a plugin's file cannot be fetched");
        }
        tell(reason);
        tokio::time::sleep(pause.jittered(failures)).await;
    }
}

/// Removes files that no plugin has, and parts of files that were left behind. Whoever needs one all the same
/// fetches it again. Files of other names stay.
pub(super) async fn clean(shared: &Arc<Shared>) {
    let (folder, of) = (shared.settings.folder.clone(), shared.clone());
    let cleaned = spawn_blocking(move || remove_unneeded(&folder, || of.needed())).await;
    match cleaned.map_err(io::Error::other).flatten() {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let folder = shared.settings.folder.display();
            tracing::warn!(%folder, %error, "files of plugins are not removed");
        }
        // Before the first file there is no folder.
        _ => {}
    }
}

fn remove_unneeded(
    folder: &Path,
    needed: impl FnOnce() -> BTreeSet<String>,
) -> Result<(), io::Error> {
    let found: Vec<DirEntry> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    // Asked for afterwards: what has come meanwhile is not among those that were found.
    let needed = needed();
    for entry in found {
        let name = entry.file_name();
        let goes = name.to_str().is_some_and(|name| is_over(name, age(&entry), &needed));
        if goes {
            // It may be gone already; one that stays is looked at with the next change.
            drop(fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// Whether a file of this name and age is a plugin's that nobody needs, or a part that nobody writes any more.
fn is_over(name: &str, age: Duration, needed: &BTreeSet<String>) -> bool {
    if hash(name).is_some() {
        return !needed.contains(name);
    }
    let part = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part"));
    let is_id = |id: &str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    part.is_some_and(is_id) && age >= PART_AGE_MIN
}

/// Zero where nobody knows.
fn age(entry: &DirEntry) -> Duration {
    let changed = entry.metadata().and_then(|about| about.modified());
    changed.ok().and_then(|changed| changed.elapsed().ok()).unwrap_or_default()
}

async fn fetch_once(shared: &Shared, installed: &InstalledPlugin) -> Result<Checked, Missing> {
    let (folder, sha256) = (&shared.settings.folder, installed.sha256.as_str());
    let Some(expected) = hash(sha256) else {
        return Err(Missing::Final(format!("{sha256:?} is no SHA-256; install it again")));
    };
    let path = folder.join(sha256);
    if let Ok(file) = open(path.clone(), expected).await {
        return Ok(file);
    }
    let made = tokio::fs::create_dir_all(folder).await;
    made.map_err(|error| Missing::Local(format!("{}: {error}", folder.display())))?;
    has_room(folder, installed.bytes).map_err(Missing::Local)?;
    let fetched = shared.store.fetch_plugin_file(sha256, &path, installed.bytes).await;
    fetched.map_err(|error| match &error {
        StoreError::LocalFile(reason) => Missing::Local(reason.clone()),
        passing if passing.is_passing() => Missing::Passing(error.to_string()),
        _ => Missing::Final(error.to_string()),
    })?;
    open(path, expected).await.map_err(|error| unopened(&error))
}

/// Fails with the reason when this file does not fit into the folder's disk. So a full one is no work for the
/// broker.
fn has_room(folder: &Path, bytes: u64) -> Result<(), String> {
    let shown = folder.display();
    let about = rustix::fs::statvfs(folder).map_err(|error| format!("{shown}: {error}"))?;
    let free_bytes = about.f_bavail.saturating_mul(about.f_frsize);
    // Some file systems do not say how large they are.
    if about.f_blocks > 0 && free_bytes < bytes {
        return Err(format!("{shown}: {free_bytes} bytes are free, and the file has {bytes}"));
    }
    Ok(())
}

/// Why a file that has just been fetched is not opened.
fn unopened(error: &Error) -> Missing {
    let reason = error.to_string();
    match error {
        // Another worker of this machine has just removed it.
        Error::File { source, .. } if source.kind() == ErrorKind::NotFound => {
            Missing::Passing(reason)
        }
        // This user may not execute it here, or it is no program: then the system has no say.
        Error::File { source, .. }
            if source.kind() == ErrorKind::PermissionDenied || source.raw_os_error().is_none() =>
        {
            Missing::Final(reason)
        }
        Error::File { .. } | Error::System { .. } => Missing::Local(reason),
        _ => Missing::Final(reason),
    }
}

async fn open(path: PathBuf, expected: [u8; 32]) -> Result<Checked, Error> {
    let opened = spawn_blocking(move || Checked::open(&path, Some(expected)));
    opened.await.unwrap_or_else(|error| Err(Error::Contract(error.to_string())))
}

/// A SHA-256 of 64 small hexadecimal digits, which are the name of the file, too.
fn hash(text: &str) -> Option<[u8; 32]> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 64 || !text.bytes().all(is_digit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_so_is_given_up() {
        let file = |source| Error::File { path: PathBuf::from("/f"), source };
        let raw = |code| unopened(&file(io::Error::from_raw_os_error(code)));
        // EIO and EMFILE.
        for code in [5, 24] {
            assert!(matches!(raw(code), Missing::Local(_)), "{code}");
        }
        // ENOENT and EACCES.
        assert!(matches!(raw(2), Missing::Passing(_)));
        assert!(matches!(raw(13), Missing::Final(_)));
        let none = unopened(&file(io::Error::other("it is no program")));
        assert!(matches!(none, Missing::Final(_)), "{none:?}");
        let [path, expected, found] = ["/f", "0f", "a0"].map(str::to_owned);
        let other = unopened(&Error::Checksum { path: path.into(), expected, found });
        assert!(matches!(other, Missing::Final(_)), "{other:?}");
    }

    #[test]
    fn a_file_that_has_no_room_is_not_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        has_room(folder.path(), 1).unwrap();
        let reason = has_room(folder.path(), u64::MAX).unwrap_err();
        assert!(reason.contains("bytes are free"), "{reason}");
        assert!(has_room(&folder.path().join("none"), 1).is_err());
    }

    #[test]
    fn files_that_no_plugin_has_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [needed, other] = ["0f", "a0"].map(|digits| digits.repeat(32));
        let part = format!(".{}.part", "0f".repeat(16));
        for name in [&*needed, &*other, &*part, "notes", ".x.part"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let all = BTreeSet::from([needed.clone()]);
        remove_unneeded(folder.path(), || all.clone()).unwrap();
        let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: BTreeSet<_> = left.map(|name| name.into_string().unwrap()).collect();
        let stay = [&*needed, &*part, "notes", ".x.part"].map(str::to_owned);
        assert_eq!(left, BTreeSet::from(stay));
        assert!(is_over(&part, PART_AGE_MIN, &all) && !is_over(".x.part", PART_AGE_MIN, &all));
    }

    #[test]
    fn a_hash_is_a_name_of_a_file_and_nothing_else() {
        let read = hash(&format!("0f{}", "a0".repeat(31))).unwrap();
        assert_eq!((read[0], read[1], read[31]), (0x0f, 0xa0, 0xa0));
        let path = format!("{:/<64}", "../../x");
        for wrong in ["", "0f", &"0F".repeat(32), &"+f".repeat(32), &"é".repeat(32), &path] {
            assert_eq!(hash(wrong), None, "{wrong}");
        }
    }
}
