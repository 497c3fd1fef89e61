//! The example application passes its own tests, and a wrong test fails with its line.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{fs, path::PathBuf};

use flexcore_definition::{Application, SourceFile};
use flexcore_domain::{Name, Refusal};
use flexcore_script::{
    check,
    scenario::{self, Scenario},
};

fn files(folder: &str) -> Vec<SourceFile> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../schemas/flights").join(folder);
    let paths = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut yaml: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "yaml")).collect();
    yaml.sort();
    let file = |path: &PathBuf| SourceFile {
        path: path.file_name().unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(path).unwrap(),
    };
    yaml.iter().map(file).collect()
}

fn flights() -> Application {
    Application::read(Name::parse("flights").unwrap(), files("")).unwrap()
}

fn scenarios(text: &str) -> Result<Vec<Scenario>, String> {
    let file = SourceFile { path: "t.yaml".to_owned(), text: text.to_owned() };
    let read = scenario::read(&flights(), &file);
    read.map_err(|problems| problems.iter().map(|it| format!("{it}\n")).collect())
}

#[test]
fn the_example_passes_its_tests() {
    let application = flights();
    check(&application).unwrap();
    let mut tests = 0;
    for file in files("tests") {
        for scenario in scenario::read(&application, &file).unwrap() {
            assert_eq!(
                scenario::run(&scenario, &mut |_| Err(Refusal::Faulty("no plugin".to_owned()))),
                Ok(()),
                "{}",
                scenario.name
            );
            tests += 1;
        }
    }
    assert!(tests >= 25, "{tests} tests");
}

#[test]
fn a_failure_says_what_happened_instead() {
    let run = |text: &str| {
        scenario::run(&scenarios(text).unwrap()[0], &mut |_| {
            Err(Refusal::Faulty("no plugin".to_owned()))
        })
        .unwrap_err()
    };
    let failure = run("test: a\nwhen: { cancel: {} }\nthen:\n  - cancelled: {}\n");
    assert_eq!(failure.place, "t.yaml:4");
    assert_eq!(failure.expected, "cancelled: {}");
    assert!(failure.actual.starts_with("rejected: not_scheduled ("), "{failure:?}");
    let failure = run("test: a\nwhen: { cancel: {} }\nrejected: too_late\n");
    assert_eq!(failure.place, "t.yaml:3");
    let failure = run("test: a\nwhen: { cancel: {} }\nrejected: not_scheduled\nstate: { a: 1 }\n");
    assert_eq!(
        (failure.expected.as_str(), failure.actual.as_str()),
        ("state: {\"a\":1}", "state: null")
    );
    let failure = run("test: a\ncommands:\n  - cancel: {}\nwhen: { cancel: {} }\nthen: []\n");
    assert_eq!(failure.place, "t.yaml:3");
    let failure = run("test: a\nwhen: { cancel: { why: 1 } }\nthen: []\n");
    assert!(failure.actual.starts_with("invalid: "), "{failure:?}");
}

#[test]
fn a_test_that_makes_no_sense_is_refused_with_its_line() {
    for (text, said) in [
        ("test: a\n", "t.yaml:1: a test needs `when:`"),
        ("when: { cancel: {} }\n", "t.yaml:1: a test needs `test:`"),
        ("test: a\nwhen: { cancel: {} }\n", "one of `then:`"),
        ("test: a\nwhen: { cancel: {} }\nthen: []\nrejected: b\n", "one of `then:`"),
        ("test: a\nwhen: { fly: {} }\nthen: []\n", "t.yaml:2: flight declares no command fly"),
        ("test: a\nwhen: { cancel: {}, depart: {} }\nthen: []\n", "t.yaml:2: one name"),
        ("test: a\nwehn: { cancel: {} }\n", "t.yaml:2: a test has no `wehn`"),
        ("test: a\naggregate: train\n", "t.yaml:2: there is no aggregate train"),
        ("test: a\ngiven:\n  - cancelled:\n      carrier: UA\n", "t.yaml:4: event cancelled"),
        ("test: a\ngiven: { cancelled: {} }\n", "t.yaml:2: `given` must be a list"),
        ("- a\n", "t.yaml:1: a test is a map"),
        ("test: [\n", "not valid YAML"),
    ] {
        let problems = scenarios(text).unwrap_err();
        assert!(problems.contains(said), "{text}: {problems}");
    }
}
