//! The limits that README.md tells are those of the code.

use flexcore_domain::{limits as domain, plugin};
use flexcore_gateway::limits as gateway;
use flexcore_readmodel as readmodel;
use flexcore_script::limits as script;

use crate::documents::README;

/// The rows of the table under this heading.
fn table(document: &'static str, heading: &str) -> Vec<(String, String)> {
    let (_, section) = document.split_once(&format!("\n{heading}\n")).unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("| --- |")).skip(1);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let (what, most) = line.trim_matches(['|', ' ']).split_once(" | ").unwrap();
            (what.trim().to_owned(), most.trim().to_owned())
        })
        .collect()
}

fn kib(bytes: usize) -> String {
    assert_eq!(bytes % 1024, 0);
    format!("{} KiB", bytes >> 10)
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

fn thousands(number: usize) -> String {
    if number < 1_000 {
        return number.to_string();
    }
    format!("{},{:03}", number / 1_000, number % 1_000)
}

/// The rows of the limits of processor time.
fn of_functions() -> [(&'static str, String); 3] {
    let memory = format!("{} MiB", script::MEMORY_BYTES_MAX >> 20);
    let [decide, evolve, fold] =
        [script::DECIDE_MAX, script::EVOLVE_MAX, script::FOLD_MAX].map(|max| max.as_millis());
    [
        (
            "`decide`, with the `evolve` of its events; `upcast`",
            format!("{decide} ms of processor time, {memory}"),
        ),
        (
            "`evolve` of a commit's events when a state is loaded",
            format!(
                "{decide} ms of processor time and {evolve} ms for each event, at most {fold} ms, and \
                 {fold} ms in all with their `upcast`; {memory}"
            ),
        ),
        (
            "checks of a command's events against their schemas",
            format!("{decide} ms of processor time"),
        ),
    ]
}

/// The rows of the limits of plugins.
fn of_plugins() -> [(&'static str, String); 4] {
    assert_eq!(plugin::INPUT_BYTES_MAX, plugin::OUTPUT_BYTES_MAX);
    let words = kib(plugin::INPUT_BYTES_MAX);
    let file = domain::PLUGIN_FILE_BYTES_MAX >> 20;
    let files = flexcore_eventstore::topology::FILES_BYTES_MAX >> 30;
    let call_s = flexcore_definition::PLUGIN_CALL_S;
    [
        ("input and output of a plugin's function", format!("{words} each")),
        (
            "a plugin's file; files of all plugins, with the one before of each",
            format!("{file} MiB; {files} GiB"),
        ),
        (
            "a tenant's configuration of a plugin",
            kib(flexcore_domain::plugin_configuration::CONFIGURATION_BYTES_MAX),
        ),
        ("a call of a plugin", format!("{call_s} s, unless its manifest says otherwise")),
    ]
}

/// The rows of the limits of read models.
fn of_read_models(commit: &str) -> [(&'static str, String); 4] {
    [
        (
            "bytes that an event sets of a row of a read model",
            format!(
                "{}, else it is parked for that read model; an `upcast` makes {commit} at most",
                mib(readmodel::CHANGE_BYTES_MAX)
            ),
        ),
        ("rows of a page of a read model", thousands(readmodel::select::LIMIT_MAX as usize)),
        (
            "rows of a named query",
            format!(
                "{}, together {} of JSON",
                thousands(readmodel::ROWS_MAX),
                mib(readmodel::RESULT_BYTES_MAX)
            ),
        ),
        (
            "bytes of a page of a read model",
            format!(
                "{}, and a row: the page ends there, and its cursor goes on",
                mib(readmodel::RESULT_BYTES_MAX)
            ),
        ),
    ]
}

#[test]
fn the_limits_in_the_readme_are_those_of_the_code() {
    let deep = format!("nested {} levels", domain::JSON_DEPTH_MAX);
    let commit = kib(domain::COMMIT_BYTES_MAX);
    let [decide, evolve, checks] = of_functions();
    let [words, file, configuration, call] = of_plugins();
    let [set, rows, named, page] = of_read_models(&commit);
    let query_s = readmodel::Settings::default().statement_timeout.as_secs();
    assert_eq!(gateway::WAIT_MAX.as_secs(), 30, "positions and outcomes alike");
    let expected = [
        ("a command's payload", format!("{}, {deep}", kib(domain::PAYLOAD_BYTES_MAX))),
        ("events of a command", format!("{}, together {commit}", domain::COMMIT_EVENTS_MAX)),
        ("an aggregate's state", format!("{} of JSON, {deep}", kib(domain::STATE_BYTES_MAX))),
        decide,
        evolve,
        checks,
        (
            "code and message of a rejection",
            format!("{} and {} characters", script::CODE_CHARS_MAX, script::MESSAGE_CHARS_MAX),
        ),
        set,
        rows,
        named,
        page,
        ("a query", format!("{query_s} s")),
        ("events in an answer", thousands(gateway::EVENTS_PAGE_MAX)),
        (
            "requests of a tenant",
            format!(
                "{} a second at each gateway",
                thousands(gateway::REQUESTS_PER_SECOND as usize)
            ),
        ),
        (
            "requests without a good token",
            format!(
                "{} a second at each gateway, all together",
                thousands(gateway::STRANGERS_PER_SECOND as usize)
            ),
        ),
        (
            "event streams of a tenant",
            format!("{} at each gateway", gateway::STREAMS_PER_TENANT_MAX),
        ),
        (
            "commands that wait for an aggregate",
            format!("{} at each gateway", gateway::COMMANDS_PER_AGGREGATE_MAX),
        ),
        ("a wait for a position, or for an outcome", "30 s".to_owned()),
        words,
        file,
        configuration,
        call,
    ];
    let expected = expected.map(|(what, most)| (what.to_owned(), most));
    assert_eq!(table(README.1, "### Limits"), expected);
}
