//! What a plugin's process is by way of its guard, seen from outside: its environment, its parents,
//! its session, its privileges.

use std::{collections::BTreeSet, fs, path::PathBuf, process};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    PATIENCE,
    base::{MARK, mark, nothing_is_left, parent, run, session},
    fixtures,
    harness::{How, Started, start, within},
};

fn proc(pid: u32, name: &str) -> PathBuf {
    ["/proc", &pid.to_string(), name].iter().collect()
}

/// A number of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> i64 {
    let status = fs::read_to_string(proc(pid, "status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().parse().unwrap()
}

fn guard_of(started: &Started) -> u32 {
    let (_, guard) = parent(started.plugin.pid()).unwrap();
    guard
}

#[test]
fn a_plugin_gets_no_variable_of_its_host() {
    run(async {
        let started = start(&fixtures::rust(), How::multiplexed(true)).await.unwrap();
        let environment = fs::read(proc(started.plugin.pid(), "environ")).unwrap();
        let variables = environment.split(|byte| *byte == 0).filter(|one| !one.is_empty());
        let names = variables.map(|one| one.split(|byte| *byte == b'=').next().unwrap());
        let names: BTreeSet<String> =
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let expected = [
            // The harness gives it these two.
            "PATH",
            MARK,
            "HOME",
            "TMPDIR",
            "FLEXCORE_PLUGIN",
            "PLUGIN_PROTOCOL_VERSIONS",
            "PLUGIN_MIN_PORT",
            "PLUGIN_MAX_PORT",
            "PLUGIN_UNIX_SOCKET_DIR",
            "PLUGIN_MULTIPLEX_GRPC",
            "PLUGIN_CLIENT_CERT",
        ];
        assert_eq!(names, BTreeSet::from(expected.map(str::to_owned)));
        let folder = fs::canonicalize(started.folder().unwrap()).unwrap();
        assert_eq!(fs::read_link(proc(started.plugin.pid(), "cwd")).unwrap(), folder);
        within(PATIENCE, started.plugin.stop()).await;
    });
}

#[test]
fn a_plugin_has_a_guard_a_session_of_its_own_and_no_way_to_more_privileges() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let plugin = started.plugin.pid();
        let guard = guard_of(&started);
        assert_eq!(parent(guard).unwrap().1, process::id());
        assert_eq!(session(plugin), Some(plugin));
        assert_ne!(session(process::id()).unwrap(), plugin);
        assert_eq!(status(plugin, "NoNewPrivs"), 1);
        let score = |pid| -> i32 {
            fs::read_to_string(proc(pid, "oom_score_adj")).unwrap().trim().parse().unwrap()
        };
        let own = score(process::id());
        assert!(score(plugin) > own || own == 1_000, "it goes before its host");
        assert_eq!(score(guard), own);
        within(PATIENCE, started.plugin.stop()).await;
    });
}

#[test]
fn a_plugin_ends_with_its_guard() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let guard = Pid::from_raw(i32::try_from(guard_of(&started)).unwrap()).unwrap();
        kill_process(guard, Signal::KILL).unwrap();
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert_eq!(ended.status, None, "nobody has seen how it ended");
        nothing_is_left(&mark()).await;
        within(PATIENCE, started.plugin.check()).await.expect_err("nobody is there");
        within(PATIENCE, started.plugin.stop()).await;
    });
}
