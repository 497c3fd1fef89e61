//! Allowed arrows among our crates.

use cargo_metadata::DependencyKind;

use crate::{metadata, none, root};

/// Allowed dependencies among our crates, each with the reason for its limits.
pub(crate) const EDGES: &[(&str, &[&str], &str)] = &[
    ("domain", &[], "the words of the domain are pure and know nobody"),
    ("telemetry", &[], "everybody may use it, so it may use nobody"),
    ("out", &[], "it prints, whatever is printed"),
    ("servers", &[], "it starts servers, whatever runs on them"),
    ("http", &[], "it asks and answers, whatever is said"),
    ("broker", &["http", "resilience"], "it publishes and reads, whatever a stream holds"),
    ("queue", &["broker"], "it hands out messages and records what is settled, whatever they mean"),
    ("plugin", &[], "it hosts plugins, whatever these are for, and plugins are built on it"),
    ("sdk", &["plugin"], "plugins are written with it, whatever they do"),
    ("pool", &["plugin", "resilience"], "it keeps plugins running, whoever installed them"),
    ("cluster", &["broker", "resilience"], "leases and slots are about members, whatever these do"),
    ("resilience", &[], "everybody may use it, so it may use nobody"),
    (
        "definition",
        &["domain"],
        "an application is read from its files alone, before there is an installation",
    ),
    (
        "script",
        &["definition", "domain"],
        "the engine knows the decider's interface and no infrastructure",
    ),
    (
        "eventstore",
        &["broker", "definition", "domain", "queue", "resilience"],
        "the log holds commits, whoever makes or reads them, and tenants share its connections",
    ),
    (
        "readmodel",
        &["definition", "domain", "resilience"],
        "rows are folded from events, wherever these come from",
    ),
    ("auth", &["domain"], "identity has to be usable alone"),
    (
        "operations",
        &["cluster", "definition", "domain", "eventstore", "readmodel", "resilience"],
        "command line and gateway call it, so it neither prints nor answers, and runs no script",
    ),
    (
        "gateway",
        &[
            "auth",
            "cluster",
            "definition",
            "domain",
            "eventstore",
            "http",
            "operations",
            "readmodel",
            "resilience",
            "telemetry",
        ],
        "it reaches the workers over NATS only, at the slot's owner, so that both scale alone; it \
         reports on the cluster in the words of the command line",
    ),
    (
        "workers",
        &[
            "cluster",
            "definition",
            "domain",
            "eventstore",
            "plugin",
            "pool",
            "queue",
            "readmodel",
            "resilience",
            "script",
            "telemetry",
        ],
        "they are reached over NATS only, so that both scale alone",
    ),
    (
        "bundled",
        &["plugin", "sdk"],
        "plugins that come with FlexCore are built as anybody's are, and can guard themselves in tests",
    ),
    (
        "installation",
        &[
            "auth",
            "cluster",
            "definition",
            "domain",
            "eventstore",
            "gateway",
            "http",
            "readmodel",
            "resilience",
            "servers",
            "workers",
        ],
        "it opens an installation and runs its roles, whoever asks for them: nothing below needs it",
    ),
    (
        "demo",
        &[
            "domain",
            "eventstore",
            "installation",
            "operations",
            "out",
            "readmodel",
            "script",
            "servers",
        ],
        "it uses an installation as its users do, and is used by nobody but the executable",
    ),
    (
        "bench",
        &[
            "auth",
            "cluster",
            "definition",
            "domain",
            "eventstore",
            "http",
            "installation",
            "operations",
            "out",
            "plugin",
            "readmodel",
            "sdk",
            "servers",
            "workers",
        ],
        "it measures everything, and is used by nobody but the executable",
    ),
];

/// Crates whose errors are read by people alone. A caller of the others acts on a variant.
const ANYHOW: &[&str] = &["bench", "demo", "installation", "out", "workers"];

#[test]
fn crates_use_only_what_they_may() {
    let metadata = metadata();
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        let Some(name) = package.name.strip_prefix("flexcore-") else { continue };
        let Some((_, may, reason)) = EDGES.iter().find(|(of, ..)| *of == name) else {
            findings.push(format!("{name}: a new crate; say in EDGES what it may use, and why"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(used) = dependency.name.strip_prefix("flexcore-") else { continue };
            let in_tests = dependency.kind == DependencyKind::Development;
            // A crate's tests may want a feature of its own that its users do not get.
            if !(may.contains(&used) || in_tests && (used == "servers" || used == name)) {
                findings.push(format!("{name} → {used} is no edge of ours: {reason}"));
            }
        }
    }
    none(findings);
}

#[test]
fn a_caller_of_a_library_can_tell_its_errors_apart() {
    let metadata = metadata();
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        let Some(name) = package.name.strip_prefix("flexcore-") else { continue };
        let untyped = package
            .dependencies
            .iter()
            .any(|used| used.name == "anyhow" && used.kind != DependencyKind::Development);
        if untyped && !ANYHOW.contains(&name) {
            findings.push(format!("{name}: one `Error` enum in place of anyhow"));
        }
    }
    none(findings);
}

/// `src/x.rs` beside `src/x/` reads as one module, and is the executable's beside a crate.
#[test]
fn no_file_of_the_executable_is_called_like_a_crate() {
    let file = |name: &str| format!("src/{name}.rs");
    let named = EDGES.iter().map(|(name, ..)| file(name)).filter(|path| root().join(path).exists());
    none(named.map(|path| format!("{path}: call it after what it does itself")).collect());
}
