//! What of a sandbox holds on this machine.

use std::{collections::BTreeSet, fmt};

use crate::limits::REASON_CHARACTERS_MAX;

/// A promise about a plugin that only some machines can keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Measure {
    /// It runs as a user of its own, in one group of its own and in no other.
    User,
    /// It has none of root's powers (capabilities), and gets none.
    Privileges,
    /// It reaches no network, this machine's own ports included. It listens at its Unix socket all
    /// the same.
    Network,
    /// It reads and executes what a system has for everybody, reads its own file, reads and writes
    /// its own folder, and opens no other file. Whether a file is there it can see, and it can
    /// change permissions and times of its user's files: only a user of its own has none.
    Files,
    /// It sees, signals and traces no processes but those that it started, and none of these
    /// outlives it.
    Processes,
    /// All its processes together have a limit of memory.
    Memory,
    /// All its processes and threads together have a limit of number.
    Tasks,
}

impl Measure {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 7] = [
        Self::User,
        Self::Privileges,
        Self::Network,
        Self::Files,
        Self::Processes,
        Self::Memory,
        Self::Tasks,
    ];

    /// Its name in a manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Privileges => "privileges",
            Self::Network => "network",
            Self::Files => "files",
            Self::Processes => "processes",
            Self::Memory => "memory",
            Self::Tasks => "tasks",
        }
    }

    /// The measure with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|measure| measure.name() == name)
    }

    /// What somebody can do for whom it does not hold.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::User => {
                "run the host as root, with the powers CHOWN, DAC_OVERRIDE, KILL, SETGID and SETUID"
            }
            Self::Privileges => "look at the reason: it needs nothing of the machine",
            Self::Network | Self::Processes => {
                "run the host as root with CAP_SYS_ADMIN, or let users make namespaces \
                 (user.max_user_namespaces, and the rules of the container)"
            }
            Self::Files => "use Linux 6.2 or newer, with landlock among those of its option lsm=",
            Self::Memory | Self::Tasks => {
                "give the host a cgroup (version 2) that it may write to, that has no processes \
                 itself, and whose cgroup.subtree_control has memory and pids"
            }
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a measure holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MeasureState {
    /// It was asked for and holds.
    Holds,
    /// It was asked for and does not hold on this machine, for this reason. Part of it may.
    NotAvailable(String),
    /// Nobody asked for it.
    #[default]
    NotAsked,
}

impl MeasureState {
    /// The answer for what was tried.
    pub(crate) fn of<E: fmt::Display>(what: &str, tried: Result<(), E>) -> Self {
        match tried {
            Ok(()) => Self::Holds,
            Err(error) => Self::NotAvailable(format!("cannot {what}: {error}")),
        }
    }
}

impl fmt::Display for MeasureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds => f.write_str("holds"),
            Self::NotAvailable(reason) => write!(f, "not available: {reason}"),
            Self::NotAsked => f.write_str("not asked for"),
        }
    }
}

/// An answer for each measure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held([MeasureState; Measure::ALL.len()]);

impl Held {
    /// The answer for one measure.
    #[must_use]
    pub fn of(&self, measure: Measure) -> &MeasureState {
        &self.0[measure as usize]
    }

    /// Whether it was asked for and holds.
    #[must_use]
    pub fn holds(&self, measure: Measure) -> bool {
        *self.of(measure) == MeasureState::Holds
    }

    /// All answers.
    pub fn iter(&self) -> impl Iterator<Item = (Measure, &MeasureState)> {
        Measure::ALL.into_iter().zip(&self.0)
    }

    pub(crate) fn set(&mut self, measure: Measure, answer: MeasureState) {
        self.0[measure as usize] = answer;
    }

    /// The first measure that is demanded and does not hold, and why not.
    pub(crate) fn lacking(&self, demanded: &BTreeSet<Measure>) -> Option<(Measure, String)> {
        let lacks = |measure: &Measure| match self.of(*measure) {
            MeasureState::Holds => None,
            MeasureState::NotAvailable(reason) => Some((*measure, reason.clone())),
            MeasureState::NotAsked => Some((*measure, "it was not asked for".to_owned())),
        };
        demanded.iter().find_map(lacks)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (measure, answer) in self.iter() {
            write!(f, "{separator}{measure}: {answer}")?;
            separator = "\n";
        }
        Ok(())
    }
}

/// A reason as the end of a line: in one line, and not longer than its limit.
pub(super) fn one_line(reason: &str) -> String {
    let plain = |sign: char| if sign.is_control() { ' ' } else { sign };
    reason.chars().take(REASON_CHARACTERS_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_its_place_and_its_name() {
        let mut held = Held::default();
        for measure in Measure::ALL {
            assert_eq!(Measure::named(measure.name()), Some(measure));
            assert!(!measure.advice().is_empty());
            assert_eq!(*held.of(measure), MeasureState::NotAsked);
            held.set(measure, MeasureState::NotAvailable(measure.name().to_owned()));
        }
        for (measure, answer) in held.iter() {
            assert_eq!(*answer, MeasureState::NotAvailable(measure.name().to_owned()));
            assert_eq!(held.of(measure), answer);
        }
        assert_eq!(Measure::named("all"), None);
        assert!(held.to_string().starts_with("user: not available: user\nprivileges: "), "{held}");
    }

    #[test]
    fn what_is_demanded_has_to_hold() {
        let mut held = Held::default();
        held.set(Measure::Files, MeasureState::Holds);
        let no: Result<(), _> = Err("no\nway");
        held.set(Measure::Network, MeasureState::of("make it", no));
        for (demanded, lacking) in [
            (vec![], None),
            (vec![Measure::Files], None),
            (vec![Measure::Files, Measure::Network], Some((Measure::Network, "no\nway"))),
            (vec![Measure::Tasks, Measure::Files], Some((Measure::Tasks, "not asked for"))),
        ] {
            let found = held.lacking(&demanded.iter().copied().collect());
            let measure = found.as_ref().map(|(measure, _)| *measure);
            assert_eq!(measure, lacking.map(|(measure, _)| measure), "{demanded:?}");
            if let Some((reason, (_, part))) = found.map(|(_, reason)| reason).zip(lacking) {
                assert!(reason.contains(part), "{reason}");
            }
        }
    }

    #[test]
    fn a_reason_is_the_rest_of_a_line() {
        assert_eq!(one_line("no\nway\r\0"), "no way  ");
        assert_eq!(one_line(&"é".repeat(10_000)).chars().count(), REASON_CHARACTERS_MAX);
    }
}
