//! `flexcore dev --plugins DIR`: the plugins in a folder are installed, and again when they change.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs, mem,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use flexcore_domain::Name;
use flexcore_eventstore::EventStore;
use flexcore_operations::{self as operations, plugins};
use tokio::{task::spawn_blocking, time::sleep};

use crate::plugin_files::{self, PluginFiles};

/// Time between two looks at the folder.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time until the next look where a plugin could not be installed for now: the broker is away, or has no room.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Most folders that are looked at, in the order of their names: more is another folder, named by
/// mistake.
const FOLDERS_MAX: usize = 200;

/// When a file was written, and its size in bytes. `None`: it is not there.
type Written = Option<(SystemTime, u64)>;

/// The manifest and the executable of a plugin's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    manifest: Written,
    file: Written,
}

/// The folders, as they were at the last look.
#[derive(Default)]
struct Looked {
    last: BTreeMap<PathBuf, Stamp>,
    /// What was installed, or was tried in vain: it is not tried again until it changes.
    done: BTreeMap<PathBuf, Stamp>,
    /// Folders that were told to be left out.
    told: BTreeSet<PathBuf>,
    /// Plugins that were seen, by their folders.
    names: BTreeMap<PathBuf, Name>,
}

impl Looked {
    /// Takes up what is there now. Returns what has changed since it was installed, and rests since the
    /// last look: a file that is still being written would be half a file.
    fn look(&mut self, now: BTreeMap<PathBuf, Stamp>) -> Vec<PathBuf> {
        self.done.retain(|folder, _| now.contains_key(folder));
        let is_due = |(folder, stamp): &(&PathBuf, &Stamp)| {
            self.last.get(*folder) == Some(*stamp) && self.done.get(*folder) != Some(*stamp)
        };
        let due: Vec<_> = now.iter().filter(is_due).map(|(f, s)| (f.clone(), *s)).collect();
        self.done.extend(due.iter().cloned());
        self.last = now;
        due.into_iter().map(|(folder, _)| folder).collect()
    }

    /// Of the folders that are left out, those that were not told yet.
    fn news(&mut self, doubled: BTreeMap<PathBuf, PathBuf>) -> BTreeMap<PathBuf, PathBuf> {
        self.told.retain(|folder| doubled.contains_key(folder));
        doubled.into_iter().filter(|(folder, _)| self.told.insert(folder.clone())).collect()
    }

    /// The plugins whose folders are there no more, each once. One that has moved to another folder is not gone.
    fn gone(&mut self, now: &Found) -> BTreeMap<PathBuf, Name> {
        let is_there = |folder: &PathBuf| now.stamps.contains_key(folder);
        let before = mem::replace(&mut self.names, now.names.clone());
        let (there, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.into_iter().partition(|(folder, _)| is_there(folder));
        for (folder, name) in there {
            // Its manifest may be half written.
            self.names.entry(folder).or_insert(name);
        }
        let is_elsewhere = |name: &Name| self.names.values().any(|other| other == name);
        gone.into_iter().filter(|(_, name)| !is_elsewhere(name)).collect()
    }

    /// Has the next look return this folder again, though nothing has changed there.
    fn forget(&mut self, folder: &Path) {
        self.done.remove(folder);
    }
}

/// Installs what is in the folder and what changes there, and logs what came of it. A plugin whose folder
/// goes away stays installed.
pub(crate) async fn follow(store: &EventStore, folder: &Path) -> Infallible {
    let mut looked = Looked::default();
    loop {
        let place = folder.to_owned();
        // Its own panic is the only error, and would be told; the next look is a new one.
        let found = spawn_blocking(move || find(&place)).await.unwrap_or_default();
        for (folder, plugin) in looked.gone(&found) {
            let folder = folder.display();
            tracing::warn!(
                %folder, %plugin,
                "a plugin's folder is gone, and the plugin goes on: `flexcore plugin remove {plugin}` ends it"
            );
        }
        for (folder, first) in looked.news(found.doubled) {
            let (folder, first) = (folder.display(), first.display());
            tracing::warn!(%folder, %first, "left out: the first folder has a plugin of the same name");
        }
        let mut pause = LOOK_EVERY;
        for due in looked.look(found.stamps) {
            if !is_done(store, &due).await {
                looked.forget(&due);
                pause = AGAIN_AFTER;
            }
        }
        sleep(pause).await;
    }
}

/// Installs what is in this folder; false: it is to be tried again, though nothing changes there.
async fn is_done(store: &EventStore, folder: &Path) -> bool {
    let error = match install(store, folder.to_owned()).await {
        Ok(installed) => {
            tell(&installed);
            return true;
        }
        Err(error) => error,
    };
    let (folder, told) = (folder.display(), format!("{error:#}"));
    if is_passing(&error) {
        tracing::warn!(%folder, error = told, "a plugin cannot be installed now; it is tried again");
        return false;
    }
    tracing::error!(%folder, error = told, "plugin not installed; it is tried again when its files change");
    true
}

fn tell(installed: &plugins::Installed) {
    let plugins::Installed { name, number, trouble, warnings, .. } = installed;
    tracing::info!(plugin = name, number, trouble, "plugin installed");
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Whether the same files may be installed later without anybody's help.
fn is_passing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<operations::Error>().is_some_and(operations::Error::is_passing)
}

async fn install(store: &EventStore, folder: PathBuf) -> anyhow::Result<plugins::Installed> {
    let PluginFiles { manifest, file } =
        spawn_blocking(move || plugin_files::read(&folder)).await??;
    Ok(plugins::install(store, &manifest, &file).await?)
}

/// The plugins' folders in another one.
#[derive(Default)]
struct Found {
    stamps: BTreeMap<PathBuf, Stamp>,
    /// Those whose plugin has the name of another one, with the first folder of that name.
    doubled: BTreeMap<PathBuf, PathBuf>,
    /// The names of the plugins whose manifests can be read.
    names: BTreeMap<PathBuf, Name>,
}

/// The folders with a manifest: those in this one, and this one itself.
fn find(folder: &Path) -> Found {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .chain([folder.to_owned()])
        .filter(|path| path.join(plugin_files::MANIFEST).is_file())
        .collect();
    found.sort();
    found.truncate(FOLDERS_MAX);
    let (mut all, mut firsts) = (Found::default(), BTreeMap::new());
    for path in found {
        // One that cannot be read has no name yet, and is told when it is to be installed.
        let read = plugin_files::read(&path).ok();
        if let Some(read) = &read {
            let first = firsts.entry(read.manifest.name.clone()).or_insert_with(|| path.clone());
            if *first != path {
                all.doubled.insert(path, first.clone());
                continue;
            }
            all.names.insert(path.clone(), read.manifest.name.clone());
        }
        let file = read.and_then(|read| written(&read.file));
        let stamp = Stamp { manifest: written(&plugin_files::manifest_of(&path)), file };
        all.stamps.insert(path, stamp);
    }
    all
}

fn written(file: &Path) -> Written {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(size: u64) -> Stamp {
        let written = Some((SystemTime::UNIX_EPOCH, size));
        Stamp { manifest: written, file: written }
    }

    #[test]
    fn what_has_changed_and_rests_is_installed_once() {
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        let at = |sizes: &[(&PathBuf, u64)]| -> BTreeMap<PathBuf, Stamp> {
            sizes.iter().map(|(folder, size)| ((*folder).clone(), of(*size))).collect()
        };
        let mut looked = Looked::default();
        let mut look = |sizes: &[(&PathBuf, u64)]| looked.look(at(sizes));
        assert!(look(&[(&a, 1)]).is_empty(), "it may still be written");
        assert!(look(&[(&a, 2), (&b, 1)]).is_empty(), "it was");
        assert_eq!(look(&[(&a, 2), (&b, 1)]), [a.clone(), b.clone()]);
        assert!(look(&[(&a, 2), (&b, 1)]).is_empty(), "nothing has changed");
        assert!(look(&[(&b, 3)]).is_empty());
        assert_eq!(look(&[(&a, 2), (&b, 3)]), std::slice::from_ref(&b));
        assert_eq!(look(&[(&a, 2), (&b, 3)]), std::slice::from_ref(&a), "it was gone meanwhile");
    }

    #[test]
    fn what_could_not_be_installed_for_now_is_tried_again() {
        let folder = PathBuf::from("a");
        let now = || BTreeMap::from([(folder.clone(), of(1))]);
        let mut looked = Looked::default();
        assert!(looked.look(now()).is_empty());
        assert_eq!(looked.look(now()), std::slice::from_ref(&folder));
        looked.forget(&folder);
        assert_eq!(looked.look(now()), std::slice::from_ref(&folder));
        assert!(looked.look(now()).is_empty(), "it is installed");
        let away = operations::Error::WorkersUnasked("not connected to the broker".to_owned());
        assert!(is_passing(&anyhow::Error::new(away).context("installing")));
        let wrong = operations::Error::PluginFile("it is a folder".to_owned());
        assert!(!is_passing(&anyhow::Error::new(wrong)));
        assert!(!is_passing(&anyhow::anyhow!("reading plugin.yaml")));
    }

    #[test]
    fn a_folder_without_a_manifest_is_none_of_a_plugin() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["plugin", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let plugin = folder.path().join("plugin");
        let text = "name: x\nversion: 0.1.0\nfile: x\n";
        fs::write(plugin.join(plugin_files::MANIFEST), text).unwrap();
        let found = find(folder.path()).stamps;
        assert_eq!(found.keys().collect::<Vec<_>>(), [&plugin]);
        assert_eq!(found[&plugin].file, None, "its executable is not there");
        fs::write(plugin.join("x"), "#!").unwrap();
        assert_eq!(find(folder.path()).stamps[&plugin].file.map(|(_, size)| size), Some(2));
        // The plugin's own folder was looked at in vain.
        assert_eq!(find(&plugin).stamps.keys().collect::<Vec<_>>(), [&plugin]);
        assert!(find(&folder.path().join("nowhere")).stamps.is_empty());
    }

    #[test]
    fn a_folder_that_goes_away_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        let write = |name: &str| {
            fs::create_dir_all(&a).unwrap();
            let text = format!("name: {name}\nversion: 0.1.0\nfile: x\n");
            fs::write(a.join(plugin_files::MANIFEST), text).unwrap();
            fs::write(a.join("x"), "#!").unwrap();
        };
        let mut looked = Looked::default();
        write("x");
        assert!(looked.gone(&find(folder.path())).is_empty());
        fs::rename(&a, &b).unwrap();
        assert!(looked.gone(&find(folder.path())).is_empty(), "it has moved");
        fs::remove_file(b.join("x")).unwrap();
        assert!(looked.gone(&find(folder.path())).is_empty(), "it is being written");
        fs::remove_dir_all(&b).unwrap();
        let x = Name::parse("x").unwrap();
        assert_eq!(looked.gone(&find(folder.path())), BTreeMap::from([(b, x)]));
        assert!(looked.gone(&find(folder.path())).is_empty());
    }

    #[test]
    fn of_two_folders_of_one_name_the_first_is_taken_and_that_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        for plugin in [&a, &b] {
            fs::create_dir(plugin).unwrap();
            let text = "name: x\nversion: 0.1.0\nfile: x\n";
            fs::write(plugin.join(plugin_files::MANIFEST), text).unwrap();
            fs::write(plugin.join("x"), "#!").unwrap();
        }
        let found = find(folder.path());
        assert_eq!(found.stamps.keys().collect::<Vec<_>>(), [&a]);
        let mut looked = Looked::default();
        assert_eq!(looked.news(found.doubled.clone()), BTreeMap::from([(b, a)]));
        assert!(looked.news(found.doubled.clone()).is_empty());
        assert!(looked.news(BTreeMap::new()).is_empty());
        assert_eq!(looked.news(found.doubled).len(), 1, "it was mended meanwhile");
    }
}
