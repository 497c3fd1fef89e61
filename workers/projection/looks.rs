//! When, and behind what, a reader asks how far the log goes on without anything that it follows.

use std::time::Duration;

use tokio::time::Instant;

/// Least pause between two questions: how long somebody waits at most for a position that nothing here
/// follows.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause, also where nobody answers. The first question may take seconds; those after it
/// begin where it ended.
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Otherwise a question keeps the broker busy for one part in so many of the time, at most.
const SHARE: u32 = 20;
/// An answer that old is no deposed leader's: others were asked again since. Until then it is asked
/// once more.
const SETTLED: Duration = Duration::from_secs(10);

/// The answers so far. The broker goes through all that lies behind the place that a question begins at,
/// so the next one begins where there was nothing up to already, and not at the last commit that was read:
/// of a quiet kind that may be millions of messages ago. (Measured, a million aggregates of the kind and a
/// million messages of another one behind them: 30 ms a question and 80 ms with 16 slots of it, 20 and 70 of
/// them processor time; 0.3 ms near the end, and so many aggregates cost nothing there.)
#[derive(Debug)]
pub(super) struct Looks {
    /// There was nothing up to there, as long ago as [`SETTLED`].
    settled: u64,
    /// The same of an answer since, and when it was given.
    since: Option<(u64, Instant)>,
    next: Instant,
}

impl Looks {
    pub(super) fn new(now: Instant) -> Self {
        Self { settled: 0, since: None, next: now }
    }

    /// True if it is time to ask.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// Behind which stream sequence to ask, unless more was read.
    pub(super) fn from(&self) -> u64 {
        self.settled
    }

    /// Takes an answer that took so long; `None`: there was none.
    pub(super) fn answered(&mut self, seen: Option<u64>, took: Duration, now: Instant) {
        let Some(seen) = seen else {
            self.next = now + PAUSE_LONGEST;
            return;
        };
        self.next = now + took.saturating_mul(SHARE).clamp(PAUSE, PAUSE_LONGEST);
        let (since, at) = *self.since.get_or_insert((seen, now));
        if now.duration_since(at) >= SETTLED {
            self.settled = since;
            self.since = Some((seen, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was all that lies behind the last commit that was read, each time.
    #[test]
    fn a_question_goes_over_what_came_in_some_seconds_and_no_more() {
        let (start, per_look) = (Instant::now(), 1_000);
        let mut looks = Looks::new(start);
        let most = (1..=6_000).map(|look: u32| {
            let now = start + PAUSE * look;
            assert!(looks.is_due(now));
            let end = u64::from(look) * per_look;
            let asked = end - looks.from();
            looks.answered(Some(end), Duration::ZERO, now);
            (look, asked)
        });
        let most: Vec<_> = most.collect();
        // Two times SETTLED are 200 looks.
        assert!(most.iter().all(|(_, asked)| *asked <= 202 * per_look), "{:?}", most.last());
        assert!(most[500].1 >= 100 * per_look, "what was said a moment ago is asked again");
    }

    #[test]
    fn a_question_that_takes_long_is_asked_less_often() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut looks = Looks::new(now);
        for (seen, took, pause) in [
            (Some(7), ms(5), ms(100)),
            (Some(7), ms(30), ms(600)),
            (Some(7), ms(4_000), ms(1_000)),
            (None, ms(5), ms(1_000)),
        ] {
            looks.answered(seen, took, now);
            assert!(!looks.is_due(now + pause - ms(1)) && looks.is_due(now + pause), "{took:?}");
        }
    }
}
