//! Several workers that run the same plugin: one of them is killed, and its callers have their answers soon.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use flexcore_domain::{
    Name,
    plugin::{QUEUE_GROUP, call_subjects},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::{
    Answer, Http,
    cluster::Cluster,
    eventually,
    process::{Process, descendants, flexcore, texts},
};

/// What the processes of the plugin are known by.
const NAME: &str = "shared_lab";
/// Calls of a kind: enough that both workers get some.
const CALLS: usize = 12;
/// The function's time, longer than a caller waits for a worker that is gone.
const SLEEP_MS: u64 = 14_000;
/// Longest wait for an answer once its worker was killed.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// The plugin that the tests of `src/sdk` use, in a folder of its own.
fn lab() -> TempDir {
    // Beside the executable, so that a link is enough.
    let folder = folder();
    let manifest = format!("name: {NAME}\nversion: 0.1.0\nfile: lab\narguments: [{NAME}]\n");
    fs::write(folder.path().join("plugin.yaml"), manifest).unwrap();
    let own = Path::new(env!("CARGO_BIN_EXE_flexcore")).with_file_name("flexcore-sdk-lab");
    let advice = "`cargo build` for all packages builds it, in the same profile";
    assert!(own.is_file(), "{} is not there: {advice}", own.display());
    let file = folder.path().join("lab");
    fs::hard_link(&own, &file).or_else(|_| fs::copy(&own, &file).map(drop)).unwrap();
    folder
}

/// A folder in which files may be executed.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A gateway and the workers `one` and `two`, both of which run the plugin. Each has a cache of its own, as on two
/// machines.
async fn two_workers(caches: &[TempDir; 2]) -> Cluster {
    let mut cluster = Cluster::new().await;
    cluster.start("gateway", "gateway");
    for (name, cache) in ["one", "two"].into_iter().zip(caches) {
        cluster.start_with("worker", name, &["--cache", cache.path().to_str().unwrap()]);
    }
    cluster.readiness("ready", "").await;
    let lab = lab();
    cluster.run(&["plugin", "install", lab.path().to_str().unwrap()]);
    until_both(&cluster, "ready", 1).await;
    cluster
}

/// Waits until this figure is so large on both workers.
async fn until_both(cluster: &Cluster, figure: &str, least: u64) {
    eventually("the plugin on both workers", async || {
        let mut command = flexcore();
        command.args(cluster.options()).args(["plugin", "show", NAME, "--json"]);
        // It fails while the plugin is not ready, and says how it is all the same.
        let (out, err) = texts(&command.output().unwrap());
        let shown: Value = serde_json::from_str(&out).unwrap_or_default();
        let workers = shown["workers"].as_array().map_or(&[][..], Vec::as_slice);
        let is_there = |worker: &Value| worker[figure].as_u64() >= Some(least);
        if workers.len() == 2 && workers.iter().all(is_there) {
            Ok(())
        } else {
            Err(format!("{out}{err}\n{}", cluster.tails()))
        }
    })
    .await;
}

/// A call on a connection of its own, and when it was answered.
fn call(http: &Http, plugin: &str, function: &str, input: u64) -> JoinHandle<(Answer, Instant)> {
    let (http, path) = (http.another(), format!("/v1/plugins/{plugin}/{function}"));
    tokio::spawn(async move {
        let json = [("content-type", "application/json")];
        (http.send("POST", &path, &json, input.to_string()).await, Instant::now())
    })
}

/// Stops the plugin of a worker, so that none of its calls ends.
fn freeze(worker: &Process) {
    let is_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == NAME.as_bytes())
    };
    // The last one: its guard has the name among its arguments, too.
    let pid = descendants(worker.pid()).into_iter().rfind(is_it).unwrap().to_string();
    let stop = ["-c", "kill -STOP \"$1\"", "sh", &pid];
    assert!(std::process::Command::new("sh").args(stop).status().unwrap().success());
}

/// A worker of a version that says nothing while it has a call: it answers late, and all the same.
async fn work_as_before(url: String) {
    let client = async_nats::connect(url).await.unwrap();
    let subjects = call_subjects(&Name::parse("former").unwrap());
    let mut calls = client.queue_subscribe(subjects, QUEUE_GROUP.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = calls.next().await {
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.publish(message.reply.unwrap(), r#"{"output":7}"#.into()).await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_a_worker_that_is_killed_have_their_answers_soon() {
    // They go after the processes.
    let caches = [folder(), folder()];
    let mut cluster = two_workers(&caches).await;
    work_as_before(cluster.servers.nats_url()).await;
    let target = cluster.target();
    let http = Arc::new(Http::new(&target.http, &target.token));
    let former = call(&http, "former", "greet", 1);
    let began = Instant::now();
    let sleeping: Vec<_> = (0..CALLS).map(|_| call(&http, NAME, "sleep", SLEEP_MS)).collect();
    until_both(&cluster, "under_way", 1).await;
    freeze(&cluster.roles[1]);
    // May be repeated, as the plugin says.
    let mut echoing: Vec<_> = (0..CALLS).map(|_| call(&http, NAME, "echo", 5)).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let waiting = echoing.iter().filter(|echo| !echo.is_finished()).count();
    assert!(waiting > 0, "the frozen plugin has some of them");
    // Some more just before and after, of which some go to nobody.
    let more = {
        let http = http.clone();
        tokio::spawn(async move {
            let mut more = Vec::new();
            for _ in 0..CALLS * 3 {
                more.push(call(&http, NAME, "echo", 5));
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            more
        })
    };
    tokio::time::sleep(Duration::from_millis(30)).await;
    cluster.roles[1].kill();
    let killed = Instant::now();
    echoing.extend(more.await.unwrap());
    for echo in echoing {
        let (answer, at) = echo.await.unwrap();
        assert_eq!(answer.ok(), json!(5));
        assert!(at.saturating_duration_since(killed) < ANSWERED_WITHIN);
    }
    let (mut unknown, mut done) = (0, 0);
    for sleep in sleeping {
        let (answer, at) = sleep.await.unwrap();
        if answer.status == 200 {
            assert!(at - began >= Duration::from_millis(SLEEP_MS));
            done += 1;
        } else {
            answer.problem(503, "outcome-unknown");
            assert!(at.saturating_duration_since(killed) < ANSWERED_WITHIN);
            unknown += 1;
        }
    }
    assert!(unknown > 0 && done > 0, "{unknown} unknown, {done} done");
    assert_eq!(former.await.unwrap().0.ok(), json!(7));
}
