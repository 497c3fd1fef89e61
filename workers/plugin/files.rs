//! Files of plugins: in a folder of this machine, and fetched from the broker where they are not there.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use flexcore_eventstore::plugins::InstalledPlugin;
use flexcore_plugin::{Checked, Error};
use flexcore_resilience::{Backoff, lasts};
use tokio::task::spawn_blocking;

use super::Shared;

/// The pause before a file is fetched again. 10 s at most: a broker that is back is noticed soon.
const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10) };

/// Why there is no file.
enum Missing {
    /// It may be there later.
    Passing(String),
    /// It will not, until something else is installed.
    Final(String),
}

/// The file of an installed plugin, with its hash compared. Tries again for as long as the broker is away.
/// Fails with the reason where that would be in vain: the file is gone, or another one.
pub(super) async fn fetch(shared: &Shared, installed: &InstalledPlugin) -> Result<Checked, String> {
    let mut failures = 0_u32;
    loop {
        match fetch_once(shared, installed).await {
            Ok(file) => return Ok(file),
            Err(Missing::Final(reason)) => return Err(reason),
            Err(Missing::Passing(reason)) => {
                failures = failures.saturating_add(1);
                if lasts(failures) {
                    let plugin = installed.manifest.name.as_str();
                    tracing::warn!(plugin, reason, failures, "a plugin's file cannot be fetched");
                }
                tokio::time::sleep(AGAIN.jittered(failures)).await;
            }
        }
    }
}

/// Removes a file that is not in service any more. Whoever needs it all the same fetches it again.
pub(super) async fn forget(folder: &Path, sha256: &str) {
    if hash(sha256).is_some() {
        // It may be gone already.
        let _ = tokio::fs::remove_file(folder.join(sha256)).await;
    }
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
    made.map_err(|error| Missing::Passing(format!("{}: {error}", folder.display())))?;
    let fetched = shared.store.fetch_plugin_file(sha256, &path, installed.bytes).await;
    fetched.map_err(|error| {
        let reason = error.to_string();
        if error.is_passing() { Missing::Passing(reason) } else { Missing::Final(reason) }
    })?;
    open(path, expected).await.map_err(|error| match &error {
        Error::System { .. } => Missing::Passing(error.to_string()),
        // Another worker of this machine has just removed it.
        Error::File { source, .. } if source.kind() == ErrorKind::NotFound => {
            Missing::Passing(error.to_string())
        }
        _ => Missing::Final(error.to_string()),
    })
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
    fn a_hash_is_a_name_of_a_file_and_nothing_else() {
        let read = hash(&format!("0f{}", "a0".repeat(31))).unwrap();
        assert_eq!((read[0], read[1], read[31]), (0x0f, 0xa0, 0xa0));
        let path = format!("{:/<64}", "../../x");
        for wrong in ["", "0f", &"0F".repeat(32), &"+f".repeat(32), &"é".repeat(32), &path] {
            assert_eq!(hash(wrong), None, "{wrong}");
        }
    }
}
