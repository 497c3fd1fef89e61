//! The rest that a tenant takes after it has used much of a lane's processor time. Turns count
//! commands, and one of a command's functions may use a thousand times as much as another's: a
//! tenant whose functions use up their limit would have a lane busy for most of the time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use flexcore_domain::Tenant;

/// Processor time in one go that others hardly notice. It does not count.
const UNNOTICED: Duration = Duration::from_millis(5);
/// Processor time that a tenant may use beyond its part before it rests.
const AHEAD: Duration = Duration::from_millis(250);
/// A tenant's part of a lane beside others: one in so many.
const PART: u32 = 16;
/// Longest rest. A tenant goes on, slowly, whatever it has used.
const REST_MAX: Duration = Duration::from_secs(5);

/// Tenants that have used much. Pure: time is an argument.
#[derive(Default)]
pub(super) struct Rests {
    /// The time when each has its part again, if it uses nothing until then.
    even_at: HashMap<Tenant, Instant>,
}

impl Rests {
    /// A tenant has used the processor for so long, beside others.
    pub(super) fn used(&mut self, tenant: &Tenant, time: Duration, now: Instant) {
        self.even_at.retain(|_, even_at| *even_at > now);
        if time < UNNOTICED {
            return;
        }
        let even_at = self.even_at.get(tenant).copied().unwrap_or(now) + time * PART;
        let even_at = even_at.min(now + AHEAD * PART + REST_MAX);
        self.even_at.insert(tenant.clone(), even_at);
    }

    /// The time when a tenant may begin something again; `None`: now.
    pub(super) fn until(&self, tenant: &Tenant, now: Instant) -> Option<Instant> {
        let until = self.even_at.get(tenant)?.checked_sub(AHEAD * PART)?;
        (until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn tenant() -> Tenant {
        Tenant::parse("hostile").unwrap()
    }

    #[test]
    fn whoever_uses_its_limit_again_and_again_has_a_sixteenth() {
        let (mut rests, begin) = (Rests::default(), Instant::now() + Duration::from_secs(60));
        let (mut now, mut used) = (begin, Duration::ZERO);
        while now < begin + Duration::from_secs(60) {
            now = rests.until(&tenant(), now).unwrap_or(now) + LIMIT;
            rests.used(&tenant(), LIMIT, now);
            used += LIMIT;
        }
        let most = AHEAD + LIMIT + Duration::from_secs(60) / PART;
        assert!(used <= most, "{used:?} of {most:?}");
        assert!(used >= most - 2 * LIMIT, "{used:?}: it goes on");
    }

    #[test]
    fn what_is_short_or_seldom_is_followed_by_no_rest() {
        let (mut rests, mut now) = (Rests::default(), Instant::now());
        for _ in 0..10_000 {
            rests.used(&tenant(), UNNOTICED - Duration::from_nanos(1), now);
        }
        assert_eq!(rests.until(&tenant(), now), None);
        for _ in 0..100 {
            rests.used(&tenant(), LIMIT, now);
            assert_eq!(rests.until(&tenant(), now), None);
            now += LIMIT * PART;
        }
        assert_eq!(rests.even_at.len(), 1);
        rests.used(&tenant(), Duration::ZERO, now + REST_MAX);
        assert!(rests.even_at.is_empty(), "nobody is remembered for ever");
    }

    #[test]
    fn a_rest_is_bounded() {
        let (mut rests, now) = (Rests::default(), Instant::now());
        for _ in 0..1_000 {
            rests.used(&tenant(), Duration::from_secs(1), now);
        }
        assert_eq!(rests.until(&tenant(), now), Some(now + REST_MAX));
        assert_eq!(rests.until(&tenant(), now + REST_MAX), None);
    }
}
