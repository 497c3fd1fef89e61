//! Deadlines that travel with a request. Between processes they are relative, because the clocks of
//! hosts differ: what a message takes on its way is not counted, which a network makes small.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use crate::measure;

/// The header that carries the remaining time in milliseconds, as decimal digits.
pub const HEADER: &str = "Flexcore-Timeout-Ms";

/// Longest time of any request: more than the longest wait that a client may ask for (30 s), less
/// than the time after which an idle connection is closed (60 s).
pub const TIMEOUT_MAX: Duration = Duration::from_secs(45);

/// Most digits that are read: more than any sensible number of milliseconds has.
const DIGITS_MAX: usize = 18;

/// The moment after which nobody waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Exceeded;

/// An invalid timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{HEADER} is a whole number of milliseconds, at least 1, in decimal digits")]
pub struct InvalidTimeout;

impl Deadline {
    /// So long from now, [`TIMEOUT_MAX`] at most.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        Self::at(Instant::now(), timeout)
    }

    /// So long after `now`, [`TIMEOUT_MAX`] at most.
    #[must_use]
    pub fn at(now: Instant, timeout: Duration) -> Self {
        Self(now + timeout.min(TIMEOUT_MAX))
    }

    /// Parses a message's value on arrival at `now`; cut to [`TIMEOUT_MAX`]. Fails unless the value
    /// is 1 to 18 decimal digits and not zero.
    pub fn parse(value: &str, now: Instant) -> Result<Self, InvalidTimeout> {
        let is_number = value.len() <= DIGITS_MAX && value.bytes().all(|b| b.is_ascii_digit());
        let timeout_ms: u64 = value.parse().ok().filter(|_| is_number).ok_or(InvalidTimeout)?;
        if timeout_ms == 0 {
            return Err(InvalidTimeout);
        }
        Ok(Self::at(now, Duration::from_millis(timeout_ms)))
    }

    /// The value for a message that leaves at `now`: whole milliseconds, rounded down so that the
    /// receiver gives up first. `None` when not one is left: then it need not be sent.
    #[must_use]
    pub fn encode(self, now: Instant) -> Option<String> {
        let left_ms = self.remaining(now).as_millis();
        (left_ms > 0).then(|| left_ms.to_string())
    }

    /// The time that is left at `now`; zero when it has passed.
    #[must_use]
    pub fn remaining(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// True if it has passed at `now`.
    #[must_use]
    pub fn is_over(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// This one, or so long from now if that is sooner: for a part of the work.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        self.min(Self::after(timeout))
    }

    /// Waits for the future, but no longer; one whose deadline has passed is not begun. Fails with
    /// [`Exceeded`], which is counted for this target.
    pub async fn timeout<F: Future>(
        self,
        target: &'static str,
        future: F,
    ) -> Result<F::Output, Exceeded> {
        let in_time = async {
            if self.is_over(Instant::now()) {
                return Err(Exceeded);
            }
            tokio::time::timeout_at(self.0, future).await.map_err(|_| Exceeded)
        };
        in_time.await.inspect_err(|_| measure::deadline_exceeded(target))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn garbage_is_refused() {
        let now = Instant::now();
        let long = "1".repeat(DIGITS_MAX + 1);
        for value in ["", "0", "00", "-1", "+1", " 1", "1 ", "1.5", "1s", "1e3", "٣", "0x1", &long]
        {
            assert_eq!(Deadline::parse(value, now), Err(InvalidTimeout), "{value:?}");
        }
    }

    #[test]
    fn a_timeout_is_capped() {
        let now = Instant::now();
        let longest = Deadline::at(now, TIMEOUT_MAX);
        assert_eq!(Deadline::parse(&"9".repeat(DIGITS_MAX), now), Ok(longest));
        assert_eq!(Deadline::at(now, Duration::MAX), longest);
    }

    #[test]
    fn nothing_left_is_not_sent() {
        let now = Instant::now();
        let deadline = Deadline::at(now, 5 * MS);
        assert_eq!(deadline.encode(now + MS / 2).as_deref(), Some("4"));
        assert_eq!(deadline.encode(now + 5 * MS), None);
        assert_eq!(deadline.encode(now + 4 * MS + MS / 2), None);
        assert!(deadline.is_over(now + 5 * MS) && !deadline.is_over(now + 4 * MS));
    }

    proptest! {
        #![proptest_config(crate::cases())]

        #[test]
        fn a_hop_never_gives_more_time(timeout_ms in 1_u64..100_000, passed_us in 0_u64..200_000_000) {
            let sent = Instant::now();
            let later = sent + Duration::from_micros(passed_us);
            let deadline = Deadline::parse(&timeout_ms.to_string(), sent).unwrap();
            match deadline.encode(later) {
                Some(value) => {
                    let there = Deadline::parse(&value, later).unwrap();
                    prop_assert!(there <= deadline && deadline.remaining(later) - there.remaining(later) < MS);
                }
                None => prop_assert!(deadline.remaining(later) < MS),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_is_waited_for_until_the_deadline_only() {
        let sleep = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let deadline = Deadline::after(10 * MS);
        assert_eq!(deadline.timeout("t", sleep(9)).await, Ok(()));
        let began = Instant::now();
        assert_eq!(deadline.timeout("t", sleep(1_000)).await, Err(Exceeded));
        assert_eq!(began.elapsed(), MS);
        let begun = async { panic!("it must not begin after its deadline") };
        assert_eq!(deadline.timeout("t", begun).await, Err::<(), _>(Exceeded));
        assert_eq!(Deadline::after(10 * MS).within(3 * MS), Deadline::after(3 * MS));
        assert_eq!(Deadline::after(3 * MS).within(10 * MS), Deadline::after(3 * MS));
    }
}
