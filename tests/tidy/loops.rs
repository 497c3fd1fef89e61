//! Every place that may try something again, or waits before it goes on, and what ends it. An error that no
//! retry cures was once retried like an outage, for ever and without a word.

use std::collections::BTreeMap;

use crate::{named, none, sources};

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
    ("src/broker/ephemeral.rs", 4, "a time, and that there is nothing to delete"),
    ("src/broker/leader.rs", 5, "the time for one request; an error of the connection at once"),
    ("src/broker/publish.rs", 1, READS),
    ("src/broker/room.rs", 2, LOOKS),
    (
        "src/cluster/node.rs",
        3,
        "leaving; a bucket that does not answer ends the lease, and is told",
    ),
    ("src/bundled/csv/read.rs", 1, READS),
    (
        "src/bundled/mail/smtp/conversation.rs",
        1,
        "the caller's time, the end of the connection, a line's limit",
    ),
    ("src/bundled/postgres/connections.rs", 1, "nothing is tried: an idle connection is closed"),
    ("src/cluster/owners.rs", 2, "the time that the caller gives; a tool's look changes nothing"),
    ("src/demo/lib.rs", 6, "an error that does not pass, or nothing that moves for a while"),
    ("src/demo/report.rs", 1, PAGES),
    ("src/eventstore/folded.rs", 1, "an error that does not pass, which is told as such"),
    ("src/eventstore/load.rs", 1, PAGES),
    ("src/eventstore/lookup.rs", 1, PAGES),
    ("src/eventstore/secret.rs", 2, "the time for one request, and an error that does not pass"),
    (
        "src/eventstore/plugin_configurations.rs",
        5,
        "the end of the worker; what stays wrong is told, and tried on",
    ),
    ("src/eventstore/subscribe.rs", 4, "an error that does not pass; what lasts is told"),
    ("src/gateway/admission.rs", 1, "once: a refusal is told late"),
    ("src/gateway/extract.rs", 1, READS),
    ("src/gateway/form.rs", 4, READS),
    ("src/gateway/listen.rs", 4, "the stop: a connection that fails is nobody else's trouble"),
    ("src/gateway/routes/aggregates.rs", 1, PAGES),
    ("src/gateway/routes/commands.rs", 2, "the time that the client waits"),
    ("src/gateway/routes/events.rs", 1, READS),
    ("src/gateway/routes/health.rs", 1, LOOKS),
    ("src/gateway/secret.rs", 1, LOOKS),
    (
        "src/gateway/strangers.rs",
        3,
        "once: a refusal is told late, and a bad token keeps its place for a moment",
    ),
    ("src/http/accept.rs", 2, "a connection that comes; an error is told, and nobody waits"),
    ("src/http/health.rs", 1, READS),
    ("src/installation/connect.rs", 2, "the client library reconnects; a refusal is told"),
    ("src/installation/open.rs", 3, "what a person must mend; what is away is told each time"),
    ("src/lines.rs", 1, READS),
    ("src/operations/deploy.rs", 2, "every error but a conflict, a number of these, and a time"),
    ("src/operations/drain.rs", 2, "a time, and every error"),
    (
        "src/operations/plugins/call.rs",
        5,
        "a number of workers, the caller's time, and every answer but that nothing was done",
    ),
    ("src/operations/rows.rs", 2, "an error that does not pass; an outage is shown"),
    ("src/plugin_folders.rs", 2, LOOKS),
    ("src/plugin/broker.rs", 2, "the time for one knock, and the end of the exchange"),
    ("src/plugin/broker/accepted.rs", 3, "whoever drops it, and the end of the connection"),
    ("src/plugin/broker/knocks.rs", 1, "the end of the connection"),
    ("src/plugin/broker/shared.rs", 2, "what is looked for, within a time, or the exchange's end"),
    ("src/plugin/guard/launch.rs", 2, "a time, and every error but that the file is being written"),
    ("src/plugin/guard/watch.rs", 2, "the end of the plugin, and of all that it started"),
    ("src/plugin/host/attached.rs", 1, "the end of the process; who waits for it has a time"),
    ("src/plugin/guard/removal.rs", 2, "a number of steps"),
    ("src/plugin/mux.rs", 2, "the end of the connection"),
    ("src/plugin/process.rs", 2, "once each: a time that is waited"),
    ("src/plugin/process/checked.rs", 1, READS),
    ("src/plugin/serve.rs", 3, "the stop: a connection that fails is nobody else's trouble"),
    (
        "src/plugin/transport.rs",
        3,
        "the time for a dial, every error but a full queue; a connection that comes",
    ),
    ("src/pool/calls.rs", 1, "the time of whoever waits, and the end of all instances"),
    ("src/pool/group.rs", 1, "the end of an instance, or a number of its starts"),
    ("src/pool/instance.rs", 4, "the stop, and what no start cures; what never lasts rests"),
    ("src/pool/limits.rs", 2, "nothing is tried here"),
    ("src/pool/notice.rs", 2, "the time that was said"),
    ("src/pool/pool.rs", 1, "the time of whoever waits, and the end of all instances"),
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
    ("src/sdk/testing/running.rs", 1, "a time"),
    ("src/servers/fetch.rs", 1, READS),
    ("src/servers/guard.rs", 5, "a time, or the end of a process that was killed"),
    ("src/servers/nats.rs", 2, "a number of ports, and a time"),
    ("src/servers/postgres.rs", 3, "a number of ports, and a time"),
    ("workers/command.rs", 2, LOOKS),
    ("workers/command/clock.rs", 2, LOOKS),
    ("workers/command/growth.rs", 2, LOOKS),
    ("workers/command/lane/loading.rs", 1, "an error that does not pass; the lane's end"),
    ("workers/command/outside.rs", 1, "the end of the load, every error, and a lack of room"),
    ("workers/command/perform.rs", 5, "the lane's end; loads: `is_passing`; away: `TRIES_MAX`"),
    ("workers/command/pieces.rs", 1, READS),
    ("workers/command/requests.rs", 2, READS),
    ("workers/command/slots.rs", 2, "leaving: only a connection that is closed refuses"),
    ("workers/command/streams.rs", 2, LOOKS),
    ("workers/command/turns.rs", 1, READS),
    ("workers/defects.rs", 1, "once: in test builds alone"),
    ("workers/places.rs", 4, "the stop, and the map's end"),
    (
        "workers/command/asked_plugins.rs",
        2,
        "nothing waits any more; each question has a time, and is sent again so many times",
    ),
    (
        "workers/projection/transform.rs",
        4,
        "the stop; a plugin that is away, or busy for long, ends the reader, and is told",
    ),
    ("workers/plugin.rs", 1, "the stop, and that nobody says any more what is installed"),
    ("workers/plugin/calls.rs", 6, "the stop: a refused subscription is told, and tried again"),
    ("workers/plugin/calls/telling.rs", 3, "the end of the call that it tells of"),
    (
        "workers/plugin/configurations.rs",
        5,
        "the stop: a refused subscription is told, and tried again",
    ),
    ("workers/plugin/files.rs", 5, "a file that is gone or another one; an outage is told"),
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
    ("workers/queue/outcomes.rs", 2, "once: when the place is to be left"),
    ("workers/queue/progress.rs", 2, LOOKS),
    ("workers/queue/purge.rs", 2, LOOKS),
];

/// Files of LOOPS, and the tests that try them with an error that no retry cures, as `file::name`. Of the
/// others the sentence alone says so.
const TRIED: &[(&str, &[&str])] = &[
    ("src/broker/ephemeral.rs", &["queue::a_reader_is_deleted_as_soon_as_somebody_can"]),
    ("src/demo/lib.rs", &["lib::a_passing_error_does_not_end_the_demo"]),
    (
        "src/eventstore/folded.rs",
        &[
            "folded::a_commit_that_cannot_be_read_is_news_for_its_state_alone_and_reading_ends_with_the_last",
        ],
    ),
    (
        "src/eventstore/subscribe.rs",
        &["subscription::a_log_that_was_replaced_by_another_is_not_waited_for"],
    ),
    (
        "src/installation/connect.rs",
        &["logins::a_refused_login_ends_the_start_and_says_what_to_do"],
    ),
    ("src/installation/open.rs", &["open::what_a_person_must_mend_is_not_waited_for"]),
    (
        "src/operations/deploy.rs",
        &["definitions::what_would_make_recorded_events_unreadable_is_refused"],
    ),
    ("src/plugin/guard/watch.rs", &["stopping::children_are_gone_after_a_crash"]),
    ("src/plugin/host/attached.rs", &["attached::it_is_ended_if_it_does_not_end"]),
    (
        "src/plugin/process.rs",
        &["stopping::a_plugin_that_ignores_shutdown_and_sigterm_is_killed_in_time"],
    ),
    ("src/plugin/transport.rs", &["transport::only_a_socket_is_dialled"]),
    ("src/readmodel/sessions.rs", &["unstopped::a_query_that_cannot_be_stopped_keeps_its_place"]),
    (
        "src/resilience/circuit.rs",
        &["downstream::a_target_that_stays_away_gets_a_probe_a_pause_and_no_more"],
    ),
    ("src/resilience/endpoints.rs", &["tests::a_refusal_is_an_answer_and_is_not_asked_elsewhere"]),
    ("src/resilience/retry.rs", &["retry::a_call_is_tried_again_a_bounded_number_of_times"]),
    ("src/servers/nats.rs", &["lifetime::a_taken_port_is_an_error_that_quotes_the_server"]),
    (
        "workers/command/lane/loading.rs",
        &["lane_tests::a_changed_commit_is_noticed_and_answers_no_command"],
    ),
    (
        "workers/command/perform.rs",
        &["lane_tests::a_changed_commit_is_noticed_and_answers_no_command"],
    ),
    (
        "workers/queue.rs",
        &[
            "unstored::the_largest_command_that_there_can_be_is_put_aside_and_the_next_is_done",
            "unstored::a_commit_that_is_too_large_is_put_aside_and_the_next_is_done",
            "queue::a_queue_that_is_behind_is_asked_again_and_lost_when_it_stays_so",
        ],
    ),
    ("workers/projection.rs", &["projection::a_damaged_log_is_no_outage"]),
    ("workers/projection/commit.rs", &["main::events_become_rows_and_bad_ones_are_parked"]),
    (
        "workers/projection/indexing.rs",
        &["indexes::a_version_serves_without_the_index_that_cannot_be_made"],
    ),
    (
        "workers/projection/transform.rs",
        &["call::what_never_passes_parks_the_event_and_all_else_is_waited_for"],
    ),
    ("workers/plugin/files.rs", &["plugin::a_file_that_is_not_there_is_told_and_holds_nobody_up"]),
    (
        "workers/projection/readers.rs",
        &["readers::a_shared_read_model_that_postgres_refuses_stops"],
    ),
    ("workers/projection/upcast.rs", &["runaways::a_hostile_application_holds_up_no_other"]),
];

/// Nothing is tried again: it goes on with what comes next, and ends with it.
const READS: &str = "the end of what it reads";
const PAGES: &str = "the last page, and every error";
/// A look that fails says so, and the next one asks anew. Nothing waits for it.
const LOOKS: &str = "the stop: nothing waits for a look";

#[test]
fn every_loop_that_may_try_again_says_what_ends_it() {
    let sources = sources();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources.iter().filter(|it| it.is("rs") && it.below(&["src", "workers"])) {
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
                "{path}: a loop or a pause: say in LOOPS what ends it when what it tries fails for good, \
                 and in TRIED which test shows that"
            )),
        }
    }
    let gone = LOOPS.iter().filter(|(path, ..)| !found.contains_key(*path));
    findings.extend(gone.map(|(path, ..)| format!("{path}: has none; take it off LOOPS")));
    let tests = named::tests(&sources);
    for (path, tried) in TRIED {
        if !LOOPS.iter().any(|(listed, ..)| listed == path) {
            findings.push(format!("{path}: it is in TRIED, and not in LOOPS"));
        }
        let missing = tried.iter().filter(|test| !tests.contains(**test));
        findings.extend(missing.map(|test| format!("{path}: there is no test {test}")));
    }
    none(findings);
}
