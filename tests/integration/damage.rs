//! A log that was changed behind our back: `verify` names the break, and never calls it whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{
    Dev, app,
    process::{flexcore, texts},
    say,
};

/// Block files of the log, largest first.
fn blocks(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("nats")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "blk")
                && path.to_string_lossy().contains("FLEX_EVENTS")
            {
                found.push(path);
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    found
}

fn position(bytes: &[u8], text: &str) -> usize {
    let found = bytes.windows(text.len()).position(|part| part == text.as_bytes());
    found.unwrap_or_else(|| panic!("the block has no {text}"))
}

/// Runs `verify --json`; returns whether it succeeded, with its output.
fn verify(dev: &Dev, more: &[&str]) -> (bool, String) {
    let mut command = flexcore();
    command.arg("--data").arg(dev.data()).args(["verify", "--json"]).args(more);
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    (output.status.success(), out + &err)
}

#[tokio::test]
async fn a_flipped_byte_is_named_and_never_called_whole() {
    let mut dev = Dev::start(&[]);
    app::deploy_bank(&dev);
    let http = dev.http("demo");
    http.command("a-1", "open", &[], r#"{"owner":"Ann","team":"red"}"#).await.ok();
    for amount in 1..=40 {
        let body = format!(r#"{{"amount":{amount},"note":"marker-{amount}-end"}}"#);
        http.command("a-1", "deposit", &[], body).await.ok();
    }
    let (whole, said) = verify(&dev, &[]);
    assert!(whole, "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["events"].as_u64(), &said["broken"]), (Some(42), &Value::Null));
    let (whole, said) = verify(&dev, &["--aggregate", "account/a-1"]);
    assert!(whole && said.contains("41"), "{said}");
    dev.terminate();

    let block = blocks(&dev.data()).remove(0);
    let mut bytes = fs::read(&block).unwrap();
    let at = position(&bytes, "marker-20-end");
    bytes[at] ^= 1;
    fs::write(&block, &bytes).unwrap();
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dev.start_again()));
    let Err(refused) = started else {
        for more in [&[][..], &["--aggregate", "account/a-1"]] {
            let (whole, said) = verify(&dev, more);
            say(&said);
            assert!(!whole, "a changed log was called whole: {said}");
            let broken = serde_json::from_str::<Value>(said.lines().next().unwrap_or_default());
            let broken = broken.map(|report| report["broken"].clone()).unwrap_or_default();
            let named = broken.as_str().unwrap_or(&said);
            assert!(
                ["gap", "chain", "not a commit", "corrupt", "missing"]
                    .iter()
                    .any(|w| named.contains(w)),
                "the break is not named: {said}"
            );
        }
        return;
    };
    let refused = refused.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(refused.contains("ended early"), "{refused}");
    say(&format!("dev refuses to start: {refused}"));
}
