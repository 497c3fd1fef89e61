//! A network namespace for each node, joined by a bridge that the harness is on, too.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::host::{run, say, try_run};

const CLEAN: &str = include_str!("clean.sh");
/// The bridge's name; clean.sh knows it, and the prefix of namespaces.
const BRIDGE: &str = "fcx0";

/// The part that is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing goes in or out.
    Both,
    /// It speaks and does not hear.
    In,
    /// It hears and does not speak.
    Out,
}

impl Cut {
    pub(crate) const ALL: [Self; 3] = [Self::Both, Self::In, Self::Out];
}

/// The network. Dropping it removes it, and every process in it.
pub(crate) struct Network {
    /// Such as `10.83.7`.
    base: String,
    /// A folder for this run, removed in the end.
    pub(crate) folder: PathBuf,
    /// Cleans up when its standard input closes: when this is dropped, and when we are killed.
    guard: Child,
    _lock: File,
}

/// The namespace of a node.
pub(crate) fn space(node: &str) -> String {
    format!("fcx-{node}")
}

impl Network {
    /// Makes the bridge, after removing what a killed run has left behind. Panics when another run
    /// is going on.
    pub(crate) fn create() -> Self {
        let lock = File::create(std::env::temp_dir().join("flexcore-chaos.lock")).unwrap();
        lock.try_lock().expect("another run of the chaos harness goes on here; wait for its end");
        run("sh", &["-c", CLEAN, "clean", ""]);
        let folder = tempfile::Builder::new().prefix("flexcore-chaos-").tempdir().unwrap().keep();
        let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(&folder, passable).unwrap();
        let guard = Command::new("sh")
            .args(["-c", &format!("cat > /dev/null\n{CLEAN}"), "guard"])
            .arg(&folder)
            // Ctrl-C is for us; the guard then sees us end.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let base = free_base();
        run("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        run("ip", &["addr", "add", &format!("{base}.1/24"), "dev", BRIDGE]);
        run("ip", &["link", "set", BRIDGE, "up"]);
        // Where Docker runs, bridges are filtered, and forwarding is off.
        let through = ["-I", "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"];
        run("iptables", &[&["-w"][..], &through].concat());
        say(&format!("network {base}.0/24, files in {}", folder.display()));
        Self { base, folder, guard, _lock: lock }
    }

    /// The harness's own address.
    pub(crate) fn own(&self) -> String {
        format!("{}.1", self.base)
    }

    /// The address with this last number.
    pub(crate) fn address(&self, number: u8) -> String {
        format!("{}.{number}", self.base)
    }

    /// The range, for whom Postgres lets in.
    pub(crate) fn range(&self) -> String {
        format!("{}.0/24", self.base)
    }

    /// Makes the namespace of a node.
    pub(crate) fn add(&self, node: &str, number: u8) {
        let (space, outer) = (space(node), format!("fcx{number}"));
        run("ip", &["netns", "add", &space]);
        // The kernel takes a former network's namespaces away in its own time, and links with them.
        drop(try_run("ip", &["link", "delete", &outer]));
        let inner = ["type", "veth", "peer", "name", "eth0", "netns", &space];
        run("ip", &[&["link", "add", &outer][..], &inner].concat());
        run("ip", &["link", "set", &outer, "master", BRIDGE, "up"]);
        let address = format!("{}/24", self.address(number));
        run("ip", &["-n", &space, "addr", "add", &address, "dev", "eth0"]);
        run("ip", &["-n", &space, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &space, "link", "set", "lo", "up"]);
    }
}

/// Cuts a node off. It still reaches itself.
pub(crate) fn cut(node: &str, cut: Cut) {
    let drop_all = |chain: &str, side: &str| {
        let rule = ["-I", chain, "!", side, "lo", "-j", "DROP"];
        run("ip", &[&["netns", "exec", &space(node), "iptables", "-w"][..], &rule].concat());
    };
    if cut != Cut::Out {
        drop_all("INPUT", "-i");
    }
    if cut != Cut::In {
        drop_all("OUTPUT", "-o");
    }
}

/// Joins a node again.
pub(crate) fn heal(node: &str) {
    run("ip", &["netns", "exec", &space(node), "iptables", "-w", "-F"]);
}

/// A range that neither an address nor a route of this machine uses.
fn free_base() -> String {
    let list = |what| try_run("ip", &["-4", "-o", what]).unwrap_or_default();
    let used = list("addr") + &list("route");
    let start = std::process::id();
    let mut bases = (0..4_096).map(|n| {
        let number = start.wrapping_add(n) % 4_096;
        format!("10.{}.{}", 80 + number / 256, number % 256)
    });
    bases.find(|base| !used.contains(&format!("{base}."))).expect("a free range")
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
    }
}
