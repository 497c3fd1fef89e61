//! The files that a plugin may open, by landlock: the kernel checks them in the plugin's process
//! and in all that it starts, whoever the user is.

use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr, RulesetError, Scope,
};

use super::{Files, MeasureState};

/// The version of landlock with all that is restricted here. On an older kernel a part of it is.
const VERSION: ABI = ABI::V7;

/// The first version with all that [`super::Measure::Files`] promises. Before it, files could be
/// cut that cannot be opened.
const VERSION_MIN: ABI = ABI::V3;

/// What a program needs of its system: its libraries, other programs, and what they look up. `/etc`
/// is not among it, since the system's secrets are there.
const SYSTEM: &[&str] = &[
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/sbin",
    "/usr",
    // Other processes' memory and environment are closed to it by the kernel all the same.
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
];

/// Devices that lead to nobody.
const DEVICES: &[&str] = &["/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"];

/// The plugin's own folder: the one that it starts in.
const OWN: &str = ".";

/// What may be done with a file, or with all that is in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// Read and execute.
    Read,
    /// Read and write, as a device is.
    Use,
    /// Everything but to execute: what a plugin has written is data.
    Write,
}

impl May {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::from_read(VERSION),
            Self::Use => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Self::Write => AccessFs::from_all(VERSION) & !AccessFs::Execute,
        }
    }
}

/// Closes all files to the calling process but those of the system, of the plugin and of the list.
pub(super) fn close_others(
    files: &Files,
    program: &Path,
    program_file: BorrowedFd<'_>,
) -> MeasureState {
    let tried = restrict(files, program, program_file);
    match tried.map(|status| lacking(&status)) {
        Ok(None) => MeasureState::Holds,
        Ok(Some(reason)) => MeasureState::NotAvailable(reason),
        Err(error) => MeasureState::NotAvailable(format!("cannot restrict files: {error}")),
    }
}

fn restrict(
    files: &Files,
    program: &Path,
    program_file: BorrowedFd<'_>,
) -> Result<LandlockStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))?
        // Signals and abstract sockets of others are no files, but are closed along with them.
        .scope(Scope::from_all(VERSION))?
        .create()?;
    for (path, may) in rules(files, program) {
        // What is not there needs no rule.
        if let Ok(opened) = PathFd::new(path) {
            RulesetCreatedAttr::add_rule(&mut ruleset, PathBeneath::new(opened, may.rights()))?;
        }
    }
    // The very file that is executed, whatever has its path by now. The kernel refuses a rule for a
    // copy in memory, and needs none.
    let own = PathBeneath::new(program_file, May::Read.rights());
    let _ = RulesetCreatedAttr::add_rule(&mut ruleset, own);
    Ok(ruleset.restrict_self()?.landlock)
}

fn rules(files: &Files, program: &Path) -> Vec<(PathBuf, May)> {
    let each = |paths: &[&str], may: May| {
        paths.iter().map(|path| (PathBuf::from(path), may)).collect::<Vec<_>>()
    };
    let listed = |paths: &[PathBuf], may: May| {
        paths.iter().map(|path| (path.clone(), may)).collect::<Vec<_>>()
    };
    [
        each(SYSTEM, May::Read),
        each(DEVICES, May::Use),
        each(&[OWN], May::Write),
        vec![(program.to_owned(), May::Read)],
        listed(&files.read, May::Read),
        listed(&files.write, May::Write),
    ]
    .concat()
}

/// Why it does not hold, or not all of it.
fn lacking(status: &LandlockStatus) -> Option<String> {
    match status {
        LandlockStatus::Available { effective_abi, .. } if *effective_abi >= VERSION_MIN => None,
        LandlockStatus::Available { effective_abi, .. } => Some(format!(
            "this kernel's landlock has version {effective_abi}, and {VERSION_MIN} is needed"
        )),
        LandlockStatus::NotEnabled => Some("landlock is not enabled".to_owned()),
        LandlockStatus::NotImplemented => Some("this kernel has no landlock".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_the_systems_the_plugins_and_the_lists() {
        let files = Files { read: vec!["/opt/python".into()], write: vec!["/var/lib/x".into()] };
        let rules = rules(&files, Path::new("/plugins/one"));
        let may = |path: &str| {
            let found: Vec<_> = rules.iter().filter(|(rule, _)| rule == Path::new(path)).collect();
            assert!(found.len() <= 1, "{path} is there twice");
            found.first().map(|(_, may)| *may)
        };
        for (path, expected) in [
            ("/usr", Some(May::Read)),
            ("/dev/null", Some(May::Use)),
            (".", Some(May::Write)),
            ("/plugins/one", Some(May::Read)),
            ("/opt/python", Some(May::Read)),
            ("/var/lib/x", Some(May::Write)),
            ("/etc/shadow", None),
            ("/", None),
            ("/dev", None),
            ("/etc", None),
            ("/home", None),
            ("/plugins", None),
            ("/root", None),
            ("/run", None),
            ("/tmp", None),
            ("/var", None),
        ] {
            assert_eq!(may(path), expected, "{path}");
        }
        assert!(!May::Read.rights().contains(AccessFs::WriteFile));
        assert!(!May::Use.rights().contains(AccessFs::MakeReg));
        let write = May::Write.rights();
        assert!(write.contains(AccessFs::MakeSock) && !write.contains(AccessFs::Execute));
    }

    #[test]
    fn an_old_kernel_says_what_it_lacks() {
        let of = |effective_abi| LandlockStatus::Available { effective_abi, kernel_abi: None };
        assert_eq!(lacking(&of(ABI::V3)), None);
        assert_eq!(lacking(&of(ABI::V10)), None);
        let lacks = lacking(&of(ABI::V2)).unwrap();
        assert!(lacks.contains("version 2") && lacks.contains('3'), "{lacks}");
        assert!(lacking(&LandlockStatus::NotEnabled).is_some());
        assert!(lacking(&LandlockStatus::NotImplemented).is_some());
    }
}
