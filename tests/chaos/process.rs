//! A process of the cluster, in the namespace of its node: started, killed, stopped, continued and
//! ended by its own id.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::{
    host::{self, signal},
    netns,
};

/// Bytes of a log that a failure shows.
const LOG_TAIL_BYTES: usize = 1_000;

/// A command line to start a process with, as often as needed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Such as `worker-1`; its namespace is named after it.
    pub(crate) node: String,
    /// Programs that end by running the next one, such as `setpriv …`, and the program itself.
    pub(crate) line: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) log: PathBuf,
}

/// A process, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) plan: Plan,
    child: Option<Child>,
}

impl Process {
    /// Starts it; its output is added to the log.
    pub(crate) fn start(plan: Plan) -> Self {
        let mut process = Self { plan, child: None };
        process.run();
        process
    }

    /// Starts it, after it has ended.
    pub(crate) fn run(&mut self) {
        assert!(!self.is_alive(), "{} still runs", self.plan.node);
        let log = File::options().create(true).append(true).open(&self.plan.log).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns::space(&self.plan.node)]).args(&self.plan.line);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLEXCORE_") {
                command.env_remove(name);
            }
        }
        command.envs(self.plan.environment.iter().cloned()).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// `ip`, `setpriv` and `prlimit` become the program that they start, so this is its id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Sends a signal, if it runs.
    pub(crate) fn signal(&mut self, name: &str) {
        if self.is_alive() {
            signal(name, self.pid().unwrap());
        }
    }

    /// SIGKILL; returns once it is gone. Safe to call when it is gone already.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Waits for its end: how it ended and how long that took. `None` when it did not in time.
    pub(crate) async fn ends(&mut self, within: Duration) -> Option<(ExitStatus, Duration)> {
        let start = Instant::now();
        while start.elapsed() < within {
            if let Some(status) = self.child.as_mut()?.try_wait().unwrap() {
                self.child = None;
                return Some((status, start.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Open file descriptors and threads.
    pub(crate) fn held(&self) -> Option<(usize, usize)> {
        host::held(self.pid()?)
    }

    /// The end of its output.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.plan.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tail(path: &Path) -> String {
    let log = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
}
