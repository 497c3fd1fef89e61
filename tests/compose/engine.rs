//! A Docker engine of the test's own, from Debian's packages, with stand-ins for the base images.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::support::{
    process::{Process, cache, folder},
    say,
};

/// Where an engine listens that somebody else runs on this machine.
const USUAL_SOCKET: &str = "/var/run/docker.sock";
/// Programs that are needed, and Debian's packages of them.
const PROGRAMS: &[(&str, &str)] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("docker-compose", "docker-compose"),
    ("debootstrap", "debootstrap"),
    ("iptables", "iptables"),
    ("openssl", "openssl"),
];

/// Longest time for the engine to end; its containers are gone by then, unless the test failed.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// An engine that has every image.
pub(crate) struct Engine {
    /// `DOCKER_HOST`.
    pub(crate) host: String,
    own: Option<(Process, TempDir)>,
}

impl Engine {
    /// Installs missing packages, starts the engine, makes stand-ins for the base images, and the
    /// image of flexcore.
    pub(crate) fn start() -> Self {
        let engine = match std::env::var("DOCKER_HOST") {
            Ok(host) => Self { host, own: None },
            Err(_) => Self::own(),
        };
        if engine.own.is_some() {
            engine.run("stand-ins", "deploy/standins/make.sh", &[]);
        }
        engine.run("image", "deploy/image.sh", &[]);
        engine
    }

    fn own() -> Self {
        assert!(is_root(), "dockerd needs root, or set DOCKER_HOST to an engine that you may use");
        // Two engines overwrite one another's packet filter.
        assert!(
            UnixStream::connect(USUAL_SOCKET).is_err(),
            "a Docker engine runs here: set DOCKER_HOST=unix://{USUAL_SOCKET} to use it"
        );
        install();
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        let host = format!("unix://{}", at("docker.sock").display());
        let mut command = Command::new("dockerd");
        command.args(["--host", &host, "--shutdown-timeout", "5"]);
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("docker.pid"));
        let mut process = Process::start(command, &at("dockerd.log"), folder.path());
        let engine = |own| Self { host: host.clone(), own };
        let asked = engine(None);
        let start = Instant::now();
        while !asked.docker(&["version"]).output().unwrap().status.success() {
            assert!(process.ended().is_none(), "dockerd ended\n{}", process.tail());
            assert!(start.elapsed().as_secs() < 60, "dockerd is not ready\n{}", process.tail());
            std::thread::sleep(Duration::from_millis(200));
        }
        engine(Some((process, folder)))
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.host).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a script of the repository, which must succeed, and says how long it took.
    pub(crate) fn run(&self, what: &str, script: &str, arguments: &[&str]) {
        let start = Instant::now();
        let mut command = Command::new(script);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).args(arguments);
        command.env("DOCKER_HOST", &self.host).env("FLEXCORE_CACHE", cache());
        let output = command.output().unwrap_or_else(|error| panic!("{script}: {error}"));
        let (out, err) = crate::support::process::texts(&output);
        assert!(output.status.success(), "{script}: {}\n{out}\n{err}", output.status);
        let last = out.lines().last().unwrap_or_default();
        say(&format!("{what}: {:.0} s; {last}", start.elapsed().as_secs_f64()));
    }
}

impl Drop for Engine {
    /// In order, also when the test failed: a killed engine leaves mounts behind.
    fn drop(&mut self) {
        let Some((mut process, folder)) = self.own.take() else { return };
        let asked = Command::new("kill").args(["-TERM", &process.pid().to_string()]).status();
        let start = Instant::now();
        while asked.is_ok() && process.ended().is_none() && start.elapsed() < STOP_WAIT {
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(process);
        // The last mounts go a moment after the engine.
        let path = folder.keep();
        while std::fs::remove_dir_all(&path).is_err() && start.elapsed() < 2 * STOP_WAIT {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

fn install() {
    let missing = PROGRAMS.iter().filter(|(program, _)| !on_path(program));
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return;
    }
    assert!(
        Path::new("/etc/debian_version").exists(),
        "install {packages:?}: this is no Debian, where the test would do it"
    );
    let update = "apt-get update -qq && apt-get install -yqq --no-install-recommends \"$@\"";
    let output = Command::new("sh")
        .args(["-c", update, "sh"])
        .args(&packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Debian's package starts an engine where it can: ours is enough.
        .env("RUNLEVEL", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{packages:?}: {:?}", crate::support::process::texts(&output));
    say(&format!("installed {packages:?}"));
}

fn on_path(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).output();
    found.unwrap().status.success()
}
