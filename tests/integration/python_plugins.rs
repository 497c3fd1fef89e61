//! Plugins in Python: the package on a real socket and on the real host, and the template as it is written, built,
//! tested and installed.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use flexcore_servers::fetch;
use serde_json::{Value, json};

use crate::support::{
    Dev, eventually,
    process::{cache, flexcore, folder, succeeded, texts},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Exit status of a build for which something is missing on this machine.
const MISSING: i32 = 3;

/// A folder with grpcio, protobuf and cryptography for `PYTHONPATH`, fetched once into the cache. Without pip the test
/// says so and is skipped, but not where it decides about a change.
fn packages() -> Option<PathBuf> {
    static FETCHED: LazyLock<Result<PathBuf, String>> = LazyLock::new(fetched);
    let skipped = |lacks: &str| {
        let told = format!("SKIPPED, no packages for Python: {lacks}\n");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{told}");
        std::io::stderr().write_all(told.as_bytes()).unwrap();
    };
    FETCHED.as_ref().map_err(|lacks| skipped(lacks)).ok().cloned()
}

fn fetched() -> Result<PathBuf, String> {
    let from = Path::new(ROOT).join("src/plugin/tests/python");
    let mut hash = DefaultHasher::new();
    for file in ["build.sh", "requirements.txt"] {
        fs::read(from.join(file)).unwrap().hash(&mut hash);
    }
    let version = Command::new("python3").arg("-VV").output().map_err(|error| error.to_string())?;
    version.stdout.hash(&mut hash);
    let label = format!("sdk-python-{:016x}", hash.finish());
    let made = fetch::once(&cache(), &label, |partial| {
        let built = Command::new(from.join("build.sh")).arg(partial).output();
        let built = built.map_err(|error| lacking(&error.to_string()))?;
        let said = texts(&built).1;
        match built.status.code() {
            Some(0) => Ok(()),
            Some(MISSING) => Err(lacking(&said)),
            _ => panic!("build.sh ended with {}: {said}", built.status),
        }
    });
    made.map_err(|error| error.to_string())
}

fn lacking(reason: &str) -> flexcore_servers::Error {
    flexcore_servers::Error::Fetch { what: "grpcio".to_owned(), reason: reason.to_owned() }
}

/// Python with these packages, and with our executable as the host.
fn python(packages: &Path, place: &Path, arguments: &[&str]) -> Output {
    let mut python = Command::new("python3");
    python.args(arguments).current_dir(place).stdin(Stdio::null());
    python.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    python.env("FLEXCORE", env!("CARGO_BIN_EXE_flexcore")).env("FLEXCORE_CACHE", cache());
    python.output().unwrap()
}

fn passed(packages: &Path, place: &Path, arguments: &[&str]) {
    let done = python(packages, place, arguments);
    let (out, err) = texts(&done);
    assert!(done.status.success(), "python3 {arguments:?}: {out}{err}");
}

/// Writes the template into a folder of its own.
fn written() -> tempfile::TempDir {
    let above = folder();
    let place = above.path().join("hello");
    let line = ["plugin", "new", "hello", "--lang", "python", "--folder", place.to_str().unwrap()];
    let said = succeeded(&line, &flexcore().args(line).output().unwrap());
    assert!(said.contains("python3 build.py"), "{said}");
    above
}

/// Asks a plugin by lines; returns the lines of its answers.
fn tried(place: &Path, more: &[String], asked: &[Value]) -> Vec<Value> {
    let mut command = flexcore();
    command.args(["plugin", "try"]).arg(place).args(more);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let mut input = running.stdin.take().unwrap();
    for line in asked {
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    drop(input);
    let said = succeeded(&["plugin", "try"], &running.wait_with_output().unwrap());
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_package_keeps_to_the_contract() {
    let Some(packages) = packages() else { return };
    let tests = Path::new(ROOT).join("src/sdk/python/tests");
    passed(&packages, &tests, &["-m", "unittest", "test_package"]);
}

#[test]
fn the_kit_runs_a_plugin_on_the_real_host() {
    let Some(packages) = packages() else { return };
    let tests = Path::new(ROOT).join("src/sdk/python/tests");
    passed(&packages, &tests, &["-m", "unittest", "test_host"]);
}

#[test]
fn a_new_plugin_is_built_and_its_tests_pass() {
    let Some(packages) = packages() else { return };
    let above = written();
    passed(&packages, &above.path().join("hello"), &["-m", "unittest"]);
}

/// As on a worker that has Python, and nothing else that it needs.
#[test]
fn a_plugin_may_bring_its_packages() {
    let Some(packages) = packages() else { return };
    let above = written();
    let place = above.path().join("hello");
    let build = ["build.py", "--packages", packages.to_str().unwrap()];
    passed(&packages, &place, &build);
    let path = std::env::var("PATH").unwrap();
    let asked = json!({ "do": "call", "function": "greet", "input": { "name": "Ada" } });
    let answers = tried(&place, &[format!("--env=PATH={path}")], &[asked]);
    assert_eq!(answers, [json!({ "output": { "text": "Hello, Ada!" } })]);
    // By hand it unpacks nothing, and says what it is.
    let by_hand = Command::new(place.join("hello.pyz")).output().unwrap();
    assert_eq!(by_hand.status.code(), Some(1));
    assert!(texts(&by_hand).1.contains("it is started by its host"));
}

/// On a worker that finds Python and the packages as the manifest says.
#[tokio::test]
async fn a_new_plugin_is_installed_called_and_started_again() {
    let Some(packages) = packages() else { return };
    let above = written();
    let place = above.path().join("hello");
    passed(&packages, &place, &["build.py"]);
    let manifest = fs::read_to_string(place.join("plugin.yaml")).unwrap();
    let path = std::env::var("PATH").unwrap();
    let (path, packages) = (json!(path), json!(packages));
    let environment = format!("environment: {{PATH: {path}, PYTHONPATH: {packages}}}\n");
    let manifest = format!("{manifest}{environment}");
    fs::write(place.join("plugin.yaml"), manifest).unwrap();
    let dev = Dev::shared();
    dev.succeed(&["plugin", "install", place.to_str().unwrap()]);
    let greeted = async |name: &str| {
        let input = json!({ "name": name }).to_string();
        let text = json!({ "text": format!("Hello, {name}!") });
        eventually("a greeting", async || {
            let output =
                dev.run_async(&["plugin", "call", "hello", "greet", &input, "--json"]).await;
            let (out, err) = texts(&output);
            let told = serde_json::from_str::<Value>(&out).map_err(|_| err)?;
            if told == text { Ok(()) } else { Err(out) }
        })
        .await;
    };
    greeted("Ada").await;
    let http = dev.http("other");
    let headers = [("content-type", "application/json"), ("idempotency-key", "key-1")];
    let body = json!({ "name": " " }).to_string();
    let nobody = http.send("POST", "/v1/plugins/hello/greet", &headers, body).await;
    assert_eq!(nobody.status, 409, "{nobody:?}");
    assert!(nobody.json().to_string().contains("no_name"), "{nobody:?}");
    let said = dev.succeed(&["plugin", "logs", "hello"]);
    assert!(said.contains("greeting") && said.contains("Ada"), "{said}");
    dev.succeed(&["plugin", "restart", "hello"]);
    greeted("Bob").await;
    dev.succeed(&["plugin", "remove", "hello"]);
}

#[test]
fn the_messages_are_those_of_the_proto_files() {
    let there = Command::new("protoc").arg("--version").output();
    if there.is_err() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "there is no protoc");
        return;
    }
    let place = Path::new(ROOT).join("src/sdk/python");
    passed(Path::new(""), &place, &["make_messages.py", "--check"]);
}
