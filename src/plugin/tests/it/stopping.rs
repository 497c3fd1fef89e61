//! The end of a plugin: it ends in time, however it resists, and nothing of it is left.

use std::{fs, os::unix::process::ExitStatusExt as _, time::Duration};

use flexcore_plugin::{Ended, Plugin};
use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    PATIENCE,
    base::{alive, mark, marked, nothing_is_left, run},
    contract::Transform,
    fixtures,
    harness::{How, Started, start, within},
};

/// Processes of `children.sh` that sleep, each in its own way.
const CHILDREN: usize = 5;

/// Kills the plugin's process from outside.
pub(crate) fn kill(plugin: &Plugin) {
    let pid = Pid::from_raw(i32::try_from(plugin.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

pub(crate) fn signal(ended: &Ended) -> Option<i32> {
    ended.status.and_then(|status| status.signal())
}

/// A plugin with children, all of which run.
async fn with_children() -> Started {
    let program = fixtures::around("children.sh", &[]);
    let started = start(&program, How::default()).await.unwrap();
    children_run().await;
    started
}

/// Waits until all children of `children.sh` run.
pub(crate) async fn children_run() {
    let sleeps = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "sleep"
    };
    let run = async {
        while marked(&mark()).iter().filter(|pid| sleeps(pid)).count() < CHILDREN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(PATIENCE, run).await;
}

/// Neither a process nor a file of the plugin is left, once nobody has it any more.
async fn gone(started: Started) {
    let folder = started.folder().unwrap();
    drop(started);
    nothing_is_left(&mark()).await;
    assert!(!folder.exists(), "{}", folder.display());
}

#[test]
fn a_plugin_that_ignores_shutdown_and_sigterm_is_killed_in_time() {
    run(async {
        let program = fixtures::around("stubborn.sh", &[]);
        let started = start(&program, How::default()).await.unwrap();
        let answer = within(PATIENCE, Transform::of(&started.plugin).apply("a", "x")).await;
        assert_eq!(answer.unwrap().payload, "X");
        let ended = within(PATIENCE / 2, started.plugin.stop()).await;
        assert_eq!(signal(&ended), Some(9), "{ended}");
        gone(started).await;
    });
}

#[test]
fn children_are_gone_after_a_stop() {
    run(async {
        let started = with_children().await;
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
        assert!(ended.is_clean);
        gone(started).await;
    });
}

#[test]
fn children_are_gone_after_a_crash() {
    run(async {
        let started = with_children().await;
        let crash = within(PATIENCE, Transform::of(&started.plugin).apply("crash", "x")).await;
        crash.expect_err("it has crashed");
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert_eq!(ended.status.and_then(|status| status.code()), Some(7), "{ended}");
        gone(started).await;
    });
}

#[test]
fn children_are_gone_after_the_plugin_is_killed() {
    run(async {
        let started = with_children().await;
        kill(&started.plugin);
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert_eq!(signal(&ended), Some(9), "{ended}");
        assert!(ended.is_clean);
        gone(started).await;
    });
}

#[test]
fn children_are_gone_after_the_last_clone_is_dropped() {
    run(async {
        let started = with_children().await;
        let (clone, folder) = (started.plugin.clone(), started.folder().unwrap());
        drop(started);
        within(PATIENCE, clone.check()).await.unwrap();
        assert!(alive(clone.pid()), "there is a clone left");
        drop(clone);
        nothing_is_left(&mark()).await;
        assert!(!folder.exists(), "{}", folder.display());
    });
}

/// How often a bare plugin was told to end.
fn told(started: &Started) -> usize {
    started.prints().lines.iter().filter(|line| line.message == "told to end").count()
}

#[test]
fn many_stops_at_once_are_one() {
    run(async {
        let started = start(&fixtures::bare("ends"), How::default()).await.unwrap();
        let stops = (0..16).map(|_| started.plugin.stop());
        let all = within(PATIENCE, join_all(stops)).await;
        let success = |ended: &Ended| ended.status.is_some_and(|status| status.success());
        assert!(all.iter().all(success), "{all:?}");
        assert_eq!(told(&started), 1, "{:?}", started.prints());
    });
}

#[test]
fn a_plugin_that_hangs_when_it_is_told_to_end_is_ended_by_a_signal() {
    run(async {
        let started = start(&fixtures::bare("hangs"), How::default()).await.unwrap();
        let ended = within(PATIENCE / 2, started.plugin.stop()).await;
        assert_eq!((signal(&ended), told(&started)), (Some(15), 1), "{ended}");
        gone(started).await;
    });
}

#[test]
fn a_call_under_way_is_answered_before_the_end() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let slow = tokio::spawn(async move { transform.apply("sleep:400", "x").await });
        // The plugin has it before it is told to end.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
        let answer = within(PATIENCE, slow).await.unwrap();
        assert_eq!(answer.unwrap().payload, "X");
    });
}

/// Half of them in sessions of their own.
#[test]
fn two_hundred_children_are_gone_after_a_stop() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let forked = within(PATIENCE, transform.apply("fork:200", "")).await.unwrap();
        let forked = std::str::from_utf8(&forked.payload).unwrap();
        let forked: Vec<u32> = forked.split(',').map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(forked.len(), 200);
        assert!(forked.iter().all(|pid| alive(*pid)), "{forked:?}");
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
        let left: Vec<_> = forked.iter().filter(|pid| alive(**pid)).collect();
        assert!(left.is_empty(), "{left:?}");
        gone(started).await;
    });
}

#[test]
fn a_stop_that_nobody_waits_for_goes_on() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let stop = started.plugin.stop();
        let soon = Duration::from_micros(1);
        let _ = tokio::time::timeout(soon, stop).await;
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}
