//! Every place where something is sent to the broker, what bounds its size, and the tests that try
//! it with the largest. A message that is too large is refused for ever, and was once retried like
//! an outage.

use std::collections::BTreeMap;

use crate::{named, none, sources};

/// Calls of the client library that send, and of ours that are called alike. Buckets are written by
/// publishing, with a condition; the library's own way of writing to them is not used.
const SENDS: &[&str] = &[
    ".publish(",
    ".publish_with_",
    ".send_publish(",
    ".send_request(",
    ".request(",
    ".request_with_",
    ".store(",
    "create_key_value(",
    "kv::",
];

/// Where such calls are, how many, why none is too large, and the tests that say so, as `file::name`. Benches
/// send what they choose.
const WRITES: &[(&str, usize, &str, &str)] = &[
    (
        "src/eventstore/lib.rs",
        2,
        "commits: by bytes, before they are sent",
        "sizes::commits sizes::deployments plugins::the_largest_manifest_is_one_message",
    ),
    ("src/eventstore/dead.rs", 1, "it is cut to fit", "sizes::what_is_put_aside"),
    ("src/eventstore/outcomes.rs", 1, "it is cut to fit", "sizes::outcomes"),
    ("src/broker/publish.rs", 5, "each message is checked as encoded", "sizes::commits"),
    ("src/broker/acknowledged.rs", 2, "each message is checked as encoded", "sizes::snapshots"),
    ("src/broker/inbox.rs", 2, "questions: a subject and numbers", QUESTION),
    ("src/broker/clock.rs", 1, "a question without a body", QUESTION),
    ("src/eventstore/deployed.rs", 1, "a question for one subject", QUESTION),
    ("src/eventstore/files.rs", 3, "chunks of one size, a record of one name, a question", FILES),
    ("src/eventstore/find.rs", 1, "a question for one subject", QUESTION),
    ("src/eventstore/kept.rs", 2, "questions for one tenant, and for one number each", QUESTION),
    ("src/broker/leader.rs", 1, "a question for one subject", QUESTION),
    ("src/eventstore/load.rs", 1, "a question for one subject", QUESTION),
    ("src/eventstore/lookup.rs", 1, "a question for one number", QUESTION),
    (
        "src/broker/bucket.rs",
        1,
        "records, progress (numbers and a name), thirty-two digits, sealed configurations",
        PROGRESS,
    ),
    ("src/queue/claim.rs", 1, "a question for one pattern", QUESTION),
    ("src/queue/message.rs", 1, "a question for one number", QUESTION),
    ("src/eventstore/snapshot.rs", 2, "not kept where it is larger than a message", SNAPSHOTS),
    ("src/cluster/bucket.rs", 2, "records: ids are cut, places are counted", RECORDS),
    ("src/cluster/owners.rs", 1, "questions: a payload has a limit of its own", "sizes::commands"),
    ("src/gateway/routes/commands.rs", 1, "by the publisher of commands", "sizes::commands"),
    ("workers/command/requests.rs", 1, "answers: texts are cut, a state is bounded", ANSWERS),
    ("src/operations/deploy.rs", 1, "a question for one name", QUESTION),
    ("src/operations/plugins.rs", 1, "a question without a body", QUESTION),
    (
        "src/bundled/http/exchange.rs",
        1,
        "no broker: a request over HTTP, made of a call's input",
        "http::an_answer_has_a_size_and_a_time",
    ),
    (
        "src/bundled/csv/store.rs",
        2,
        "chunks of one length or as they came; a record remembers 64 calls",
        "csv::pages_and_rows_are_limited write::an_object_remembers_the_last_calls",
    ),
    ("src/operations/plugins/call.rs", 1, "calls: an input has a limit of its own", INPUTS),
    (
        "src/operations/plugins/configuration.rs",
        1,
        "a sealed configuration has a limit of its own",
        CONFIGURATIONS,
    ),
    (
        "workers/command/asked_plugins.rs",
        1,
        "questions: counted, and by bytes",
        "asked_plugins::the_largest_question_is_one_message",
    ),
    (
        "workers/plugin/calls/decisions.rs",
        1,
        "answers: what has no room is asked for alone",
        "decisions::decisions_fit_a_message_whatever_the_plugin_says",
    ),
    (
        "workers/projection/transform/call.rs",
        1,
        "calls: an input has a limit of its own",
        "call::an_event_that_fits_no_message_is_parked_and_sent_to_nobody",
    ),
    (
        "workers/plugin/configurations.rs",
        1,
        "answers: a schema and a configuration, each with a limit",
        CALLED,
    ),
    (
        "workers/plugin/calls/telling.rs",
        2,
        "answers: texts are cut, an output is bounded; words are empty",
        CALLED,
    ),
    ("workers/plugin/reports.rs", 1, "reports and lines: cut to fit", REPORTS),
    ("src/operations/dead.rs", 1, "what the stream does not take is told as final", REQUEUES),
    ("src/demo/lib.rs", 1, "by the publisher of commands", "sizes::commands"),
    ("src/http/client.rs", 1, "over HTTP: nothing goes to the broker", QUESTION),
    ("src/plugin/connection.rs", 1, "gRPC to a plugin: nothing goes to the broker", QUESTION),
    ("src/publish.rs", 1, "its user is told what the stream says", "sizes::commands"),
];

/// Names are bounded, and so is what is asked about them.
const QUESTION: &str = "names::a_subject_of_the_longest_names_is_short";
const PROGRESS: &str = "claim::progress_fits_a_message_whatever_it_says \
                        plugin_configurations::the_largest_sealed_configuration_is_stored_and_a_larger_one_is_not";
const REQUEUES: &str = "nats_commands::a_requeue_that_is_too_large_is_final";
const CONFIGURATIONS: &str = "plugin_configurations::the_largest_configuration_is_taken_and_a_larger_one_is_refused \
     plugin_configurations::the_largest_sealed_configuration_is_stored_and_a_larger_one_is_not";
const SNAPSHOTS: &str = "sizes::snapshots sizes::full_blocks_of_fingerprints";
const RECORDS: &str =
    "size::whatever_members_are_called_no_record_is_larger_than_the_broker_was_asked_for";
const INPUTS: &str =
    "installed_plugins::the_largest_input_fits_a_message_and_a_larger_one_is_refused";
const FILES: &str = "files::a_file_is_read_in_chunks_of_one_length \
                     files::a_file_comes_back_as_it_was_and_may_be_executed";
const CALLED: &str = "plugin::a_reply_about_a_call_fits_a_message_whatever_it_quotes";
const REPORTS: &str = "plugin::a_report_fits_a_message_and_small_plugins_stay_whole";
const ANSWERS: &str = "command::a_reply_about_a_state_fits_a_message_whatever_it_quotes";

#[test]
fn every_write_to_the_broker_has_its_bound_and_a_test() {
    let sources = sources();
    let mut findings = Vec::new();
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    let code = sources.iter().filter(|source| source.is("rs") && source.below(&["src", "workers"]));
    for source in code.filter(|source| !source.path.starts_with("src/bench")) {
        for (_, line) in source.code(false) {
            // A number that threads share is stored, too.
            let sends =
                SENDS.iter().filter(|send| !send.contains("store") || !line.contains("Ordering::"));
            let sends = sends.map(|send| line.matches(send).count()).sum::<usize>();
            *found.entry(&source.path).or_default() += sends;
        }
    }
    found.retain(|_, sends| *sends > 0);
    let listed: BTreeMap<&str, usize> =
        WRITES.iter().map(|(path, sends, ..)| (*path, *sends)).collect();
    for (path, sends) in &found {
        match listed.get(path) {
            Some(known) if known == sends => {}
            Some(known) => findings.push(format!(
                "{path}: {sends} writes to the broker, and {known} in WRITES: say what bounds each"
            )),
            None => findings.push(format!(
                "{path}: writes to the broker: write through the event store, or say in WRITES what \
                 bounds the size, and which test tries the largest"
            )),
        }
    }
    let gone = listed.keys().filter(|path| !found.contains_key(**path));
    findings.extend(gone.map(|path| format!("{path}: writes nothing; take it off WRITES")));
    let tests = named::tests(&sources);
    let named =
        WRITES.iter().flat_map(|(path, .., all)| all.split(' ').map(move |test| (path, test)));
    let missing = named.filter(|(_, test)| !tests.contains(*test));
    findings.extend(missing.map(|(path, test)| format!("{path}: there is no test {test}")));
    none(findings);
}
