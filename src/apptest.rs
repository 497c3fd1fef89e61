//! `flexcore test`: runs the tests of an application, which stand in its folder's `tests/`. Needs
//! neither broker nor database: decisions are pure.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use flexcore_definition::SourceFile;
use flexcore_operations::{Error, application};
use flexcore_script::{
    self as script,
    scenario::{self, Failure, Scenario},
};
use serde::Serialize;

use crate::out;

/// Run an application's own tests: given, when, then
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore test schemas/flights
  flexcore test schemas/flights --json

The tests are the YAML files in the folder's tests/. Needs neither broker nor database. Exits with 1
when one fails.")]
pub(crate) struct Test {
    /// The application's folder
    pub(crate) folder: PathBuf,
    /// A line of JSON for each test
    #[arg(long)]
    pub(crate) json: bool,
}

/// The folder of tests inside that of the application.
const TESTS: &str = "tests";

/// The result of one test.
#[derive(Serialize)]
struct Tested {
    test: String,
    place: String,
    passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
}

/// Runs all tests and prints what came of each. Returns whether all passed: of an application without
/// a folder of tests nothing failed. Fails when there is such a folder and no test in it, or one that
/// cannot be read.
pub(crate) fn run(dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<bool> {
    let application = application::read(dir, script::check)?;
    let (mut scenarios, mut problems) = (Vec::new(), Vec::new());
    let folder = dir.join(TESTS);
    if !folder.exists() {
        if !json {
            let (name, folder) = (&application.name, folder.display());
            writeln!(out, "{name}: nothing to test; tests would stand in {folder}")?;
        }
        return Ok(true);
    }
    for SourceFile { path, text } in application::files(&folder)? {
        let file = SourceFile { path: format!("{TESTS}/{path}"), text };
        match scenario::read(&application, &file) {
            Ok(read) => scenarios.extend(read),
            Err(wrong) => problems.extend(wrong),
        }
    }
    if !problems.is_empty() {
        return Err(Error::Refused(problems).into());
    }
    ensure!(!scenarios.is_empty(), "{} has no tests", folder.display());
    let mut failed = 0;
    for scenario in &scenarios {
        let tested = test(scenario);
        failed += usize::from(!tested.passed);
        if json {
            out::json(out, &tested)?;
        } else {
            print(&tested, out)?;
        }
    }
    if !json {
        let passed = scenarios.len() - failed;
        writeln!(out, "{}: {passed} passed, {failed} failed", application.name)?;
    }
    Ok(failed == 0)
}

fn test(scenario: &Scenario) -> Tested {
    let failure = scenario::run(scenario).err();
    Tested {
        test: scenario.name.clone(),
        place: scenario.place.to_string(),
        passed: failure.is_none(),
        failure,
    }
}

fn print(tested: &Tested, out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(failure) = &tested.failure else {
        writeln!(out, "ok      {}", tested.test)?;
        return Ok(());
    };
    writeln!(out, "FAILED  {}", tested.test)?;
    writeln!(out, "  {}", failure.place)?;
    for (label, text) in [("expected", &failure.expected), ("actual", &failure.actual)] {
        for (nth, line) in text.lines().enumerate() {
            writeln!(out, "  {:<9} {line}", if nth == 0 { label } else { "" })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_without_tests_has_nothing_that_fails() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("bare");
        std::fs::create_dir(&folder).unwrap();
        let text = "aggregate: thing\ncommands: { set: { decide: \"() => []\" } }\n\
            events: { set: { data: { type: object }, evolve: \"(state) => state\" } }\n";
        std::fs::write(folder.join("thing.yaml"), text).unwrap();
        let mut said = Vec::new();
        assert!(run(&folder, false, &mut said).unwrap());
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("bare: nothing to test; "), "{said}");
        // A folder for tests is there for some.
        std::fs::create_dir(folder.join(TESTS)).unwrap();
        let refused = run(&folder, false, &mut Vec::new()).unwrap_err().to_string();
        assert!(refused.ends_with("has no tests"), "{refused}");
    }
}
