//! Places that tenants share. Nobody takes more of them than are left for others, so whoever comes
//! next finds some: one that floods gets a part and waits or is refused, and the others notice
//! nothing.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::oneshot::{self, error::RecvError};

use crate::{Beside, beside::LINGERS};

/// Places, each taken by somebody. Cheap to clone.
pub struct Shares<K: Clone + Eq + Hash>(Arc<Mutex<Use<K>>>);

struct Use<K: Clone + Eq + Hash> {
    places: usize,
    times: usize,
    each_max: usize,
    beside: Option<Beside<K>>,
    of: HashMap<K, usize>,
    taken: usize,
    /// The waiting ones, in the order in which they get free places.
    waiting: HashMap<K, VecDeque<oneshot::Sender<HeldPlace<K>>>>,
    turns: VecDeque<K>,
}

/// A place that is free again when this is dropped.
pub struct HeldPlace<K: Clone + Eq + Hash> {
    shares: Shares<K>,
    who: K,
}

impl<K: Clone + Eq + Hash> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// So many places, of which one takes at most `times` as many as are free: with 1 the first gets a
    /// half, with 3 three quarters. Where n take all they can, each has `times` parts of
    /// `1 + n × times`, and one part stays free.
    #[must_use]
    pub fn new(places: usize, times: usize) -> Self {
        Self::limited(places, times, usize::MAX)
    }

    /// The same, and nobody takes more than `each_max`.
    #[must_use]
    pub fn limited(places: usize, times: usize, each_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Use {
            places,
            times,
            each_max,
            beside: None,
            of: HashMap::new(),
            taken: 0,
            waiting: HashMap::new(),
            turns: VecDeque::new(),
        })))
    }

    /// The same, and beside somebody who keeps within a share others take few: see [`Beside`].
    #[must_use]
    pub fn beside(self, beside: Beside<K>) -> Self {
        self.lock().beside = Some(beside);
        self
    }

    /// True if somebody else would notice this one's work.
    #[must_use]
    pub fn is_beside(&self, who: &K) -> bool {
        let mut state = self.lock();
        state.beside.as_mut().is_some_and(|beside| !beside.is_free(who, Instant::now()))
    }

    /// A place now; `None`: this one has its share.
    #[must_use]
    pub fn enter(&self, who: &K) -> Option<HeldPlace<K>> {
        let mut state = self.lock();
        state.wants_more(who);
        let has_room = state.has_room(who);
        if has_room {
            state.take(who);
        } else {
            state.note(who, 0);
        }
        has_room.then(|| self.place(who))
    }

    /// A place as soon as there is one for this one, in the order in which its own came. Those who
    /// wait take turns. Cancel it by dropping the future.
    pub async fn wait(&self, who: &K) -> HeldPlace<K> {
        loop {
            let (receiver, may_change) = {
                let mut state = self.lock();
                state.wants_more(who);
                if !state.waiting.contains_key(who) && state.has_room(who) {
                    state.take(who);
                    return self.place(who);
                }
                let (sender, receiver) = oneshot::channel();
                state.wait(who, sender);
                (receiver, state.beside.is_some())
            };
            let mut waiter = Waiter { shares: self, who, receiver, has_come: false };
            // The other end is kept until it has sent.
            if let Ok(place) = waiter.place(may_change).await {
                return place;
            }
        }
    }

    /// The number of taken places.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().taken
    }

    fn place(&self, who: &K) -> HeldPlace<K> {
        HeldPlace { shares: self.clone(), who: who.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Use<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is free to those who wait for it.
    fn give(&self) {
        loop {
            let Some((who, sender)) = self.lock().next() else { return };
            // One that has given up waiting gives it back: that asks again who is next.
            drop(sender.send(self.place(&who)));
        }
    }
}

/// One that waits. When it gives up it is forgotten at once: whoever is taken to want something that
/// nobody waits for would have others held back for ever.
struct Waiter<'a, K: Clone + Eq + Hash> {
    shares: &'a Shares<K>,
    who: &'a K,
    receiver: oneshot::Receiver<HeldPlace<K>>,
    has_come: bool,
}

impl<K: Clone + Eq + Hash> Waiter<'_, K> {
    /// The one that it is held back for may go without giving anything back. Where that
    /// `may_change` something, look again.
    async fn place(&mut self, may_change: bool) -> Result<HeldPlace<K>, RecvError> {
        let place = loop {
            if !may_change {
                break (&mut self.receiver).await;
            }
            match tokio::time::timeout(LINGERS, &mut self.receiver).await {
                Ok(place) => break place,
                Err(_) => self.shares.give(),
            }
        };
        self.has_come = true;
        place
    }
}

impl<K: Clone + Eq + Hash> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        if self.has_come {
            return;
        }
        self.receiver.close();
        // One that came at the last moment goes back.
        drop(self.receiver.try_recv());
        self.shares.lock().forget_closed(self.who);
    }
}

impl<K: Clone + Eq + Hash> Use<K> {
    fn has_room(&mut self, who: &K) -> bool {
        let own = self.of.get(who).copied().unwrap_or(0);
        let free = self.places.saturating_sub(self.taken);
        let share = free.saturating_mul(self.times).min(self.each_max);
        let beside = self.beside.as_mut();
        let most = beside.map_or(usize::MAX, |beside| beside.most(who, Instant::now()));
        free > 0 && own < share.min(most)
    }

    /// One comes and wants a place.
    fn wants_more(&mut self, who: &K) {
        self.note(who, 1);
    }

    /// The places that one has and waits for, plus this many.
    fn note(&mut self, who: &K, more: usize) {
        let Some(beside) = &mut self.beside else { return };
        let own = self.of.get(who).copied().unwrap_or(0);
        let waiting = self.waiting.get(who).map_or(0, VecDeque::len);
        beside.wants(who, own + waiting + more, Instant::now());
    }

    fn take(&mut self, who: &K) {
        *self.of.entry(who.clone()).or_default() += 1;
        self.taken += 1;
    }

    fn wait(&mut self, who: &K, sender: oneshot::Sender<HeldPlace<K>>) {
        let own = self.waiting.entry(who.clone()).or_default();
        if own.is_empty() {
            self.turns.push_back(who.clone());
        }
        own.push_back(sender);
    }

    /// One that waited has given up.
    fn forget_closed(&mut self, who: &K) {
        if let Some(own) = self.waiting.get_mut(who) {
            own.retain(|sender| !sender.is_closed());
            if own.is_empty() {
                self.waiting.remove(who);
                self.turns.retain(|other| other != who);
            }
        }
        self.note(who, 0);
    }

    /// Takes a place for the next who waits and has room.
    fn next(&mut self) -> Option<(K, oneshot::Sender<HeldPlace<K>>)> {
        let at = (0..self.turns.len()).find(|at| {
            let who = self.turns[*at].clone();
            self.has_room(&who)
        })?;
        let who = self.turns.remove(at)?;
        let own = self.waiting.get_mut(&who)?;
        let sender = own.pop_front()?;
        if own.is_empty() {
            self.waiting.remove(&who);
        } else {
            self.turns.push_back(who.clone());
        }
        self.take(&who);
        Some((who, sender))
    }
}

impl<K: Clone + Eq + Hash> Drop for HeldPlace<K> {
    fn drop(&mut self) {
        {
            let mut state = self.shares.lock();
            state.taken -= 1;
            if let Some(own) = state.of.get_mut(&self.who) {
                *own -= 1;
                if *own == 0 {
                    state.of.remove(&self.who);
                }
            }
            state.note(&self.who, 0);
            if state.turns.is_empty() {
                return;
            }
        }
        self.shares.give();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn all<'a>(shares: &Shares<&'a str>, who: &'a str) -> Vec<HeldPlace<&'a str>> {
        std::iter::from_fn(|| shares.enter(&who)).collect()
    }

    #[test]
    fn whoever_floods_leaves_places_for_whoever_comes_next() {
        let shares = Shares::new(100, 1);
        let (first, second, third) = (all(&shares, "a"), all(&shares, "b"), all(&shares, "c"));
        assert_eq!((first.len(), second.len(), third.len()), (50, 25, 13));
        assert!(shares.enter(&"d").is_some());
        drop(first);
        assert_eq!(all(&shares, "b").len(), 19, "what is free is shared anew");
        assert_eq!(all(&Shares::new(100, 3), "a").len(), 75);
        assert_eq!(all(&Shares::new(1, 1), "a").len(), 1);
        assert_eq!(all(&Shares::limited(100, 1, 8), "a").len(), 8);
        drop((second, third));
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().of.is_empty());
    }

    #[tokio::test]
    async fn who_waits_takes_turns_and_who_has_room_passes_those_who_have_not() {
        let shares = Shares::new(4, 1);
        let mut held = all(&shares, "a");
        assert_eq!(held.len(), 2);
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let shares = shares.clone();
                    async move { shares.wait(&"a").await }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(shares.lock().waiting[&"a"].len(), 3);
        // Another one does not stand behind them.
        let other = shares.wait(&"b").await;
        waiting[0].abort();
        tokio::task::yield_now().await;
        drop(other);
        held.pop();
        let mut waiting = waiting.into_iter().skip(1);
        let second = waiting.next().unwrap().await.unwrap();
        assert_eq!(shares.lock().of[&"a"], 2);
        drop((held, second));
        drop(waiting.next().unwrap().await.unwrap());
        assert_eq!(shares.taken(), 0);
        let state = shares.lock();
        assert!(state.waiting.is_empty() && state.turns.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_is_not_there_any_more() {
        let shares = Shares::new(2, 1).beside(Beside::new(2, 1));
        let held = shares.enter(&"gone").unwrap();
        let mut waits = Box::pin(shares.wait(&"gone"));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(waits);
        assert!(shares.lock().waiting.is_empty() && shares.lock().turns.is_empty());
        drop(held);
        let lingers = LINGERS + std::time::Duration::from_millis(20);
        tokio::time::sleep(lingers).await;
        let _held = shares.enter(&"here").unwrap();
        let mut waits = Box::pin(shares.wait(&"here"));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        assert!(!shares.is_beside(&"here"), "nobody else is there");
    }

    #[tokio::test]
    async fn who_was_held_back_goes_on_when_nobody_else_is_there_any_more() {
        let shares = Shares::new(16, 3).beside(Beside::new(4, 1));
        let held = shares.enter(&"flood").unwrap();
        drop(shares.enter(&"calm").unwrap());
        let waits: Vec<_> = (0..8).map(|_| shares.wait(&"flood")).collect();
        let mut waits = Box::pin(futures::future::join_all(waits));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        // Nothing is given back meanwhile.
        let came = tokio::time::timeout(LINGERS * 3, waits).await;
        assert_eq!(came.expect("it waits for nobody now").len(), 8);
        drop(held);
        assert_eq!(shares.taken(), 0);
    }

    proptest! {
        #![proptest_config(crate::cases())]

        /// After any sequence of taking, waiting, giving up and giving back, the amount that each
        /// one is taken to want is what it has and waits for.
        #[test]
        fn what_one_wants_is_what_it_has_and_waits_for(
            steps in proptest::collection::vec((0_u8..4, 0_u8..4), 0..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.unwrap();
            let _in = runtime.enter();
            let shares = Shares::new(8, 3).beside(Beside::new(4, 1));
            let mut held: Vec<(u8, HeldPlace<u8>)> = Vec::new();
            let names = [0, 1, 2, 3];
            let mut waits = Vec::new();
            for (who, step) in steps {
                match step {
                    0 => held.extend(shares.enter(&who).map(|place| (who, place))),
                    1 => waits.push((who, Box::pin(shares.wait(&names[usize::from(who)])))),
                    2 => held.retain(|(held, _)| *held != who),
                    _ => if let Some(at) = waits.iter().position(|(waits, _)| *waits == who) {
                        drop(waits.swap_remove(at));
                    },
                }
                let mut waiting = Vec::new();
                for (who, mut wait) in waits {
                    match wait.as_mut().now_or_never() {
                        Some(place) => held.push((who, place)),
                        None => waiting.push((who, wait)),
                    }
                }
                waits = waiting;
                let mut state = shares.lock();
                for who in 0..4 {
                    let own = held.iter().filter(|(held, _)| *held == who).count();
                    let waiting = waits.iter().filter(|(waits, _)| *waits == who).count();
                    let beside = state.beside.as_mut().unwrap();
                    prop_assert_eq!(beside.wanted(&who), own + waiting);
                }
            }
        }

        /// After any sequence of taking and giving back, some place is left for one that has none.
        #[test]
        fn a_newcomer_always_finds_a_place(
            steps in proptest::collection::vec((0_u8..5, proptest::bool::ANY), 0..400),
        ) {
            let shares = Shares::new(64, 1);
            let mut held: Vec<(u8, HeldPlace<u8>)> = Vec::new();
            for (who, takes) in steps {
                if takes {
                    held.extend(shares.enter(&who).map(|place| (who, place)));
                } else if let Some(at) = held.iter().position(|(held, _)| *held == who) {
                    held.swap_remove(at);
                }
                prop_assert!(shares.enter(&99).is_some());
                prop_assert_eq!(shares.taken(), held.len());
            }
        }
    }
}
