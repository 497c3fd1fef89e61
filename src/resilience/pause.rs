//! Pauses between tries: the one place where they grow, and where chance makes them shorter.

use std::time::Duration;

/// A pause that doubles with each failure in a row, up to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// After many.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after so many failures in a row; none after none.
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        self.first.saturating_mul(1 << doublings.min(20)).min(self.longest)
    }

    /// The same, less up to half by chance, so that many processes do not come back in step.
    #[must_use]
    pub fn jittered(self, failures: u32) -> Duration {
        jitter(self.after(failures))
    }
}

/// Failures in a row before an outage is told: most have ended by then.
const TOLD_FROM: u32 = 8;

/// Whether so many failures in a row are worth a line in a log: an outage that lasts is told, less and less
/// often. It may be no outage: some of what a server refuses for good looks like one.
#[must_use]
pub fn lasts(failures: u32) -> bool {
    failures >= TOLD_FROM && failures.is_power_of_two()
}

/// Between half of it and all of it, by chance, so that many processes do not act in step.
#[must_use]
pub fn jitter(full: Duration) -> Duration {
    upper_half(full, chance())
}

/// All of it at 0, half of it at 1.
pub(crate) fn upper_half(full: Duration, random: f64) -> Duration {
    full.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
}

/// A number in 0..1.
pub(crate) fn chance() -> f64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_that_lasts_is_told_less_and_less_often() {
        let told: Vec<u32> = (0..100).filter(|failures| lasts(*failures)).collect();
        assert_eq!(told, [8, 16, 32, 64]);
    }

    #[test]
    fn pauses_double_from_the_first_to_the_longest() {
        let ms = Duration::from_millis;
        let backoff = Backoff { first: ms(100), longest: ms(1_500) };
        let pauses = [0, 1, 2, 3, 4, 5, 40, u32::MAX].map(|n| backoff.after(n).as_millis());
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1_500, 1_500, 1_500]);
    }

    #[test]
    fn chance_makes_a_pause_shorter_by_half_at_most() {
        let full = Duration::from_secs(1);
        for _ in 0..1_000 {
            assert!((full / 2..=full).contains(&jitter(full)));
        }
        assert_eq!([0.0, 0.5, 1.0].map(|r| upper_half(full, r).as_millis()), [1_000, 750, 500]);
    }
}
