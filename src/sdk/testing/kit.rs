//! How a plugin is started for a test.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use flexcore_plugin::{
    Checked, Cookie, Plugin, Printed, Start, contract,
    guard::{Bounds, Sandbox},
    limits::{ANSWER_BYTES_MAX, START_WAIT},
};
use tokio::task::spawn_blocking;

use super::running::{Lines, Running};

/// Most lines of a log that are kept for a look at them. 10,000: of more, the first are.
const LINES_MAX: usize = 10_000;

/// How a plugin is started: with TLS and its own executable as the guard, unless told otherwise.
#[derive(Clone, Debug)]
pub struct Kit {
    pub(super) file: PathBuf,
    guard: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    tls: bool,
    multiplex: bool,
}

impl Kit {
    /// For the executable of a plugin.
    #[must_use]
    pub fn new(file: impl AsRef<Path>) -> Self {
        let file = file.as_ref();
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        Self {
            guard: file.clone(),
            file,
            arguments: Vec::new(),
            environment: Vec::new(),
            tls: true,
            multiplex: false,
        }
    }

    /// With another executable as its guard, by its absolute path: for plugins that are not built
    /// with this SDK. `flexcore` is one.
    #[must_use]
    pub fn guard(mut self, guard: impl Into<PathBuf>) -> Self {
        self.guard = guard.into();
        self
    }

    /// With an argument of the plugin.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With an environment variable of the plugin, which gets no others but the host's.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With TLS or without.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// With all connections in one, or without.
    #[must_use]
    pub fn multiplex(mut self, multiplex: bool) -> Self {
        self.multiplex = multiplex;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it does not start, or does not say what it is.
    pub async fn start(&self) -> Running {
        let (plugin, lines) = self.started().await;
        Running::new(plugin, lines).await
    }

    /// Starts it, and asks it nothing.
    pub(super) async fn started(&self) -> (Plugin, Lines) {
        let file = self.file.clone();
        let checked = spawn_blocking(move || Checked::open(&file, None)).await;
        let checked = checked.expect("BUG: opening a file does not panic");
        let lines = Lines::default();
        let start = Start {
            file: checked.unwrap_or_else(|error| panic!("{error}")),
            guard: self.guard.clone(),
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            cookie: Cookie::flexcore(),
            versions: vec![contract::VERSION],
            tls: self.tls,
            multiplex: self.multiplex,
            start_wait: START_WAIT,
            answer_bytes_max: ANSWER_BYTES_MAX,
            bounds: Bounds::default(),
            sandbox: Sandbox::default(),
            output: keep(&lines),
        };
        let started = Plugin::start(start).await;
        let plugin = started.unwrap_or_else(|error| panic!("the plugin does not start: {error}"));
        (plugin, lines)
    }
}

fn keep(lines: &Lines) -> flexcore_plugin::Output {
    let lines = Arc::clone(lines);
    Arc::new(move |printed| {
        let Printed::Log(line) = printed else { return };
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            lines.push(line);
        }
    })
}
