//! The plugin worker: runs the installed plugins and answers calls of their functions.
//!
//! It follows what is installed. For each plugin there is a task that brings this worker to what is wanted:
//! it fetches the file, starts, upgrades, restarts or stops the pool of instances. So one plugin that is slow
//! to fetch or to start holds up no other.

mod calls;
mod change;
mod checks;
mod configurations;
mod files;
mod functions;
mod kept;
mod masked;
mod reply;
mod reports;
mod request;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use flexcore_domain::Name;
use flexcore_eventstore::{
    Error, EventStore,
    plugin_configurations::ConfigurationNumbers,
    plugins::{InstalledPlugin, InstalledPlugins},
};
use tokio::sync::watch;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use checks::Checks;
use reports::Board;
use start::Users;
pub use start::{TRIAL_USER, bounds, sandbox};

/// The running executable as the guard of plugins: the very file, even if another has taken its place.
pub const GUARD: &str = "/proc/self/exe";

/// Settings of a plugin worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder for plugins' files. A file that is lost there is fetched again.
    pub folder: PathBuf,
    /// The worker's id as a member of the cluster, for reports.
    pub member: String,
    /// The executable that stands between this process and its plugins, by its absolute path: [`GUARD`], or in
    /// tests another one whose `main` begins with `flexcore_plugin::guard::entered`.
    pub guard: PathBuf,
}

/// Longest time for the plugins to end once the worker is told to stop: their calls have
/// [`kept::DRAIN_MAX`], and a process that does not end is killed some seconds later. A test adds them up.
const STOP_MAX: Duration = Duration::from_secs(20);

/// What the tasks of all plugins have in common.
struct Shared {
    store: EventStore,
    settings: Settings,
    installed: watch::Receiver<Arc<InstalledPlugins>>,
    users: Users,
    board: Board,
    checks: Checks,
    configurations: configurations::Known,
}

impl Shared {
    /// The SHA-256 of every file that a plugin has, be it installed or in service.
    fn needed(&self) -> BTreeSet<String> {
        let installed = self.installed.borrow().clone();
        let mut needed = self.board.files();
        needed.extend(installed.installed.values().map(|plugin| plugin.sha256.clone()));
        needed
    }
}

/// The installation of one plugin that is wanted; `None`: it was removed.
type Wanted = watch::Receiver<Option<Arc<InstalledPlugin>>>;

/// Runs what is installed, and answers calls and questions, until the token is cancelled. Then it ends the
/// plugins and returns. Fails when the broker refuses a subscription at the start, and when what is installed
/// is not followed any more.
#[boxed::async_recursion]
pub async fn run(
    store: EventStore,
    mut installed: watch::Receiver<Arc<InstalledPlugins>>,
    settings: Settings,
    stop: CancellationToken,
) -> Result<(), Error> {
    // Before any call: a tenant's first one waits for its configuration.
    let learnt = stop.run_until_cancelled(ConfigurationNumbers::learn(&store)).await;
    let Some((numbers, changes)) = learnt.transpose()? else { return Ok(()) };
    let _followed = AbortOnDropHandle::new(tokio::spawn(changes.follow()));
    let configurations = configurations::Known::new(numbers);
    let (users, board, checks) = (Users::default(), Board::default(), Checks::default());
    let followed = installed.clone();
    let shared =
        Shared { store, settings, installed: followed, users, board, checks, configurations };
    let shared = Arc::new(shared);
    let (tasks, questions) = (TaskTracker::new(), CancellationToken::new());
    // Also when this is dropped or fails.
    let _no_more_questions = questions.clone().drop_guard();
    reports::serve(&shared, installed.clone(), &tasks, &questions).await?;
    files::clean(&shared).await;
    let mut followed = BTreeMap::new();
    loop {
        let now = installed.borrow_and_update().clone();
        shared.users.hold(now.installed.keys());
        hand_out(&now, &mut followed, |name, wanted| {
            tasks.spawn(kept::keep(shared.clone(), name, wanted));
        });
        tokio::select! {
            () = stop.cancelled() => break,
            changed = installed.changed() => if changed.is_err() {
                // It would go on with what was installed so far, beside others that know better.
                let what = "what is installed is not followed any more";
                return Err(Error::Unavailable(what.to_owned()));
            },
        }
    }
    // Each plugin's task stops when nobody tells it any more what is wanted.
    drop(followed);
    questions.cancel();
    tasks.close();
    if tokio::time::timeout(STOP_MAX, tasks.wait()).await.is_err() {
        tracing::warn!("stopped before every plugin had ended");
    }
    Ok(())
}

/// Tells each plugin's task what is wanted, and begins one for each new name. A task stays when its plugin is
/// removed: it has to end the old one before the same name can be taken up again.
fn hand_out(
    now: &InstalledPlugins,
    followed: &mut BTreeMap<Name, watch::Sender<Option<Arc<InstalledPlugin>>>>,
    begin: impl Fn(Name, Wanted),
) {
    let names: BTreeSet<Name> = followed.keys().chain(now.installed.keys()).cloned().collect();
    for name in names {
        let wanted = now.installed.get(&name).cloned();
        let sender = followed.entry(name.clone()).or_insert_with(|| {
            let (sender, receiver) = watch::channel(None);
            begin(name.clone(), receiver);
            sender
        });
        let number_of = |of: &Option<Arc<InstalledPlugin>>| of.as_ref().map(|plugin| plugin.number);
        let number = number_of(&wanted);
        let is_news = sender.send_if_modified(|held| {
            let is_news = number_of(held) != number;
            if is_news {
                *held = wanted;
            }
            is_news
        });
        if is_news {
            tracing::info!(plugin = %name, number, is_installed = number.is_some(), "in force");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{change::plugin, *};

    fn state(of: &[(&str, u32)]) -> InstalledPlugins {
        let installed = of.iter().map(|(name, number)| {
            let name = Name::parse(name).unwrap();
            (name, plugin(*number, 0, "a"))
        });
        InstalledPlugins { installed: installed.collect(), ..InstalledPlugins::default() }
    }

    #[test]
    fn each_plugin_hears_of_its_own_changes_alone() {
        let begun: RefCell<BTreeMap<Name, Wanted>> = RefCell::default();
        let mut followed = BTreeMap::new();
        let mut tell = |of: &[(&str, u32)]| {
            hand_out(&state(of), &mut followed, |name, wanted| {
                let before = begun.borrow_mut().insert(name, wanted);
                assert!(before.is_none(), "one task a name");
            });
            let mut heard = Vec::new();
            for (name, wanted) in begun.borrow_mut().iter_mut() {
                let is_news = wanted.has_changed().unwrap();
                let number = wanted.borrow_and_update().as_ref().map(|plugin| plugin.number);
                if is_news {
                    heard.push((name.to_string(), number));
                }
            }
            heard
        };
        let heard = |name: &str, number| (name.to_owned(), number);
        assert_eq!(tell(&[("a", 1), ("b", 1)]), [heard("a", Some(1)), heard("b", Some(1))]);
        assert!(tell(&[("a", 1), ("b", 1)]).is_empty());
        assert_eq!(tell(&[("a", 1), ("b", 2)]), [heard("b", Some(2))]);
        assert_eq!(tell(&[("b", 2)]), [heard("a", None)]);
        assert_eq!(tell(&[("a", 3), ("b", 2)]), [heard("a", Some(3))]);
    }
}
