//! The tests that there are, for lists that name some of them.

use std::{collections::BTreeSet, path::Path};

use crate::{Source, sources};

/// Every test as `file::name`, the file without its folders and its ending.
pub(crate) fn tests(sources: &[Source]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for source in sources.iter().filter(|source| source.is("rs")) {
        let file = Path::new(&source.path).file_stem().unwrap().to_string_lossy();
        found.extend(tests_of(&source.text).into_iter().map(|name| format!("{file}::{name}")));
    }
    found
}

/// The functions that have the attribute of a test; others of the same name are none.
fn tests_of(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim_start);
    while let Some(line) = lines.next() {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            // Other attributes may stand between.
            found.extend(lines.find_map(function));
        }
    }
    found
}

/// The name of the function that begins in this line.
fn function(line: &str) -> Option<&str> {
    line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?.split('(').next()
}

#[test]
fn only_what_runs_as_a_test_is_one() {
    let text = [
        "fn commands() {}",
        "#[test]",
        "#[should_panic]",
        "fn first() {",
        "    fn other() {}",
        "}",
        "#[tokio::test(flavor = \"multi_thread\")]",
        "async fn second() {}",
        "fn third() {}",
        "mod tests {",
        "    #[tokio::test]",
        "    async fn fourth() {}",
        "}",
    ];
    assert_eq!(tests_of(&text.join("\n")), ["first", "second", "fourth"]);
    let all = tests(&sources());
    assert!(all.contains("named::only_what_runs_as_a_test_is_one"), "{} tests", all.len());
    // It is the name of several functions that are no tests, and of one test.
    let commands: Vec<_> = all.iter().filter(|test| test.ends_with("::commands")).collect();
    assert_eq!(commands, ["sizes::commands"]);
}
