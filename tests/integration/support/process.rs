//! Processes of the executable: started, waited for, ended by their own id, and never left behind.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use super::{Http, PATIENCE, app};

/// Bytes of a log that a failure shows.
const LOG_TAIL_BYTES: usize = 6_000;
/// Longest time for a process to start; the first one of all may have to fetch its servers.
const START_WAIT: Duration = Duration::from_secs(180);
/// SIGTERM has to end a process within this time.
const TERMINATE_WAIT: Duration = Duration::from_secs(30);

/// Ends a process when this one is gone, however it went: its standard input closes then.
const GUARD: &str = r#"cat > /dev/null
kill -TERM "$1" 2> /dev/null
n=0
while kill -0 "$1" 2> /dev/null && [ "$n" -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL "$1" 2> /dev/null
rm -rf "$2""#;

/// Fetched servers and data are kept between runs.
pub(crate) fn cache() -> PathBuf {
    flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"))
}

/// A command line of the executable, with nothing of this environment's own settings.
pub(crate) fn flexcore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flexcore"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FLEXCORE_") {
            command.env_remove(name);
        }
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("FLEXCORE_CACHE", cache());
    command.stdin(Stdio::null());
    command
}

/// A folder that Postgres's account can pass through, removed in the end.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("flexcore-it-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; its parent has not looked yet.
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// The processes that this one has started, and theirs.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let children = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: Vec<u32> = children
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .map(Result::unwrap)
        .collect();
    let below: Vec<u32> = children.iter().flat_map(|child| descendants(*child)).collect();
    children.into_iter().chain(below).collect()
}

fn signal(name: &str, pid: u32) {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -\"$1\" \"$2\"", "sh", name, &pid.to_string()]);
    assert!(kill.status().unwrap().success(), "SIG{name} to {pid}");
}

/// A running process, ended with this value.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    guard: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command; its output goes to the log. `remove` is removed if this process dies.
    pub(crate) fn start(mut command: Command, log: &Path, remove: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap();
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &child.id().to_string()])
            .arg(remove)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, guard, log: log.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of the log, for failures.
    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
        format!("--- end of {}:\n{}", self.log.display(), &log[from..])
    }

    fn wait(&mut self, longest: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < longest {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.pid());
    }

    /// SIGTERM: it must drain and exit 0.
    pub(crate) fn terminate(&mut self) {
        signal("TERM", self.pid());
        let status = self.wait(TERMINATE_WAIT);
        assert!(
            status.is_some_and(|s| s.success()),
            "SIGTERM ended it {status:?}\n{}",
            self.tail()
        );
    }

    /// SIGKILL, at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither may fail while a failed test is being cleaned up after.
        drop(self.guard.kill());
        drop(self.guard.wait());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The content of a ready file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ready {
    pub(crate) http: String,
    pub(crate) nats: String,
    pub(crate) nats_monitor: String,
    pub(crate) postgres: String,
    pub(crate) tenant: String,
    pub(crate) token: String,
    pub(crate) signing_key: PathBuf,
}

/// A `flexcore dev` with a data folder of its own.
#[derive(Debug)]
pub(crate) struct Dev {
    // Ended before its folder is removed: fields are dropped in order.
    process: Option<Process>,
    pub(crate) ready: Ready,
    folder: TempDir,
    arguments: Vec<String>,
}

impl Dev {
    /// Starts one on a new folder and waits until it serves.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_on(folder(), arguments)
    }

    /// Starts one on this folder, in which `data` is its data.
    pub(crate) fn start_on(folder: TempDir, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let (process, ready) = launch(&folder, &arguments);
        Self { process: Some(process), ready, folder, arguments }
    }

    /// The one that tests share. It ends with this process.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Option<Arc<Dev>>> = Mutex::new(None);
        // Poisoned when a start failed: the next test tries again, and says so itself.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let started = shared.get_or_insert_with(|| {
            let dev = Self::start(&[]);
            app::deploy_bank(&dev);
            Arc::new(dev)
        });
        started.clone()
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Sends it a signal, such as `STOP`; not its servers.
    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn ready_file(&self) -> PathBuf {
        self.folder.path().join("ready.json")
    }

    /// Ends it in order; its data stays until this value is dropped.
    pub(crate) fn terminate(&mut self) {
        self.process().terminate();
        self.process = None;
    }

    /// Ends it with SIGKILL; its servers end by themselves.
    pub(crate) fn kill(&mut self) {
        self.process().kill();
        self.process = None;
        fs::remove_file(self.ready_file()).unwrap();
    }

    /// Starts it again on the same data.
    pub(crate) fn start_again(&mut self) {
        let (process, ready) = launch(&self.folder, &self.arguments);
        (self.process, self.ready) = (Some(process), ready);
    }

    /// Runs a subcommand that finds this one by its data folder.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = flexcore();
        command.arg("--data").arg(self.data()).args(arguments);
        command.output().unwrap()
    }

    /// As [`Self::run`], off the runtime's threads.
    pub(crate) async fn run_async(&self, arguments: &[&str]) -> Output {
        let mut command = flexcore();
        command.arg("--data").arg(self.data()).args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Runs a subcommand that must succeed; returns its output.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.run(arguments))
    }

    /// Runs a subcommand that must succeed and print one JSON document.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.succeed(arguments);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// A client with a token for this tenant.
    pub(crate) fn http(&self, tenant: &str) -> Http {
        let token = self.succeed(&["token", "--tenant", tenant]);
        Http::new(&self.ready.http, token.trim())
    }

    pub(crate) async fn nats(&self) -> async_nats::Client {
        async_nats::connect(&self.ready.nats).await.unwrap()
    }

    pub(crate) async fn sql(&self) -> PgConnection {
        PgConnection::connect(&self.ready.postgres).await.unwrap()
    }
}

/// The output of a subcommand; panics when it failed.
pub(crate) fn succeeded(arguments: &[&str], output: &Output) -> String {
    let (out, err) = texts(output);
    assert!(output.status.success(), "{arguments:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Standard output and standard error.
pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn launch(folder: &TempDir, arguments: &[String]) -> (Process, Ready) {
    let (data, ready_file) = (folder.path().join("data"), folder.path().join("ready.json"));
    let mut command = flexcore();
    command.arg("dev").arg("--data").arg(data).arg("--ready-file").arg(&ready_file).args(arguments);
    let mut process = Process::start(command, &folder.path().join("dev.log"), folder.path());
    let start = Instant::now();
    loop {
        if let Ok(text) = fs::read(&ready_file) {
            let ready = serde_json::from_slice(&text);
            return (process, ready.unwrap_or_else(|error| panic!("ready file: {error}")));
        }
        let ended = process.ended();
        assert!(ended.is_none(), "dev ended early, {ended:?}\n{}", process.tail());
        assert!(start.elapsed() < START_WAIT, "dev does not get ready\n{}", process.tail());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Longest wait of a test that watches processes go.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
