//! The machine: programs, signals, and what `/proc` tells of a process.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

/// Programs that the harness cannot do without, and the Debian package of each.
const NEEDED: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("setpriv", "util-linux"),
    ("prlimit", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// Why this machine cannot run the harness; `None`: it can.
pub(crate) fn missing() -> Option<String> {
    if try_run("id", &["-u"]).map(|id| id.trim().to_owned()) != Ok("0".to_owned()) {
        return Some("network namespaces and file systems need root".to_owned());
    }
    let absent: Vec<String> = NEEDED
        .iter()
        .chain(&[("xfs_io", "xfsprogs")])
        .filter(|(program, _)| try_run("sh", &["-c", &format!("command -v {program}")]).is_err())
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    if !absent.is_empty() {
        return Some(format!("not installed: {}", absent.join(", ")));
    }
    let probe = "fcx-probe";
    let made = try_run("ip", &["netns", "add", probe]);
    drop(try_run("ip", &["netns", "del", probe]));
    let disk = try_run("losetup", &["--find"]);
    let what = made.err().map(|error| format!("no network namespace can be made here: {error}"));
    what.or_else(|| disk.err().map(|error| format!("no file can be mounted here: {error}")))
}

/// Runs a program to its end; gives its output, or its complaint.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{program} {}: {}", arguments.join(" "), text(&output.stderr).trim()))
}

/// Runs a program that has to succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Sends a signal, such as `KILL`. A process that has ended does not mind.
pub(crate) fn signal(name: &str, pid: u32) {
    let signal = format!("-{name}");
    drop(try_run("sh", &["-c", "kill \"$1\" \"$2\"", "sh", &signal, &pid.to_string()]));
}

/// Open file descriptors and threads of a process; `None` once it has ended.
pub(crate) fn held(pid: u32) -> Option<(usize, usize)> {
    let count = |what: &str| Some(fs::read_dir(format!("/proc/{pid}/{what}")).ok()?.count());
    Some((count("fd")?, count("task")?))
}

/// Most memory that a process has had resident, in KiB.
pub(crate) fn peak_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Cores, memory and kernel, in a line.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    let kernel = try_run("uname", &["-sr"]).unwrap_or_default();
    let gib = kib.unwrap_or(0) as f64 / 1_048_576.0;
    format!("{cores} cores, {gib:.1} GiB, {}", kernel.trim())
}

/// A line of progress. To standard error itself, which the test harness does not hold back.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "chaos: {line}"));
}
