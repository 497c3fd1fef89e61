//! What a plugin is kept from.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::Measure;

/// What a plugin is kept from, beside what it may use ([`super::Bounds`]). Each part is a
/// [`Measure`]; one that is asked for and not available on this machine is left out, unless it is
/// demanded. [`super::Held`] tells what holds. By default nothing is asked for, and the plugin has
/// the host's user, network and files; see [`crate::guard`] for what that means.
///
/// No plugin has root's powers, whatever is asked for. Whoever asks for any measure is told so
/// ([`Measure::Privileges`]), since these powers would undo the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The user to run as. Only root can do that. The plugin's file has to be readable and
    /// executable for that user, unless it was opened with an expected hash and is no script that
    /// needs files beside it.
    pub user: Option<User>,
    /// True to be told of no privileges ([`Measure::Privileges`]) if nothing else is asked for.
    pub no_privileges: bool,
    /// True for no network ([`Measure::Network`]). A plugin that listens at a port of TCP cannot be
    /// reached then. Unix sockets of other programs can be dialled by their paths, as far as their
    /// permissions let this user.
    pub no_network: bool,
    /// The only files that it may open, if they are restricted ([`Measure::Files`]).
    pub files: Option<Files>,
    /// True for processes of its own ([`Measure::Processes`]): it has numbers of its own for them,
    /// `/proc` shows no others, and the System V objects of others are out of reach.
    pub own_processes: bool,
    /// The cgroup (version 2) in which the host may make one for the plugin, as the path of its
    /// folder. It takes [`Measure::Memory`] and [`Measure::Tasks`].
    pub group: Option<PathBuf>,
    /// The most memory of all its processes together, in bytes; swap is not used.
    pub memory_bytes: Option<u64>,
    /// The most processes and threads altogether.
    pub tasks: Option<u64>,
    /// The measures without which the plugin does not start.
    pub demanded: BTreeSet<Measure>,
}

/// A user of a plugin's own, and its group. Nobody else should be in that group: whoever is may
/// call the host's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's number; not 0.
    pub uid: u32,
    /// The group's number; not 0.
    pub gid: u32,
}

/// Files that a plugin may open beside those of the system and its own, as absolute paths of files
/// or folders. Those that are not there when it starts are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// To read and to execute: an interpreter outside of `/usr`, modules.
    pub read: Vec<PathBuf>,
    /// To read and to write.
    pub write: Vec<PathBuf>,
}

/// The word for nothing.
const NONE: &str = "-";

impl Sandbox {
    /// Whether this measure is asked for.
    #[must_use]
    pub fn asks(&self, measure: Measure) -> bool {
        match measure {
            Measure::User => self.user.is_some(),
            Measure::Privileges => {
                let is_asked = |other: Measure| other != measure && self.asks(other);
                self.no_privileges || Measure::ALL.into_iter().any(is_asked)
            }
            Measure::Network => self.no_network,
            Measure::Files => self.files.is_some(),
            Measure::Processes => self.own_processes,
            Measure::Memory => self.memory_bytes.is_some(),
            Measure::Tasks => self.tasks.is_some(),
        }
    }

    /// As words of a command line.
    pub(super) fn words(&self) -> impl Iterator<Item = OsString> {
        let user = self.user.map(|User { uid, gid }| format!("{uid}:{gid}"));
        let asked = Measure::ALL.into_iter().filter(|measure| self.asks(*measure));
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let files = self.files.clone().unwrap_or_default();
        let counts = [files.read.len(), files.write.len()].map(|count| count.to_string());
        let group = self.group.clone().map(PathBuf::into_os_string);
        let texts = [
            user,
            // `no_privileges` itself, and not what follows from the others.
            names(asked.filter(|measure| *measure != Measure::Privileges || self.no_privileges)),
            names(self.demanded.iter().copied()),
            number(self.memory_bytes),
            number(self.tasks),
        ];
        let texts = texts.map(|text| text.unwrap_or_else(|| NONE.to_owned()));
        let paths = files.read.into_iter().chain(files.write).map(PathBuf::into_os_string);
        let group = group.unwrap_or_else(|| NONE.into());
        texts.into_iter().chain(counts).map(OsString::from).chain([group]).chain(paths)
    }

    pub(super) fn parse(words: &mut impl Iterator<Item = OsString>) -> Option<Self> {
        let mut next = || words.next()?.into_string().ok();
        let user = optional(&next()?, |text| {
            let (uid, gid) = text.split_once(':')?;
            Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })?;
        let asked = measures(&next()?)?;
        let demanded = measures(&next()?)?;
        let memory_bytes = optional(&next()?, |text| text.parse().ok())?;
        let tasks = optional(&next()?, |text| text.parse().ok())?;
        let [read, write] = [next()?.parse::<usize>().ok()?, next()?.parse::<usize>().ok()?];
        let group = Some(PathBuf::from(words.next()?)).filter(|path| path != Path::new(NONE));
        let mut paths = |count: usize| -> Option<Vec<PathBuf>> {
            (0..count).map(|_| words.next().map(PathBuf::from)).collect()
        };
        let files = Files { read: paths(read)?, write: paths(write)? };
        Some(Self {
            user,
            no_privileges: asked.contains(&Measure::Privileges),
            no_network: asked.contains(&Measure::Network),
            files: asked.contains(&Measure::Files).then_some(files),
            own_processes: asked.contains(&Measure::Processes),
            group,
            memory_bytes,
            tasks,
            demanded,
        })
    }
}

/// What a text stands for, or nothing where it is the word for that. None if it is neither.
fn optional<T>(text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == NONE { Some(None) } else { read(text).map(Some) }
}

fn names(measures: impl Iterator<Item = Measure>) -> Option<String> {
    let names: Vec<_> = measures.map(Measure::name).collect();
    (!names.is_empty()).then(|| names.join(","))
}

fn measures(text: &str) -> Option<BTreeSet<Measure>> {
    let all = optional(text, |text| text.split(',').map(Measure::named).collect());
    all.map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Sandbox {
        Sandbox {
            user: Some(User { uid: 64_321, gid: 7 }),
            no_privileges: true,
            no_network: true,
            files: Some(Files { read: vec!["/opt/a b".into(), "-".into()], write: vec![] }),
            own_processes: true,
            group: Some("/sys/fs/cgroup/flexcore".into()),
            memory_bytes: Some(u64::MAX),
            tasks: Some(0),
            demanded: Measure::ALL.into_iter().collect(),
        }
    }

    #[test]
    fn a_sandbox_survives_a_command_line() {
        let files = Files { read: vec![], write: vec!["/var/lib/x".into()] };
        for sandbox in [
            Sandbox::default(),
            all(),
            Sandbox { files: Some(files), ..Sandbox::default() },
            Sandbox { files: Some(Files::default()), ..Sandbox::default() },
            Sandbox { no_privileges: false, ..all() },
            Sandbox { no_network: true, ..Sandbox::default() },
        ] {
            let mut words = sandbox.words().chain(["next".into()]).collect::<Vec<_>>().into_iter();
            assert_eq!(Sandbox::parse(&mut words), Some(sandbox));
            assert_eq!(words.next(), Some("next".into()));
        }
    }

    #[test]
    fn what_is_no_sandbox_is_refused() {
        let right: Vec<_> = all().words().collect();
        for cut in 0..right.len() {
            let words = &mut right[..cut].iter().cloned();
            assert_eq!(Sandbox::parse(words), None, "{cut} words");
        }
        for (place, wrong) in
            [(0, "1"), (0, "1:"), (0, "-1:1"), (1, "all"), (2, ""), (3, "x"), (4, "-1"), (5, "-")]
        {
            let mut words = right.clone();
            words[place] = wrong.into();
            assert_eq!(Sandbox::parse(&mut words.into_iter()), None, "{wrong:?} at {place}");
        }
    }

    #[test]
    fn whoever_asks_for_anything_gets_no_privileges() {
        let asked = |sandbox: &Sandbox| {
            Measure::ALL.into_iter().filter(|measure| sandbox.asks(*measure)).collect::<Vec<_>>()
        };
        assert!(asked(&Sandbox::default()).is_empty());
        assert_eq!(asked(&all()), Measure::ALL);
        let some = Sandbox { no_network: true, ..Sandbox::default() };
        assert_eq!(asked(&some), [Measure::Privileges, Measure::Network]);
        let only = Sandbox { no_privileges: true, ..Sandbox::default() };
        assert_eq!(asked(&only), [Measure::Privileges]);
    }
}
