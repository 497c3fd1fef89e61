//! A process behind a guard that the test makes up: `sh` runs the file `plugin-guard` in its
//! folder. It speaks to the host on its standard input, which is the socket.

use std::{fs, sync::Mutex};

use super::*;
use crate::{
    guard::{Measure, MeasureState},
    logs::Level,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Says that the plugin runs, under the guard's own number.
const STARTED: &str = "printf 'started %s\\n' $$ >&0\n";

struct Scene {
    folder: tempfile::TempDir,
    sandbox: Sandbox,
    printed: Arc<Mutex<Vec<Printed>>>,
}

impl Scene {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(guard::ARGUMENT), script).unwrap();
        Self { folder, sandbox: Sandbox::default(), printed: Arc::default() }
    }

    async fn spawn(&self, guard: &str) -> Result<Process, Error> {
        let printed = Arc::clone(&self.printed);
        let environment = [("A", "1"), ("B", "b"), ("A", "2")];
        Process::spawn(Run {
            guard: Path::new(guard),
            file: &Checked::open(Path::new("/bin/sh"), None).unwrap(),
            arguments: &["one".into(), "two words".into()],
            environment: &environment
                .map(|(name, value)| (OsString::from(name), OsString::from(value))),
            folder: self.folder.path(),
            whole_folder: self.folder.path(),
            bounds: Bounds { files: Some(64), ..Bounds::default() },
            sandbox: &self.sandbox,
            held: Held::default(),
            output: Arc::new(move |what| printed.lock().unwrap().push(what)),
        })
        .await
    }

    /// A file that the guard has written, once it is there.
    async fn file(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        let read = async {
            loop {
                match fs::read_to_string(&path) {
                    Ok(text) => break text,
                    Err(_) => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(PATIENCE, read).await.unwrap()
    }
}

#[tokio::test]
async fn the_first_line_is_told_and_all_else_handed_on() {
    let script =
        "printf '1|4\\nmo'; printf 're'; echo '[WARN] hi' >&2; printf 'ended 768\\nclean\\n' >&0";
    let scene = Scene::new(&format!("{STARTED}{script}"));
    let process = scene.spawn("/bin/sh").await.unwrap();
    assert_eq!(process.first_line(PATIENCE).await.unwrap(), "1|4");
    let ended = timeout(PATIENCE, process.ended()).await.unwrap();
    assert_eq!((ended.status.unwrap().code(), &*ended.said), (Some(3), "[WARN] hi"));
    assert!(ended.is_clean);
    assert_eq!(ended.to_string(), "exit status: 3; the last on its standard error: [WARN] hi");
    assert_eq!(process.said(), "the last on its standard error: [WARN] hi");
    assert_eq!(process.first_line(PATIENCE).await.unwrap(), "1|4", "it can be asked again");
    assert_eq!(process.stop().await, ended, "it has ended already");

    let (mut stdout, mut logs) = (Vec::new(), Vec::new());
    for printed in scene.printed.lock().unwrap().iter() {
        match printed {
            Printed::Stdout(bytes) => stdout.extend_from_slice(bytes),
            Printed::Log(line) => logs.push((line.level, line.message.clone())),
            Printed::Stderr(_) => panic!("only a stream of the plugin's has that"),
        }
    }
    assert_eq!(stdout, b"more");
    assert_eq!(logs, [(Level::Warn, "hi".to_owned())]);
}

#[tokio::test]
async fn an_end_before_the_first_line_is_told_with_the_last_words() {
    let script = "printf '1|4'; echo 'no licence' >&2; printf 'ended 256\\n' >&0";
    let process = Scene::new(&format!("{STARTED}{script}")).spawn("/bin/sh").await.unwrap();
    let error = process.first_line(PATIENCE).await.unwrap_err();
    let Error::EndedEarly { status, said } = error else { panic!("{error}") };
    assert_eq!(status, "exit status: 1");
    assert_eq!(said, "the last on its standard error: no licence");
}

#[tokio::test]
async fn a_silent_plugin_is_killed() {
    // Standard output is closed: that is no end.
    let script = "exec >&-; dd bs=1 count=2 of=orders <&0 2>/dev/null; printf 'ended 9\\n' >&0";
    let scene = Scene::new(&format!("{STARTED}{script}"));
    let process = scene.spawn("/bin/sh").await.unwrap();
    let error = process.first_line(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    let ended = timeout(PATIENCE, process.ended()).await.unwrap();
    assert_eq!(ended.status.unwrap().signal(), Some(9));
    assert!(!ended.is_clean, "the guard has not said so");
    assert_eq!(scene.file("orders").await, "FK");
}

#[tokio::test]
async fn a_first_line_without_end_is_an_error() {
    let script = "head -c 100000 /dev/zero | tr '\\000' a; cat <&0 >/dev/null";
    let process = Scene::new(&format!("{STARTED}{script}")).spawn("/bin/sh").await.unwrap();
    let error = process.first_line(PATIENCE).await.unwrap_err();
    let Error::Handshake { line, .. } = &error else { panic!("{error}") };
    assert_eq!(*line, "a".repeat(SHOWN_CHARACTERS_MAX));
}

#[tokio::test]
async fn a_guard_sees_that_its_host_is_gone() {
    let script = "cat <&0 >/dev/null; echo > gone.new; mv gone.new gone";
    let scene = Scene::new(&format!("{STARTED}{script}"));
    drop(scene.spawn("/bin/sh").await.unwrap());
    assert_eq!(scene.file("gone").await, "\n");
}

#[tokio::test]
async fn a_guard_inherits_no_variable_and_carries_the_plugins() {
    let script = "tr '\\000' '\\n' </proc/$$/environ >new; mv new environ; printf 'ended 0\\n' >&0";
    let scene = Scene::new(&format!("{STARTED}{script}"));
    let process = scene.spawn("/bin/sh").await.unwrap();
    let environment = scene.file("environ").await;
    let mut found: Vec<&str> = environment.lines().collect();
    found.sort_unstable();
    let folder = scene.folder.path().display();
    let (home, temporary) = (format!("HOME={folder}"), format!("TMPDIR={folder}"));
    let path = format!("PATH={PATH}");
    let expected = ["A=2", "B=b", &home, &path, &temporary];
    assert_eq!(found, expected.map(|variable| format!("FLEXCORE_CARRIED_{variable}")));
    assert_eq!(timeout(PATIENCE, process.ended()).await.unwrap().status.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_guard_that_does_not_start_says_why() {
    let scene = Scene::new("echo 'cannot guard: no' >&2; exit 125");
    let error = scene.spawn("/bin/sh").await.err().unwrap();
    assert!(matches!(error, Error::System { .. }), "{error}");
    assert!(error.to_string().contains("cannot guard: no"), "{error}");
    let error = scene.spawn("/nowhere/guard").await.err().unwrap();
    assert!(matches!(error, Error::System { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/guard"), "{error}");
}

#[tokio::test]
async fn a_guard_is_not_looked_for_in_the_plugins_folder() {
    for guard in ["guard", "./guard", ""] {
        let error = Scene::new("").spawn(guard).await.err().unwrap();
        assert!(matches!(error, Error::File { .. }), "{error}");
    }
}

/// Such as a host that does not ask whether it is one.
#[tokio::test(start_paused = true)]
async fn what_is_no_guard_is_not_left_running() {
    let scene = Scene::new("exec sleep 1000");
    let error = scene.spawn("/bin/sh").await.err().unwrap();
    assert!(matches!(error, Error::System { .. }), "{error}");
    let folder = scene.folder.path().canonicalize().unwrap();
    let runs_there = || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let mut folders = processes.filter_map(|one| fs::read_link(one.path().join("cwd")).ok());
        folders.any(|of| of == folder)
    };
    let began = std::time::Instant::now();
    while runs_there() {
        assert!(began.elapsed() < PATIENCE, "it runs on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_guard_is_told_all_in_its_arguments() {
    let scene = Scene::new("");
    let (_, theirs) = UnixStream::pair().unwrap();
    let file = Checked::open(Path::new("/bin/sh"), None).unwrap();
    let run = Run {
        guard: Path::new("/guard"),
        file: &file,
        arguments: &["one".into(), "two words".into()],
        environment: &[],
        folder: scene.folder.path(),
        whole_folder: Path::new("/tmp/whole"),
        bounds: Bounds { files: Some(64), ..Bounds::default() },
        sandbox: &scene.sandbox,
        held: Held::default(),
        output: Arc::new(|_| {}),
    };
    let command = command(&run, None, theirs);
    let words: Vec<_> = command.as_std().get_args().collect();
    let bounds = ["-", "-", "64", "-"];
    let sandbox = ["-", "-", "-", "-", "-", "0", "0", "-"];
    let first = ["plugin-guard", "watch", "binary"];
    let last = ["-", "/tmp/whole", "/bin/sh", "one", "two words"];
    assert_eq!(words, [&first[..], &bounds, &sandbox, &last].concat());
}

#[tokio::test]
async fn a_measure_that_is_demanded_and_lacks_is_told_and_nothing_is_left() {
    let lacks = "printf 'holds privileges\\nlacks network no such kernel\\n' >&0\n";
    let gone = "cat <&0 >/dev/null; echo > gone.new; mv gone.new gone";
    let mut scene = Scene::new(&format!("{lacks}{STARTED}{gone}"));
    scene.sandbox.no_network = true;
    let process = scene.spawn("/bin/sh").await.unwrap();
    assert!(process.held().holds(Measure::Privileges));
    let answer = process.held().of(Measure::Network);
    assert_eq!(*answer, MeasureState::NotAvailable("no such kernel".to_owned()));
    assert_eq!(*process.held().of(Measure::Files), MeasureState::NotAsked);
    drop(process);
    assert_eq!(scene.file("gone").await, "\n");

    fs::remove_file(scene.folder.path().join("gone")).unwrap();
    scene.sandbox.demanded = [Measure::Network].into();
    let error = scene.spawn("/bin/sh").await.err().unwrap();
    let told = error.to_string();
    assert!(matches!(error, Error::Sandbox { measure: Measure::Network, .. }), "{told}");
    assert!(told.contains("network is demanded") && told.contains("no such kernel"), "{told}");
    assert_eq!(scene.file("gone").await, "\n");
}
