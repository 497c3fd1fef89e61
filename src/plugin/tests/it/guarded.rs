//! What a plugin does not get from its guard and its host, and what is left of it at once.

use std::{fs, path::Path, process::Stdio};

use flexcore_plugin::{Address, Error};
use tokio::process::Command;

use crate::{
    PATIENCE,
    base::{MARK, mark, marked, run},
    fixtures::{self, Program, fault},
    harness::{How, refused, start, within},
};

/// What a host of its own says, whose plugin does not start. It is run by a shell, behind this.
async fn said(before: &str, program: &Program) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{before}; exec \"$@\"")).arg("sh");
    command.arg(env!("CARGO_BIN_EXE_flexcore-plugin-host"));
    command.arg(&program.file).args(&program.arguments).env(MARK, mark());
    command.env("TMPDIR", folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    let done = within(PATIENCE, command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success(), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{said}");
    said
}

#[test]
fn a_plugin_reads_nothing_of_its_guard_and_its_host() {
    run(async {
        let said = said(":", &fault("reads_host.sh", &[])).await;
        assert!(said.contains("own environ open"), "{said}");
        for file in ["environ", "mem", "maps", "fd/0"] {
            for whose in ["guard", "host"] {
                assert!(said.contains(&format!("{whose} {file} closed")), "{whose} {file}: {said}");
            }
        }
    });
}

#[test]
fn a_plugin_gets_no_descriptor_that_its_host_has_inherited() {
    run(async {
        let said = said("exec 9</dev/null", &fault("lists_fds.sh", &[])).await;
        let line = said.lines().find_map(|line| line.split_once("descriptors "));
        let (_, found) = line.expect("it says which");
        assert_eq!(found, "0 1 2 3", "{said}");
    });
}

#[test]
fn a_plugin_has_none_of_roots_powers_whether_asked_for_or_not() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", started.plugin.pid())).unwrap();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
            assert_eq!(u64::from_str_radix(line.trim(), 16), Ok(0), "{set} {line}");
        }
        within(PATIENCE, started.plugin.stop()).await;
    });
}

/// The loader complains once for each process that has the variable.
#[test]
fn a_guard_does_not_load_what_its_plugin_is_to_load() {
    run(async {
        let mut program = fixtures::rust();
        program.environment.push(("LD_PRELOAD".into(), "/nowhere/x.so".into()));
        let started = start(&program, How::default()).await.unwrap();
        within(PATIENCE, started.plugin.stop()).await;
        let prints = started.prints();
        let complains = |line: &&flexcore_plugin::Line| line.message.contains("LD_PRELOAD");
        assert_eq!(prints.lines.iter().filter(complains).count(), 1, "{prints:?}");
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_at_once() {
    run(async {
        let how = How { start_wait: PATIENCE / 10, ..How::default() };
        let error = refused(&fault("tells_folder.sh", &[]), how, PATIENCE).await;
        let left = marked(&mark());
        assert!(left.is_empty(), "{left:?}");
        let Error::Silent { said, .. } = error else { panic!("{error:?}") };
        let (_, folder) = said.split_once("folder ").expect("it says where that is");
        assert!(!Path::new(folder).exists(), "{folder}");
    });
}

#[test]
fn a_plugin_is_not_reached_at_the_socket_of_another() {
    run(async {
        let other = start(&fixtures::rust(), How::default()).await.unwrap();
        let Address::Unix(socket) = other.plugin.address() else { panic!("it has a socket") };
        let line = format!("1|1|unix|{}|grpc|", socket.display());
        let error = refused(&fault("says.sh", &[line.as_str()]), How::default(), PATIENCE).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("none of the plugin's"), "{error}");
        within(PATIENCE, other.plugin.check()).await.unwrap();
        let ended = within(PATIENCE, other.plugin.stop()).await;
        assert!(ended.is_clean && ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}
