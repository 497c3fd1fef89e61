//! What goes together in one message: pure.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use flexcore_domain::plugin::decisions::{QUESTIONS_BYTES_MAX, QUESTIONS_MAX};
use tokio::time::Instant;

/// Messages of one tenant to one plugin that are under way at once. 4: a plugin always has the next one at hand. With
/// more, fewer questions would go together.
pub(super) const MESSAGES_EACH: usize = 4;

/// Steps down from messages of [`QUESTIONS_MAX`] questions, which each halve them: the last but one leads to messages
/// of a single question, the last one to one of these at a time.
const STEPS_MAX: u32 = QUESTIONS_MAX.ilog2() + 1;

/// Time without a late answer before twice as many questions go at once. 10 s: a stored command about which its plugin
/// does not answer has come again by then, so that it is soon alone, and the only one that is late.
const CALM: Duration = Duration::from_secs(10);

/// Time for which it is remembered of a tenant that asks nothing that its questions were late. One minute.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Questions that wait, by whose they are.
pub(super) struct Queues<K, T>(HashMap<K, Own<T>>);

struct Own<T> {
    waiting: VecDeque<Queued<T>>,
    /// Those who take messages from here, one after another.
    senders: usize,
    /// Questions in messages that are not answered.
    under_way: usize,
    pace: Pace,
}

/// How many questions of one tenant go at once: fewer after some were late.
#[derive(Default)]
struct Pace {
    step: u32,
    /// When that last changed.
    since: Option<Instant>,
}

impl Pace {
    fn questions_max(&self) -> usize {
        (QUESTIONS_MAX >> self.step.min(STEPS_MAX)).max(1)
    }

    fn senders_max(&self) -> usize {
        if self.step < STEPS_MAX { MESSAGES_EACH } else { 1 }
    }

    /// A message was answered that was sent then.
    fn answered(&mut self, is_late: bool, sent: Instant, now: Instant) {
        if !is_late {
            let is_calm = |since| now.saturating_duration_since(since) >= CALM;
            if self.step > 0 && self.since.is_none_or(is_calm) {
                (self.step, self.since) = (self.step - 1, Some(now));
            }
        } else if self.since.is_none_or(|since| sent >= since) {
            // What was sent before the last change is late for the same reason.
            (self.step, self.since) = ((self.step + 1).min(STEPS_MAX), Some(now));
        }
    }

    /// Nothing was late for a while, or as few go at once as can be.
    fn is_steady(&self) -> bool {
        self.step == 0 || self.step >= STEPS_MAX
    }

    fn is_remembered(&self, now: Instant) -> bool {
        let is_recent = |since| now.saturating_duration_since(since) < REMEMBERED;
        self.step > 0 && self.since.is_some_and(is_recent)
    }
}

/// A question that waits.
pub(super) struct Queued<T> {
    pub(super) item: T,
    /// Its bytes in a message, about.
    pub(super) bytes: usize,
    /// It has a message of its own.
    pub(super) alone: bool,
}

/// What goes into a message.
pub(super) struct Taken<T> {
    pub(super) questions: Vec<T>,
    /// One question, and no other one of its tenant was under way, or was late just before: the plugin may be busy with
    /// such a one yet. Where it is late, no other one is why.
    pub(super) is_alone: bool,
}

impl<K, T> Default for Queues<K, T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, T> Queues<K, T> {
    /// Lines a question up. Returns whether another sender is to begin, which then takes until nothing is left.
    pub(super) fn put(&mut self, whose: &K, question: Queued<T>, now: Instant) -> bool {
        if !self.0.contains_key(whose) {
            self.0.retain(|_, own| own.senders > 0 || own.pace.is_remembered(now));
        }
        let new =
            || Own { waiting: VecDeque::new(), senders: 0, under_way: 0, pace: Pace::default() };
        let own = self.0.entry(whose.clone()).or_insert_with(new);
        own.waiting.push_back(question);
        let begins = own.senders < own.pace.senders_max();
        own.senders += usize::from(begins);
        begins
    }

    /// What goes into the next message, without what is not worth sending, which is dropped. `None`: nothing is left,
    /// or fewer are to send, and this sender ends.
    pub(super) fn take(
        &mut self,
        whose: &K,
        is_not_worth: impl Fn(&T) -> bool,
    ) -> Option<Taken<T>> {
        let own = self.0.get_mut(whose)?;
        let is_one_too_many = own.senders > own.pace.senders_max();
        let questions = if is_one_too_many { Vec::new() } else { own.next(is_not_worth) };
        if questions.is_empty() {
            own.senders = own.senders.saturating_sub(1);
            if own.senders == 0 && own.pace.step == 0 {
                self.0.remove(whose);
            }
            return None;
        }
        let is_alone = own.under_way == 0 && questions.len() == 1 && own.pace.is_steady();
        own.under_way += questions.len();
        Some(Taken { questions, is_alone })
    }

    /// A message with so many questions was answered, which was sent then, or nobody waits for it any more. `is_late`:
    /// the plugin did not answer in time.
    pub(super) fn came_back(
        &mut self,
        whose: &K,
        count: usize,
        is_late: bool,
        (sent, now): (Instant, Instant),
    ) {
        if let Some(own) = self.0.get_mut(whose) {
            own.under_way = own.under_way.saturating_sub(count);
            own.pace.answered(is_late, sent, now);
        }
    }
}

impl<T> Own<T> {
    fn next(&mut self, is_not_worth: impl Fn(&T) -> bool) -> Vec<T> {
        let questions_max = self.pace.questions_max();
        let (mut taken, mut bytes) = (Vec::new(), 0_usize);
        while let Some(next) = self.waiting.pop_front() {
            if is_not_worth(&next.item) {
                continue;
            }
            bytes = bytes.saturating_add(next.bytes);
            let fits = !next.alone && bytes <= QUESTIONS_BYTES_MAX && taken.len() < questions_max;
            if !fits && !taken.is_empty() {
                self.waiting.push_front(next);
                break;
            }
            taken.push(next.item);
            if !fits {
                break;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names = Queues<&'static str, u32>;

    fn small(item: u32) -> Queued<u32> {
        Queued { item, bytes: 100, alone: false }
    }

    fn put(queues: &mut Names, whose: &'static str, question: Queued<u32>) -> bool {
        queues.put(&whose, question, Instant::now())
    }

    fn take(queues: &mut Names, whose: &'static str) -> Option<Vec<u32>> {
        queues.take(&whose, |item| *item == 0).map(|taken| taken.questions)
    }

    #[test]
    fn what_comes_while_messages_are_under_way_goes_together() {
        let mut queues = Queues::default();
        for first in 1..=4 {
            assert!(put(&mut queues, "a", small(first)), "a sender for each");
            assert_eq!(take(&mut queues, "a"), Some(vec![first]));
        }
        for more in 5..=7 {
            assert!(!put(&mut queues, "a", small(more)));
        }
        assert!(put(&mut queues, "b", small(9)), "another one waits for nothing of these");
        assert_eq!(take(&mut queues, "a"), Some(vec![5, 6, 7]));
        for _ in 0..4 {
            assert_eq!(take(&mut queues, "a"), None);
        }
        assert_eq!(take(&mut queues, "b"), Some(vec![9]));
        assert_eq!(take(&mut queues, "b"), None);
        assert!(queues.0.is_empty(), "nothing is left of whoever has gone");
        assert!(put(&mut queues, "a", small(1)));
    }

    #[test]
    fn a_message_has_so_many_questions_and_bytes_and_a_large_one_goes_alone() {
        let mut queues = Queues::default();
        for number in 1..=65 {
            put(&mut queues, "a", small(number));
        }
        assert_eq!(take(&mut queues, "a").unwrap().len(), QUESTIONS_MAX);
        let sized = |item, bytes| Queued { item, bytes, alone: false };
        put(&mut queues, "a", sized(66, QUESTIONS_BYTES_MAX - 100));
        put(&mut queues, "a", sized(67, 1));
        put(&mut queues, "a", sized(68, 2 * QUESTIONS_BYTES_MAX));
        put(&mut queues, "a", sized(69, 1));
        put(&mut queues, "a", Queued { alone: true, ..sized(70, 1) });
        put(&mut queues, "a", sized(71, 1));
        for expected in [vec![65, 66], vec![67], vec![68], vec![69], vec![70], vec![71]] {
            assert_eq!(take(&mut queues, "a"), Some(expected));
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent() {
        let mut queues = Queues::default();
        for number in [0, 1, 0, 2, 0] {
            put(&mut queues, "a", small(number));
        }
        assert_eq!(take(&mut queues, "a"), Some(vec![1, 2]));
        put(&mut queues, "a", small(0));
        assert_eq!(take(&mut queues, "a"), None);
    }

    #[test]
    fn a_question_is_alone_if_none_of_its_tenant_is_under_way() {
        let (mut queues, now) = (Names::default(), Instant::now());
        let mut alone = |whose, count: u32| {
            for number in 1..=count {
                put(&mut queues, whose, small(number));
            }
            let alone = queues.take(&whose, |_| false).unwrap().is_alone;
            // The first one of "b" comes back.
            if whose == "b" {
                queues.came_back(&whose, 1, false, (now, now));
            }
            alone
        };
        assert!(alone("a", 1) && alone("b", 1));
        assert!(!alone("a", 1), "another one is under way");
        assert!(alone("b", 1) && !alone("c", 2));
        queues.came_back(&"c", 2, true, (now, now));
        queues.put(&"c", small(1), now);
        let next = queues.take(&"c", |_| false).unwrap();
        assert!(!next.is_alone, "the plugin may be busy with the late ones yet");
    }

    #[test]
    fn fewer_go_at_once_after_a_late_one_until_each_goes_alone() {
        let (mut queues, began) = (Names::default(), Instant::now());
        for number in 1..=400 {
            queues.put(&"a", small(number), began);
        }
        let (mut now, mut sizes) = (began, Vec::new());
        while let Some(Taken { questions, .. }) = queues.take(&"a", |_| false) {
            let sent = now;
            now += Duration::from_millis(1_700);
            sizes.push(questions.len());
            // A second message that was sent with it is late, too, and for the same reason.
            for _ in 0..2 {
                queues.came_back(&"a", questions.len(), true, (sent, now));
            }
        }
        assert_eq!(sizes, [64, 32, 16, 8, 4, 2, 1]);
        // A single sender is left of four.
        assert_eq!(queues.0["a"].senders, 3);
        for _ in 0..2 {
            assert_eq!(take(&mut queues, "a"), None);
        }
        assert!(!queues.put(&"a", small(1), now), "one is enough");
        let one = queues.take(&"a", |_| false).unwrap();
        assert!(one.is_alone);
        // It grows again, one step after the other.
        now += CALM;
        let sent = now;
        queues.came_back(&"a", 1, false, (sent, now));
        queues.came_back(&"a", 1, false, (sent, now));
        assert_eq!(queues.0["a"].pace.step, STEPS_MAX - 1);
        assert!(queues.put(&"a", small(1), now));
    }

    #[test]
    fn that_questions_were_late_is_remembered_for_a_while() {
        let (mut queues, now) = (Names::default(), Instant::now());
        queues.put(&"a", small(1), now);
        queues.take(&"a", |_| false).unwrap();
        queues.came_back(&"a", 1, true, (now, now));
        assert_eq!(take(&mut queues, "a"), None);
        queues.put(&"b", small(1), now);
        assert!(queues.0.contains_key("a"));
        queues.put(&"c", small(1), now + REMEMBERED);
        assert!(!queues.0.contains_key("a") && queues.0.contains_key("b"));
    }
}
