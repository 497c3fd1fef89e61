//! What goes together in one message: pure.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use flexcore_domain::plugin::decisions::{QUESTIONS_BYTES_MAX, QUESTIONS_MAX};

/// Messages of one tenant to one plugin that are under way at once. 4: a plugin always has the next one at hand. With
/// more, fewer questions would go together.
pub(super) const MESSAGES_EACH: usize = 4;

/// Questions that wait, by whose they are.
pub(super) struct Queues<K, T>(HashMap<K, Own<T>>);

struct Own<T> {
    waiting: VecDeque<Queued<T>>,
    /// Those who take messages from here, one after another.
    senders: usize,
}

/// A question that waits.
pub(super) struct Queued<T> {
    pub(super) item: T,
    /// Its bytes in a message, about.
    pub(super) bytes: usize,
    /// It has a message of its own.
    pub(super) alone: bool,
}

impl<K, T> Default for Queues<K, T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, T> Queues<K, T> {
    /// Lines a question up. Returns whether another sender is to begin, which then takes until nothing is left.
    pub(super) fn put(&mut self, whose: &K, question: Queued<T>) -> bool {
        let new = || Own { waiting: VecDeque::new(), senders: 0 };
        let own = self.0.entry(whose.clone()).or_insert_with(new);
        own.waiting.push_back(question);
        let begins = own.senders < MESSAGES_EACH;
        own.senders += usize::from(begins);
        begins
    }

    /// What goes into the next message, without what nobody waits for any more. `None`: nothing is left, and its
    /// sender ends.
    pub(super) fn take(&mut self, whose: &K, is_gone: impl Fn(&T) -> bool) -> Option<Vec<T>> {
        let own = self.0.get_mut(whose)?;
        let (mut taken, mut bytes) = (Vec::new(), 0_usize);
        while let Some(next) = own.waiting.pop_front() {
            if is_gone(&next.item) {
                continue;
            }
            bytes = bytes.saturating_add(next.bytes);
            let fits = !next.alone && bytes <= QUESTIONS_BYTES_MAX && taken.len() < QUESTIONS_MAX;
            if !fits && !taken.is_empty() {
                own.waiting.push_front(next);
                break;
            }
            taken.push(next.item);
            if !fits {
                break;
            }
        }
        if taken.is_empty() {
            own.senders = own.senders.saturating_sub(1);
            if own.senders == 0 {
                self.0.remove(whose);
            }
            return None;
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(item: u32) -> Queued<u32> {
        Queued { item, bytes: 100, alone: false }
    }

    fn take(queues: &mut Queues<&'static str, u32>, whose: &'static str) -> Option<Vec<u32>> {
        queues.take(&whose, |item| *item == 0)
    }

    #[test]
    fn what_comes_while_messages_are_under_way_goes_together() {
        let mut queues = Queues::default();
        for first in 1..=4 {
            assert!(queues.put(&"a", small(first)), "a sender for each");
            assert_eq!(take(&mut queues, "a"), Some(vec![first]));
        }
        for more in 5..=7 {
            assert!(!queues.put(&"a", small(more)));
        }
        assert!(queues.put(&"b", small(9)), "another one waits for nothing of these");
        assert_eq!(take(&mut queues, "a"), Some(vec![5, 6, 7]));
        for _ in 0..4 {
            assert_eq!(take(&mut queues, "a"), None);
        }
        assert_eq!(take(&mut queues, "b"), Some(vec![9]));
        assert_eq!(take(&mut queues, "b"), None);
        assert!(queues.0.is_empty(), "nothing is left of whoever has gone");
        assert!(queues.put(&"a", small(1)));
    }

    #[test]
    fn a_message_has_so_many_questions_and_bytes_and_a_large_one_goes_alone() {
        let mut queues = Queues::default();
        for number in 1..=65 {
            queues.put(&"a", small(number));
        }
        assert_eq!(take(&mut queues, "a").unwrap().len(), QUESTIONS_MAX);
        let sized = |item, bytes| Queued { item, bytes, alone: false };
        queues.put(&"a", sized(66, QUESTIONS_BYTES_MAX - 100));
        queues.put(&"a", sized(67, 1));
        queues.put(&"a", sized(68, 2 * QUESTIONS_BYTES_MAX));
        queues.put(&"a", sized(69, 1));
        queues.put(&"a", Queued { alone: true, ..sized(70, 1) });
        queues.put(&"a", sized(71, 1));
        for expected in [vec![65, 66], vec![67], vec![68], vec![69], vec![70], vec![71]] {
            assert_eq!(take(&mut queues, "a"), Some(expected));
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent() {
        let mut queues = Queues::default();
        for number in [0, 1, 0, 2, 0] {
            queues.put(&"a", small(number));
        }
        assert_eq!(take(&mut queues, "a"), Some(vec![1, 2]));
        queues.put(&"a", small(0));
        assert_eq!(take(&mut queues, "a"), None);
    }
}
