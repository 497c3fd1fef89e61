//! Commands that an installed plugin decides, on a real installation: the counter up to ten of the SDK's tests.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Answer, Dev, Http,
    app::{Files, deploy},
    eventually,
    process::{descendants, texts},
};

/// Longest time for an answer: two seconds for the plugin, and a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A plugin, and an aggregate of the same name whose commands it decides.
struct Counter {
    dev: Arc<Dev>,
    name: &'static str,
    folder: TempDir,
}

impl Counter {
    /// Installed, deployed, and ready.
    async fn new(name: &'static str, more: &str) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let own = Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-sdk-lab");
        let advice = "`cargo build` for all packages builds it, in the same profile";
        assert!(own.is_file(), "{} is not there: {advice}", own.display());
        let file = folder.path().join("lab");
        fs::hard_link(&own, &file).or_else(|_| fs::copy(&own, &file).map(drop)).unwrap();
        // The argument is what this one is known by among processes.
        let manifest =
            format!("name: {name}\nversion: 0.1.0\nfile: lab\narguments: [{name}]\n{more}");
        fs::write(folder.path().join("plugin.yaml"), manifest).unwrap();
        let counter = Self { dev: Dev::shared(), name, folder };
        counter.install();
        counter.until_ready().await;
        deploy(&counter.dev, &counter.application());
        counter
    }

    fn application(&self) -> Files {
        let name = self.name;
        let text = format!(
            "aggregate: {name}
description: A counter up to ten.
decide: {{ plugin: {name} }}
commands:
  add: {{ payload: {{ type: integer }} }}
  nothing: {{ payload: {{ type: integer }} }}
  lie: {{ payload: {{ type: integer }} }}
  sleep: {{ payload: {{ type: integer }} }}
  panic: {{ payload: {{ type: integer }} }}
  own:
    payload: {{ type: integer }}
    decide: \"(state, by) => [{{ event: 'added', data: {{ by }} }}]\"
events:
  added:
    data: {{ type: object, required: [by], properties: {{ by: {{ type: integer }} }} }}
    evolve: \"(state, {{ data }}) => (state ?? 0) + data.by\"
"
        );
        Files::one(name, &text)
    }

    fn install(&self) {
        let path = self.folder.path().to_str().unwrap();
        self.dev.json(&["plugin", "install", path, "--json"]);
    }

    async fn until_ready(&self) {
        eventually("the plugin to be ready", async || {
            let output = self.dev.run_async(&["plugin", "show", self.name, "--json"]).await;
            let (out, err) = texts(&output);
            let shown: Value = serde_json::from_str(&out).map_err(|_| format!("{out}{err}"))?;
            let ready = shown["workers"][0]["ready"].as_u64() > Some(0);
            if ready { Ok(()) } else { Err(shown.to_string()) }
        })
        .await;
    }

    async fn send(&self, http: &Http, id: &str, command: &str, payload: i64) -> Answer {
        let path = format!("/v1/commands/{}/{id}/{command}", self.name);
        let headers = [("content-type", "application/json")];
        http.send("POST", &path, &headers, payload.to_string()).await
    }

    /// The command's version, once the plugin decides: it is told of a command worker a moment after it is ready.
    async fn until_added(&self, http: &Http, id: &str, by: i64) -> Value {
        eventually("a decision", async || match self.send(http, id, "add", by).await {
            answer if answer.status == 200 => Ok(answer.json()["version"].clone()),
            answer => Err(format!("{answer:?}")),
        })
        .await
    }

    /// The aggregate's state.
    async fn state(&self, http: &Http, id: &str) -> Value {
        http.get(&format!("/v1/aggregates/{}/{id}", self.name)).await.ok()["state"].clone()
    }

    /// Its process: the last one that has its name among its arguments, and not the guard.
    fn kill(&self) -> bool {
        let is_it = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == self.name.as_bytes())
        };
        let found = descendants(self.dev.pid()).into_iter().rfind(is_it);
        found.is_some_and(|pid| {
            let kill = ["-c", "kill -KILL \"$1\"", "sh", &pid.to_string()];
            Command::new("sh").args(kill).status().unwrap().success()
        })
    }
}

#[tokio::test]
async fn a_plugin_accepts_rejects_and_is_held_to_its_contract() {
    let counter = Counter::new("decides", "").await;
    let http = counter.dev.http("acme");
    assert_eq!(counter.until_added(&http, "a", 3).await, json!(1));
    assert_eq!(counter.send(&http, "a", "add", 4).await.ok()["version"], json!(2));
    assert_eq!(counter.state(&http, "a").await, json!(7));
    let rejected = counter.send(&http, "a", "add", 4).await.problem(409, "rejected");
    assert_eq!(rejected["code"], json!("too_many"), "{rejected}");
    assert_eq!(counter.send(&http, "a", "nothing", 0).await.ok()["version"], json!(2));
    // A function of the same aggregate goes on from what the plugin has decided, and the other way round.
    assert_eq!(counter.send(&http, "a", "own", 2).await.ok()["version"], json!(3));
    counter.send(&http, "a", "add", 2).await.problem(409, "rejected");
    let told = counter.send(&http, "a", "lie", 1).await.problem(422, "faulty-decider");
    assert!(told["detail"].as_str().unwrap().contains("plugin decides"), "{told}");
    let told = counter.send(&http, "a", "panic", 1).await;
    let detail = told.json()["detail"].as_str().unwrap().to_owned();
    assert_eq!(
        (told.status, detail.contains("the plugin's code panicked")),
        (422, true),
        "{detail}"
    );
    let path = "/v1/commands/decides/a/add";
    let headers = [("content-type", "application/json")];
    http.send("POST", path, &headers, "\"x\"").await.problem(422, "invalid-payload");
    assert_eq!(counter.send(&http, "a", "add", 1).await.ok()["version"], json!(4));
    assert_eq!(counter.state(&http, "a").await, json!(10));
    // The same command again has its first answer, without the plugin.
    let same = [headers[0], ("idempotency-key", "once")];
    let first = http.send("POST", "/v1/commands/decides/b/add", &same, "1").await.ok();
    let again = http.send("POST", "/v1/commands/decides/b/add", &same, "1").await.ok();
    assert_eq!((&first["version"], &again["version"]), (&json!(1), &json!(1)));
    assert_eq!(again["replayed"], json!(true), "{again}");
}

#[tokio::test]
async fn a_plugin_that_is_slow_is_an_answer_and_holds_nobody_up() {
    let counter = Counter::new("dawdles", "").await;
    let http = counter.dev.http("acme");
    counter.until_added(&http, "first", 1).await;
    let slow = async { (counter.send(&http, "slow", "sleep", 6_000).await, Instant::now()) };
    // More aggregates than there are lanes: some share that of the slow one.
    let (others, another) = (http.another(), counter.dev.http("globex"));
    let others = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for number in 0..16 {
            let id = format!("other-{number}");
            assert_eq!(counter.send(&others, &id, "own", 1).await.status, 200, "{number}");
        }
        // Another tenant's questions are decided meanwhile.
        assert_eq!(counter.send(&another, "theirs", "add", 1).await.status, 200);
        Instant::now()
    };
    let began = Instant::now();
    let ((slow, slow_at), others_at) = tokio::join!(slow, others);
    slow.problem(422, "faulty-decider");
    assert!(others_at < slow_at && slow_at - began < ANSWER_MAX, "{:?}", slow_at - began);
    counter.until_added(&http, "slow", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_killed_under_load_leaves_nobody_without_an_answer() {
    let counter = Arc::new(Counter::new("falls", "").await);
    let http = counter.dev.http("acme");
    counter.until_added(&http, "first", 1).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (counter, stop, done) = (counter.clone(), stop.clone(), done.clone());
            let http = http.another();
            tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    let id = format!("s{sender}-{number}");
                    let answer = counter.send(&http, &id, "add", 1).await;
                    assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());
                    assert!([200, 503].contains(&answer.status), "{answer:?}");
                    done.fetch_add(u32::from(answer.status == 200), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..5 {
        eventually("a process to kill", async || {
            if counter.kill() { Ok(()) } else { Err("there is none".to_owned()) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = done.load(Ordering::Relaxed);
        eventually("another decision", async || match done.load(Ordering::Relaxed) {
            now if now > before => Ok(()),
            now => Err(format!("{now} so far")),
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    counter.until_added(&http, "last", 1).await;
}

#[tokio::test]
async fn stored_commands_wait_for_a_plugin_that_was_removed_and_clients_do_not() {
    let counter = Counter::new("leaves", "").await;
    let http = counter.dev.http("acme");
    counter.until_added(&http, "a", 1).await;
    counter.dev.succeed(&["plugin", "remove", "leaves", "--force"]);
    eventually("its end", async || match counter.send(&http, "b", "add", 1).await {
        answer if answer.status == 503 => {
            // Its outcome is known: nothing was done.
            answer.problem(503, "unavailable");
            Ok(())
        }
        answer => Err(format!("{answer:?}")),
    })
    .await;
    let headers = [("content-type", "application/json"), ("prefer", "respond-async")];
    let path = "/v1/commands/leaves/stored/add";
    let stored = http.send("POST", path, &headers, "2").await;
    assert_eq!(stored.status, 202, "{stored:?}");
    let outcome = stored.header("location").to_owned();
    // It waits, and others go on.
    for number in 0..16 {
        let id = format!("other-{number}");
        assert_eq!(counter.send(&http, &id, "own", 1).await.status, 200, "{number}");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waiting = http.get(&outcome).await;
    assert_ne!(waiting.json()["status"], json!("accepted"), "{waiting:?}");
    counter.install();
    let done = eventually("the stored command", async || match http.get(&outcome).await {
        answer if answer.status == 200 && answer.json()["status"] == json!("accepted") => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    done.await;
    assert_eq!(counter.state(&http, "stored").await, json!(2));
}

/// More than it can decide on in the time of a decision: nothing of that is faulty, or put aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_with_too_much_to_do_decides_on_all_that_is_stored() {
    const STORED: usize = 200;
    let counter = Counter::new("labours", "").await;
    let http = counter.dev.http("acme");
    counter.until_added(&http, "first", 1).await;
    let headers = [("content-type", "application/json"), ("prefer", "respond-async")];
    let mut outcomes = Vec::new();
    for number in 0..STORED {
        let path = format!("/v1/commands/labours/stored-{number}/sleep");
        let stored = http.send("POST", &path, &headers, "50").await;
        assert_eq!(stored.status, 202, "{stored:?}");
        outcomes.push(stored.header("location").to_owned());
    }
    for outcome in outcomes {
        eventually("a stored command", async || match http.get(&outcome).await {
            answer if answer.status == 200 && answer.json()["status"] == json!("accepted") => {
                Ok(())
            }
            answer => Err(format!("{answer:?}")),
        })
        .await;
    }
    counter.until_added(&http, "last", 1).await;
}

#[tokio::test]
async fn a_plugin_decides_for_its_tenants_alone() {
    let counter = Counter::new("chooses", "tenants: [acme]\n").await;
    let (acme, eve) = (counter.dev.http("acme"), counter.dev.http("eve"));
    counter.until_added(&acme, "a", 1).await;
    let told = counter.send(&eve, "a", "add", 1).await.problem(422, "faulty-decider");
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains("not for the tenant eve"), "{detail}");
    assert_eq!(counter.send(&eve, "a", "own", 1).await.status, 200);
    assert_eq!(counter.send(&acme, "a", "add", 1).await.ok()["version"], json!(2));
}
