//! Installed plugins: `flexcore plugin install` and what follows, with a plugin of the SDK's tests on a real
//! installation.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use flexcore_domain::plugin::INPUT_BYTES_MAX;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Answer, Dev, Http, eventually,
    process::{descendants, texts},
};

/// The plugin that the tests of `src/sdk` use, in a folder of its own, under this name.
struct Lab {
    folder: TempDir,
    name: &'static str,
}

impl Lab {
    fn new(name: &'static str) -> Self {
        // Beside the executable, so that a link is enough.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let lab = Self { folder, name };
        lab.put_into(lab.folder.path(), "0.1.0", "");
        lab
    }

    /// Writes it into a folder, with further lines in its manifest.
    fn put_into(&self, folder: &Path, version: &str, more: &str) {
        let name = self.name;
        // The argument is what this one is known by among processes.
        let manifest =
            format!("name: {name}\nversion: {version}\nfile: lab\narguments: [{name}]\n{more}");
        fs::write(folder.join("plugin.yaml"), manifest).unwrap();
        let own = Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-sdk-lab");
        let advice = "`cargo build` for all packages builds it, in the same profile";
        assert!(own.is_file(), "{} is not there: {advice}", own.display());
        let file = folder.join("lab");
        if !file.exists() {
            fs::hard_link(&own, &file).or_else(|_| fs::copy(&own, &file).map(drop)).unwrap();
        }
    }

    fn write(&self, version: &str, more: &str) {
        self.put_into(self.folder.path(), version, more);
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// Installs it; returns what `install --json` says.
    fn install(&self, dev: &Dev) -> Value {
        dev.json(&["plugin", "install", self.path(), "--json"])
    }

    /// Installs it and waits until it serves.
    async fn serve(&self, dev: &Dev) {
        self.install(dev);
        self.until_ready(dev, "0.1.0").await;
    }

    /// Waits until this version of it serves.
    async fn until_ready(&self, dev: &Dev, version: &str) {
        eventually("the plugin to be ready", async || {
            let worker = self.shown(dev).await?["workers"][0].clone();
            if worker["ready"].as_u64() > Some(0) && worker["version"] == json!(version) {
                Ok(())
            } else {
                Err(worker.to_string())
            }
        })
        .await;
    }

    /// Waits until a call of it is under way.
    async fn until_called(&self, dev: &Dev) {
        eventually("a call under way", async || {
            let worker = self.shown(dev).await?["workers"][0].clone();
            if worker["under_way"] == json!(1) { Ok(()) } else { Err(worker.to_string()) }
        })
        .await;
    }

    /// What `show --json` says, also of one that is not ready.
    async fn shown(&self, dev: &Dev) -> Result<Value, String> {
        let output = dev.run_async(&["plugin", "show", self.name, "--json"]).await;
        let (out, err) = texts(&output);
        serde_json::from_str(&out).map_err(|_| format!("{out}{err}"))
    }

    async fn call(&self, http: &Http, function: &str, input: Value) -> Answer {
        call(http, self.name, function, input).await
    }

    /// Its process: the last one that has its name among its arguments, and not the guard.
    fn pid(&self, dev: &Dev) -> Option<u32> {
        let is_it = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == self.name.as_bytes())
        };
        descendants(dev.pid()).into_iter().rfind(is_it)
    }

    fn kill(&self, dev: &Dev) {
        let pid = self.pid(dev).unwrap().to_string();
        let kill = ["-c", "kill -KILL \"$1\"", "sh", &pid];
        assert!(Command::new("sh").args(kill).status().unwrap().success());
    }
}

async fn call(http: &Http, plugin: &str, function: &str, input: Value) -> Answer {
    let path = format!("/v1/plugins/{plugin}/{function}");
    let headers = [("content-type", "application/json"), ("idempotency-key", "key-1")];
    http.send("POST", &path, &headers, input.to_string()).await
}

#[tokio::test]
async fn a_plugin_is_installed_called_and_removed() {
    let (dev, lab) = (Dev::shared(), Lab::new("whole"));
    let installed = lab.install(&dev);
    assert_eq!((&installed["name"], &installed["number"]), (&json!("whole"), &json!(1)));
    assert_eq!(installed["sha256"].as_str().map(str::len), Some(64), "{installed}");
    assert_eq!(installed["is_new"], json!(true), "{installed}");
    lab.until_ready(&dev, "0.1.0").await;
    let again = lab.install(&dev);
    assert_eq!((&again["number"], &again["is_new"]), (&json!(1), &json!(false)), "{again}");

    let echoed = dev.json(&["plugin", "call", "whole", "echo", r#"{"a": [1, "b"]}"#]);
    assert_eq!(echoed, json!({"a": [1, "b"]}));
    // They were sent as 1.2345678901234568e+29 and {"a":2}, and HTTP refuses them.
    for (input, why) in [
        ("123456789012345678901234567890", "send it as a string"),
        (r#"{"a": 1, "a": 2}"#, "/a: this key stands twice"),
    ] {
        let (_, err) = texts(&dev.run(&["plugin", "call", "whole", "echo", input]));
        assert!(err.contains("the input is not accepted") && err.contains(why), "{err}");
    }
    let (_, err) = texts(&dev.run(&["plugin", "call", "whole", "ecko"]));
    assert!(err.contains("has no such function; it has: about, "), "{err}");
    let about = ["plugin", "call", "whole", "about", "null", "--id", "key-7", "--actor", "ann"];
    let about = dev.json(&about);
    assert_eq!((&about["tenant"], &about["key"]), (&json!("demo"), &json!("key-7")), "{about}");
    assert!(about["actor"].as_str().is_some_and(|actor| actor.ends_with("ann")), "{about}");

    let http = dev.http("other");
    assert_eq!(lab.call(&http, "echo", json!([1])).await.ok(), json!([1]));
    let about = lab.call(&http, "about", Value::Null).await.ok();
    assert_eq!((&about["tenant"], &about["key"]), (&json!("other"), &json!("key-1")), "{about}");
    assert!(about["remaining_ms"].as_u64() > Some(0), "{about}");
    // A gateway asks the workers once a second.
    let shown =
        eventually("the gateway to know it", async || match http.get("/v1/plugins/whole").await {
            answer if answer.status == 200 => Ok(answer.json().to_string()),
            answer => Err(format!("{answer:?}")),
        })
        .await;
    assert!(shown.contains("\"echo\"") && shown.contains("As it came."), "{shown}");
    assert!(http.get("/v1/plugins").await.ok().to_string().contains("\"whole\""));
    let table = dev.succeed(&["plugin", "list"]);
    assert!(table.contains("whole") && table.contains("1 of 1"), "{table}");
    for column in ["version", "state", "restarts", "calls", "errors", "p50", "p99", "memory"] {
        assert!(table.contains(column), "{column}: {table}");
    }
    let table = dev.succeed(&["plugin", "show", "whole"]);
    assert!(table.contains("echo") && table.contains("ready"), "{table}");

    lab.call(&http, "log", Value::Null).await.ok();
    eventually("its log", async || {
        let said = dev.succeed(&["plugin", "logs", "whole"]);
        if said.contains("two") { Ok(()) } else { Err(said) }
    })
    .await;

    dev.succeed(&["plugin", "remove", "whole"]);
    eventually("its end", async || match lab.call(&http, "echo", json!(1)).await {
        answer if answer.status == 404 => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    eventually("the gateway to know that", async || match http.get("/v1/plugins/whole").await {
        answer if answer.status == 404 => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    let (_, err) = texts(&dev.run(&["plugin", "show", "whole"]));
    assert!(err.contains("no plugin whole is installed"), "{err}");
    eventually("its process to end", async || match lab.pid(&dev) {
        None => Ok(()),
        Some(pid) => Err(pid.to_string()),
    })
    .await;
}

#[tokio::test]
async fn what_a_call_may_end_in_is_told_over_http_and_on_the_command_line() {
    let (dev, lab) = (Dev::shared(), Lab::new("ends"));
    lab.serve(&dev).await;
    let http = dev.http("demo");
    for (function, input, status, code) in [
        ("fail", json!({"code": "no_luck"}), 409, "plugin-failed"),
        ("fail", json!({"code": "later", "pause_ms": 2_000}), 503, "plugin-failed-for-now"),
        ("small", json!(10), 422, "invalid-input"),
        ("nothing", json!(1), 404, "unknown-function"),
    ] {
        lab.call(&http, function, input).await.problem(status, code);
    }
    call(&http, "nobody", "echo", json!(1)).await.problem(404, "unknown-plugin");
    for (arguments, said) in [
        (&["ends", "fail", r#"{"code": "no_luck"}"#][..], "no_luck: as asked"),
        (&["ends", "fail", r#"{"code": "later", "pause_ms": 2000}"#], "after 2000 ms"),
        (&["ends", "nothing"], "function"),
        (&["nobody", "echo"], "nobody"),
    ] {
        let output = dev.run(&[&["plugin", "call"][..], arguments].concat());
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {out}{err}");
        assert!(out.is_empty() && err.contains(said), "{arguments:?}: {out}{err}");
    }
}

#[tokio::test]
async fn the_largest_input_fits_a_message_and_a_larger_one_is_refused() {
    let (dev, lab) = (Dev::shared(), Lab::new("large"));
    lab.serve(&dev).await;
    let http = dev.http("demo");
    // With its quotes.
    let largest = json!("x".repeat(INPUT_BYTES_MAX - 2));
    assert!(lab.call(&http, "echo", largest.clone()).await.ok() == largest, "as it came");
    let larger = json!("x".repeat(INPUT_BYTES_MAX - 1));
    let file = lab.folder.path().join("input.json");
    let named = format!("@{}", file.display());
    let command = ["plugin", "call", "large", "echo", &named, "--json"];
    fs::write(&file, largest.to_string()).unwrap();
    assert!(dev.json(&command) == largest, "as it came");
    fs::write(&file, larger.to_string()).unwrap();
    let output = dev.run(&command);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    let most = format!("an input has at most {INPUT_BYTES_MAX} bytes");
    assert!(out.is_empty() && err.contains(&most), "{err}");
}

#[tokio::test]
async fn a_plugin_that_is_killed_is_back_by_itself() {
    let (dev, lab) = (Dev::shared(), Lab::new("killed"));
    lab.serve(&dev).await;
    let http = dev.http("demo");
    let sleeping = http.another();
    let sleep = async move { call(&sleeping, "killed", "sleep", json!(20_000)).await };
    let under_way = tokio::spawn(sleep);
    lab.until_called(&dev).await;
    lab.kill(&dev);
    // It is not idempotent, so nobody tries it again.
    under_way.await.unwrap().problem(503, "outcome-unknown");
    let echo = async || match lab.call(&http, "echo", json!(2)).await {
        answer if answer.status == 200 => Ok(answer.json()),
        answer => Err(format!("{answer:?}")),
    };
    assert_eq!(eventually("it to be back", echo).await, json!(2));
    let worker = lab.shown(&dev).await.unwrap()["workers"][0].clone();
    assert!(worker["restarts"].as_u64() > Some(0), "{worker}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_and_restarts_lose_no_call() {
    let (dev, lab) = (Dev::shared(), Lab::new("upgraded"));
    lab.serve(&dev).await;
    let http = dev.http("demo");
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (http, stop) = (http.another(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut calls = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let input = json!([caller, calls]);
                    let answer = call(&http, "upgraded", "echo", input.clone()).await;
                    assert_eq!(answer.ok(), input, "call {calls} of caller {caller}");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    lab.write("0.2.0", "concurrency: 32\n");
    assert_eq!(lab.install(&dev)["number"], json!(2));
    lab.until_ready(&dev, "0.2.0").await;
    let before = lab.pid(&dev);
    dev.succeed(&["plugin", "restart", "upgraded"]);
    eventually("another process", async || match lab.pid(&dev) {
        Some(pid) if Some(pid) != before => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    // What cannot start does not take the place of what runs.
    lab.write("0.3.0", "cookie: { key: NO, value: such }\nstart: 5s\n");
    let (out, err) = texts(&dev.run(&["plugin", "install", lab.path(), "--unchecked"]));
    assert!(out.contains("number 4"), "{out}{err}");
    eventually("the failure to be told", async || {
        let worker = lab.shown(&dev).await?["workers"][0].clone();
        if worker["reason"].is_string() { Ok(()) } else { Err(worker.to_string()) }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn an_upgrade_leaves_a_call_of_the_version_before_its_whole_time() {
    let (dev, lab) = (Dev::shared(), Lab::new("patient"));
    lab.serve(&dev).await;
    let sleeping = dev.http("demo");
    // Longer than the 10 s that an instance has which is ended for another reason.
    let sleep = async move { call(&sleeping, "patient", "sleep", json!(20_000)).await };
    let under_way = tokio::spawn(sleep);
    lab.until_called(&dev).await;
    lab.write("0.2.0", "");
    lab.install(&dev);
    lab.until_ready(&dev, "0.2.0").await;
    assert!(!under_way.is_finished(), "the new version answers meanwhile");
    assert_eq!(under_way.await.unwrap().ok(), Value::Null);
}

#[tokio::test]
async fn what_is_wrong_with_a_plugin_is_told_before_it_is_installed() {
    let (dev, lab) = (Dev::shared(), Lab::new("faulty"));
    let refused = |place: &str| {
        let output = dev.run(&["plugin", "install", place]);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{out}{err}");
        // What the plugin says may be in it.
        assert!(!err.lines().any(|line| line.starts_with("thread ")), "{err}");
        err
    };
    lab.write("0.1.0", "instances: 99\ncalls: 1\n");
    let err = refused(lab.path());
    assert!(err.contains("plugin.yaml:5") && err.contains("plugin.yaml:6"), "{err}");
    for more in ["cookie: { key: NO, value: such }\n", "limits: { memory: 16MiB }\n"] {
        lab.write("0.1.0", more);
        let err = refused(lab.path());
        assert!(err.contains("did not start") && err.contains("--unchecked"), "{more}: {err}");
    }
    fs::remove_file(lab.folder.path().join("lab")).unwrap();
    let err = refused(lab.path());
    assert!(err.contains("is not there: build it"), "{err}");
    assert!(refused("/nowhere").contains("/nowhere"));
    let (_, err) = texts(&dev.run(&["plugin", "show", "faulty"]));
    assert!(err.contains("no plugin faulty is installed"), "{err}");
}

#[tokio::test]
async fn a_plugin_is_for_its_tenants_alone() {
    let (dev, lab) = (Dev::shared(), Lab::new("private"));
    lab.write("0.1.0", "tenants: [ann, bob]\n");
    lab.serve(&dev).await;
    for tenant in ["ann", "bob"] {
        let answer = lab.call(&dev.http(tenant), "echo", json!(tenant)).await;
        assert_eq!(answer.ok(), json!(tenant));
    }
    // As one that is not installed: nobody learns from this what others have.
    let eve = dev.http("eve");
    let hidden = lab.call(&eve, "echo", json!(1)).await.problem(404, "unknown-plugin");
    let none = call(&eve, "nothing", "echo", json!(1)).await.problem(404, "unknown-plugin");
    assert_eq!(hidden["detail"], none["detail"]);
    let output = dev.run(&["plugin", "call", "private", "echo", "1", "--tenant", "eve"]);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(out.is_empty() && err.contains("private is not for this tenant"), "{err}");
}

#[tokio::test]
async fn dev_installs_what_is_in_its_folder_and_what_changes_there() {
    let above = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (own, other) = (above.path().join("own"), above.path().join("other"));
    for folder in [&own, &other] {
        fs::create_dir(folder).unwrap();
    }
    let lab = Lab::new("watched");
    lab.put_into(&own, "0.1.0", "");
    fs::write(other.join("plugin.yaml"), "name: Wrong\n").unwrap();
    let dev = Dev::start(&["--plugins", above.path().to_str().unwrap()]);
    lab.until_ready(&dev, "0.1.0").await;
    let http = dev.http("demo");
    assert_eq!(lab.call(&http, "echo", json!("x")).await.ok(), json!("x"));
    lab.put_into(&own, "0.2.0", "");
    lab.until_ready(&dev, "0.2.0").await;
    let log = fs::read_to_string(dev.data().with_file_name("dev.log")).unwrap();
    assert_eq!(log.matches("plugin not installed").count(), 1, "{log}");
}
