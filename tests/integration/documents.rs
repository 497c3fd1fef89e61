//! Examples in documents: every fenced block of README.md and schemas/README.md is run as it
//! stands, or is named here with the test that runs it. A block that nothing runs fails.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
};

use flexcore_definition::{PluginManifest, SourceFile};
use serde_json::{Value, json};

use crate::{
    plugins,
    support::{
        Dev, eventually,
        process::{Process, cache, flexcore, folder, texts, wait_until},
    },
};

pub(crate) const README: (&str, &str) = ("README.md", include_str!("../../README.md"));
const REFERENCE: (&str, &str) = ("schemas/README.md", include_str!("../../schemas/README.md"));

/// A fenced block of a document.
struct Block {
    place: String,
    language: &'static str,
    text: &'static str,
}

fn blocks((name, document): (&'static str, &'static str)) -> Vec<Block> {
    let (mut blocks, mut at) = (Vec::new(), 0);
    while let Some(begin) = document[at..].find("\n```") {
        let from = at + begin + 4;
        let (language, rest) = document[from..].split_once('\n').unwrap();
        let length = rest.find("```\n").expect("a block that begins ends");
        let place = format!("{name}:{}", document[..from].lines().count());
        blocks.push(Block { place, language, text: &rest[..length] });
        at = from + language.len() + 1 + length + 3;
    }
    assert!(blocks.len() > 3, "{name} has examples");
    blocks
}

impl Block {
    fn begins_with(&self, text: &str) -> bool {
        self.text.starts_with(text)
    }

    /// Runs it with a shell, which must succeed; returns its output.
    fn run(&self, place: &Path) -> String {
        self.run_after("", place)
    }

    /// The same, after lines of another block, in whose shell it goes on.
    fn run_after(&self, lines: &str, place: &Path) -> String {
        let mut shell = Command::new("sh");
        let text = format!("{lines}\n{}", self.text);
        shell.args(["-eu", "-c", &text]).current_dir(place).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLEXCORE_") {
                shell.env_remove(name);
            }
        }
        let path = format!("{}/target/release:{}", place.display(), std::env::var("PATH").unwrap());
        let output = shell.env("PATH", path).env("FLEXCORE_CACHE", cache()).output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{}: {}\n{out}\n{err}", self.place, output.status);
        out
    }

    /// Another test runs it: the first of these functions, which calls the others.
    fn runs_elsewhere(&self, program: &str, functions: &[Function]) {
        let place = &self.place;
        assert!(functions[0].is_test, "{place}: {} is no test", functions[0].name);
        for called in functions[1..].iter().map(|function| function.name) {
            let calls = |function: &Function| function.body.contains(&format!("{called}("));
            assert!(functions.iter().any(calls), "{place}: nothing calls {called}");
        }
        let missing = self.not_in(program, functions);
        assert!(missing.is_empty(), "{place}: no test has {missing:?} in its texts");
    }

    /// The block's words that stand in no text of these functions. They start the program in their own
    /// way.
    fn not_in(&self, program: &str, functions: &[Function]) -> Vec<&'static str> {
        let said: BTreeSet<String> = functions.iter().flat_map(Function::words).collect();
        let commands = self.text.lines().flat_map(|line| line.split(" && "));
        let arguments = commands.map(|command| command.strip_prefix(program).unwrap_or(command));
        let words = arguments.flat_map(str::split_whitespace);
        words.filter(|word| !said.contains(*word)).collect()
    }
}

/// A function of a test, in a file below `tests/`.
struct Function {
    name: &'static str,
    is_test: bool,
    body: String,
}

impl Function {
    fn read(file: &str, name: &'static str) -> Self {
        let text = fs::read_to_string(Path::new("tests").join(file)).unwrap();
        let head = format!("fn {name}(");
        let (before, body) =
            text.split_once(&head).unwrap_or_else(|| panic!("there is no {name} in {file}"));
        let (above, line) = before.rsplit_once('\n').unwrap();
        let indent: String = line.chars().take_while(|character| *character == ' ').collect();
        let (body, _) = body.split_once(&format!("\n{indent}}}\n")).expect("it ends");
        let attribute = above.lines().last().unwrap_or_default();
        let is_test = attribute == "#[test]" || attribute.starts_with("#[tokio::test");
        Self { name, is_test, body: body.to_owned() }
    }

    /// The words of its texts.
    fn words(&self) -> Vec<String> {
        let body = self.body.replace("\\\"", "");
        let texts = body.split('"').skip(1).step_by(2);
        texts.flat_map(str::split_whitespace).map(str::to_owned).collect()
    }
}

/// A folder that looks like the project's after `cargo build --release`.
fn as_built() -> tempfile::TempDir {
    let place = folder();
    let release = place.path().join("target/release");
    fs::create_dir_all(&release).unwrap();
    symlink(env!("CARGO_BIN_EXE_flexcore"), release.join("flexcore")).unwrap();
    symlink(plugins::transform(), release.join("flexcore-plugin-transform")).unwrap();
    // A new plugin takes minutes to build. This package has what is written as an executable of its own.
    let built = plugins::transform().with_file_name("greeter");
    assert!(built.is_file(), "{} is not there: build all packages", built.display());
    let build = format!("mkdir -p target/release\ncp {} target/release/\n", built.display());
    let build =
        format!("#!/bin/sh -e\ntest \"$*\" = 'build --release'\ntest -f Cargo.toml\n{build}");
    fs::write(release.join("cargo"), build).unwrap();
    fs::set_permissions(release.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    symlink(sources, place.path().join("src")).unwrap();
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    symlink(schemas, place.path().join("schemas")).unwrap();
    place
}

/// Serves as the document says; ended with the value.
fn serve(block: &Block, place: &Path) -> Process {
    let (build, serve) = block.text.trim().split_once(" && ").expect("it builds and serves");
    assert_eq!(build, "cargo build --release", "{}: it was built", block.place);
    let serve = serve.strip_prefix("target/release/flexcore ").expect("what was built");
    let mut command = flexcore();
    command.args(serve.split(' ')).current_dir(place);
    let process = Process::start(command, &place.join("dev.log"), place);
    wait_until("dev to serve", || place.join(".flexcore/dev.json").exists());
    process
}

#[tokio::test]
async fn every_example_of_the_readme_works() {
    tokio::task::spawn_blocking(run_the_readme).await.unwrap();
}

fn run_the_readme() {
    let place = as_built();
    let mut serving = None;
    for block in blocks(README) {
        match block.language {
            "mermaid" => {}
            "sh" if block.begins_with("cargo run --release -- demo\n") => {
                block.runs_elsewhere("cargo run --release --", &[demo()]);
            }
            // This test runs by it.
            "sh" if block.text == "cargo test\n" => {}
            "sh" if block.begins_with("cargo build --release && ") => {
                serving = Some(serve(&block, place.path()));
            }
            "sh" if block.begins_with("export PATH=") => {
                let said = block.run(place.path());
                for expected in ["0 failed", "deployed", "accepted: version 1", "UA1-20130101-EWR"]
                {
                    assert!(said.contains(expected), "{}: {said}", block.place);
                }
            }
            "json" => publish_lines(&block, place.path()),
            "sh" if block.begins_with("http=$(") => {
                let said = block.run(place.path());
                let (page, stream) = said.split_once(']').unwrap();
                for event in ["flight.scheduled", "flight.departed", "flight.arrived"] {
                    assert!(page.contains(event) && stream.contains(event), "{event}: {said}");
                }
            }
            "sh" if block.begins_with("flexcore plugin inspect ") => {
                let said = block.run(place.path());
                for expected in ["flexcore.lab.v1.Transform/ApplyStream", "serving", "SEVMTE8="] {
                    assert!(said.contains(expected), "{}: {said}", block.place);
                }
            }
            "sh" if block.begins_with("flexcore plugin new greeter ") => {
                let said = block.run_after(&the_two_lines_for_curl(), place.path());
                for expected in ["greeter is in", "installed", "Hello, Ann!\"}", "ready"] {
                    assert!(said.contains(expected), "{}: {said}", block.place);
                }
            }
            "sh" if block.begins_with("deploy/secrets.sh && deploy/image.sh\n") => {
                block.runs_elsewhere("docker compose", &compose());
            }
            language => panic!("{}: nothing runs this block ({language})", block.place),
        }
    }
    serving.expect("the document says how to serve").terminate();
}

/// The lines of the document that say where HTTP is, and by which token.
fn the_two_lines_for_curl() -> String {
    let all = blocks(README);
    let block = all.iter().find(|block| block.begins_with("http=$(")).expect("it says so before");
    block.text.lines().take(2).map(|line| format!("{line}\n")).collect()
}

/// The test that runs the demo.
fn demo() -> Function {
    let test = "a_month_of_flights_gives_the_numbers_of_the_data_set";
    Function::read("integration/flights.rs", test)
}

/// The test that runs the cluster, and what it does with it.
fn compose() -> [Function; 6] {
    let test = "no_acknowledged_command_is_lost_whatever_container_goes";
    [
        Function::read("compose/main.rs", test),
        Function::read("compose/engine.rs", "start"),
        Function::read("compose/cluster.rs", "up"),
        Function::read("compose/cluster.rs", "cli"),
        Function::read("compose/cluster.rs", "flights"),
        Function::read("compose/cluster.rs", "all_well"),
    ]
}

/// That a test of some name was there was enough, whatever it ran.
#[test]
fn an_example_that_no_test_runs_as_it_stands_is_found() {
    let block = |text| Block { place: "a document".to_owned(), language: "sh", text };
    let program = "cargo run --release --";
    assert_eq!(block("cargo run --release -- demo\n").not_in(program, &[demo()]), [""; 0]);
    let other = block("cargo run --release -- demo --full\n");
    assert_eq!(other.not_in(program, &[demo()]), ["--full"]);
    let other = block("deploy/image.sh && deploy/other.sh\ndocker compose up --scale worker=5\n");
    assert_eq!(other.not_in("docker compose", &compose()), ["deploy/other.sh", "worker=5"]);
    assert!(demo().is_test && !compose()[1].is_test);
}

/// Publishes a block of commands twice, as after a failure, and waits until they are events.
fn publish_lines(block: &Block, place: &Path) {
    fs::write(place.join("commands.ndjson"), block.text).unwrap();
    let lines = block.text.lines().count();
    for _ in 0..2 {
        let mut publish = flexcore();
        publish.args(["publish", "--lines", "commands.ndjson"]).current_dir(place);
        let (out, err) = texts(&publish.output().unwrap());
        assert!(out.contains(&format!("{lines} commands stored")), "{}: {out}{err}", block.place);
    }
    wait_until("the lines to be processed", || {
        let mut verify = flexcore();
        verify.args(["verify", "--json"]).current_dir(place);
        let (out, _) = texts(&verify.output().unwrap());
        let report: Value = serde_json::from_str(&out).unwrap_or_default();
        // The application was deployed, and the flight scheduled, before.
        report["events"] == json!(lines + 2)
    });
}

#[tokio::test]
async fn every_example_of_the_reference_works() {
    let dev = Dev::start(&[]);
    let place = folder();
    let application = place.path().join("timetable");
    fs::create_dir_all(application.join("tests")).unwrap();
    for block in blocks(REFERENCE) {
        let kind = block.text.split(':').next().unwrap();
        let file = match (block.language, kind) {
            ("yaml", "aggregate" | "read_model" | "query") => format!("{kind}.yaml"),
            ("yaml", "test") => "tests/flight.yaml".to_owned(),
            ("yaml", "name") => {
                is_a_manifest(&block);
                continue;
            }
            (language, _) => panic!("{}: nothing runs this block ({language})", block.place),
        };
        let file = application.join(file);
        assert!(!file.exists(), "{}: a second one", block.place);
        fs::write(file, block.text).unwrap();
    }
    let path = application.to_str().unwrap();
    let tested = dev.succeed(&["test", path]);
    assert!(tested.contains("timetable: 3 passed, 0 failed"), "{tested}");

    // An event of version 1, from before there was a version 2.
    let current = fs::read_to_string(application.join("aggregate.yaml")).unwrap();
    let (before, after) = current.split_once("    version: 2 ").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    let first = format!("{before}{}", after.split_once("    upcast:").unwrap().0);
    let first = first.replace("{ carrier: state.carrier,", "{ airline: state.carrier,");
    let former = place.path().join("former/timetable");
    fs::create_dir_all(&former).unwrap();
    fs::write(former.join("aggregate.yaml"), first).unwrap();
    dev.succeed(&["apply", former.to_str().unwrap()]);
    dev.succeed(&["publish", "flight", "f-1", "schedule", r#"{"carrier":"UA"}"#, "--wait"]);
    dev.succeed(&["publish", "flight", "f-1", "depart", r#"{"delay_minutes":20}"#, "--wait"]);

    dev.succeed(&["apply", path]);
    let http = dev.http("demo");
    let state = http.get("/v1/aggregates/flight/f-1").await.ok();
    assert_eq!(state["state"], json!({"carrier": "UA", "status": "departed"}));
    let rows = eventually("the rows", async || {
        let answer = http.get("/v1/queries/delays_by_carrier?carrier=UA&min_departures=1").await;
        let rows = if answer.status == 200 { answer.json()["rows"].clone() } else { Value::Null };
        if rows[0].is_object() { Ok(rows) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(rows[0]["carrier"], json!("UA"));
    assert_eq!(rows[0]["average"].to_string().trim_matches('"').parse::<f64>().unwrap(), 20.0);
    let longest = &http.rows("/v1/query/carriers?fields=longest_minutes").await[0];
    assert_eq!(longest["longest_minutes"], json!(20));
    for (query, said) in [
        (&["departures=7"][..], "carriers: index [departures] finds `departures`"),
        (&["--sort=-longest_minutes,departures"], "index [-longest_minutes, departures] has the"),
        (&["delay_minutes=7"], "declare `indexes: [[delay_minutes]]`"),
    ] {
        let explained = dev.succeed(&[&["query", "carriers", "--explain"], query].concat());
        assert!(explained.contains(said), "{explained}");
    }
    let explained = dev.succeed(&["query", "delays_by_carrier", "--explain"]);
    assert!(explained.starts_with("carriers: "), "{explained}");
}

/// It is read, and what may be left out has the value that stands there, but for these keys.
fn is_a_manifest(block: &Block) {
    let read = |text: String| {
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        PluginManifest::read(source).unwrap_or_else(|problems| panic!("{problems:?}"))
    };
    let mut whole = read(block.text.to_owned());
    assert!(whole.tenants.is_some() && whole.cookie.is_some() && whole.summary.is_some());
    assert_ne!((whole.limits, whole.sandbox), Default::default());
    let needed =
        |line: &&str| ["name:", "version:", "file:"].iter().any(|key| line.starts_with(key));
    let short = read(block.text.lines().filter(needed).map(|line| format!("{line}\n")).collect());
    (whole.tenants, whole.cookie, whole.summary) = (None, None, None);
    (whole.limits, whole.sandbox) = Default::default();
    whole.source = short.source.clone();
    assert_eq!(whole, short);
}
