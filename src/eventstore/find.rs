//! Where an aggregate's version stands in the log, by a few looks at its subject, so that who asks
//! for late events does not read the early ones.

use bytes::Bytes;
use flexcore_domain::AggregateKey;

use crate::{Error, EventStore, Recorded, direct, load, topology, unavailable};

/// Events that are rather read in vain than looked for: about what comes with one page.
const NEAR_ENOUGH: u64 = 256;
/// Most looks: each halves the rest of a log with any number of messages.
const LOOKS_MAX: usize = 64;

/// A place in an aggregate's commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Stream sequence before its next commit.
    pub sequence: u64,
    /// The aggregate's version there.
    pub version: u64,
}

/// The known bounds of the next version's commit: after `low`, and up to `high`.
#[derive(Clone, Copy, Debug)]
struct Search {
    after: u64,
    low: Before,
    /// Commits before this sequence lead to this version at most.
    high: Before,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Look for the aggregate's first commit from this sequence on.
    Look(u64),
    Found(Before),
}

/// A commit that was looked at.
#[derive(Clone, Copy, Debug)]
struct Seen {
    sequence: u64,
    before: u64,
    version: u64,
}

impl Seen {
    fn of(recorded: &Recorded) -> Self {
        let commit = &recorded.commit;
        Self {
            sequence: recorded.sequence,
            before: commit.version_before(),
            version: commit.version(),
        }
    }

    /// The place before it.
    fn place(self) -> Before {
        Before { sequence: self.sequence - 1, version: self.before }
    }

    /// The place after it.
    fn end(self) -> Before {
        Before { sequence: self.sequence, version: self.version }
    }
}

impl Search {
    /// From the aggregate's last commit.
    fn new(after: u64, last: Seen) -> Result<Self, Before> {
        if last.version <= after {
            return Err(last.end());
        }
        if last.before <= after {
            return Err(last.place());
        }
        let high = Before { sequence: last.sequence, version: last.before };
        Ok(Self { after, low: Before::default(), high })
    }

    fn next(&self) -> Next {
        let near = self.high.version <= self.low.version + NEAR_ENOUGH;
        if near || self.high.sequence <= self.low.sequence + 1 {
            return Next::Found(self.low);
        }
        Next::Look(self.low.sequence + (self.high.sequence - self.low.sequence).div_ceil(2))
    }

    /// Narrows it by what was found from this sequence on. Returns the place when it is known.
    fn narrow(&mut self, from: u64, seen: Option<Seen>) -> Option<Before> {
        match seen {
            Some(seen) if seen.sequence < self.high.sequence => {
                if seen.version <= self.after {
                    self.low = seen.end();
                } else if seen.before <= self.after {
                    return Some(seen.place());
                } else {
                    self.high = Before { sequence: from, version: seen.before };
                }
            }
            // None of its commits is in between.
            _ => self.high.sequence = from,
        }
        None
    }
}

impl EventStore {
    /// A place in the aggregate's commits from which on every event after this version follows, and at
    /// most some hundred before it; the end of its commits when there are no later ones. Fails with
    /// [`Error::Unavailable`] when the broker is away.
    #[boxed::async_recursion]
    pub async fn before_version(&self, key: &AggregateKey, after: u64) -> Result<Before, Error> {
        if after < NEAR_ENOUGH {
            return Ok(Before::default());
        }
        let subject = crate::subject(key);
        let _place = self.bulk.places.wait(key.tenant()).await;
        let last = self.look(key, format!(r#"{{"last_by_subj":"{subject}"}}"#)).await?;
        let Some(last) = last else { return Ok(Before::default()) };
        let mut search = match Search::new(after, last) {
            Ok(search) => search,
            Err(found) => return Ok(found),
        };
        for _ in 0..LOOKS_MAX {
            let from = match search.next() {
                Next::Found(place) => return Ok(place),
                Next::Look(from) => from,
            };
            let request = format!(r#"{{"seq":{from},"next_by_subj":"{subject}"}}"#);
            let seen = self.look(key, request).await?;
            if let Some(place) = search.narrow(from, seen) {
                return Ok(place);
            }
        }
        Ok(search.low)
    }

    async fn look(&self, key: &AggregateKey, request: String) -> Result<Option<Seen>, Error> {
        let to = direct::get(topology::EVENTS);
        let mut replies = self.bulk.inbox.request(to, None, Bytes::from(request)).await?;
        let message = replies.next().await?;
        match message.status.map(|status| status.as_u16()) {
            None => load::read(key, &message).map(|recorded| Some(Seen::of(&recorded))),
            Some(404) => Ok(None),
            Some(status) => Err(unavailable(format!("direct get answered {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for it in a log of commits with so many events each, at these sequences. Returns the
    /// place and how many looks it took.
    fn find(log: &[Seen], after: u64) -> (Before, usize) {
        let mut search = match Search::new(after, *log.last().unwrap()) {
            Ok(search) => search,
            Err(found) => return (found, 0),
        };
        for looks in 0..LOOKS_MAX {
            match search.next() {
                Next::Found(place) => return (place, looks),
                Next::Look(from) => {
                    let seen = log.iter().find(|seen| seen.sequence >= from).copied();
                    if let Some(place) = search.narrow(from, seen) {
                        return (place, looks + 1);
                    }
                }
            }
        }
        panic!("not found in {LOOKS_MAX} looks");
    }

    fn log(commits: u64, events: u64, sequence: impl Fn(u64) -> u64) -> Vec<Seen> {
        let seen =
            |n| Seen { sequence: sequence(n), before: n * events, version: (n + 1) * events };
        (0..commits).map(seen).collect()
    }

    #[test]
    fn every_version_is_found_and_little_is_read_in_vain() {
        let logs = [
            log(3_000, 1, |n| n + 1),
            log(3_000, 7, |n| 10 + n * 1_000),
            // All but the last long ago.
            log(3_000, 1, |n| if n == 2_999 { u64::MAX / 2 } else { n + 1 }),
            // All but the first just now.
            log(3_000, 1, |n| if n == 0 { 1 } else { 1_000_000_000 + n }),
            log(1, 5, |_| 3),
        ];
        for log in &logs {
            let end = log.last().unwrap().version;
            for after in (0..end + 3).step_by(13).chain([end - 1, end]) {
                let (place, looks) = find(log, after);
                let follow = log.iter().find(|seen| seen.sequence > place.sequence);
                assert!(place.version <= after, "{after}: {place:?}");
                let next = follow.map_or(end, |seen| seen.before);
                assert_eq!(next, place.version, "what follows begins there");
                let vain = after.min(end) - place.version;
                assert!(vain <= NEAR_ENOUGH + 7, "{vain} read in vain for {after}");
                assert!(looks <= 64, "{looks}");
            }
        }
        assert!(find(&logs[0], 2_990).1 <= 6);
    }
}
