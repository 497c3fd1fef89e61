//! How much each one may have under way while others are there. One that keeps within a share is
//! served as if it were alone. It waits only for the work that others have under way, so that work
//! has to be little. Meanwhile one that wants n times its share has an n-th part of it under way;
//! the rest waits where waiting costs nothing. When nobody else is there, or nobody else keeps
//! within a share, nothing is held back.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Time after its last request for which one still counts as there. A client that asks once a
/// second should not find everything taken each time.
pub(crate) const LINGERS: Duration = Duration::from_secs(1);
/// Between two counts of who is there, and a thousandth of it for each of them.
const COUNT_EVERY: Duration = Duration::from_millis(5);

/// The ones that are there, with the amount that each wants. Pure: time is an argument.
pub struct Beside<K> {
    places: usize,
    few: usize,
    of: HashMap<K, One>,
    /// True if somebody kept within a share at the last count.
    modest: bool,
    count_at: Option<Instant>,
}

struct One {
    /// Its work under way and its waiting work.
    wants: usize,
    last: Instant,
}

impl<K: Clone + Eq + Hash> Beside<K> {
    /// Shares are equal parts of so many places; `few`, 1 at least, is left to everybody.
    #[must_use]
    pub fn new(places: usize, few: usize) -> Self {
        Self { places, few: few.max(1), of: HashMap::new(), modest: false, count_at: None }
    }

    /// One has so much under way and waiting in all.
    pub fn wants(&mut self, who: &K, wants: usize, now: Instant) {
        match self.of.get_mut(who) {
            Some(one) => (one.wants, one.last) = (wants, now),
            None => {
                self.of.insert(who.clone(), One { wants, last: now });
                // It counts at once.
                self.count_at = None;
            }
        }
    }

    /// The amount that this one may have under way now.
    pub fn most(&mut self, who: &K, now: Instant) -> usize {
        if self.count_at.is_none_or(|at| at <= now) {
            self.count(now);
        }
        let wants = self.of.get(who).map_or(0, |one| one.wants);
        let share = self.share();
        if wants <= share || !self.modest {
            return usize::MAX;
        }
        (share * share / wants).max(self.few)
    }

    /// True if it is alone, or nobody else would notice its work.
    pub fn is_free(&mut self, who: &K, now: Instant) -> bool {
        self.most(who, now) == usize::MAX
    }

    /// True if nobody else is there.
    pub fn is_alone(&mut self, who: &K, now: Instant) -> bool {
        if self.count_at.is_none_or(|at| at <= now) {
            self.count(now);
        }
        self.of.len() <= usize::from(self.of.contains_key(who))
    }

    #[cfg(test)]
    pub(crate) fn wanted(&self, who: &K) -> usize {
        self.of.get(who).map_or(0, |one| one.wants)
    }

    fn share(&self) -> usize {
        (self.places / self.of.len().max(1)).max(1)
    }

    /// Forgets those who have gone, and looks if somebody keeps within a share. One that is alone
    /// does not count for that: it is not beside anybody.
    fn count(&mut self, now: Instant) {
        self.of.retain(|_, one| one.wants > 0 || now < one.last + LINGERS);
        let share = self.share();
        self.modest = self.of.len() > 1 && self.of.values().any(|one| one.wants <= share);
        let many = u32::try_from(self.of.len()).unwrap_or(u32::MAX);
        self.count_at = Some(now + COUNT_EVERY + COUNT_EVERY / 1_000 * many);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_wants_n_times_its_share_has_an_nth_part_of_it_beside_others() {
        let (mut beside, now) = (Beside::new(64, 1), Instant::now());
        beside.wants(&"flood", 320, now);
        assert_eq!(beside.most(&"flood", now), usize::MAX, "it is alone");
        beside.wants(&"calm", 8, now);
        assert_eq!((beside.most(&"flood", now), beside.most(&"calm", now)), (3, usize::MAX));
        beside.wants(&"flood", 64, now);
        assert_eq!(beside.most(&"flood", now), 16);
        beside.wants(&"flood", 32, now);
        assert_eq!(beside.most(&"flood", now), usize::MAX, "it is no flood");
        beside.wants(&"flood", 100_000, now);
        assert_eq!(beside.most(&"flood", now), 1, "it goes on");
    }

    #[test]
    fn one_that_was_there_just_now_is_there() {
        let (mut beside, now) = (Beside::new(64, 1), Instant::now());
        beside.wants(&"flood", 2_000, now);
        beside.wants(&"calm", 1, now);
        beside.wants(&"calm", 0, now);
        let then = now + LINGERS;
        assert_eq!(beside.most(&"flood", then - Duration::from_millis(1)), 1);
        assert_eq!(beside.most(&"flood", then + COUNT_EVERY), usize::MAX);
        assert_eq!(beside.of.len(), 1, "who has gone is forgotten");
    }

    #[test]
    fn floods_among_themselves_hold_nothing_back() {
        let (mut beside, now) = (Beside::new(64, 1), Instant::now());
        for who in 0..3 {
            beside.wants(&who, 500, now);
        }
        assert_eq!(beside.most(&0, now), usize::MAX);
        beside.wants(&3, 1, now);
        assert_eq!((beside.most(&0, now), beside.most(&3, now)), (1, usize::MAX));
    }

    proptest! {
        #![proptest_config(crate::cases())]

        /// One that wants no more than a share is never held back. All others together then have no
        /// more than a share each under way.
        #[test]
        fn within_a_share_nobody_is_held_back(
            wants in proptest::collection::vec(0_usize..3_000, 2..20),
        ) {
            let (mut beside, now) = (Beside::new(64, 1), Instant::now());
            for (who, wants) in wants.iter().enumerate() {
                beside.wants(&who, *wants, now);
            }
            let share = (64 / wants.len()).max(1);
            let somebody = wants.iter().any(|wants| *wants <= share);
            for (who, wants) in wants.iter().enumerate() {
                let most = beside.most(&who, now);
                prop_assert!(most > 0);
                if *wants > share && somebody {
                    prop_assert!(most <= share);
                } else {
                    prop_assert_eq!(most, usize::MAX);
                }
            }
        }
    }
}
