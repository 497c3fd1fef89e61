//! The plugins under test: one on HashiCorp's library in Go, one on grpcio in Python, our own in
//! Rust, and the fault programs. Go's and Python's are built once into the cache that all tests share.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use flexcore_servers::{cache_for_tests, fetch};
use sha2::{Digest as _, Sha256};

/// Where the sources are.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// A file to start, and what it needs.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) file: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Program {
    fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), arguments: vec![], environment: vec![] }
    }
}

/// The plugin on our own library.
pub(crate) fn rust() -> Program {
    Program::new(env!("CARGO_BIN_EXE_flexcore-plugin-transform"))
}

/// The same, and it listens at a port.
pub(crate) fn rust_at_a_port() -> Program {
    Program { arguments: vec!["--tcp".into()], ..rust() }
}

/// A plugin without a library, which `ends` or `hangs` when it is told to end.
pub(crate) fn bare(end: &str) -> Program {
    Program { arguments: vec!["--bare".into(), end.into()], ..rust() }
}

/// A script of `tests/faults`.
pub(crate) fn fault(name: &str, arguments: &[&str]) -> Program {
    let file = Path::new(HERE).join("faults").join(name);
    let arguments = arguments.iter().map(OsString::from).collect();
    Program { arguments, ..Program::new(file) }
}

/// A script of `tests/faults` around our own plugin, which is its first argument.
pub(crate) fn around(name: &str, arguments: &[&str]) -> Program {
    let plugin = env!("CARGO_BIN_EXE_flexcore-plugin-transform");
    fault(name, &[&[plugin][..], arguments].concat())
}

/// The plugin on go-plugin 1.0.1; without Go the test says so and is skipped.
pub(crate) fn go() -> Option<Program> {
    static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let build = Path::new(HERE).join("go/build.sh");
        build_once("plugin-go", &["go", "lab.proto"], &[("go", "version")], &build)
    });
    there("Go", &BUILT).map(|folder| Program::new(folder.join("plugin")))
}

/// The host on go-plugin 1.0.1.
pub(crate) fn go_host() -> Option<PathBuf> {
    go().map(|plugin| plugin.file.with_file_name("host"))
}

/// The plugin on grpcio; without pip the test says so and is skipped.
pub(crate) fn python() -> Option<Program> {
    static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let build = Path::new(HERE).join("python/build.sh");
        let sources = ["python/build.sh", "python/requirements.txt", "python/go_plugin.proto"];
        let sources = [&sources[..], &["lab.proto"]].concat();
        build_once("plugin-python", &sources, &[("python3", "-VV")], &build)
    });
    there("Python with grpcio", &BUILT).map(|folder| Program {
        environment: vec![("PYTHONPATH".into(), folder.into())],
        ..Program::new(Path::new(HERE).join("python/plugin.py"))
    })
}

/// The plugins of all languages that there are.
pub(crate) fn all() -> Vec<(&'static str, Program)> {
    let others = [("Go", go()), ("Python", python())];
    let others = others.into_iter().filter_map(|(name, program)| Some((name, program?)));
    [("Rust", rust())].into_iter().chain(others).collect()
}

/// What was built.
fn there<'a>(what: &str, built: &'a Result<PathBuf, String>) -> Option<&'a Path> {
    match built {
        Ok(folder) => Some(folder),
        Err(reason) => {
            skipped(&format!("no plugin in {what}: {reason}"));
            None
        }
    }
}

/// A machine that lacks what a test takes says so, past the test's captured output; the one that
/// decides about a change has to have it.
pub(crate) fn skipped(lacks: &str) {
    let told = format!("SKIPPED, {lacks}");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{told}");
    let test = std::thread::current();
    let line = format!("{}: {told}\n", test.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The descriptors of `lab.proto`, by the compiler of Protocol Buffers; without it the test says so
/// and is skipped.
pub(crate) fn descriptors() -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    let mut protoc = Command::new("protoc");
    protoc.arg("--proto_path").arg(HERE).arg("--descriptor_set_out").arg(&set).arg("lab.proto");
    match output(&mut protoc) {
        Ok(_) => Some(fs::read(set).unwrap()),
        Err(reason) => {
            skipped(&format!("no compiler of Protocol Buffers: {reason}"));
            None
        }
    }
}

/// In hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder that `build` fills, in the cache, by a hash of the sources and of what builds them.
fn build_once(
    name: &str,
    sources: &[&str],
    tools: &[(&str, &str)],
    build: &Path,
) -> Result<PathBuf, String> {
    let mut hash = Sha256::new();
    for source in sources {
        add(&mut hash, &Path::new(HERE).join(source)).map_err(|error| error.to_string())?;
    }
    for (tool, version) in tools {
        hash.update(output(Command::new(tool).arg(version))?);
    }
    let hash = hex(&hash.finalize()[..8]);
    let cache = cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
    let made = fetch::once(&cache, &format!("{name}-{hash}"), |partial| {
        let built = output(Command::new(build).arg(partial));
        let what = name.to_owned();
        built.map(drop).map_err(|reason| flexcore_servers::Error::Fetch { what, reason })
    });
    made.map_err(|error| error.to_string())
}

/// A file, or all files below a folder, in the order of their names.
fn add(hash: &mut Sha256, path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(fs::read(path)?);
        return Ok(());
    }
    let entries: std::io::Result<Vec<_>> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect();
    let mut entries = entries?;
    entries.sort();
    entries.iter().try_for_each(|entry| add(hash, entry))
}

/// Exit status of a build for which something is missing on this machine.
const MISSING: i32 = 3;

/// The standard output of a program; the error is what is missing on this machine for it.
///
/// # Panics
/// If the program fails for another reason: then our sources are wrong.
fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let done = command.stdin(Stdio::null()).output();
    let program = command.get_program().display();
    let done = done.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    match done.status.code() {
        Some(0) => Ok(done.stdout),
        Some(MISSING) => Err(said.trim().to_owned()),
        _ => panic!("{program} ended with {}: {said}", done.status),
    }
}
