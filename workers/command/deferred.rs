//! Answers of the log for tenants that rest ([`Rests`](super::rests::Rests)). What a tenant began
//! while it was alone goes on when they come, and would take the lane from others all the same: they
//! wait here until the rest is over.

use std::collections::{HashMap, VecDeque};

use flexcore_domain::Tenant;

use super::messages::Input;

/// Most bytes that wait. What does not fit is not held back: its tenant has large aggregates, and so
/// few loads at once.
const BYTES_MAX: usize = 16 << 20;

/// Inputs of a lane that wait.
#[derive(Default)]
pub(super) struct Deferred {
    of: HashMap<Tenant, VecDeque<(Input, usize)>>,
    bytes: usize,
}

impl Deferred {
    /// Keeps an input. Gives it back where nothing is decided for it, or where there is no room.
    pub(super) fn put(&mut self, input: Input) -> Option<Input> {
        let (Input::Loaded { .. } | Input::LookedUp { .. }) = input else { return Some(input) };
        let size = size_bytes(&input);
        let Some(tenant) = input.tenant().filter(|_| self.bytes + size <= BYTES_MAX).cloned()
        else {
            return Some(input);
        };
        self.bytes += size;
        self.of.entry(tenant).or_default().push_back((input, size));
        None
    }

    /// A tenant's next input, and whether another follows.
    pub(super) fn next(&mut self, tenant: &Tenant) -> Option<(Input, bool)> {
        let all = self.of.get_mut(tenant)?;
        let next = all.pop_front();
        let follows = !all.is_empty();
        if !follows {
            self.of.remove(tenant);
        }
        let (input, size) = next?;
        self.bytes -= size;
        Some((input, follows))
    }
}

/// About the bytes that it takes: a commit as it is stored, and as it was read.
fn size_bytes(input: &Input) -> usize {
    let mut size = size_of::<Input>();
    if let Input::Loaded { result: Ok(loaded), .. } = input {
        let state = |snapshot: &flexcore_eventstore::snapshot::Snapshot| snapshot.state.get().len();
        size += loaded.commits.iter().map(|recorded| 2 * recorded.body.len()).sum::<usize>();
        size += loaded.snapshot.as_ref().map_or(0, state);
    }
    size
}

#[cfg(test)]
mod tests {
    use flexcore_domain::AggregateKey;

    use super::*;
    use crate::command::{messages::Loaded, some_keys::key};

    fn loaded(key: AggregateKey) -> Input {
        Input::Loaded { key, result: Ok(Loaded::default()) }
    }

    #[test]
    fn what_waits_comes_in_order_and_is_bounded() {
        let mut deferred = Deferred::default();
        for id in 0..3 {
            assert!(deferred.put(loaded(key("hog", id))).is_none());
        }
        assert!(deferred.put(loaded(key("other", 0))).is_none());
        for (id, more) in [(0, true), (1, true), (2, false)] {
            let (input, follows) = deferred.next(key("hog", 0).tenant()).unwrap();
            assert!(matches!(input, Input::Loaded { key: of, .. } if of == key("hog", id)));
            assert_eq!(follows, more);
        }
        assert!(deferred.next(key("hog", 0).tenant()).is_none());
        deferred.next(key("other", 0).tenant()).unwrap();
        assert_eq!(deferred.bytes, 0);
        let held = (0..).take_while(|id| deferred.put(loaded(key("hog", *id))).is_none()).count();
        assert_eq!(held, BYTES_MAX / size_of::<Input>(), "then it is not held back");
    }

    #[test]
    fn what_decides_nothing_does_not_wait() {
        let mut deferred = Deferred::default();
        let (key, secret) = (key("hog", 0), [0; 16].into());
        assert!(deferred.put(Input::BlocksKept { key, secret, count: 0 }).is_some());
    }
}
