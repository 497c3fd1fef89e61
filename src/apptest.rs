//! `flexcore test`: runs the tests of an application, which stand in its folder's `tests/`. Needs
//! neither broker nor database: decisions are pure.

use std::{collections::BTreeMap, io::Write, path::PathBuf};

use anyhow::ensure;
use flexcore_definition::{FileLine, SourceFile};
use flexcore_domain::Name;
use flexcore_operations::{Error, application};
use flexcore_script::{
    self as script,
    scenario::{self, Failure, PluginDecided, PluginQuestion, Scenario},
};
use serde::Serialize;
use tokio::task::{spawn_blocking, yield_now};

use crate::{
    out,
    program::{Running, with_plugins},
    test_plugins::{self, Deciding},
};

/// Run an application's own tests: given, when, then
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore test schemas/flights
  flexcore test schemas/flights --json
  flexcore test quotes --plugins plugins

The tests are the YAML files in the folder's tests/. Needs neither broker nor database. A plugin that decides
commands of a test is started here, as its manifest says, from its folder in --plugins, and ended again. It is given
no configuration. Where it ends in a test, it is started anew for the next one. Exits with 1 when a test fails.")]
pub(crate) struct Test {
    /// The application's folder
    pub(crate) folder: PathBuf,
    /// The folder with the folders of plugins, each with its plugin.yaml
    #[arg(long, value_name = "DIR")]
    pub(crate) plugins: Option<PathBuf>,
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
/// cannot be read, and where a plugin that decides is not at hand.
pub(crate) async fn run(args: &Test, out: &mut dyn Write) -> anyhow::Result<bool> {
    let (dir, json) = (&args.folder, args.json);
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
    let mut wanted = BTreeMap::new();
    for (plugin, place) in scenarios.iter().flat_map(Scenario::plugins) {
        wanted.entry(plugin.clone()).or_insert_with(|| place.clone());
    }
    let failed = if wanted.is_empty() {
        tested(&scenarios, &mut test_plugins::nobody, &|| false, json, out).await?.failed
    } else {
        with_deciders(args, wanted, &scenarios, out).await?
    };
    if !json {
        let passed = scenarios.len() - failed;
        writeln!(out, "{}: {passed} passed, {failed} failed", application.name)?;
    }
    Ok(failed == 0)
}

/// As [`tested`], with these plugins, each named at a place. Where one of them ends in a test, all are started anew
/// for the next one.
async fn with_deciders(
    args: &Test,
    wanted: BTreeMap<Name, FileLine>,
    scenarios: &[Scenario],
    out: &mut dyn Write,
) -> anyhow::Result<usize> {
    let folder = args.plugins.clone();
    let (wanted, found) = spawn_blocking(move || {
        let found = test_plugins::find(folder.as_deref(), &wanted);
        (wanted, found)
    })
    .await?;
    let programs = test_plugins::programs(found?).await?;
    let (mut failed, mut left) = (0, scenarios);
    while !left.is_empty() {
        let (names, tests, out) = (wanted.keys().cloned(), left, &mut *out);
        let tally = with_plugins(&programs, async move |running: &[Running]| {
            let deciding = Deciding::of(names, running).await?;
            let is_over = || deciding.is_broken();
            tested(tests, &mut |question| deciding.ask(question), &is_over, args.json, out).await
        })
        .await?;
        failed += tally.failed;
        left = left.get(tally.run..).unwrap_or_default();
    }
    Ok(failed)
}

/// How many tests were run, and how many of them failed.
#[derive(Default)]
struct Tally {
    run: usize,
    failed: usize,
}

/// Runs tests in their order and prints what came of each: all, or up to the first behind which it is over.
async fn tested(
    scenarios: &[Scenario],
    ask: &mut dyn FnMut(PluginQuestion) -> PluginDecided,
    is_over: &dyn Fn() -> bool,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for scenario in scenarios {
        let tested = test(scenario, ask);
        tally.run += 1;
        tally.failed += usize::from(!tested.passed);
        if json {
            out::json(out, &tested)?;
        } else {
            print(&tested, out)?;
        }
        // A user who interrupts is heard between two tests.
        yield_now().await;
        if is_over() {
            break;
        }
    }
    Ok(tally)
}

fn test(scenario: &Scenario, ask: &mut dyn FnMut(PluginQuestion) -> PluginDecided) -> Tested {
    let failure = scenario::run(scenario, ask).err();
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

    const TEST: &str = "test: it is set\nwhen: { set: }\nthen: []\n";

    #[tokio::test]
    async fn an_application_without_tests_has_nothing_that_fails() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("bare");
        std::fs::create_dir(&folder).unwrap();
        let text = "aggregate: thing\ncommands: { set: { decide: \"() => []\" } }\n\
            events: { set: { data: { type: object }, evolve: \"(state) => state\" } }\n";
        std::fs::write(folder.join("thing.yaml"), text).unwrap();
        let args = Test { folder: folder.clone(), plugins: None, json: false };
        let mut said = Vec::new();
        assert!(run(&args, &mut said).await.unwrap());
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("bare: nothing to test; "), "{said}");
        // A folder for tests is there for some.
        std::fs::create_dir(folder.join(TESTS)).unwrap();
        let refused = run(&args, &mut Vec::new()).await.unwrap_err().to_string();
        assert!(refused.ends_with("has no tests"), "{refused}");
        std::fs::write(folder.join(TESTS).join("set.yaml"), TEST).unwrap();
        let mut said = Vec::new();
        assert!(run(&args, &mut said).await.unwrap());
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said, "ok      it is set\nbare: 1 passed, 0 failed\n");
    }

    #[tokio::test]
    async fn a_plugin_that_decides_must_be_at_hand() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, plugins) = (parent.path().join("quotes"), parent.path().join("plugins"));
        std::fs::create_dir_all(folder.join(TESTS)).unwrap();
        std::fs::create_dir_all(plugins.join("other")).unwrap();
        let text = "aggregate: quote\ncommands:\n  set: { decide: { plugin: pricing } }\n\
            events: { set: { data: { type: object }, evolve: \"(state) => state\" } }\n";
        std::fs::write(folder.join("quote.yaml"), text).unwrap();
        std::fs::write(folder.join(TESTS).join("set.yaml"), TEST).unwrap();
        let manifest = "name: other\nversion: 0.1.0\nfile: other\n";
        std::fs::write(plugins.join("other/plugin.yaml"), manifest).unwrap();
        let refused = async |plugins: Option<&PathBuf>| {
            let args = Test { folder: folder.clone(), plugins: plugins.cloned(), json: false };
            let error = run(&args, &mut Vec::new()).await.unwrap_err();
            format!("{error:#}")
        };
        let said = refused(None).await;
        assert!(said.contains("quote.yaml:3: plugin pricing decides"), "{said}");
        assert!(said.contains("give --plugins DIR"), "{said}");
        let said = refused(Some(&plugins)).await;
        assert!(said.contains("no folder in") && said.contains("has plugin pricing"), "{said}");
        // Another folder may be the one that was meant.
        assert!(said.contains("other is not there: build it"), "{said}");
    }
}
