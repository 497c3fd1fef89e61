//! How a plugin is started, as its manifest says.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flexcore_definition::{PluginContract, PluginManifest, Wish};
use flexcore_domain::{Name, fnv1a, plugin::OUTPUT_BYTES_MAX};
use flexcore_eventstore::plugins::InstalledPlugin;
use flexcore_plugin::{
    Checked, Cookie, Start,
    guard::{Bounds, Files, Measure, Sandbox, User},
};
use flexcore_pool::{Configurations, Spec};

/// The first user of those that plugins run as, and how many there are: the range that systemd keeps for users
/// that come and go.
const USERS_FIRST: u32 = 61_184;
const USERS: u32 = 4_336;

/// The user of a plugin that is tried before it is installed, where its manifest asks for one of its own: none of
/// those that a worker gives.
pub const TRIAL_USER: User = User { uid: USERS_FIRST + USERS, gid: USERS_FIRST + USERS };

/// Largest message that is taken from a plugin, in bytes. 5 MiB: its description, and what stands around it. As
/// much is in memory for a call under way of a foreign one.
const ANSWER_BYTES_MAX: usize = 5 * 1024 * 1024;

/// What stands around an output, in bytes. 64 KiB: some headers. An output beyond its limit is refused; it need not
/// be read first.
const AROUND_BYTES: usize = 64 * 1024;

/// How a pool runs an installed plugin from this file, as this user where its manifest asks for one, with these
/// configurations of its tenants.
pub(super) fn spec(
    installed: &Arc<InstalledPlugin>,
    file: Checked,
    guard: &Path,
    user: User,
    configurations: Configurations,
) -> Spec {
    let (of, guard, manifest) = (installed.clone(), guard.to_owned(), &installed.manifest);
    Spec {
        start: Arc::new(move || start(&of.manifest, file.clone(), &guard, user)),
        instances: manifest.instances,
        concurrency: manifest.concurrency,
        start_wait: manifest.start,
        call_max: manifest.call,
        output_bytes_max: OUTPUT_BYTES_MAX + AROUND_BYTES,
        contract: manifest.contract == PluginContract::Flexcore,
        configurations,
        name: manifest.name.to_string(),
    }
}

fn start(manifest: &PluginManifest, file: Checked, guard: &Path, user: User) -> Start {
    let cookie = manifest.cookie.clone().map(|(key, value)| Cookie { key, value });
    let variables = manifest.environment.iter();
    Start {
        file,
        guard: guard.to_owned(),
        arguments: manifest.arguments.iter().map(OsString::from).collect(),
        environment: variables.map(|(name, value)| (name.into(), value.into())).collect(),
        cookie: cookie.unwrap_or_else(Cookie::flexcore),
        versions: manifest.protocol_versions.clone(),
        tls: manifest.tls,
        multiplex: manifest.multiplex,
        start_wait: manifest.start,
        answer_bytes_max: ANSWER_BYTES_MAX,
        bounds: bounds(manifest),
        sandbox: sandbox(manifest, user),
        // The pool keeps what is printed.
        output: Arc::new(|_| {}),
    }
}

/// The most that a plugin may use, as its manifest says.
#[must_use]
pub fn bounds(manifest: &PluginManifest) -> Bounds {
    Bounds {
        memory_bytes: manifest.limits.memory_bytes,
        cpu_s: manifest.limits.cpu_s,
        files: manifest.limits.files,
        processes: manifest.limits.processes,
    }
}

/// What a plugin is kept from, as its manifest says; as this user where it asks for one of its own.
#[must_use]
pub fn sandbox(manifest: &PluginManifest, user: User) -> Sandbox {
    let wishes = &manifest.sandbox;
    let mut demanded = BTreeSet::new();
    for (wish, measure) in [
        (wishes.own_user, Measure::User),
        (wishes.network, Measure::Network),
        (wishes.files, Measure::Files),
        (wishes.processes, Measure::Processes),
    ] {
        if wish == Some(Wish::Demand) {
            demanded.insert(measure);
        }
    }
    Sandbox {
        user: wishes.own_user.map(|_| user),
        no_network: wishes.network.is_some(),
        files: wishes.files.map(|_| Files::default()),
        own_processes: wishes.processes.is_some(),
        demanded,
        ..Sandbox::default()
    }
}

/// The users of this worker's plugins: each has its own, as long as it is there.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<BTreeMap<Name, u32>>);

impl Users {
    /// The plugin's user, from now on until it is given back.
    pub(super) fn of(&self, name: &Name) -> User {
        let mut held = self.lock();
        let number = held.get(name).copied().unwrap_or_else(|| {
            let taken = held.values().copied().collect();
            free_number(name.as_str(), &taken)
        });
        held.insert(name.clone(), number);
        User { uid: number, gid: number }
    }

    /// For all plugins that are there at once: whoever asks in the same order gets the same users.
    pub(super) fn hold<'n>(&self, names: impl Iterator<Item = &'n Name>) {
        for name in names {
            let _ = self.of(name);
        }
    }

    /// Nothing of the plugin runs any more.
    pub(super) fn give_back(&self, name: &Name) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number that the plugin's name gives, or the next one that is free: mostly the same on every machine and at
/// every start.
fn free_number(name: &str, taken: &BTreeSet<u32>) -> u32 {
    let first = fnv1a(name.bytes()) % USERS;
    let mut numbers = (first..USERS).chain(0..first).map(|number| USERS_FIRST + number);
    // No installation has so many plugins that none is free.
    numbers.find(|number| !taken.contains(number)).unwrap_or(USERS_FIRST + first)
}

#[cfg(test)]
mod tests {
    use flexcore_definition::SourceFile;

    use super::*;

    fn manifest(text: &str) -> PluginManifest {
        let text = format!("name: greeter\nversion: 0.1.0\nfile: greeter\n{text}");
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let Ok(manifest) = PluginManifest::read(source) else { panic!("it is a manifest") };
        manifest
    }

    fn started(text: &str) -> Start {
        let file = Checked::open(&std::env::current_exe().unwrap(), None).unwrap();
        start(&manifest(text), file, Path::new("/guard"), User { uid: 7, gid: 7 })
    }

    #[test]
    fn nothing_is_asked_for_unless_the_manifest_says_so() {
        let start = started("");
        assert_eq!(start.cookie, Cookie::flexcore());
        assert_eq!(start.versions, [1]);
        assert!(start.tls && !start.multiplex && start.arguments.is_empty());
        assert_eq!((start.bounds, start.sandbox), (Bounds::default(), Sandbox::default()));
        assert_eq!(start.guard, Path::new("/guard"));
    }

    #[test]
    fn what_a_manifest_says_is_what_a_start_takes() {
        let start = started(
            "arguments: [--x]\nenvironment: {MODE: fast}\ncookie: {key: K, value: V}\n\
             protocol_versions: [5, 6]\ntls: false\nmultiplex: true\n\
             limits: {processor: 3600s, files: 256}\n\
             sandbox: {own_user: ask, network: demand, files: ask}\n",
        );
        assert_eq!(start.arguments, ["--x"]);
        assert_eq!(start.environment, [(OsString::from("MODE"), OsString::from("fast"))]);
        assert_eq!(start.cookie, Cookie { key: "K".to_owned(), value: "V".to_owned() });
        assert_eq!(start.versions, [5, 6]);
        assert!(!start.tls && start.multiplex);
        let bounds = Bounds { cpu_s: Some(3_600), files: Some(256), ..Bounds::default() };
        assert_eq!(start.bounds, bounds);
        let sandbox = start.sandbox;
        assert!(sandbox.no_network && !sandbox.own_processes && sandbox.files.is_some());
        assert_eq!(sandbox.demanded, BTreeSet::from([Measure::Network]));
        assert_eq!(sandbox.user, Some(User { uid: 7, gid: 7 }));
    }

    #[test]
    fn no_two_plugins_have_one_user() {
        let [one, other] = ["qx", "ald"].map(|name| Name::parse(name).unwrap());
        let hashed = free_number("qx", &BTreeSet::new());
        assert_eq!(free_number("ald", &BTreeSet::new()), hashed, "their names give one number");
        let users = Users::default();
        users.hold([&one, &other].into_iter());
        assert_eq!(users.of(&one), User { uid: hashed, gid: hashed });
        assert_eq!(users.of(&other).uid, hashed + 1);
        users.give_back(&one);
        assert_eq!(users.of(&other).uid, hashed + 1, "it runs as that one");
        assert_eq!(users.of(&one).uid, hashed);
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let all = USERS_FIRST..USERS_FIRST + USERS;
        let mut taken: BTreeSet<u32> = all.clone().collect();
        let hashed = free_number("qx", &taken);
        assert!(all.contains(&hashed), "where none is free, two have one");
        taken.remove(&(hashed - 1));
        assert_eq!(free_number("qx", &taken), hashed - 1, "after the last comes the first");
    }
}
