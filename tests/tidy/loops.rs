//! Every place that may try something again, or waits before it goes on, and what ends it. An error that no
//! retry cures was once retried like an outage, for ever and without a word.

use std::collections::BTreeMap;

use crate::{none, sources};

/// What a retry is made of: loops that end from within or by time, pauses, and how these grow.
const PAUSES: &[&str] = &[
    "loop {",
    "while let Err(",
    "while Instant::now() <",
    "for attempt in",
    "sleep(",
    "sleep_until(",
    ".jittered(",
    "Backoff {",
];

/// Where these are, how many, and what ends them: also when what is tried fails for good. Benches are
/// stopped by whoever runs them.
const LOOPS: &[(&str, usize, &str)] = &[
    ("src/broker/acknowledged.rs", 1, READS),
    ("src/broker/leader.rs", 5, "the time for one request; an error of the connection at once"),
    ("src/broker/publish.rs", 1, READS),
    ("src/broker/room.rs", 2, LOOKS),
    (
        "src/cluster/node.rs",
        3,
        "leaving; a bucket that does not answer ends the lease, and is told",
    ),
    ("src/cluster/owners.rs", 2, "the time that the caller gives; a tool's look changes nothing"),
    ("src/demo/lib.rs", 6, "an error that does not pass, or nothing that moves for a while"),
    ("src/demo/report.rs", 1, PAGES),
    ("src/eventstore/folded.rs", 1, "an error that does not pass, which is told as such"),
    ("src/eventstore/load.rs", 1, PAGES),
    ("src/eventstore/lookup.rs", 1, PAGES),
    ("src/eventstore/secret.rs", 2, "the time for one request, and an error that does not pass"),
    ("src/eventstore/subscribe.rs", 4, "an error that does not pass; what lasts is told"),
    ("src/gateway/admission.rs", 1, "once: a refusal is told late"),
    ("src/gateway/extract.rs", 1, READS),
    ("src/gateway/listen.rs", 3, "the stop: a connection that fails is nobody else's trouble"),
    ("src/gateway/routes/aggregates.rs", 1, PAGES),
    ("src/gateway/routes/commands.rs", 2, "the time that the client waits"),
    ("src/gateway/routes/events.rs", 1, READS),
    ("src/gateway/routes/health.rs", 1, LOOKS),
    (
        "src/gateway/strangers.rs",
        2,
        "once: a refusal is told late, and a bad token keeps its place for a moment",
    ),
    ("src/http/accept.rs", 2, "a connection that comes; an error is told, and nobody waits"),
    ("src/http/health.rs", 1, READS),
    ("src/installation/connect.rs", 2, "the client library reconnects; a refusal is told"),
    ("src/installation/open.rs", 3, "what a person must mend; what is away is told each time"),
    ("src/lines.rs", 1, READS),
    ("src/operations/deploy.rs", 2, "every error but a conflict, a number of these, and a time"),
    ("src/operations/drain.rs", 2, "a time, and every error"),
    ("src/operations/rows.rs", 2, "an error that does not pass; an outage is shown"),
    ("src/publish.rs", 2, "the time that the user waits, and every error but of the owner"),
    ("src/query.rs", 2, "every answer but that it is being built, and a time of these"),
    ("src/queue/claim.rs", 1, READS),
    ("src/queue/message.rs", 1, "a time, and every error"),
    ("src/readmodel/check.rs", 1, "a number of tries, and every error but of two at once"),
    (
        "src/readmodel/sessions.rs",
        6,
        "the time for a session; a query that cannot be stopped is told",
    ),
    ("src/readmodel/version.rs", 2, "some looks, and every error"),
    ("src/readmodel/wait.rs", 3, "nobody waits: each has a time, and an error is told"),
    ("src/resilience/circuit.rs", 1, "a success: calls fail at once meanwhile"),
    ("src/resilience/endpoints.rs", 3, "each endpoint once, the budget, the deadline; looks go on"),
    ("src/resilience/pause.rs", 2, "nothing is tried here"),
    ("src/resilience/retry.rs", 3, "attempts, the budget, the deadline, and the caller's word"),
    ("src/resilience/shares.rs", 3, "a place, for which whoever waits has a time"),
    ("src/script/sandbox.rs", 1, READS),
    ("src/script/threads.rs", 2, "the task's end"),
    ("src/script/threads/watch.rs", 2, LOOKS),
    ("src/servers/fetch.rs", 1, READS),
    ("src/servers/guard.rs", 5, "a time, or the end of a process that was killed"),
    ("src/servers/nats.rs", 2, "a number of ports, and a time"),
    ("src/servers/postgres.rs", 3, "a number of ports, and a time"),
    ("workers/command.rs", 2, LOOKS),
    ("workers/command/clock.rs", 2, LOOKS),
    ("workers/command/growth.rs", 2, LOOKS),
    ("workers/command/lane/loading.rs", 1, "an error that does not pass; the lane's end"),
    ("workers/command/perform.rs", 4, "the lane's end; loads are tried by the lane: `is_passing`"),
    ("workers/command/pieces.rs", 1, READS),
    ("workers/command/requests.rs", 2, READS),
    ("workers/command/slots.rs", 2, "leaving: only a connection that is closed refuses"),
    ("workers/command/streams.rs", 2, LOOKS),
    ("workers/command/turns.rs", 1, READS),
    ("workers/defects.rs", 1, "once: in test builds alone"),
    ("workers/places.rs", 4, "the stop, and the map's end"),
    ("workers/projection.rs", 4, "the stop: what does not pass is told as such, with a metric"),
    ("workers/projection/commit.rs", 1, "every error; each round puts something aside"),
    ("workers/projection/indexing.rs", 1, "an index that is made; until then it is a trouble"),
    (
        "workers/projection/reader.rs",
        1,
        "every error: the worker parts those that pass from others",
    ),
    ("workers/projection/readers.rs", 1, "a reader that failed rests; one that is refused stops"),
    ("workers/projection/upcast.rs", 1, "a number of tries, and every error but a used-up limit"),
    ("workers/queue.rs", 7, "an error that does not pass is told, and tried now and then"),
    ("workers/queue/progress.rs", 2, LOOKS),
    ("workers/queue/purge.rs", 2, LOOKS),
];

/// Nothing is tried again: it goes on with what comes next, and ends with it.
const READS: &str = "the end of what it reads";
const PAGES: &str = "the last page, and every error";
/// A look that fails says so, and the next one asks anew. Nothing waits for it.
const LOOKS: &str = "the stop: nothing waits for a look";

#[test]
fn every_loop_that_may_try_again_says_what_ends_it() {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources().iter().filter(|it| it.is("rs") && it.below(&["src", "workers"])) {
        if source.path.starts_with("src/bench") {
            continue;
        }
        let pauses = |line: &str| PAUSES.iter().map(|it| line.matches(it).count()).sum::<usize>();
        let all = source.code(false).map(|(_, line)| pauses(line)).sum();
        if all > 0 {
            found.insert(source.path.clone(), all);
        }
    }
    let mut findings = Vec::new();
    for (path, loops) in &found {
        match LOOPS.iter().find(|(listed, ..)| listed == path) {
            Some((_, known, _)) if known == loops => {}
            Some((_, known, _)) => findings.push(format!(
                "{path}: {loops} loops and pauses, and {known} in LOOPS: say what ends each when what \
                 it tries fails for good"
            )),
            None => findings.push(format!(
                "{path}: a loop or a pause: say in LOOPS what ends it when what it tries fails for good"
            )),
        }
    }
    let gone = LOOPS.iter().filter(|(path, ..)| !found.contains_key(*path));
    findings.extend(gone.map(|(path, ..)| format!("{path}: has none; take it off LOOPS")));
    none(findings);
}
