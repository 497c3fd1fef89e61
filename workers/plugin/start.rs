//! How a plugin is started, as its manifest says.

use std::{collections::BTreeSet, ffi::OsString, path::Path, sync::Arc};

use flexcore_definition::{PluginContract, PluginManifest, Wish};
use flexcore_eventstore::plugins::InstalledPlugin;
use flexcore_plugin::{
    Checked, Cookie, Start,
    guard::{Bounds, Files, Measure, Sandbox, User},
    limits::ANSWER_BYTES_MAX,
};
use flexcore_pool::Spec;

/// The first user of those that plugins run as, and how many there are: the range that systemd keeps for users
/// that come and go.
const USERS_FIRST: u32 = 61_184;
const USERS: u32 = 4_336;

/// How a pool runs an installed plugin from this file.
pub(super) fn spec(installed: &Arc<InstalledPlugin>, file: Checked, guard: &Path) -> Spec {
    let (of, guard, manifest) = (installed.clone(), guard.to_owned(), &installed.manifest);
    Spec {
        start: Arc::new(move || start(&of.manifest, file.clone(), &guard)),
        instances: manifest.instances,
        concurrency: manifest.concurrency,
        start_wait: manifest.start,
        call_max: manifest.call,
        contract: manifest.contract == PluginContract::Flexcore,
        name: manifest.name.to_string(),
    }
}

fn start(manifest: &PluginManifest, file: Checked, guard: &Path) -> Start {
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
        bounds: Bounds {
            memory_bytes: manifest.limits.memory_bytes,
            cpu_s: manifest.limits.cpu_s,
            files: manifest.limits.files,
            processes: manifest.limits.processes,
        },
        sandbox: sandbox(manifest),
        // The pool keeps what is printed.
        output: Arc::new(|_| {}),
    }
}

fn sandbox(manifest: &PluginManifest) -> Sandbox {
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
        user: wishes.own_user.map(|_| user(manifest.name.as_str())),
        no_network: wishes.network.is_some(),
        files: wishes.files.map(|_| Files::default()),
        own_processes: wishes.processes.is_some(),
        demanded,
        ..Sandbox::default()
    }
}

/// The user of a plugin: the same on every machine and at every start, so that it can be told from others.
fn user(name: &str) -> User {
    // FNV-1a. Two plugins may have one user; they are of one host then, as without this measure.
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let number = USERS_FIRST + hash % USERS;
    User { uid: number, gid: number }
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
        start(&manifest(text), file, Path::new("/guard"))
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
        let user = sandbox.user.unwrap();
        assert!((USERS_FIRST..USERS_FIRST + USERS).contains(&user.uid) && user.uid == user.gid);
    }
}
