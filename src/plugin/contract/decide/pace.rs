//! How many questions go together, by the time that questions took lately: pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{BATCH_ITEMS_MAX, DECIDE_BATCH_TAKES, DECIDE_REMEMBERED, DECIDE_TAKES_FIRST};

/// A running mean of the time that a question takes.
#[derive(Debug)]
pub(super) struct Pace {
    question: Duration,
    /// When the last batch was answered. Whatever was sent before that has waited behind it.
    answered: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { question: DECIDE_TAKES_FIRST, answered: None }
    }
}

impl Pace {
    /// A batch of so many questions, which was sent then, was answered, or is late.
    pub(super) fn took(&mut self, questions: usize, sent: Instant, now: Instant) {
        let began = self.answered.map_or(sent, |answered| answered.max(sent));
        let took = now.saturating_duration_since(began);
        let questions = u32::try_from(questions).unwrap_or(u32::MAX);
        let before = self.question.saturating_mul(DECIDE_REMEMBERED);
        let count = DECIDE_REMEMBERED.saturating_add(questions);
        self.question = before.saturating_add(took) / count;
        self.answered = Some(now);
    }

    /// Most questions of the next batch.
    pub(super) fn questions_max(&self) -> usize {
        let count = DECIDE_BATCH_TAKES.as_nanos() / self.question.as_nanos().max(1);
        usize::try_from(count).unwrap_or(BATCH_ITEMS_MAX).clamp(1, BATCH_ITEMS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has so many batches answered, each as large as it may be, by a plugin that takes so long for a
    /// question. Returns how large the next one may be.
    fn after(pace: &mut Pace, batches: usize, each: Duration) -> usize {
        let mut now = Instant::now();
        for _ in 0..batches {
            let (sent, questions) = (now, pace.questions_max());
            now += each * u32::try_from(questions).unwrap();
            pace.took(questions, sent, now);
        }
        pace.questions_max()
    }

    #[test]
    fn no_more_go_together_than_are_answered_soon() {
        let ms = Duration::from_millis;
        for (each, expected) in [(ms(30), 8..=10), (ms(400), 1..=1), (ms(100), 2..=3)] {
            let mut pace = Pace::default();
            // Whoever is slow does not get a large batch first.
            assert!(pace.questions_max() < 32, "{pace:?}");
            let questions_max = after(&mut pace, 20, each);
            assert!(expected.contains(&questions_max), "{each:?}: {questions_max}");
        }
    }

    #[test]
    fn a_quick_plugin_soon_gets_batches_as_large_as_they_may_be() {
        let quick = Duration::from_micros(50);
        let mut pace = Pace::default();
        assert_eq!(after(&mut pace, 10, quick), BATCH_ITEMS_MAX);
        // One that was late is soon forgotten.
        let now = Instant::now();
        pace.took(1, now, now + Duration::from_secs(2));
        assert!(pace.questions_max() < 4, "{pace:?}");
        assert_eq!(after(&mut pace, 40, quick), BATCH_ITEMS_MAX);
    }

    #[test]
    fn what_waits_behind_another_batch_takes_no_longer() {
        let (mut pace, sent) = (Pace::default(), Instant::now());
        let later = |seconds| sent + Duration::from_secs(seconds);
        pace.took(1_000, sent, later(1));
        let before = pace.questions_max();
        // Sent with the first one.
        pace.took(1_000, sent, later(2));
        assert!(pace.questions_max() >= before, "{before}: {pace:?}");
        assert!((200..=250).contains(&pace.questions_max()), "{pace:?}");
    }
}
