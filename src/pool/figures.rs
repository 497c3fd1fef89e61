//! What is counted and kept of a pool for as long as it lives, whatever version runs in it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    error::PoolError,
    limits::{DURATIONS_MAX, LATE_TOLD_EVERY},
    lines::Lines,
    locked::locked,
    measure,
};

#[derive(Debug)]
pub(crate) struct Figures {
    /// The plugin's, as a label of metrics.
    pub(crate) name: String,
    pub(crate) lines: Arc<Lines>,
    calls: AtomicU64,
    errors: AtomicU64,
    restarts: AtomicU64,
    /// Of the last calls with an output.
    took: Mutex<VecDeque<Duration>>,
    changes: watch::Sender<()>,
    late: Mutex<Late>,
}

/// Calls that were late.
#[derive(Debug, Default)]
struct Late {
    /// Those that were not told yet.
    untold: u64,
    told: Option<Instant>,
}

impl Figures {
    pub(crate) fn new(name: String) -> Self {
        measure::begin(&name);
        let lines = Arc::new(Lines::of(&name));
        Self {
            name,
            lines,
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            took: Mutex::default(),
            changes: watch::Sender::new(()),
            late: Mutex::default(),
        }
    }

    /// A call is over.
    pub(crate) fn called<T>(&self, called: &Result<T, PoolError>, took: Duration) {
        measure::called(&self.name, called.as_ref().err(), took);
        self.calls.fetch_add(1, Ordering::Relaxed);
        if called.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
            let is_late = matches!(called, Err(PoolError::Late));
            let told = is_late.then(|| locked(&self.late).count(Instant::now())).flatten();
            if let Some(calls) = told {
                tracing::warn!(plugin = self.name, calls, "a plugin did not answer in time");
            }
            return;
        }
        let mut last = locked(&self.took);
        if last.len() >= DURATIONS_MAX {
            last.pop_front();
        }
        last.push_back(took);
    }

    /// An instance is started again.
    pub(crate) fn restarted(&self) {
        measure::restarted(&self.name);
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls, those of them without an output, and restarts.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [&self.calls, &self.errors, &self.restarts].map(|count| count.load(Ordering::Relaxed))
    }

    /// How long half of the last calls took at most, and 99 of 100 of them. Zero before the first.
    pub(crate) fn percentiles(&self) -> (Duration, Duration) {
        let mut sorted: Vec<Duration> = locked(&self.took).iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        (at(50), at(99))
    }

    /// An instance's state has changed, or the pool's version.
    pub(crate) fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Tells of each change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

impl Late {
    /// Takes one more. Returns how many there were since the last line about them, if there is to be another.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        let is_recent = |told| now.saturating_duration_since(told) < LATE_TOLD_EVERY;
        if self.told.is_some_and(is_recent) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_calls_are_told_once_a_second() {
        let (mut late, now) = (Late::default(), Instant::now());
        assert_eq!(late.count(now), Some(1));
        assert_eq!([late.count(now), late.count(now)], [None, None]);
        assert_eq!(late.count(now + LATE_TOLD_EVERY), Some(3));
    }

    #[test]
    fn percentiles_are_of_the_last_calls_with_an_output() {
        let figures = Figures::new("test".to_owned());
        assert_eq!(figures.percentiles(), (Duration::ZERO, Duration::ZERO));
        let ms = Duration::from_millis;
        figures.called(&Ok(()), ms(7));
        assert_eq!(figures.percentiles(), (ms(7), ms(7)));
        for _ in 0..DURATIONS_MAX {
            figures.called(&Ok(()), ms(1));
        }
        figures.called::<()>(&Err(PoolError::Busy), ms(500));
        assert_eq!(figures.percentiles(), (ms(1), ms(1)));
        for number in 1..=100 {
            figures.called(&Ok(()), ms(number * 1_000));
        }
        assert_eq!(figures.percentiles().0, ms(1));
        assert!(figures.percentiles().1 > ms(80_000));
        assert_eq!(figures.counts()[1], 1);
    }
}
