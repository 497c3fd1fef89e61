//! What becomes of an instance, decided without clock, chance or process: [`Lifecycle::on`] takes
//! what has happened and says what to do next.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{LIFE_MIN, MISSES_MAX, STARTS_MAX};

/// What happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// It is ready for calls.
    Started,
    /// It could not be started.
    NotStarted {
        /// Why not.
        reason: String,
        /// Another try is in vain.
        for_good: bool,
    },
    /// The pause before the next start is over.
    Rested,
    /// It said that it is well.
    Well,
    /// It did not say that it is well.
    Missed(String),
    /// Its process has ended by itself, or was killed.
    Ended {
        /// How.
        reason: String,
        /// It had calls under way: one of them may have been the cause, and others are not.
        under_call: bool,
    },
    /// It runs, but cannot be reached any more.
    Lost(String),
    /// It has been ended, as [`Step::Close`] says.
    Closed,
    /// Nobody wants it any more.
    Unwanted,
}

/// What to do next with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start it.
    Start,
    /// Let it have calls, and look after it.
    Serve,
    /// Wait after so many failures in a row.
    Pause(u32),
    /// Wait for minutes: it never lasts.
    LeaveAlone,
    /// Let calls under way end, then end it.
    Close,
    /// Do nothing until nobody wants it any more.
    Rest,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is being started.
    #[default]
    Starting,
    /// It has calls.
    Ready,
    /// It gets no more calls, and will be ended.
    Draining,
    /// It has ended, and will be started anew.
    BackingOff,
    /// It was given up: for minutes, or for good.
    Failed,
    /// Nobody wants it any more.
    Gone,
}

/// An instance's life so far.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    stage: Stage,
    /// Starts in a row without a life of [`LIFE_MIN`].
    failures: u32,
    /// Those of them that ended under a call. They make the pause longer, and it is not given up for them.
    under_calls: u32,
    /// Questions in a row whether it is well that were not answered well.
    misses: u32,
    ready_since: Option<Instant>,
    unwanted: bool,
    /// Why it is not ready, if it has been tried.
    reason: Option<String>,
}

impl Lifecycle {
    /// Where it is.
    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Why it is not ready; none while it is, and before its first start has failed.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Starts in a row that did not last.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Takes what has happened, and returns what to do next; nothing: it is over.
    pub(crate) fn on(&mut self, happening: Happening, now: Instant) -> Option<Step> {
        match happening {
            Happening::Started => {
                (self.stage, self.ready_since) = (Stage::Ready, Some(now));
                (self.misses, self.reason) = (0, None);
                Some(Step::Serve)
            }
            Happening::NotStarted { reason, for_good } => {
                self.reason = Some(reason);
                self.failures = self.failures.saturating_add(1);
                Some(self.next(for_good))
            }
            Happening::Rested => {
                self.stage = Stage::Starting;
                Some(Step::Start)
            }
            Happening::Well => {
                self.misses = 0;
                Some(Step::Serve)
            }
            Happening::Missed(reason) => {
                self.misses += 1;
                if self.misses < MISSES_MAX {
                    return Some(Step::Serve);
                }
                Some(self.close(format!("it was not well {MISSES_MAX} times: {reason}")))
            }
            Happening::Lost(reason) => Some(self.close(reason)),
            Happening::Ended { reason, under_call } => {
                self.reason = Some(reason);
                Some(self.died(now, under_call))
            }
            Happening::Closed if self.unwanted => self.gone(),
            Happening::Closed => Some(self.died(now, false)),
            Happening::Unwanted => {
                self.unwanted = true;
                if self.stage == Stage::Ready {
                    return Some(self.close("it is being ended".to_owned()));
                }
                self.gone()
            }
        }
    }

    fn close(&mut self, reason: String) -> Step {
        (self.stage, self.reason) = (Stage::Draining, Some(reason));
        Step::Close
    }

    fn gone(&mut self) -> Option<Step> {
        self.stage = Stage::Gone;
        None
    }

    /// Its process is gone: a failure, and the first one if it has lived for long.
    fn died(&mut self, now: Instant, under_call: bool) -> Step {
        let since = self.ready_since.take();
        let lived = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if lived >= LIFE_MIN {
            (self.failures, self.under_calls) = (0, 0);
        }
        self.failures = self.failures.saturating_add(1);
        self.under_calls = self.under_calls.saturating_add(u32::from(under_call));
        self.next(false)
    }

    /// After a failure.
    fn next(&mut self, for_good: bool) -> Step {
        if for_good || self.failures.saturating_sub(self.under_calls) >= STARTS_MAX {
            self.stage = Stage::Failed;
            return if for_good { Step::Rest } else { Step::LeaveAlone };
        }
        self.stage = Stage::BackingOff;
        Step::Pause(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash() -> Happening {
        Happening::Ended { reason: "exit status: 7".to_owned(), under_call: false }
    }

    fn not_started(for_good: bool) -> Happening {
        Happening::NotStarted { reason: "no".to_owned(), for_good }
    }

    /// One that is ready since this moment.
    fn ready(now: Instant) -> Lifecycle {
        let mut life = Lifecycle::default();
        assert_eq!(life.stage(), Stage::Starting);
        assert_eq!(life.on(Happening::Started, now), Some(Step::Serve));
        assert_eq!(life.stage(), Stage::Ready);
        life
    }

    #[test]
    fn what_ends_is_started_again_after_a_pause() {
        let now = Instant::now();
        let mut life = ready(now);
        assert_eq!(life.on(crash(), now), Some(Step::Pause(1)));
        assert_eq!((life.stage(), life.reason()), (Stage::BackingOff, Some("exit status: 7")));
        assert_eq!(life.on(Happening::Rested, now), Some(Step::Start));
        assert_eq!(life.stage(), Stage::Starting);
        assert_eq!(life.on(Happening::Started, now), Some(Step::Serve));
        assert_eq!(life.reason(), None);
    }

    #[test]
    fn what_never_lasts_is_left_alone_and_tried_now_and_then() {
        let now = Instant::now();
        let mut life = Lifecycle::default();
        for failures in 1..STARTS_MAX {
            let happening = if failures % 2 == 0 { crash() } else { not_started(false) };
            assert_eq!(life.on(happening, now), Some(Step::Pause(failures)));
            assert_eq!(life.on(Happening::Rested, now), Some(Step::Start));
        }
        for _ in 0..3 {
            assert_eq!(life.on(not_started(false), now), Some(Step::LeaveAlone));
            assert_eq!((life.stage(), life.reason()), (Stage::Failed, Some("no")));
            assert_eq!(life.on(Happening::Rested, now), Some(Step::Start));
        }
        // What it needs is back.
        assert_eq!(life.on(Happening::Started, now), Some(Step::Serve));
        assert_eq!(life.on(crash(), now + LIFE_MIN), Some(Step::Pause(1)));
        let mut unwanted = Lifecycle { failures: STARTS_MAX, ..Lifecycle::default() };
        assert_eq!(unwanted.on(not_started(false), now), Some(Step::LeaveAlone));
        assert_eq!(unwanted.on(Happening::Unwanted, now), None);
        assert_eq!(unwanted.stage(), Stage::Gone);
    }

    /// A tenant whose input ended it took it from all others for minutes.
    #[test]
    fn what_ends_under_calls_rests_and_is_not_given_up() {
        let now = Instant::now();
        let mut life = ready(now);
        let under_call = || Happening::Ended { reason: "x".to_owned(), under_call: true };
        for failures in 1..3 * STARTS_MAX {
            assert_eq!(life.on(under_call(), now), Some(Step::Pause(failures)));
            assert_eq!(life.on(Happening::Rested, now), Some(Step::Start));
            assert_eq!(life.on(Happening::Started, now), Some(Step::Serve));
        }
        for _ in 1..STARTS_MAX {
            assert!(matches!(life.on(crash(), now), Some(Step::Pause(_))));
            life.on(Happening::Rested, now);
            life.on(Happening::Started, now);
        }
        assert_eq!(life.on(crash(), now), Some(Step::LeaveAlone));
    }

    #[test]
    fn a_long_life_is_no_failure() {
        let mut now = Instant::now();
        let mut life = Lifecycle::default();
        for _ in 0..3 * STARTS_MAX {
            assert_eq!(life.on(Happening::Started, now), Some(Step::Serve));
            now += LIFE_MIN;
            assert_eq!(life.on(crash(), now), Some(Step::Pause(1)));
            assert_eq!(life.on(Happening::Rested, now), Some(Step::Start));
        }
        life.on(Happening::Started, now);
        now += LIFE_MIN.saturating_sub(Duration::from_millis(1));
        assert_eq!(life.on(crash(), now), Some(Step::Pause(2)));
    }

    #[test]
    fn what_no_retry_cures_is_not_tried_again() {
        let now = Instant::now();
        let mut life = Lifecycle::default();
        assert_eq!(life.on(not_started(true), now), Some(Step::Rest));
        assert_eq!(life.stage(), Stage::Failed);
    }

    #[test]
    fn misses_in_a_row_end_it() {
        let now = Instant::now();
        let mut life = ready(now);
        let miss = || Happening::Missed("late".to_owned());
        for _ in 0..3 {
            for _ in 1..MISSES_MAX {
                assert_eq!(life.on(miss(), now), Some(Step::Serve));
            }
            assert_eq!(life.on(Happening::Well, now), Some(Step::Serve));
        }
        for _ in 1..MISSES_MAX {
            life.on(miss(), now);
        }
        assert_eq!(life.on(miss(), now), Some(Step::Close));
        assert_eq!(life.stage(), Stage::Draining);
        assert!(life.reason().is_some_and(|reason| reason.ends_with("late")));
        assert_eq!(life.on(Happening::Closed, now), Some(Step::Pause(1)));
    }

    #[test]
    fn what_cannot_be_reached_is_ended_and_started_again() {
        let now = Instant::now();
        let mut life = ready(now);
        assert_eq!(life.on(Happening::Lost("closed".to_owned()), now), Some(Step::Close));
        assert_eq!(life.on(Happening::Closed, now), Some(Step::Pause(1)));
    }

    #[test]
    fn what_nobody_wants_is_drained_if_it_has_calls() {
        let now = Instant::now();
        let mut life = ready(now);
        assert_eq!(life.on(Happening::Unwanted, now), Some(Step::Close));
        assert_eq!(life.stage(), Stage::Draining);
        assert_eq!(life.on(Happening::Closed, now), None);
        assert_eq!(life.stage(), Stage::Gone);
        let mut starting = Lifecycle::default();
        assert_eq!(starting.on(Happening::Unwanted, now), None);
        assert_eq!(starting.stage(), Stage::Gone);
    }
}
