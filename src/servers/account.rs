//! Whom Postgres runs as. It refuses to run as root; then it runs as `postgres` if there is such a
//! user, else as `nobody`, and what it reads and writes must lie where that user can go.

use std::{
    fmt,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use crate::{Error, io_error, output::output};

/// Where root keeps what an unprivileged user must reach, when the folder asked for is below one
/// that only root can enter, such as /root. Only root can write there, unlike /tmp.
const ROOT_STATE: &str = "/var/lib/flexcore";

/// A user that Postgres may run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: &'static str,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (uid {})", self.name, self.uid)
    }
}

/// `None` when we are not root: Postgres then runs as we do.
pub(crate) fn for_postgres() -> Result<Option<Account>, Error> {
    if id("-u", None) != Some(0) {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let (Some(uid), Some(gid)) = (id("-u", Some(name)), id("-g", Some(name)))
            && uid != 0
        {
            return Ok(Some(Account { name, uid, gid }));
        }
    }
    Err(Error::NoAccount)
}

/// `path` itself, or a folder in its place that the account can reach. The same path gives the same
/// folder every time.
pub(crate) fn reachable(path: &Path, account: Option<Account>) -> PathBuf {
    if account.is_none() || others_can_enter(path) {
        return path.to_owned();
    }
    let tail: String = path
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
        .collect();
    Path::new(ROOT_STATE).join(tail.trim_start_matches('_'))
}

/// True if every folder above `path` that exists lets other users pass.
fn others_can_enter(path: &Path) -> bool {
    path.ancestors()
        .filter_map(|folder| folder.metadata().ok())
        .all(|meta| !meta.is_dir() || meta.permissions().mode() & 0o001 != 0)
}

/// Makes a folder that belongs to the account and to nobody else. Folders above that had to be made
/// can be passed by others.
pub(crate) fn own_folder(path: &Path, account: Option<Account>) -> Result<(), Error> {
    let doing = format!("create {}", path.display());
    passable_folder(path.parent().unwrap_or(path))?;
    std::fs::create_dir_all(path).map_err(io_error(&doing))?;
    let Some(account) = account else { return Ok(()) };
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).map_err(io_error(&doing))?;
    chown(path, Some(account.uid), Some(account.gid)).map_err(io_error(&doing))
}

/// Makes the folders of `path` that do not exist, whatever the umask, so that others can pass.
pub(crate) fn passable_folder(path: &Path) -> Result<(), Error> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    passable_folder(path.parent().unwrap_or(path))?;
    let doing = format!("create {}", path.display());
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.map_err(io_error(&doing))?,
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).map_err(io_error(&doing))
}

fn id(flag: &str, user: Option<&str>) -> Option<u32> {
    let mut arguments = vec![flag];
    arguments.extend(user);
    output("id", &arguments, None).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_parent_is_avoided_only_for_another_account() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let below = folder.path().join("a b/data");
        let nobody = Some(Account { name: "nobody", uid: 65_534, gid: 65_534 });
        assert_eq!(reachable(&below, None), below);
        let instead = reachable(&below, nobody);
        assert!(instead.starts_with(ROOT_STATE), "{}", instead.display());
        assert!(instead.to_string_lossy().ends_with("a_b_data"), "{}", instead.display());
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
        assert_eq!(reachable(&below, nobody), below);
    }
}
