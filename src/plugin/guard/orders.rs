//! A guard's command line.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{Bounds, Sandbox};

/// The way in which the file that the host hands over is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A binary, through its descriptor, which is closed then.
    Binary,
    /// A script, through its descriptor. That stays open: the kernel executes the interpreter, and
    /// the interpreter opens `/proc/self/fd/N` once more.
    Script,
    /// By its path. The descriptor is not used.
    Path,
}

/// What a guard is told to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Orders {
    pub(crate) way: Way,
    pub(crate) bounds: Bounds,
    pub(crate) sandbox: Sandbox,
    /// The plugin's cgroup, which the host has made.
    pub(crate) group: Option<PathBuf>,
    /// The folder that the guard removes at the end: the plugin's own, and what the host has beside
    /// it.
    pub(crate) folder: PathBuf,
    /// The plugin's path; its own name for itself, however it is executed.
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
}

/// The word for no cgroup.
const NONE: &str = "-";

/// The beginning of the name under which a variable of the plugin's environment goes through its
/// guard. What begins so means nothing to a loader: `LD_PRELOAD` and its like have others run their
/// code, and must not do so before there are limits and a sandbox.
const CARRIED: &str = "FLEXCORE_CARRIED_";

/// The name of a plugin's variable in its guard's environment.
pub(crate) fn carried(name: &OsStr) -> OsString {
    let mut all = OsString::from(CARRIED);
    all.push(name);
    all
}

/// The name in the plugin's; none for what is not carried.
pub(super) fn uncarried(name: &OsStr) -> Option<&OsStr> {
    name.as_bytes().strip_prefix(CARRIED.as_bytes()).map(OsStr::from_bytes)
}

impl Orders {
    /// As words of a command line.
    pub(crate) fn words(&self) -> impl Iterator<Item = OsString> {
        let way = match self.way {
            Way::Binary => "binary",
            Way::Script => "script",
            Way::Path => "path",
        };
        let group = self.group.clone().map_or_else(|| NONE.into(), PathBuf::into_os_string);
        let before = [OsString::from(way)].into_iter().chain(self.bounds.words());
        let before = before.chain(self.sandbox.words()).chain([group]);
        let before = before.chain([self.folder.clone().into_os_string()]);
        before.chain([self.program.clone()]).chain(self.arguments.iter().cloned())
    }

    pub(super) fn parse(mut words: impl Iterator<Item = OsString>) -> Option<Self> {
        let way = match words.next()?.to_str()? {
            "binary" => Way::Binary,
            "script" => Way::Script,
            "path" => Way::Path,
            _ => return None,
        };
        let bounds = Bounds::parse(&mut words)?;
        let sandbox = Sandbox::parse(&mut words)?;
        let group = Some(PathBuf::from(words.next()?)).filter(|path| path != Path::new(NONE));
        let folder = PathBuf::from(words.next()?);
        let program = words.next()?;
        Some(Self { way, bounds, sandbox, group, folder, program, arguments: words.collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn orders_survive_a_command_line() {
        let strange = OsString::from_vec(vec![b'-', 0xff, b'\n', b' ']);
        for way in [Way::Binary, Way::Script, Way::Path] {
            for arguments in [vec![], vec!["".into(), "--".into(), strange.clone()]] {
                let bounds = Bounds { files: Some(64), ..Bounds::default() };
                let sandbox = Sandbox { no_network: true, ..Sandbox::default() };
                let program = strange.clone();
                for group in [None, Some("/sys/fs/cgroup/plugin".into())] {
                    let (sandbox, arguments) = (sandbox.clone(), arguments.clone());
                    let program = program.clone();
                    let folder = PathBuf::from("/tmp/a b");
                    let orders = Orders { way, bounds, sandbox, group, folder, program, arguments };
                    assert_eq!(Orders::parse(orders.words()), Some(orders));
                }
            }
        }
        let cases: [&[&str]; 3] =
            [&[], &["sh", "-", "-", "-", "-", "p"], &["path", "-", "-", "-", "-"]];
        for wrong in cases {
            let words = wrong.iter().map(OsString::from);
            assert_eq!(Orders::parse(words), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_variable_has_its_name_again_behind_the_guard() {
        let strange = OsString::from_vec(vec![0xff, b' ']);
        for name in ["LD_PRELOAD".into(), "PATH".into(), carried("A".as_ref()), strange] {
            let carried = carried(&name);
            assert_ne!(carried, name);
            assert_eq!(uncarried(&carried), Some(name.as_os_str()));
        }
        for other in ["", "LD_PRELOAD", "FLEXCORE_CARRIED"] {
            assert_eq!(uncarried(other.as_ref()), None, "{other}");
        }
    }
}
