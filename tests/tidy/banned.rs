//! Calls that are not made, each with its replacement.

use crate::{none, sources};

/// Parts of the names of what somebody waits for.
const PAUSES: &[&str] =
    &["pause", "wait", "delay", "interval", "backoff", "retry", "sleep", "patience"];

/// Ways to double what is called by the name before.
const DOUBLINGS: &[&str] = &["* 2", "*= 2", ".saturating_mul(2", ".checked_mul(2", ".mul(2"];

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
        // of every crate find the servers by one function; a plugin hears of its host by nothing else,
        // gets its environment by way of its guard, and is told how much to log.
        &[
            "src/config.rs",
            "src/cli.rs",
            "src/plugin/guard/launch.rs",
            "src/plugin/serve.rs",
            "src/sdk/logs.rs",
            "src/readmodel/defects.rs",
            "src/servers/lib.rs",
        ],
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
    ("\"evt", &["src", "workers"], &["src/eventstore/subjects.rs"], "eventstore::subject"),
    (
        "\"cmd.",
        &["src", "workers"],
        &["src/eventstore/subjects.rs"],
        "eventstore::commands::command_subject",
    ),
    (
        "\"cmdq",
        &["src", "workers"],
        &["src/eventstore/subjects.rs"],
        "eventstore::commands::stored_part, published_subject",
    ),
    ("JS.API.DIRECT.GET", &["src/eventstore"], &["src/eventstore/direct.rs"], "direct::get"),
    ("\"min_position\"", &["src", "workers"], &["src/definition/taken.rs"], "taken::MIN_POSITION"),
    ("\"wait_ms\"", &["src", "workers"], &["src/definition/taken.rs"], "taken::WAIT_MS"),
    // One client, with its limits. Where hyper has no words, the gateway has its own.
    ("HTTP/1.", &["src", "workers"], &["src/gateway/listen.rs"], "flexcore_http::ask"),
    ("hyper::client", &["src", "workers"], &[], "flexcore_http::ask"),
    (
        "client::conn",
        &["src", "workers"],
        // Plugins speak gRPC, over sockets. The plugin http connects to the very address that was checked.
        &["src/http/client.rs", "src/plugin/connection.rs", "src/bundled/http/exchange.rs"],
        "flexcore_http::ask",
    ),
    ("server::conn::http1", &["src", "workers"], &["src/http/health.rs"], "flexcore_http::health"),
    ("\"degraded\"", &["src", "workers"], &["src/http/health.rs"], "flexcore_http::health"),
    // One backoff, one source of jitter.
    ("rand::random", &["src", "workers"], &["src/resilience/pause.rs"], "resilience::jitter"),
    ("RandomState::new().hash_one", &["src", "workers"], &[], "resilience::jitter"),
    ("subsec_nanos", &["src", "workers"], &[], "resilience::jitter"),
    ("fn backoff", &["src", "workers"], &[], "resilience::Backoff"),
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

/// True if the line doubles something that is called like a pause.
fn doubles_a_pause(line: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let is_pause = |name: &str| PAUSES.iter().any(|part| name.to_lowercase().contains(part));
    let before = |(at, sign): (usize, &str)| {
        let more = line[at + sign.len()..].starts_with(|c: char| c.is_ascii_digit());
        !more && line[..at].trim_end().rsplit(|c| !is_name(c)).next().is_some_and(is_pause)
    };
    let behind = |(at, sign): (usize, &str)| {
        let mut path = line[at + sign.len()..].split(|c| !is_name(c) && !".:".contains(c));
        !line[..at].ends_with(is_name) && path.next().is_some_and(is_pause)
    };
    let mut signs = DOUBLINGS.iter().flat_map(|sign| line.match_indices(*sign));
    signs.any(before) || line.match_indices("2 * ").any(behind)
}

#[test]
fn pauses_grow_in_one_place() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs")) {
        let path = source.path.as_str();
        if !source.below(&["src", "workers"]) {
            continue;
        }
        for (number, line) in source.code(false).filter(|(_, line)| doubles_a_pause(line)) {
            findings.push(format!("{path}:{number}: resilience::Backoff: {}", line.trim()));
        }
    }
    none(findings);
}

#[test]
fn a_second_backoff_is_seen_however_it_is_spelt() {
    for doubled in [
        "pause = (pause * 2).min(RETRY_LONGEST);",
        "self.again = pause.map(|pause| pause * 2);",
        "retry_wait *= 2;",
        "let delay = std::cmp::min(2 * delay, LONGEST);",
        "self.sleep_for = (2 * self.sleep_for).min(MAX);",
        "let next = self.backoff.saturating_mul(2);",
        "patience *= 2;",
    ] {
        assert!(doubles_a_pause(doubled), "{doubled}");
    }
    for other in ["sleep(POLL_INTERVAL * 20).await;", "let bytes = size * 2;", "12 * waiting"] {
        assert!(!doubles_a_pause(other), "{other}");
    }
}
