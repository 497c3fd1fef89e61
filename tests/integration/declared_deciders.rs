//! Applications that name plugins as deciders, before anybody sends a command: their own tests, what `apply` says,
//! and what becomes of the plugin.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Dev,
    app::Files,
    eventually,
    process::{flexcore, texts},
};

/// A counter up to ten, which the plugin of the SDK's tests decides.
fn tally(name: &str, plugin: &str) -> Files {
    let text = "aggregate: TALLY
decide: { plugin: PLUGIN }
commands:
  add: { payload: { type: integer } }
  die: { payload: {} }
  reset: { decide: '() => [{ event: \"emptied\" }]' }
events:
  added:
    data:
      type: object
      required: [by]
      properties: { by: { type: integer } }
    evolve: |
      (state, event) => (state ?? 0) + event.data.by
  emptied:
    evolve: '() => 0'
";
    Files::one(name, &text.replace("TALLY", name).replace("PLUGIN", plugin))
}

const TESTS: &str = "\
test: a plugin counts on from what was counted
commands: [ { add: 3 } ]
when: { add: 4 }
then: [ { added: { by: 4 } } ]
state: 7
---
test: its rules say no
given: [ { added: { by: 9 } } ]
when: { add: 2 }
rejected: too_many
---
test: a payload is checked before the plugin is asked
when: { add: 2.5 }
invalid: ''
---
test: other commands are decided here
given: [ { added: { by: 9 } } ]
when: { reset: }
then: [ { emptied: {} } ]
state: 0
";

/// Writes the plugin of the SDK's tests into a folder of this one, under this name.
fn put(folder: &Path, name: &str, version: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-sdk-lab");
    assert!(own.is_file(), "{} is not there: `cargo build` for all packages", own.display());
    let place = folder.join(name);
    fs::create_dir_all(&place).unwrap();
    let manifest = format!("name: {name}\nversion: {version}\nfile: lab\n");
    fs::write(place.join("plugin.yaml"), manifest).unwrap();
    let file = place.join("lab");
    if !file.exists() {
        fs::hard_link(&own, &file).or_else(|_| fs::copy(&own, &file).map(drop)).unwrap();
    }
    place
}

/// Beside the executable, so that a link is enough.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// What `flexcore test` does and says, with these tests.
fn tested(tests: &str, more: &[&str]) -> (Option<i32>, String) {
    let (_folder, path) = tally("tally", "tallies").write();
    fs::create_dir(Path::new(&path).join("tests")).unwrap();
    fs::write(Path::new(&path).join("tests/tally.yaml"), tests).unwrap();
    let output = flexcore().args(["test", &path]).args(more).output().unwrap();
    let (out, err) = texts(&output);
    (output.status.code(), format!("{out}{err}"))
}

#[test]
fn the_tests_of_an_application_run_its_plugins() {
    let plugins = folder();
    put(plugins.path(), "tallies", "0.1.0");
    let given = ["--plugins", plugins.path().to_str().unwrap()];
    let (code, said) = tested(TESTS, &given);
    assert!(code == Some(0) && said.contains("tally: 4 passed, 0 failed"), "{said}");
    let wrong = TESTS.replace("by: 4 }", "by: 5 }").replace("too_many", "too_few");
    let (code, said) = tested(&wrong, &given);
    assert!(code == Some(1) && said.contains("tally: 2 passed, 2 failed"), "{said}");
    for part in ["actual    added: {\"by\":4}", "rejected: too_many (ten at most)"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// All tests behind it failed, as nobody started the plugin again.
#[test]
fn a_decider_that_ends_in_a_test_is_there_for_the_next_one() {
    let plugins = folder();
    put(plugins.path(), "tallies", "0.1.0");
    let given = ["--plugins", plugins.path().to_str().unwrap()];
    let tests = format!("test: it ends\nwhen: {{ die: }}\nthen: []\n---\n{TESTS}");
    let (code, said) = tested(&tests, &given);
    assert!(code == Some(1) && said.contains("tally: 4 passed, 1 failed"), "{said}");
    assert!(said.contains("FAILED  it ends"), "{said}");
}

#[test]
fn a_test_of_a_plugin_that_is_not_at_hand_says_what_to_do() {
    let (code, said) = tested(TESTS, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("main.yaml:2: plugin tallies decides"), "{said}");
    assert!(said.contains("give --plugins DIR"), "{said}");
    let plugins = folder();
    put(plugins.path(), "others", "0.1.0");
    let (_, said) = tested(TESTS, &["--plugins", plugins.path().to_str().unwrap()]);
    assert!(said.contains("has plugin tallies"), "{said}");
    // Nobody is asked, so that nobody need be there.
    let other = TESTS.rsplit_once("---\n").unwrap().1;
    let (code, said) = tested(other, &[]);
    assert!(code == Some(0) && said.contains("1 passed"), "{said}");
}

fn warnings(deployed: &Value) -> Vec<String> {
    let said = deployed["warnings"].as_array().unwrap().iter();
    said.map(|warning| warning.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_plugin_that_applications_need_is_missed_upgraded_and_not_removed_by_mistake() {
    let (dev, plugins) = (Dev::shared(), folder());
    let (_folder, path) = tally("needed_tally", "needed").write();
    let missing = warnings(&dev.json(&["apply", &path, "--json"]));
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].contains("plugin needed decides, and is not installed"), "{missing:?}");
    let again = dev.succeed(&["apply", &path]);
    assert!(again.contains("nothing changed") && again.contains("\nwarning: "), "{again}");

    let place = put(plugins.path(), "needed", "0.1.0");
    let place = place.to_str().unwrap();
    let (_, err) = texts(&dev.run(&["plugin", "upgrade", place]));
    assert!(err.contains("no plugin needed is installed"), "{err}");
    assert!(err.contains("`flexcore plugin install` installs it first"), "{err}");
    let installed = dev.json(&["plugin", "install", place, "--json"]);
    assert_eq!(installed["former_version"], json!(null), "{installed}");
    eventually("nothing to warn of", async || {
        let warned = warnings(&dev.json(&["apply", &path, "--dry-run", "--json"]));
        if warned.is_empty() { Ok(()) } else { Err(warned.concat()) }
    })
    .await;
    put(plugins.path(), "needed", "0.2.0");
    let upgraded = dev.json(&["plugin", "upgrade", place, "--json"]);
    assert_eq!(upgraded["former_version"], json!("0.1.0"), "{upgraded}");
    put(plugins.path(), "needed", "0.3.0");
    let said = dev.succeed(&["plugin", "upgrade", place]);
    assert!(said.starts_with("needed 0.2.0 → 0.3.0: upgraded, as number 3"), "{said}");

    let (_, err) = texts(&dev.run(&["plugin", "remove", "needed"]));
    assert!(err.contains("decides commands of needed_tally (main.yaml:2)"), "{err}");
    assert!(dev.succeed(&["plugin", "list"]).contains("needed"));
    dev.succeed(&["plugin", "remove", "needed", "--force"]);
    let (_, err) = texts(&dev.run(&["plugin", "remove", "needed", "--force"]));
    assert!(err.contains("no plugin needed is installed"), "{err}");
}
