//! Read models that stand still though the log goes on, for people to see. A reader that tries one batch
//! again and again is found so, and one of another worker, which has stopped.

use std::{collections::HashMap, time::Duration};

use flexcore_domain::Name;
use flexcore_readmodel::{Status, VersionState};
use tokio::time::Instant;

/// For so long a version may stay where it is while there are commits behind that. The largest batch takes
/// seconds, and so does a hand-over.
const STANDS_AFTER: Duration = Duration::from_secs(60);

/// Where each version was, and since when.
#[derive(Debug, Default)]
pub(super) struct Standing {
    since: HashMap<(Name, i32), (u64, Instant)>,
    told: Vec<Name>,
}

impl Standing {
    /// Looks at the versions, beside the end of the log.
    pub(super) fn look<'a>(&mut self, all: impl Iterator<Item = &'a Status>, last: u64) {
        self.look_at(&all.collect::<Vec<_>>(), last, Instant::now());
    }

    fn look_at(&mut self, all: &[&Status], last: u64, now: Instant) {
        let is_built = |of: &Status| {
            all.iter().any(|s| s.read_model == of.read_model && s.state == VersionState::Building)
        };
        let before = std::mem::take(self);
        for status in all.iter().copied() {
            // One that serves may wait for its successor, which is told elsewhere.
            let counts = match status.state {
                VersionState::Building => true,
                VersionState::Serving => !is_built(status),
                VersionState::Retired => false,
            };
            if !counts || status.lag(last) == 0 {
                continue;
            }
            let key = (status.read_model.clone(), status.version);
            let known = before.since.get(&key).filter(|(at, _)| *at == status.position);
            let since = known.map_or(now, |(_, since)| *since);
            if now.duration_since(since) >= STANDS_AFTER {
                self.told.push(status.read_model.clone());
            }
            self.since.insert(key, (status.position, since));
        }
    }

    /// Forgets all: while Postgres or the broker is away nothing moves.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The read models that stand still, each with that as its trouble.
    pub(super) fn told(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let seconds = STANDS_AFTER.as_secs();
        self.told.iter().map(move |name| {
            let what = format!(
                "it has stood still for {seconds} s, with commits to read: the projection workers' \
                 logs say why"
            );
            (name.to_string(), what)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: i32, state: VersionState, position: u64) -> Status {
        Status {
            read_model: Name::parse("sums").unwrap(),
            version,
            state,
            fingerprint: String::new(),
            position,
            portions: 1,
            parked: 0,
            held: 0,
            trouble: None,
        }
    }

    /// Nobody was once told, but by a line in a log.
    #[test]
    fn a_version_that_stays_where_it_is_for_long_is_told() {
        use VersionState::{Building, Serving};
        let (mut standing, start) = (Standing::default(), Instant::now());
        let mut told = |seconds: u64, all: &[Status]| {
            let all: Vec<_> = all.iter().collect();
            standing.look_at(&all, 10, start + Duration::from_secs(seconds));
            standing.told().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let nobody: [&str; 0] = [];
        assert_eq!(told(0, &[status(1, Serving, 7)]), nobody);
        assert_eq!(told(59, &[status(1, Serving, 7)]), nobody);
        assert_eq!(told(60, &[status(1, Serving, 7)]), ["sums"]);
        assert_eq!(told(61, &[status(1, Serving, 8)]), nobody, "it moves");
        let waits = [status(1, Serving, 8), status(2, Building, 1)];
        assert_eq!(told(120, &waits), nobody);
        assert_eq!(told(121, &[status(1, Serving, 8), status(2, Building, 2)]), nobody);
        assert_eq!(told(190, &[status(1, Serving, 8), status(2, Building, 2)]), ["sums"]);
        assert_eq!(told(200, &[status(2, Serving, 10)]), nobody);
        assert_eq!(told(900, &[status(2, Serving, 10)]), nobody, "there is nothing to read");
        standing.forget();
        assert_eq!(standing.told().count(), 0);
    }
}
