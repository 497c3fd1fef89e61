//! What a plugin is kept from: it works within every measure, and does not get out of those that
//! hold on this machine. The others are told, past the test's captured output.

use std::{
    collections::BTreeMap, fs, io::Write as _, net::TcpListener, os::unix::fs::PermissionsExt as _,
    path::Path,
};

use flexcore_plugin::{
    Checked, Error,
    guard::{Bounds, Files, Held, Measure, MeasureState, Sandbox, User},
};
use rustix::process::{Pid, Signal, kill_process};
use tonic::service::Routes;

use crate::{
    PATIENCE,
    base::{MIB, mark, marked, nothing_is_left, run},
    contract::{HostAdder, Transform},
    fixtures::{self, Program},
    harness::{How, Started, start, start_checked, within},
    stopping::children_run,
};

/// Nobody else's.
const NOBODY: User = User { uid: 64_321, gid: 64_321 };

/// A cgroup in which root may make another one, on most machines.
const CGROUP: &str = "/sys/fs/cgroup";

/// More than a plugin of these tests takes.
const MEMORY_BYTES: u64 = 512 * MIB as u64;
const TASKS: u64 = 64;

/// Nothing but this one.
fn only(measure: Measure) -> Sandbox {
    let mut sandbox = Sandbox::default();
    match measure {
        Measure::User => sandbox.user = Some(NOBODY),
        Measure::Privileges => sandbox.no_privileges = true,
        Measure::Network => sandbox.no_network = true,
        Measure::Files => sandbox.files = Some(Files::default()),
        Measure::Processes => sandbox.own_processes = true,
        Measure::Memory => sandbox.memory_bytes = Some(MEMORY_BYTES),
        Measure::Tasks => sandbox.tasks = Some(TASKS),
        other => panic!("a test for {other} is missing"),
    }
    if sandbox.memory_bytes.or(sandbox.tasks).is_some() {
        sandbox.group = Some(CGROUP.into());
    }
    sandbox
}

fn everything() -> Sandbox {
    Sandbox {
        user: Some(NOBODY),
        no_privileges: true,
        no_network: true,
        files: Some(Files::default()),
        own_processes: true,
        group: Some(CGROUP.into()),
        memory_bytes: Some(MEMORY_BYTES),
        tasks: Some(TASKS),
        demanded: [].into(),
    }
}

/// A copy in memory, which any user may execute, wherever the file itself lies.
fn sealed(program: &Program) -> Checked {
    let sum = Checked::open(&program.file, None).unwrap().sha256();
    Checked::open(&program.file, Some(sum)).unwrap()
}

async fn started(file: &Checked, how: How) -> Started {
    within(PATIENCE, start_checked(file.clone(), &fixtures::rust(), how)).await.unwrap()
}

/// It is called, and calls back, at sockets that each side has made.
async fn works(started: Started) -> Held {
    let transform = Transform::of(&started.plugin);
    let answer = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
    assert_eq!(answer.payload, "X");
    let broker = started.plugin.broker();
    let id = broker.next_id();
    let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
    assert_eq!(within(PATIENCE, transform.call_back(id)).await.unwrap(), "host says 42");
    drop(accepted);
    let held = started.plugin.sandbox().clone();
    let ended = within(PATIENCE, started.plugin.stop()).await;
    assert!(ended.status.is_some_and(|status| status.success()), "{held}: {ended}");
    held
}

fn tell(held: &Held) {
    for (measure, answer) in held.iter() {
        if let MeasureState::NotAvailable(reason) = answer {
            let test = std::thread::current();
            let test = test.name().unwrap_or("a test");
            let line = format!("{test}: SKIPPED, no {measure} here: {reason}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_plugin_works_within_each_measure() {
    run(async {
        let file = sealed(&fixtures::rust());
        for measure in Measure::ALL {
            let sandbox = only(measure);
            let how = How { sandbox: sandbox.clone(), ..How::default() };
            let held = works(started(&file, how).await).await;
            tell(&held);
            for (other, answer) in held.iter() {
                assert_eq!(
                    *answer != MeasureState::NotAsked,
                    sandbox.asks(other),
                    "{measure}: {held}"
                );
            }
            assert!(held.holds(Measure::Privileges), "it needs nothing of the machine: {held}");
        }
    });
}

#[test]
fn a_plugin_works_within_all_measures_whatever_way_it_is_reached() {
    run(async {
        let file = sealed(&fixtures::rust());
        for how in [How::default(), How::tls(), How::multiplexed(false), How::multiplexed(true)] {
            let held = works(started(&file, How { sandbox: everything(), ..how }).await).await;
            tell(&held);
        }
    });
}

#[test]
fn a_plugin_in_go_works_within_all_measures() {
    run(async {
        let Some(go) = fixtures::go() else { return };
        let how = How { sandbox: everything(), ..How::default() };
        let started = within(PATIENCE, start_checked(sealed(&go), &go, how)).await.unwrap();
        tell(&works(started).await);
    });
}

#[test]
fn nothing_is_asked_for_by_default() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        assert_eq!(*started.plugin.sandbox(), Held::default());
    });
}

/// How the attempts went; none if this machine has no Python for everybody.
async fn attempts(
    sandbox: Sandbox,
    bounds: Bounds,
    what: &[&str],
) -> Option<(String, BTreeMap<String, String>)> {
    if !Path::new("/usr/bin/python3").exists() {
        std::io::stderr().write_all(b"SKIPPED, no /usr/bin/python3\n").unwrap();
        return None;
    }
    let mut program = fixtures::fault("escape.py", what);
    program.environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
    let how = How { sandbox, bounds, ..How::default() };
    let tried = within(PATIENCE, start_checked(sealed(&program), &program, how)).await;
    let (status, said) = match tried {
        Err(Error::EndedEarly { status, said }) => (status, said),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is no plugin"),
    };
    // The first line is within a phrase of ours.
    let said = said.replace("standard error: ", "standard error:\n");
    let outcomes = said.lines().filter_map(|line| line.split_once(' '));
    Some((status, outcomes.map(|(name, how)| (name.to_owned(), how.to_owned())).collect()))
}

/// What of a sandbox holds on this machine.
async fn holding(sandbox: Sandbox) -> Held {
    let file = sealed(&fixtures::rust());
    let held = works(started(&file, How { sandbox, ..How::default() }).await).await;
    tell(&held);
    held
}

#[test]
fn a_plugin_does_not_get_out_of_what_holds() {
    run(async {
        let outside = tempfile::tempdir().unwrap();
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(outside.path(), open).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = std::process::id();
        let [outside, port, environment, signal, trace, see] = [
            format!("outside={}", outside.path().join("file").display()),
            format!("port={}", listener.local_addr().unwrap().port()),
            format!("environment={host}"),
            format!("signal={host}"),
            format!("trace={host}"),
            format!("see={host}"),
        ];
        let all = [
            outside.as_str(),
            &port,
            &environment,
            &signal,
            &trace,
            &see,
            "shadow",
            "own",
            "mounts",
            "user",
        ];
        let all_held = holding(everything()).await;
        let alone: [(Measure, &[&str]); 5] = [
            (Measure::User, &["shadow", "environment", "signal", "trace", "mounts", "user"]),
            (Measure::Privileges, &["mounts"]),
            (Measure::Network, &["port"]),
            (Measure::Files, &["shadow", "environment", "outside", "trace"]),
            (Measure::Processes, &["environment", "signal", "trace", "see"]),
        ];
        for (measure, refused) in alone {
            if !all_held.holds(measure) {
                continue;
            }
            for sandbox in [only(measure), everything()] {
                let Some((_, outcomes)) = attempts(sandbox, Bounds::default(), &all).await else {
                    return;
                };
                assert_eq!(outcomes["own"], "done", "{outcomes:?}");
                for name in refused {
                    let outcome = &outcomes[*name];
                    assert!(outcome.starts_with("refused"), "{measure}, {name}: {outcomes:?}");
                }
            }
        }
    });
}

#[test]
fn a_plugin_does_not_end_its_guard() {
    run(async {
        let sandbox = only(Measure::Processes);
        if holding(sandbox.clone()).await.holds(Measure::Processes) {
            let Some((_, outcomes)) = attempts(sandbox, Bounds::default(), &["guard", "own"]).await
            else {
                return;
            };
            assert_eq!(outcomes["own"], "done", "it went on: {outcomes:?}");
        }
    });
}

#[test]
fn a_fork_bomb_ends_at_its_limit() {
    run(async {
        let sandbox = only(Measure::User);
        if holding(sandbox.clone()).await.holds(Measure::User) {
            let bounds = Bounds { processes: Some(TASKS), ..Bounds::default() };
            let Some((_, outcomes)) = attempts(sandbox, bounds, &["forks"]).await else { return };
            assert!(outcomes["forks"].starts_with("refused: after"), "{outcomes:?}");
        }
        let sandbox = only(Measure::Tasks);
        if holding(sandbox.clone()).await.holds(Measure::Tasks) {
            let tried = attempts(sandbox, Bounds::default(), &["forks"]).await;
            let Some((_, outcomes)) = tried else { return };
            assert!(outcomes["forks"].starts_with("refused: after"), "{outcomes:?}");
        }
    });
}

/// It multiplies in sessions of its own, as fast as it can, when its plugin has ended.
#[test]
fn nothing_is_left_of_a_fork_bomb() {
    run(async {
        let bounds = Bounds { processes: Some(TASKS), ..Bounds::default() };
        for (sandbox, measure, bounds) in [
            (only(Measure::User), Measure::User, bounds),
            (only(Measure::Tasks), Measure::Tasks, Bounds::default()),
        ] {
            if !holding(sandbox.clone()).await.holds(measure) {
                continue;
            }
            let Some((_, outcomes)) = attempts(sandbox, bounds, &["bomb"]).await else { return };
            assert_eq!(outcomes["bomb"], "done", "{outcomes:?}");
            let left = marked(&mark());
            assert!(left.is_empty(), "{measure}: {left:?}");
        }
    });
}

#[test]
fn a_memory_hog_ends_at_its_limit() {
    run(async {
        let bounds = Bounds { memory_bytes: Some(MEMORY_BYTES), ..Bounds::default() };
        let tried = attempts(only(Measure::Privileges), bounds, &["memory"]).await;
        let Some((_, outcomes)) = tried else { return };
        assert!(outcomes["memory"].starts_with("refused: after"), "{outcomes:?}");
        let sandbox = only(Measure::Memory);
        if holding(sandbox.clone()).await.holds(Measure::Memory) {
            let tried = attempts(sandbox, Bounds::default(), &["memory"]).await;
            let Some((status, outcomes)) = tried else { return };
            assert!(status.contains('9'), "the kernel kills it: {status}, {outcomes:?}");
        }
    });
}

#[test]
fn a_plugin_does_not_start_without_what_is_demanded() {
    run(async {
        // There is no cgroup of this name.
        let limited = Sandbox { group: Some("/nowhere".into()), ..only(Measure::Memory) };
        let not_asked = Sandbox::default();
        for (sandbox, demanded) in [(limited, Measure::Memory), (not_asked, Measure::Files)] {
            let sandbox = Sandbox { demanded: [demanded].into(), ..sandbox };
            let how = How { sandbox, ..How::default() };
            let refused = within(PATIENCE, start(&fixtures::rust(), how)).await;
            let Err(Error::Sandbox { measure, reason }) = refused.map(drop) else {
                panic!("it demands {demanded}")
            };
            assert_eq!(measure, demanded, "{reason}");
        }
        let held = holding(everything()).await;
        let file = sealed(&fixtures::rust());
        for (measure, answer) in held.iter() {
            let sandbox = Sandbox { demanded: [measure].into(), ..everything() };
            let how = How { sandbox, ..How::default() };
            let rust = fixtures::rust();
            let start = start_checked(file.clone(), &rust, how);
            let tried = within(PATIENCE, start).await;
            match tried {
                Ok(started) => {
                    assert_eq!(*answer, MeasureState::Holds, "{measure}");
                    within(PATIENCE, started.plugin.stop()).await;
                }
                Err(Error::Sandbox { measure: lacking, .. }) => {
                    assert_eq!(lacking, measure);
                    assert!(matches!(answer, MeasureState::NotAvailable(_)), "{measure}: {answer}");
                }
                Err(error) => panic!("{measure}: {error}"),
            }
        }
    });
}

/// The process that started this one.
fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Some of what is left has neither the plugin's group nor its parent, but its namespace.
#[test]
fn nothing_is_left_of_own_processes_when_a_guard_is_killed() {
    run(async {
        for generations in [1, 2] {
            let program = fixtures::around("children.sh", &[]);
            let how = How { sandbox: only(Measure::Processes), ..How::default() };
            let started = within(PATIENCE, start(&program, how)).await.unwrap();
            tell(started.plugin.sandbox());
            if !started.plugin.sandbox().holds(Measure::Processes) {
                return;
            }
            children_run().await;
            let guard = (0..generations).fold(started.plugin.pid(), |pid, _| parent(pid));
            assert_ne!(guard, std::process::id(), "a guard is between");
            let guard = Pid::from_raw(i32::try_from(guard).unwrap()).unwrap();
            kill_process(guard, Signal::KILL).unwrap();
            nothing_is_left(&mark()).await;
            within(PATIENCE, started.plugin.ended()).await;
        }
    });
}
