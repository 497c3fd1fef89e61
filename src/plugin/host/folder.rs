//! A folder of a plugin's own, for sockets and for all that it writes.
//!
//! Where the plugin has a user of its own it is in two parts: the host, which may do everything,
//! must not work in a folder in which the plugin could put something else in the place of a file.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    thread,
};

use tokio::{sync::oneshot, time::timeout};

use crate::{
    Error,
    guard::{
        User,
        removal::{self, Done},
    },
    limits::{
        FOLDER_STEPS_AT_ONCE_MAX, FOLDER_STEPS_MAX, FOLDER_WAIT, SOCKET_NAME_BYTES_MAX,
        SOCKET_PATH_BYTES_MAX,
    },
    transport::Owner,
};

/// Only its owner enters: whoever can reach a plugin's socket can use the plugin.
const MODE: u32 = 0o700;

/// The plugin's group goes through to what it knows the name of.
const THROUGH_MODE: u32 = 0o710;

/// The names within, where the plugin has a user of its own. They are short: sockets are below.
const PLUGINS: &str = "p";
const HOSTS: &str = "h";

/// The place for the folder where the usual one for temporary files has too long a name.
const SHORT: &str = "/tmp";

/// A new, empty folder, removed with all that is in it when this is dropped. The guard of a plugin
/// removes it, too, as the last one who is there; a host does so for a guard that was killed.
pub(super) struct Folder {
    top: PathBuf,
    user: Option<User>,
    guard: Option<u32>,
}

impl Folder {
    /// For a plugin of this process's user.
    pub(super) fn new() -> Result<Self, Error> {
        let parent = parent(env::temp_dir());
        let made = tempfile::Builder::new()
            .prefix("fp")
            .permissions(fs::Permissions::from_mode(MODE))
            .tempdir_in(&parent)
            .map_err(Error::system(format!("make a folder in {}", parent.display())))?;
        Ok(Self { top: made.keep(), user: None, guard: None })
    }

    /// For a plugin of another user, if there is one.
    pub(super) fn of(user: Option<User>) -> Result<Self, Error> {
        let mut folder = Self::new()?;
        if let Some(user) = user {
            let made = divide(&folder.top, user);
            let what = format!("make folders for user {} in {}", user.uid, folder.top.display());
            made.map_err(Error::system(what))?;
            folder.user = Some(user);
        }
        Ok(folder)
    }

    /// All of it.
    pub(super) fn whole(&self) -> &Path {
        &self.top
    }

    /// The plugin's part.
    pub(super) fn plugins(&self) -> PathBuf {
        self.part(PLUGINS)
    }

    /// The part for sockets of the host.
    pub(super) fn hosts(&self) -> PathBuf {
        self.part(HOSTS)
    }

    /// From now on only what is below this guard is taken for the plugin.
    pub(super) fn guarded_by(&mut self, guard: u32) {
        self.guard = Some(guard);
    }

    /// The one whose sockets are dialled, and who dials the host's.
    pub(super) fn owner(&self) -> Owner {
        let user = self.user.map(|user| user.uid);
        match (self.guard, user) {
            (Some(guard), user) => Owner::Plugin { user, guard },
            (None, Some(user)) => Owner::User(user),
            (None, None) => Owner::Own,
        }
    }

    fn part(&self, name: &str) -> PathBuf {
        self.user.map_or_else(|| self.top.clone(), |_| self.top.join(name))
    }

    /// Removes the folder. It goes on after the wait if the plugin left much in it.
    pub(super) async fn remove(&self) {
        let _ = timeout(FOLDER_WAIT, self.begin_removal()).await;
    }

    /// A little is removed at once, so that nothing is left behind by a program that ends now. Much
    /// takes time, which only a thread of its own has: the end of a runtime waits for those that
    /// are the runtime's. Returns what ends with the removal.
    fn begin_removal(&self) -> oneshot::Receiver<()> {
        let (goes_on, ended) = oneshot::channel();
        if remove(&self.top, FOLDER_STEPS_AT_ONCE_MAX) {
            return ended;
        }
        let path = self.top.clone();
        let rest = move || {
            remove(&path, FOLDER_STEPS_MAX);
            drop(goes_on);
        };
        if let Err(error) = thread::Builder::new().name("plugin-folder".to_owned()).spawn(rest) {
            is_left(&self.top, &error);
        }
        ended
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.begin_removal());
    }
}

/// Makes the parts for a plugin of another user, and lets that user through to them.
fn divide(top: &Path, user: User) -> io::Result<()> {
    let User { uid, gid } = user;
    for (name, owner, mode) in [(PLUGINS, Some(uid), MODE), (HOSTS, None, THROUGH_MODE)] {
        let part = top.join(name);
        fs::DirBuilder::new().mode(mode).create(&part)?;
        chown(&part, owner, Some(gid))?;
        // Whatever the process's mask is.
        fs::set_permissions(&part, fs::Permissions::from_mode(mode))?;
    }
    // The last: nobody goes through before all is there.
    chown(top, None, Some(gid))?;
    fs::set_permissions(top, fs::Permissions::from_mode(THROUGH_MODE))
}

/// The place for the folder, with room for the name of a socket.
fn parent(usual: PathBuf) -> PathBuf {
    let longest = usual.as_os_str().len() + SOCKET_NAME_BYTES_MAX;
    // The plugin works in a folder of its own, where a relative path leads somewhere else.
    let is_fine = usual.is_absolute() && longest <= SOCKET_PATH_BYTES_MAX;
    if is_fine { usual } else { SHORT.into() }
}

/// False if there is more to do than so many steps.
fn remove(path: &Path, steps_max: usize) -> bool {
    match removal::remove(path, steps_max) {
        Ok(Done::All) => true,
        Ok(Done::Part) => false,
        Err(error) => {
            is_left(path, &error);
            true
        }
    }
}

fn is_left(path: &Path, error: &io::Error) {
    tracing::warn!(folder = %path.display(), %error, "a plugin's folder is left behind");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn only_the_owner_enters_and_sockets_have_room() {
        let folder = Folder::new().unwrap();
        assert_eq!(folder.plugins(), folder.hosts());
        assert_eq!(folder.owner(), Owner::Own);
        assert_eq!(mode(&folder.plugins()), MODE);
        let socket = folder.plugins().join("plugin1234567890");
        assert!(socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        let long = PathBuf::from(format!("/{}", "x".repeat(90)));
        assert_eq!(parent(long), Path::new(SHORT));
        assert_eq!(parent("tmp".into()), Path::new(SHORT));
        assert_eq!(parent("/var/tmp".into()), Path::new("/var/tmp"));
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_plugin_of_another_user_has_its_part_and_passes_through_the_others() {
        let user = User { uid: 64_321, gid: 64_322 };
        if crate::guard::no_user_for(user).is_some() {
            assert!(Folder::of(Some(user)).is_err(), "only root can");
            return;
        }
        let mut folder = Folder::of(Some(user)).unwrap();
        assert_eq!(folder.owner(), Owner::User(user.uid));
        folder.guarded_by(7);
        assert_eq!(folder.owner(), Owner::Plugin { user: Some(user.uid), guard: 7 });
        let top = folder.top.clone();
        let own = rustix::process::geteuid().as_raw();
        for (path, owner, expected) in [
            (top.clone(), own, THROUGH_MODE),
            (folder.plugins(), user.uid, MODE),
            (folder.hosts(), own, THROUGH_MODE),
        ] {
            let about = fs::metadata(&path).unwrap();
            assert_eq!((about.uid(), about.gid()), (owner, user.gid), "{}", path.display());
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        // With the longest name that a plugin's own temporary folder may have.
        let longest = folder.plugins().join("tmp12345678").join("plugin1234567890");
        let name = longest.as_os_str().len() - top.parent().unwrap().as_os_str().len();
        assert!(name <= SOCKET_NAME_BYTES_MAX, "{name}");
        drop(folder);
        assert!(!top.exists());
    }

    #[test]
    fn it_is_gone_when_it_is_dropped() {
        let folder = Folder::new().unwrap();
        let path = folder.plugins();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_large_one_is_removed_too() {
        let folder = Folder::new().unwrap();
        for file in 0..FOLDER_STEPS_AT_ONCE_MAX + 1 {
            fs::write(folder.plugins().join(file.to_string()), "").unwrap();
        }
        folder.remove().await;
        assert!(!folder.plugins().exists());
    }
}
