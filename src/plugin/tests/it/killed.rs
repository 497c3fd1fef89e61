//! Plugins that are killed under load, and hosts that are killed with all that they have started.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    PATIENCE,
    base::{Base, MARK, MIB, alive, mark, marked, nothing_is_left, run, threads},
    contract::Transform,
    fixtures::{self, Program},
    harness::{How, start, within},
    stopping::{children_run, kill, signal},
};

const CALLERS: usize = 32;

/// Plugins that are killed before the base line is taken: the allocator has its arenas then.
const KILLS_BEFORE: usize = 40;
/// Plugins that are killed from then on.
const KILLS: usize = 160;

/// Answers of one plugin before it is killed.
const CALLS_A_LIFE: usize = 2 * CALLERS;

/// The deadline of each call. A call to a plugin that was killed ends far sooner.
const DEADLINE: Duration = Duration::from_secs(10);

/// Most memory that may be left of [`KILLS`] plugins. 16 MiB: less than 0.1 MiB each, while one
/// connection's window alone has 0.25 MiB.
const LEFT_BYTES_MAX: usize = 16 * MIB;

/// Threads of the pool for what blocks, which live on for a while.
const LEFT_THREADS_MAX: usize = 16;

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    failed: AtomicUsize,
    late: AtomicUsize,
}

/// Calls the plugin of the moment until it fails, and then the next one.
async fn caller(mut plugins: watch::Receiver<Option<Transform>>, counts: Arc<Counts>) {
    loop {
        let Some(transform) = plugins.borrow_and_update().clone() else { return };
        loop {
            match timeout(DEADLINE, transform.apply("a", "hello")).await {
                Ok(Ok(answer)) => {
                    assert_eq!(answer.payload, "HELLO");
                    counts.answered.fetch_add(1, Relaxed);
                }
                Ok(Err(_)) => {
                    counts.failed.fetch_add(1, Relaxed);
                    break;
                }
                Err(_) => {
                    counts.late.fetch_add(1, Relaxed);
                    break;
                }
            }
        }
        drop(transform);
        if plugins.changed().await.is_err() {
            return;
        }
    }
}

/// Starts plugins one after the other under all callers, and kills each in the middle of its calls.
async fn lives(count: usize, counts: &Arc<Counts>) {
    let (sender, plugins) = watch::channel(None);
    let mut callers = JoinSet::new();
    for life in 0..count {
        let hows = [How::default(), How::tls(), How::multiplexed(false), How::multiplexed(true)];
        let how = hows[life % hows.len()].clone();
        let started = start(&fixtures::rust(), how).await.unwrap();
        let before = counts.answered.load(Relaxed);
        sender.send_replace(Some(Transform::of(&started.plugin)));
        while callers.len() < CALLERS {
            callers.spawn(caller(plugins.clone(), Arc::clone(counts)));
        }
        let enough = async {
            while counts.answered.load(Relaxed) < before + CALLS_A_LIFE {
                sleep(Duration::from_millis(1)).await;
            }
        };
        within(PATIENCE, enough).await;
        kill(&started.plugin);
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert_eq!(signal(&ended), Some(9), "{ended}");
    }
    sender.send_replace(None);
    within(PATIENCE, callers.join_all()).await;
}

#[test]
fn every_call_is_answered_while_200_plugins_are_killed_under_32_callers() {
    run(async {
        let counts = Arc::new(Counts::default());
        lives(KILLS_BEFORE, &counts).await;
        let (before, threads_before) = (Base::settled().await, threads());
        lives(KILLS, &counts).await;
        before.comes_back().await;
        let all = KILLS_BEFORE + KILLS;
        let [answered, failed, late] =
            [&counts.answered, &counts.failed, &counts.late].map(|count| count.load(Relaxed));
        assert_eq!(late, 0, "{answered} calls were answered, {failed} failed");
        assert!(answered >= all * CALLS_A_LIFE, "{answered}");
        // A caller goes on to the next plugin when its call to this one has failed.
        assert!((all..=all * CALLERS).contains(&failed), "{answered} answered, {failed} failed");
        let began = Instant::now();
        loop {
            let left = Base::now().resident.saturating_sub(before.resident);
            let threads = threads().saturating_sub(threads_before);
            if left <= LEFT_BYTES_MAX && threads <= LEFT_THREADS_MAX {
                break;
            }
            let told = || format!("{} MiB and {threads} threads are left", left / MIB);
            assert!(began.elapsed() < PATIENCE, "{}", told());
            sleep(Duration::from_millis(100)).await;
        }
    });
}

/// A host in a process of its own, which starts this plugin. The plugin's folder is in this one.
fn host(program: &Program) -> (Child, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flexcore-plugin-host"));
    command.arg(&program.file).args(&program.arguments).env(MARK, mark());
    command.env("TMPDIR", folder.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    (command.spawn().unwrap(), folder)
}

/// Waits for the host's word that its plugin runs, and gives the plugin's process.
async fn plugin_of(host: &mut Child) -> u32 {
    let stdout = host.stdout.take().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        line
    });
    let line = within(PATIENCE, read).await.unwrap();
    line.trim().strip_prefix("STARTED ").expect("it says so").parse().unwrap()
}

/// As no host can prevent.
async fn kill_host(mut host: Child) {
    host.kill().unwrap();
    host.wait().unwrap();
    nothing_is_left(&mark()).await;
}

/// Waits until the guard has removed the plugin's folder, which is its last work.
async fn is_cleared(folder: &TempDir) {
    let cleared = async {
        while fs::read_dir(folder.path()).unwrap().next().is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within(PATIENCE, cleared).await;
}

#[test]
fn nothing_is_left_of_a_plugin_with_children_when_its_host_is_killed() {
    run(async {
        let (mut host, folder) = host(&fixtures::around("children.sh", &[]));
        let plugin = plugin_of(&mut host).await;
        children_run().await;
        assert!(marked(&mark()).contains(&plugin));
        kill_host(host).await;
        assert!(!alive(plugin));
        is_cleared(&folder).await;
    });
}

#[test]
fn nothing_is_left_of_a_stubborn_plugin_when_its_host_is_killed() {
    run(async {
        let (mut host, folder) = host(&fixtures::around("stubborn.sh", &[]));
        plugin_of(&mut host).await;
        kill_host(host).await;
        is_cleared(&folder).await;
    });
}

#[test]
fn nothing_is_left_of_a_flood_when_its_host_is_killed() {
    run(async {
        let (mut host, folder) = host(&fixtures::around("flood.sh", &["1000000000000"]));
        plugin_of(&mut host).await;
        kill_host(host).await;
        is_cleared(&folder).await;
    });
}

#[test]
fn nothing_is_left_when_a_host_is_killed_while_its_plugin_starts() {
    run(async {
        // The moment decides what there is already: the plugin, what guards it, or nothing. A
        // folder without a guard stays.
        for pause_ms in [0, 5, 20, 200] {
            let (host, _folder) = host(&fixtures::fault("silent.sh", &[]));
            sleep(Duration::from_millis(pause_ms)).await;
            kill_host(host).await;
        }
    });
}
