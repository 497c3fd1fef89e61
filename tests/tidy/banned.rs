//! Calls that are not made, each with its replacement.

use crate::{none, sources};

/// Where a pause between looks is doubled, with nothing that has failed.
const DOUBLED: &[&str] =
    &["src/cluster/node.rs", "src/gateway/routes/commands.rs", "workers/command/queue.rs"];

/// Calls and attributes that are not used: pattern, folders where they are looked for, files that
/// may have them, and what to write instead. Where `tests` is among the folders, unit tests count.
const BANNED: &[(&str, &[&str], &[&str], &str)] = &[
    ("todo!(", &["src", "workers", "tests"], &[], "finish it or leave it out"),
    ("unimplemented!(", &["src", "workers", "tests"], &[], "finish it or leave it out"),
    (
        "begin_with(",
        &["src", "workers"],
        &[],
        "transaction::begin_by: a session whose transaction failed to begin goes back to the pool with it",
    ),
    ("pool.begin()", &["src", "workers"], &["src/readmodel/transaction.rs"], "transaction::begin"),
    ("dbg!(", &["src", "workers", "tests"], &[], "remove it"),
    ("#[allow(", &["src", "workers", "tests"], &[], "#[expect(…, reason = \"…\")]"),
    ("#![allow(", &["src", "workers", "tests"], &[], "#![expect(…, reason = \"…\")]"),
    ("#[ignore", &["src", "workers", "tests"], &[], "make it fast enough to run, or delete it"),
    ("println!(", &["src", "workers"], &[], "writeln! to the writer that was handed in"),
    (
        "env::var",
        &["src", "workers"],
        // Defects are switched on where no setting of a release may reach, in test builds alone; tests
        // of every crate find the servers by one function.
        &["src/config.rs", "src/cli.rs", "src/readmodel/defects.rs", "src/servers/lib.rs"],
        "read it in src/config.rs and hand it in",
    ),
    (
        "SystemTime::now",
        &["src/definition", "src/domain", "src/script"],
        &[],
        "take the time as an argument",
    ),
    (
        "now_utc()",
        &["src/definition", "src/domain", "src/script"],
        &[],
        "take the time as an argument",
    ),
    ("Instant::now", &["src/definition", "src/domain"], &[], "take the time as an argument"),
    (
        "rand::",
        &["src/definition", "src/domain", "src/script"],
        &[],
        "take the random value as an argument",
    ),
    (
        "thread::sleep",
        &["src/gateway", "workers", "src/broker", "src/eventstore", "src/queue"],
        &[],
        "tokio::time::sleep",
    ),
    ("\"evt.", &["src", "workers"], &["src/eventstore/subjects.rs"], "eventstore::subject"),
    ("\"min_position\"", &["src", "workers"], &["src/definition/taken.rs"], "taken::MIN_POSITION"),
    ("\"wait_ms\"", &["src", "workers"], &["src/definition/taken.rs"], "taken::WAIT_MS"),
    // One backoff, one source of jitter.
    ("rand::random", &["src", "workers"], &["src/resilience/pause.rs"], "resilience::jitter"),
    ("RandomState::new().hash_one", &["src", "workers"], &[], "resilience::jitter"),
    ("subsec_nanos", &["src", "workers"], &[], "resilience::jitter"),
    ("fn backoff", &["src", "workers"], &[], "resilience::Backoff"),
    ("pause * 2", &["src", "workers"], DOUBLED, "resilience::Backoff"),
];

#[test]
fn banned_calls_have_replacements() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs")) {
        if source.path == "tests/tidy.rs" || source.below(&["tests/tidy"]) {
            continue;
        }
        for (pattern, folders, may, instead) in BANNED {
            if !source.below(folders) || may.contains(&source.path.as_str()) {
                continue;
            }
            let code = source.code(folders.contains(&"tests"));
            for (number, line) in code.filter(|(_, line)| line.contains(pattern)) {
                let path = &source.path;
                findings.push(format!("{path}:{number}: {pattern} → {instead}: {}", line.trim()));
            }
        }
    }
    none(findings);
}
