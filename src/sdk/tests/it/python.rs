//! What the package for plugins in Python has to know of the contract, which stands in Rust.

use flexcore_plugin::{Cookie, contract, limits};

const LIMITS: &str = include_str!("../../python/flexcore_plugin/_limits.py");
const RUN: &str = include_str!("../../python/flexcore_plugin/_run.py");
const CONTRACT: &str = include_str!("../../python/flexcore_plugin/_contract.py");

/// `A_MAX = 4 * 1_024` is the name and 4096.
fn limit(line: &str) -> Option<(&str, usize)> {
    let (name, value) = line.split_once(" = ")?;
    let factors = value.split(" * ").map(|factor| factor.replace('_', "").parse::<usize>());
    Some((name, factors.product::<Result<usize, _>>().unwrap()))
}

#[test]
fn its_limits_are_those_of_the_host() {
    let known: Vec<_> = LIMITS.lines().filter_map(limit).collect();
    let expected = [
        ("INPUT_BYTES_MAX", limits::INPUT_BYTES_MAX),
        ("OUTPUT_BYTES_MAX", limits::OUTPUT_BYTES_MAX),
        ("BATCH_ITEMS_MAX", limits::BATCH_ITEMS_MAX),
        ("BATCH_BYTES_MAX", limits::BATCH_BYTES_MAX),
        ("RESULTS_BYTES_MAX", limits::RESULTS_BYTES_MAX),
        ("ENVELOPE_BYTES_MAX", limits::ENVELOPE_BYTES_MAX),
        ("CONFIGURATION_BYTES_MAX", limits::CONFIGURATION_BYTES_MAX),
        ("DESCRIPTION_BYTES_MAX", limits::DESCRIPTION_BYTES_MAX),
        ("FUNCTIONS_MAX", limits::FUNCTIONS_MAX),
        ("WORD_BYTES_MAX", limits::WORD_BYTES_MAX),
        ("FAILURE_MESSAGE_BYTES_MAX", limits::FAILURE_MESSAGE_BYTES_MAX),
        ("DETAILS_BYTES_MAX", limits::DETAILS_BYTES_MAX),
        ("EVENTS_MAX", limits::EVENTS_MAX),
        ("EVENT_NAME_BYTES_MAX", limits::EVENT_NAME_BYTES_MAX),
    ];
    assert_eq!(known, expected);
}

#[test]
fn its_cookie_its_drain_and_its_version_are_those_of_the_host() {
    let Cookie { key, value } = Cookie::flexcore();
    assert!(RUN.contains(&format!("COOKIE = (\"{key}\", \"{value}\")")));
    let drain = format!("DRAIN_S = {}\n", limits::SERVE_DRAIN_WAIT.as_secs_f64());
    assert!(RUN.contains(&drain), "{drain}");
    assert!(CONTRACT.contains(&format!("\nVERSION = {}\n", contract::VERSION)));
    assert!(CONTRACT.contains("SERVICE = \"flexcore.plugin.v1.Plugin\"\n"));
}
