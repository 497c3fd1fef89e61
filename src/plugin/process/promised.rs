//! What a plugin is promised to be kept from, and what of it holds.

use std::path::{Path, PathBuf};

use crate::{
    Error,
    guard::{Held, Measure, MeasureState, Sandbox, group},
};

/// The answer until the guard has given one.
const UNTOLD: &str = "its guard has told nothing of it";

/// The measures for one start of a plugin.
pub(super) struct Promised<'a> {
    sandbox: &'a Sandbox,
    pub(super) held: Held,
    pub(super) group: Option<Group>,
}

/// The plugin's cgroup. It is removed when this is dropped, if the plugin has ended.
pub(super) struct Group(PathBuf);

impl<'a> Promised<'a> {
    /// Takes the measures that are the host's. `held` has those that it knows not to hold. Fails if
    /// one is demanded and does not hold, whatever the guard does.
    pub(super) fn new(sandbox: &'a Sandbox, held: &Held) -> Result<Self, Error> {
        let mut held = held.clone();
        let group = group::make(sandbox, &mut held).map(Group);
        let is_open = |held: &Held, measure| *held.of(measure) == MeasureState::NotAsked;
        let asked = Measure::ALL.into_iter().filter(|measure| sandbox.asks(*measure));
        let guards: Vec<_> = asked.filter(|measure| is_open(&held, *measure)).collect();
        for measure in &guards {
            held.set(*measure, MeasureState::Holds);
        }
        let mut promised = Self { sandbox, held, group };
        promised.check()?;
        for measure in guards {
            promised.held.set(measure, MeasureState::NotAvailable(UNTOLD.to_owned()));
        }
        Ok(promised)
    }

    /// Takes an answer of the guard. It knows nothing of what was not asked for.
    pub(super) fn answer(&mut self, measure: Measure, answer: MeasureState) {
        if self.sandbox.asks(measure) {
            self.held.set(measure, answer);
        }
    }

    /// Fails if something that is demanded does not hold.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.held.lacking(&self.sandbox.demanded) {
            Some((measure, reason)) => Err(Error::Sandbox { measure, reason }),
            None => Ok(()),
        }
    }
}

impl Group {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Kills all that is in it.
    pub(super) fn kill(&self) {
        group::kill(&self.0);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        group::remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demanding(measure: Measure, sandbox: Sandbox) -> Sandbox {
        Sandbox { demanded: [measure].into(), ..sandbox }
    }

    fn lacking(result: Result<(), Error>) -> (Measure, String) {
        match result {
            Err(Error::Sandbox { measure, reason }) => (measure, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_guard_does_not_tell_does_not_hold() {
        let no_network = Sandbox { no_network: true, ..Sandbox::default() };
        let sandbox = demanding(Measure::Network, no_network);
        let mut promised = Promised::new(&sandbox, &Held::default()).unwrap();
        let (measure, reason) = lacking(promised.check());
        assert_eq!((measure, &*reason), (Measure::Network, UNTOLD));
        promised.answer(Measure::Network, MeasureState::Holds);
        promised.check().unwrap();
        promised.answer(Measure::Tasks, MeasureState::Holds);
        assert_eq!(*promised.held.of(Measure::Tasks), MeasureState::NotAsked);
        promised.answer(Measure::Network, MeasureState::NotAvailable("no".to_owned()));
        assert_eq!(lacking(promised.check()).1, "no");
    }

    #[test]
    fn what_the_host_knows_is_told_before_anything_starts() {
        let not_asked = demanding(Measure::Files, Sandbox::default());
        let limited = Sandbox { memory_bytes: Some(1), ..Sandbox::default() };
        let no_group = demanding(Measure::Memory, limited.clone());
        for (sandbox, measure) in [(not_asked, Measure::Files), (no_group, Measure::Memory)] {
            let refused = Promised::new(&sandbox, &Held::default()).map(drop);
            assert_eq!(lacking(refused).0, measure);
        }
        let other = demanding(Measure::Privileges, limited);
        let promised = Promised::new(&other, &Held::default()).unwrap();
        assert!(matches!(promised.held.of(Measure::Memory), MeasureState::NotAvailable(_)));

        let mut held = Held::default();
        held.set(Measure::User, MeasureState::NotAvailable("no root".to_owned()));
        let sandbox = demanding(Measure::User, Sandbox::default());
        let refused = Promised::new(&sandbox, &held).map(drop);
        assert_eq!(lacking(refused), (Measure::User, "no root".to_owned()));
    }
}
