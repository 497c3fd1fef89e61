//! `flexcore plugin check` and `flexcore plugin try`: plugins that are not installed, held to the contract and asked by
//! lines of JSON.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use crate::support::process::{flexcore, folder, succeeded, texts};

/// The plugin that the tests of `src/sdk` use.
fn lab() -> PathBuf {
    let file = Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-sdk-lab");
    let advice = "`cargo build` for all packages builds it, in the same profile";
    assert!(file.is_file(), "{} is not there: {advice}", file.display());
    file
}

fn check(file: &Path, more: &[&str]) -> Output {
    flexcore().args(["plugin", "check"]).arg(file).args(more).output().unwrap()
}

/// Asks by these lines, and hears what is printed.
fn asked(file: &Path, lines: &[String]) -> Output {
    let mut command = flexcore();
    command.args(["plugin", "try"]).arg(file);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let mut input = running.stdin.take().unwrap();
    for line in lines {
        // One that has ended by then is told by its exit status.
        let _ = input.write_all(format!("{line}\n").as_bytes());
    }
    drop(input);
    running.wait_with_output().unwrap()
}

fn answers(lines: &[Value]) -> Vec<Value> {
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    let said = succeeded(&["plugin", "try"], &asked(&lab(), &lines));
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_plugin_that_keeps_to_the_contract_is_told_so() {
    let said = succeeded(&[], &check(&lab(), &["--json"]));
    let found: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["ok"], json!(true), "{found}");
    let checks = found["checks"].as_array().unwrap();
    for how in ["by hand", "with TLS", "without TLS"] {
        assert!(checks.iter().any(|check| check["how"] == json!(how)), "{how}: {found}");
    }
    assert!(checks.iter().all(|check| check.get("fault").is_none()), "{found}");
    let table = succeeded(&[], &check(&lab(), &[]));
    assert!(table.contains("refuses what is no JSON"), "{table}");
}

#[test]
fn what_is_no_plugin_does_not_pass() {
    let done = check(Path::new("/bin/true"), &["--json"]);
    let (out, err) = texts(&done);
    assert_eq!(done.status.code(), Some(1), "{out}{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["ok"], json!(false), "{found}");
    let fault = |how: &str| {
        let checks = found["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["how"] == json!(how)).unwrap();
        check["fault"].as_str().unwrap_or_default()
    };
    assert!(fault("by hand").contains("its exit status is 1"), "{found}");
    assert!(fault("with TLS").contains("did not start"), "{found}");
    let folder = folder();
    let done = check(folder.path(), &[]);
    let (_, err) = texts(&done);
    assert!(done.status.code() == Some(1) && err.contains("plugin.yaml"), "{err}");
}

#[test]
fn a_plugin_answers_by_lines() {
    let told = answers(&[
        json!({ "do": "describe" }),
        json!({ "do": "call", "function": "echo", "input": [1, "é"] }),
        json!({ "do": "call", "function": "about", "tenant": "acme", "actor": "ann", "key": "k1" }),
        json!({ "do": "call", "function": "fail", "input": { "code": "busy", "pause_ms": 5 } }),
        json!({ "do": "stream", "function": "echo", "inputs": [1, 2, 3] }),
        json!({ "do": "configure", "configuration": { "url": "https://a" } }),
        json!({ "do": "call", "function": "settings" }),
        json!({ "do": "configure", "configuration": { "url": "http://a" } }),
        json!({ "do": "decide", "command": "add", "state": null, "payload": 3 }),
        json!({ "do": "decide", "command": "add", "state": 9, "payload": 2 }),
        json!({ "do": "decide", "command": "remove", "state": 1, "payload": 1 }),
    ]);
    assert_eq!(told[0]["description"]["decides"], json!(true));
    assert_eq!(told[0]["description"]["functions"][0]["name"], json!("echo"));
    assert_eq!(told[1], json!({ "output": [1, "é"] }));
    let about = &told[2]["output"];
    let about = [&about["tenant"], &about["actor"], &about["key"]];
    assert_eq!(about, [&json!("acme"), &json!("ann"), &json!("k1")]);
    let failure = json!({
        "code": "busy", "message": "as asked", "temporary": true, "retry_after_ms": 5,
        "details": { "why": "a test" },
    });
    assert_eq!(told[3], json!({ "failure": failure }));
    assert_eq!(told[4], json!({ "results": [{ "output": 1 }, { "output": 2 }, { "output": 3 }] }));
    assert_eq!(told[5], json!({ "configured": true }));
    assert_eq!(told[6], json!({ "output": "a" }));
    assert_eq!(told[7]["failure"]["code"], json!("no_https"));
    assert_eq!(told[8], json!({ "events": [{ "event": "added", "data": { "by": 3 } }] }));
    assert_eq!(told[9]["rejected"]["code"], json!("too_many"));
    assert_eq!(told[10]["failure"]["code"], json!("unknown_command"));
}

/// And the next question is answered as if nothing had been.
#[test]
fn what_the_host_would_refuse_is_an_error() {
    for (wrong, said) in [
        (json!({ "do": "call", "function": "small", "input": 10 }), "the host would refuse"),
        (json!({ "do": "call", "function": "wrong" }), "breaks its own schema"),
        (json!({ "do": "configure", "configuration": 5 }), "the host would refuse"),
        (json!({ "do": "call", "function": "sleep", "input": 60_000, "timeout_ms": 300 }), "300"),
        (json!({ "do": "undo" }), "the question"),
        (json!(5), "the question"),
    ] {
        let told =
            answers(&[wrong.clone(), json!({ "do": "call", "function": "echo", "input": 1 })]);
        let error = told[0]["error"].as_str().unwrap_or_default();
        assert!(error.contains(said), "{wrong}: {}", told[0]);
        assert_eq!(told[1], json!({ "output": 1 }), "{wrong}");
    }
}

#[test]
fn lines_that_are_no_json_are_told_and_a_file_that_is_none_does_not_start() {
    let lines = ["{".to_owned(), r#"{"do": "call", "function": "echo"}"#.to_owned()];
    let said = succeeded(&[], &asked(&lab(), &lines));
    let told: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told[0]["error"].is_string(), "{said}");
    assert_eq!(told[1], json!({ "output": null }));
    let done = asked(Path::new("/bin/true"), &lines);
    let (out, err) = texts(&done);
    assert!(done.status.code() == Some(1) && out.is_empty(), "{out}{err}");
    assert!(err.contains("did not start"), "{err}");
}
