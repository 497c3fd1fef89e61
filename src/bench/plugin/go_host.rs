//! HashiCorp's own host in Go, and the plugin in Go that both hosts call: built from the sources of
//! our tests, with what the machine has of Go.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use flexcore_servers::{Error, fetch};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    task::spawn_blocking,
    time::timeout,
};

use super::sampled::Sampled;

/// The sources, each by its path beside the others.
const SOURCES: [(&str, &str); 6] = [
    ("lab.proto", include_str!("../../plugin/tests/lab.proto")),
    ("go/build.sh", include_str!("../../plugin/tests/go/build.sh")),
    ("go/shared/shared.go", include_str!("../../plugin/tests/go/shared/shared.go")),
    ("go/plugin/main.go", include_str!("../../plugin/tests/go/plugin/main.go")),
    ("go/host/main.go", include_str!("../../plugin/tests/go/host/main.go")),
    ("go/host/bench.go", include_str!("../../plugin/tests/go/host/bench.go")),
];

/// The folder of the sources, in that of the build.
const FOLDER: &str = "sources";

/// Exit status of the build where something is missing on this machine.
const MISSING: i32 = 3;

/// Longest wait for an answer beyond the time of the measurement. 60 s: a start takes some
/// milliseconds, and the end of a plugin two seconds at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The programs in Go.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    host: PathBuf,
    pub(crate) plugin: PathBuf,
}

impl Programs {
    /// Those in the cache, which are built if they are not there, in some 20 seconds. The inner error
    /// is what this machine lacks for that.
    pub(crate) async fn get(cache: &Path) -> anyhow::Result<Result<Self, String>> {
        let cache = cache.to_owned();
        spawn_blocking(move || get(&cache)).await?
    }
}

fn get(cache: &Path) -> anyhow::Result<Result<Programs, String>> {
    let version = match Command::new("go").arg("version").stdin(Stdio::null()).output() {
        Ok(said) if said.status.success() => said.stdout,
        Ok(said) => return Ok(Err(format!("`go version` ended with {}", said.status))),
        Err(error) => return Ok(Err(format!("go: {error}"))),
    };
    let mut hash = Sha256::new();
    hash.update(version);
    for (path, text) in SOURCES {
        hash.update(path);
        hash.update(text);
    }
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let folder = kept(cache, &format!("bench-go-{hash}"), |folder| {
        tracing::info!("building the host and the plugin in Go…");
        build(folder)
    })?;
    Ok(folder.map(|folder| Programs { host: folder.join("host"), plugin: folder.join("plugin") }))
}

/// The folder of this name in the cache, which is built if it is not there. The inner error is what
/// this machine lacks; then nothing is kept.
fn kept(
    cache: &Path,
    name: &str,
    build: impl FnOnce(&Path) -> io::Result<Result<(), String>>,
) -> anyhow::Result<Result<PathBuf, String>> {
    let mut missing = None;
    let made = fetch::once(cache, name, |partial| {
        let failed = |reason| Error::Fetch { what: "the host in Go".to_owned(), reason };
        let built = build(partial).map_err(|error| failed(error.to_string()))?;
        built.map_err(|lacks| {
            missing = Some(lacks.clone());
            failed(lacks)
        })
    });
    match (made, missing) {
        (Ok(folder), _) => Ok(Ok(folder)),
        (Err(_), Some(lacks)) => Ok(Err(lacks)),
        (Err(error), None) => Err(error.into()),
    }
}

/// Builds both into the folder. The inner error is what this machine lacks.
fn build(folder: &Path) -> io::Result<Result<(), String>> {
    let sources = folder.join(FOLDER);
    for (path, text) in SOURCES {
        let path = sources.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    let script = sources.join("go/build.sh");
    let done = Command::new("sh").arg(script).arg(folder).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    match done.status.code() {
        Some(0) => fs::remove_dir_all(sources).map(Ok),
        Some(MISSING) => Ok(Err(said)),
        _ => Err(io::Error::other(format!("the build ended with {}: {said}", done.status))),
    }
}

/// The host in Go, with a plugin that runs. When it is dropped, it ends the plugin and itself.
pub(crate) struct GoHost {
    child: Child,
    // Where this is closed, it ends.
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    pid: u32,
    plugin: u32,
}

/// Its first line.
#[derive(Deserialize)]
struct Begun {
    plugin: u32,
}

/// Its answer about a start.
#[derive(Deserialize)]
struct Started {
    start_us: f64,
}

impl GoHost {
    /// Starts it, and the plugin.
    pub(crate) async fn start(programs: &Programs, tls: bool) -> anyhow::Result<Self> {
        let mut child = tokio::process::Command::new(&programs.host)
            .args(["-bench", if tls { "-mtls=true" } else { "-mtls=false" }])
            .arg(&programs.plugin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the host in Go does not start")?;
        let pid = child.id().context("the host in Go has ended")?;
        let questions = child.stdin.take().context("BUG: it has a pipe")?;
        let answers = child.stdout.take().context("BUG: it has a pipe")?;
        let answers = BufReader::new(answers).lines();
        let mut host = Self { child, questions, answers, pid, plugin: 0 };
        let begun: Begun = host.answer(Duration::ZERO).await?;
        Ok(Self { plugin: begun.plugin, ..host })
    }

    /// Its process, and that of its plugin.
    pub(crate) fn processes(&self) -> [u32; 2] {
        [self.pid, self.plugin]
    }

    /// Calls of so many bytes, by so many callers at once.
    pub(crate) async fn calls(
        &mut self,
        in_flight: usize,
        lasting: Duration,
        bytes: usize,
    ) -> anyhow::Result<Sampled> {
        self.ask(&format!("calls {in_flight} {} {bytes}", lasting.as_millis())).await?;
        self.answer(lasting).await
    }

    /// From the start of another plugin until its first answer, in microseconds; then it is ended.
    pub(crate) async fn starts(&mut self, bytes: usize) -> anyhow::Result<f64> {
        self.ask(&format!("start {bytes}")).await?;
        let started: Started = self.answer(Duration::ZERO).await?;
        Ok(started.start_us)
    }

    /// Ends it, and its plugin.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let Self { mut child, questions, .. } = self;
        drop(questions);
        let ended = timeout(PATIENCE, child.wait()).await;
        let status = ended.context("the host in Go does not end")??;
        anyhow::ensure!(status.success(), "the host in Go ended with {status}");
        Ok(())
    }

    async fn ask(&mut self, question: &str) -> anyhow::Result<()> {
        let line = format!("{question}\n");
        self.questions.write_all(line.as_bytes()).await.context("the host in Go has ended")
    }

    async fn answer<A: DeserializeOwned>(&mut self, lasting: Duration) -> anyhow::Result<A> {
        let line = timeout(lasting + PATIENCE, self.answers.next_line()).await;
        let Some(line) = line.context("the host in Go does not answer")?? else {
            bail!("the host in Go has ended; its standard error says why");
        };
        serde_json::from_str(&line).with_context(|| format!("the host in Go said {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn files(folder: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path, found) } else { _ = found.insert(path) }
        }
    }

    /// The build takes whole folders, and would lack a file.
    #[test]
    fn all_sources_are_here() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin/tests");
        let mut found = BTreeSet::from([folder.join("lab.proto")]);
        files(&folder.join("go"), &mut found);
        let known: BTreeSet<PathBuf> = SOURCES.iter().map(|(path, _)| folder.join(path)).collect();
        assert_eq!(found, known);
    }

    #[test]
    fn a_machine_without_a_part_is_told_and_nothing_is_kept() {
        let cache = tempfile::tempdir().unwrap();
        // The script ends so where a library or a program is missing.
        let lacks = |_: &Path| Ok::<_, io::Error>(Err::<(), _>("there is no protoc".to_owned()));
        let told = kept(cache.path(), "lacking", lacks).unwrap();
        assert_eq!(told.unwrap_err(), "there is no protoc");
        assert!(!cache.path().join("lacking").exists());
        let broken = kept(cache.path(), "broken", |_| Err(io::Error::other("it does not compile")));
        assert!(format!("{:#}", broken.unwrap_err()).contains("it does not compile"));
        let made = kept(cache.path(), "made", |folder| {
            fs::write(folder.join("host"), "")?;
            Ok(Ok(()))
        });
        assert!(made.unwrap().unwrap().join("host").exists());
    }
}
