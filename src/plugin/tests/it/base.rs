//! What a host holds before a plugin and has to hold again after it: open files, tasks, children
//! and memory; and that nothing of a plugin is left on the machine.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle};

use crate::{PATIENCE, fixtures, harness};

/// Longest test: one that waits for ever is told as such. The first one that needs a plugin in Go
/// builds it.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// Most memory that a host may take for one plugin, beyond what it had before. 192 MiB: an answer
/// of 16 MiB is held several times; what floods is longer than this.
const PEAK_BYTES_MAX: usize = 192 * MIB;
pub(crate) const MIB: usize = 1 << 20;

/// The variable that every plugin of a test gets, and with it all that the plugin starts.
pub(crate) const MARK: &str = "FLEXCORE_TEST_MARK";

/// One test at a time: files and memory are of the whole process.
static TURN: Mutex<()> = Mutex::new(());
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// The value of [`MARK`] in this test.
pub(crate) fn mark() -> String {
    format!("{}-{}", std::process::id(), NUMBER.load(Ordering::Relaxed))
}

/// Runs a test alone in a runtime of its own. Behind it the host has to be what it was before it,
/// and no folder of a plugin is left.
pub(crate) fn run(body: impl Future<Output = ()>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // The first plugin of a process, and of a runtime, may open what all later ones share.
        harness::start(&fixtures::rust(), Default::default()).await.unwrap().plugin.stop().await;
        let (before, folders) = (Base::settled().await, folders());
        let measured = forget_peak();
        tokio::time::timeout(TEST_LIMIT, body).await.expect("the test ends in time");
        match measured {
            Ok(()) => {
                let peak = memory("VmHWM").saturating_sub(before.resident);
                assert!(peak <= PEAK_BYTES_MAX, "the host took {} MiB", peak / MIB);
            }
            Err(error) => fixtures::skipped(&format!("the host's memory is not measured: {error}")),
        }
        before.comes_back().await;
        nothing_is_left(&mark()).await;
        no_folder_is_left(&folders).await;
    });
}

/// Folders of plugins of all hosts of this machine.
fn folders() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(std::env::temp_dir()).unwrap().filter_map(Result::ok);
    let plugins = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"fp"));
    plugins.map(|entry| entry.path()).collect()
}

/// Waits until there are no more of them than before.
async fn no_folder_is_left(before: &BTreeSet<PathBuf>) {
    let began = Instant::now();
    loop {
        let left: Vec<PathBuf> = folders().difference(before).cloned().collect();
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The most memory of this process counts from now.
fn forget_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

/// What this process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base {
    files: usize,
    tasks: usize,
    children: usize,
    /// Bytes in memory.
    pub(crate) resident: usize,
}

impl Base {
    pub(crate) fn now() -> Self {
        Self {
            files: files().len(),
            tasks: Handle::current().metrics().num_alive_tasks(),
            children: children().len(),
            resident: memory("VmRSS"),
        }
    }

    /// Once it no longer changes: what has been stopped is gone.
    pub(crate) async fn settled() -> Self {
        let counts = |base: &Self| (base.files, base.tasks, base.children);
        let mut last = Self::now();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            let now = Self::now();
            if counts(&now) == counts(&last) {
                return now;
            }
            last = now;
        }
        last
    }

    /// Waits until files, tasks and children are no more than they were.
    pub(crate) async fn comes_back(&self) {
        let began = Instant::now();
        loop {
            let now = Self::now();
            let more =
                now.files > self.files || now.tasks > self.tasks || now.children > self.children;
            if !more {
                return;
            }
            if began.elapsed() > PATIENCE {
                let (files, children) = (files(), children());
                panic!("left behind: {now:?}, and before {self:?}; {files:?}; {children:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the open files of this process are.
fn files() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Bytes, from a line of `/proc/self/status`.
fn memory(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kilobytes = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

/// Threads of this process.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// All processes of the machine.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process's name and parent. Nothing, if it has ended meanwhile.
pub(crate) fn parent(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.rsplit_once(") ")?;
    let parent = rest.split(' ').nth(1)?.parse().ok()?;
    Some((name.to_owned(), parent))
}

/// A process's session, as its first process's number: 0, if that one is outside of what this process
/// can see, as in a container. Nothing, if the process has ended meanwhile.
pub(crate) fn session(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(3)?.parse().ok()
}

/// Children of this process, those that have ended and were not asked how included.
fn children() -> Vec<(u32, String)> {
    let own = std::process::id();
    let child = |pid| parent(pid).filter(|(_, of)| *of == own).map(|(name, _)| (pid, name));
    processes().filter_map(child).collect()
}

/// True while the process runs. One that has ended counts as gone, whether it was asked how or not.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Running processes that were started with this value of [`MARK`], by a plugin or by its children.
pub(crate) fn marked(mark: &str) -> Vec<u32> {
    let plugins = format!("{MARK}={mark}");
    // A guard carries it under another name.
    let guards = format!("FLEXCORE_CARRIED_{plugins}");
    let is_it = |entry: &[u8]| entry == plugins.as_bytes() || entry == guards.as_bytes();
    let has = |pid: &u32| {
        let environment = fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
        let environment = environment.unwrap_or_default();
        environment.split(|byte| *byte == 0).any(is_it)
    };
    processes().filter(has).filter(|pid| alive(*pid)).collect()
}

/// Waits until there is no such process.
pub(crate) async fn nothing_is_left(mark: &str) {
    let began = Instant::now();
    loop {
        let left = marked(mark);
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "still running: {}", told(&left));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn told(pids: &[u32]) -> String {
    let mut text = String::new();
    for pid in pids {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        write!(text, "{pid} {line:?}; ").unwrap();
    }
    text
}
