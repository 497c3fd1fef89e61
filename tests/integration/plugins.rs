//! `flexcore plugin`: plugins that are started, looked at and called from the command line, and files that
//! are no plugins.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::process::{
    Process, cache, descendants, flexcore, folder, is_alive, succeeded, texts, wait_until,
};

/// Of the plugin below.
const COOKIE: [&str; 2] = ["--cookie", "FLEXCORE_PLUGIN=flexcore-lab-7f3a"];

/// `hello` and `HELLO` in base64.
const HELLO: [&str; 2] = ["aGVsbG8=", "SEVMTE8="];

/// The plugin that the tests of `src/plugin` use. Cargo tells us the path of our own executable alone; it
/// puts those of the other packages beside it, whenever it builds these.
pub(crate) fn transform() -> PathBuf {
    let file =
        Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-plugin-transform");
    let advice = "`cargo build` or `cargo test` for all packages builds it, in the same profile; `--package \
                  flexcore` and `--test integration` do not";
    assert!(file.is_file(), "{} is not there: {advice}", file.display());
    file
}

fn on(verb: &str, file: &Path, more: &[&str]) -> Output {
    flexcore().args(["plugin", verb]).arg(file).args(more).output().unwrap()
}

fn inspect(more: &[&str]) -> Value {
    let more = [&COOKIE[..], &["--json"], more].concat();
    let said = succeeded(&more, &on("inspect", &transform(), &more));
    serde_json::from_str(&said).unwrap()
}

fn call(more: &[&str]) -> Output {
    on("call", &transform(), &[&COOKIE[..], more].concat())
}

fn answer(output: &Output) -> Value {
    serde_json::from_str(&succeeded(&[], output)).unwrap()
}

/// The standard error of a command that had to fail.
fn refused(output: &Output) -> String {
    let (out, err) = texts(output);
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(out.is_empty() && err.contains("error: "), "{out}{err}");
    err
}

/// A script in a folder of its own.
fn script(lines: &str) -> (TempDir, PathBuf) {
    let folder = folder();
    let file = folder.path().join("script");
    fs::write(&file, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, file)
}

#[test]
fn a_plugin_is_shown_with_all_that_is_known_of_it() {
    let found = inspect(&[]);
    assert_eq!((&found["ok"], &found["health"]), (&json!(true), &json!("serving")), "{found}");
    assert_eq!(found["file"], json!(transform()));
    assert_eq!((&found["version"], &found["network"]), (&json!(1), &json!("unix")), "{found}");
    assert_eq!((&found["tls"], &found["multiplexed"]), (&json!(true), &json!(false)), "{found}");
    assert!(found["first_answer_ms"].is_u64(), "{found}");
    let methods = found["services"][0]["methods"].as_array().unwrap();
    assert_eq!(methods[1]["name"], json!("flexcore.lab.v1.Transform/ApplyStream"));
    assert_eq!(methods[1]["takes_stream"], json!(true));

    let versions = ["--protocol-version", "1", "--protocol-version", "2"];
    let found = inspect(&[&versions[..], &["--no-tls", "--multiplex"]].concat());
    assert_eq!((&found["version"], &found["tls"]), (&json!(2), &json!(false)), "{found}");
    assert_eq!(found["multiplexed"], json!(true), "{found}");

    let table = succeeded(&[], &on("inspect", &transform(), &COOKIE));
    for said in [
        found["sha256"].as_str().unwrap(),
        "Unix socket, TLS, both sides pinned",
        "serving",
        "flexcore.lab.v1.Transform/Apply ",
        "stream of flexcore.lab.v1.TransformResponse",
    ] {
        assert!(table.contains(said), "{said}: {table}");
    }
}

#[test]
fn a_plugin_is_called_with_json_from_anywhere() {
    let [hello, upper] = HELLO;
    let input = json!({"id": "1", "payload": hello}).to_string();
    let expected = json!({"id": "1", "payload": upper});
    assert_eq!(answer(&call(&["flexcore.lab.v1.Transform/Apply", &input])), expected);

    let folder = folder();
    let file = folder.path().join("input.json");
    fs::write(&file, &input).unwrap();
    let named = format!("@{}", file.display());
    assert_eq!(answer(&call(&["Apply", &named, "--no-tls"])), expected);

    let stream = json!([{"id": "1", "payload": hello}, {"id": "2"}]).to_string();
    let output = call(&["ApplyStream", &stream, "--multiplex", "--json"]);
    assert_eq!(answer(&output), json!([expected, {"id": "2"}]));
    assert_eq!(texts(&output).0.lines().count(), 1);
}

#[test]
fn a_checked_plugin_runs_and_another_one_does_not() {
    let sha256 = inspect(&[])["sha256"].as_str().unwrap().to_owned();
    let output = call(&["Apply", r#"{"id": "1"}"#, "--sha256", &sha256]);
    assert_eq!(answer(&output), json!({"id": "1"}));
    let other = format!("{}{}", &sha256[1..], &sha256[..1]);
    let told = refused(&call(&["Apply", "{}", "--sha256", &other]));
    assert!(told.contains(&sha256) && told.contains(&other), "{told}");
}

#[test]
fn what_a_plugin_prints_goes_to_standard_error() {
    let output = call(&["Apply", r#"{"id": "log"}"#]);
    assert_eq!(answer(&output)["id"], json!("log"));
    let (_, err) = texts(&output);
    for line in [
        r#"flexcore-plugin-transform: info: transform: structured hello {"id":"log","n":42}"#,
        "flexcore-plugin-transform: hello on plugin stdout",
        "flexcore-plugin-transform: hello on plugin stderr",
    ] {
        assert!(err.lines().any(|said| said == line), "{line}: {err}");
    }
}

#[test]
fn what_is_wrong_with_a_call_is_told() {
    for (arguments, expected) in [
        (&["Apply", "{"][..], "the input is not accepted"),
        (&["Apply", r#"{"idd": "1"}"#], "input.idd"),
        (&["Undo"], "the plugin has no method \"Undo\"; it has: flexcore.lab.v1.Transform/Apply"),
        (&["Apply", r#"{"id": "crash"}"#], "the plugin has ended (exit status: 7)"),
        (&["Apply", r#"{"id": "hang"}"#, "--timeout", "3"], "raise --timeout"),
    ] {
        let told = refused(&call(arguments));
        assert!(told.contains(expected), "{arguments:?}: {told}");
    }
}

#[test]
fn what_does_not_start_is_told_with_what_to_change() {
    let told = refused(&on("inspect", &transform(), &[]));
    assert!(
        told.contains("give --cookie KEY=VALUE") && told.contains("This is a plugin"),
        "{told}"
    );
    let version = [&COOKIE[..], &["--protocol-version", "9"]].concat();
    let told = refused(&on("inspect", &transform(), &version));
    assert!(told.contains("give --protocol-version 1"), "{told}");
    let told = refused(&on("inspect", Path::new("./nowhere"), &[]));
    assert!(told.contains("nowhere") && told.contains("is it there"), "{told}");

    let (_folder, text) = script("echo hello");
    fs::write(&text, "hello\n").unwrap();
    let told = refused(&on("inspect", &text, &[]));
    assert!(told.contains("neither a binary for Linux nor a script"), "{told}");
    for (lines, options, expected) in [
        ("echo 'the licence is missing' >&2\nexit 3", &[][..], "script: the licence is missing"),
        ("echo 'hello there'\nexec sleep 60", &[], "is this a go-plugin plugin?"),
        ("echo '1|1|unix|/nowhere/s|grpc'\nexec sleep 60", &[], "needs --no-tls"),
        ("echo '1|1|unix|/nowhere/s|grpc'\nexec sleep 60", &["--no-tls"], "/nowhere/s"),
        ("exec sleep 60", &["--timeout", "1"], "raise --timeout"),
        ("echo \"$1 $NAME\" >&2", &["--arg", "-x", "--env", "NAME=y"], "script: -x y"),
    ] {
        let (_folder, file) = script(lines);
        let told = refused(&on("inspect", &file, options));
        assert!(told.contains(expected), "{lines}: {told}");
    }
}

#[test]
fn an_interrupted_call_leaves_nothing() {
    let folder = folder();
    let mut command = flexcore();
    command.args(["plugin", "call"]).arg(transform()).args(COOKIE);
    command.args(["Apply", r#"{"id": "hang"}"#]);
    let mut process = Process::start(command, &folder.path().join("log"), folder.path());
    // The guard, and the plugin below it.
    wait_until("a plugin", || descendants(process.pid()).len() >= 2);
    let below = descendants(process.pid());
    process.signal("INT");
    wait_until("the end", || !is_alive(process.pid()));
    assert_eq!(process.ended().and_then(|status| status.code()), Some(1), "{}", process.tail());
    assert!(process.log().contains("error: interrupted"), "{}", process.tail());
    wait_until("the plugin's end", || below.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn an_executable_that_was_replaced_still_guards_its_plugin() {
    // Beside the executable itself, so that a link is enough.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let executable = folder.path().join("flexcore");
    let own = env!("CARGO_BIN_EXE_flexcore");
    fs::hard_link(own, &executable).or_else(|_| fs::copy(own, &executable).map(drop)).unwrap();
    let mut calling = Command::new(&executable)
        .args(["plugin", "call"])
        .arg(transform())
        .args(COOKIE)
        .args(["Apply", "-"])
        .env("FLEXCORE_CACHE", cache())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It reads this before it starts the plugin.
    fs::remove_file(&executable).unwrap();
    calling.stdin.take().unwrap().write_all(br#"{"id": "1"}"#).unwrap();
    assert_eq!(answer(&calling.wait_with_output().unwrap()), json!({"id": "1"}));
}
