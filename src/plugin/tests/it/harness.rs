//! Starting plugins, and seeing what they print.

use std::{
    ffi::OsString,
    fmt,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use flexcore_plugin::{
    Address, Checked, Cookie, Error, Line, Plugin, Printed, Start,
    guard::{Bounds, Sandbox},
    limits,
};

use crate::{
    PATIENCE,
    base::{MARK, mark},
    fixtures::{self, Program},
};

/// Printed bytes that are kept for a look at them; of more only the number is.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// The way in which a plugin is started.
#[derive(Clone, Debug)]
pub(crate) struct How {
    pub(crate) tls: bool,
    pub(crate) multiplex: bool,
    pub(crate) versions: Vec<u32>,
    pub(crate) cookie: &'static str,
    pub(crate) start_wait: Duration,
    pub(crate) answer_bytes_max: usize,
    pub(crate) bounds: Bounds,
    pub(crate) sandbox: Sandbox,
}

impl Default for How {
    fn default() -> Self {
        Self {
            tls: false,
            multiplex: false,
            versions: vec![1, 2],
            cookie: "flexcore-lab-7f3a",
            start_wait: PATIENCE,
            answer_bytes_max: limits::ANSWER_BYTES_MAX,
            bounds: Bounds::default(),
            sandbox: Sandbox::default(),
        }
    }
}

impl How {
    pub(crate) fn tls() -> Self {
        Self { tls: true, ..Self::default() }
    }

    pub(crate) fn multiplexed(tls: bool) -> Self {
        Self { tls, multiplex: true, ..Self::default() }
    }
}

/// Everything that a plugin printed.
#[derive(Default)]
pub(crate) struct Prints {
    pub(crate) lines: Vec<Line>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Bytes of standard output, those that were not kept included.
    pub(crate) stdout_bytes: usize,
}

impl Prints {
    fn add(&mut self, printed: Printed) {
        let keep = |kept: &mut Vec<u8>, bytes: &[u8]| {
            let room = KEPT_BYTES_MAX - kept.len();
            kept.extend(&bytes[..bytes.len().min(room)]);
        };
        match printed {
            Printed::Log(line) => self.lines.push(line),
            Printed::Stdout(bytes) => {
                self.stdout_bytes += bytes.len();
                keep(&mut self.stdout, &bytes);
            }
            Printed::Stderr(bytes) => keep(&mut self.stderr, &bytes),
        }
    }

    pub(crate) fn has_line(&self, message: &str) -> bool {
        self.lines.iter().any(|line| line.message.contains(message))
    }
}

impl fmt::Debug for Prints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) =
            (String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr));
        let messages: Vec<_> = self.lines.iter().map(|line| &line.message).collect();
        write!(f, "stdout {stdout:.500?}, stderr {stderr:.500?}, lines {messages:.5000?}")
    }
}

/// A plugin that runs.
pub(crate) struct Started {
    pub(crate) plugin: Plugin,
    prints: Arc<Mutex<Prints>>,
}

impl Started {
    pub(crate) fn prints(&self) -> MutexGuard<'_, Prints> {
        self.prints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of the plugin's socket. None if it listens at a port.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        match self.plugin.address() {
            Address::Unix(socket) => Some(socket.parent().unwrap().to_owned()),
            Address::Tcp(_) => None,
        }
    }

    /// Waits until the plugin has printed what is looked for.
    pub(crate) async fn until(&self, what: &str, found: impl Fn(&Prints) -> bool) {
        let began = Instant::now();
        while !found(&self.prints()) {
            let waited = began.elapsed();
            assert!(waited < PATIENCE, "waited in vain for {what}: {:?}", self.prints());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What a plugin gets of the environment: where programs are, what it needs, and the test's mark.
pub(crate) fn environment(program: &Program) -> Vec<(OsString, OsString)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = [("PATH".into(), path), (MARK.into(), mark().into())];
    own.into_iter().chain(program.environment.clone()).collect()
}

pub(crate) fn cookie(value: &str) -> Cookie {
    Cookie { key: "FLEXCORE_PLUGIN".to_owned(), value: value.to_owned() }
}

pub(crate) async fn start(program: &Program, how: How) -> Result<Started, Error> {
    // Our own plugin is large in a test build, and started most often.
    static RUST: LazyLock<Checked> =
        LazyLock::new(|| Checked::open(&fixtures::rust().file, None).unwrap());
    let is_rust = program.file == fixtures::rust().file;
    let file = if is_rust { RUST.clone() } else { Checked::open(&program.file, None)? };
    start_checked(file, program, how).await
}

/// Starts a file that was opened and hashed before.
pub(crate) async fn start_checked(
    file: Checked,
    program: &Program,
    how: How,
) -> Result<Started, Error> {
    let prints = Arc::new(Mutex::new(Prints::default()));
    let to = Arc::clone(&prints);
    let start = Start {
        file,
        arguments: program.arguments.clone(),
        environment: environment(program),
        cookie: cookie(how.cookie),
        versions: how.versions,
        tls: how.tls,
        multiplex: how.multiplex,
        start_wait: how.start_wait,
        answer_bytes_max: how.answer_bytes_max,
        guard: env!("CARGO_BIN_EXE_flexcore-plugin-guard").into(),
        bounds: how.bounds,
        sandbox: how.sandbox,
        output: Arc::new(move |printed| {
            to.lock().unwrap_or_else(PoisonError::into_inner).add(printed);
        }),
    };
    Ok(Started { plugin: Plugin::start(start).await?, prints })
}

/// What it gives, which must be there in time.
pub(crate) async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> T {
    let began = Instant::now();
    match tokio::time::timeout(limit, what).await {
        Ok(given) => given,
        Err(_) => panic!("nothing within {limit:?}, but still waiting after {:?}", began.elapsed()),
    }
}

/// The error of a plugin that must not start, in time.
pub(crate) async fn refused(program: &Program, how: How, limit: Duration) -> Error {
    match within(limit, start(program, how)).await {
        Ok(_) => panic!("{program:?} was taken for a plugin"),
        Err(error) => error,
    }
}
