//! What the calls of single tenants do to a plugin: none of them may take it from all others. Decided without
//! a clock.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::limits::{DEATHS_APART, DEATHS_MAX, DEATHS_REFUSED, DEATHS_WITHIN, FAILURES_WITHIN};

/// Of one version of a plugin.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    /// Whose call failed last, and when.
    failed: Option<(String, Instant)>,
    deaths: BTreeMap<String, Deaths>,
}

/// Ends of instances under calls of one tenant.
#[derive(Debug)]
struct Deaths {
    in_a_row: u32,
    /// The last one.
    last: Instant,
    refusals: u32,
    refused_until: Option<Instant>,
}

impl Tenants {
    /// Takes a failure that may be the plugin's. True if it is likely to be: the one before was another
    /// tenant's, and not long ago.
    pub(crate) fn failed(&mut self, tenant: &str, now: Instant) -> bool {
        let before = self.failed.replace((tenant.to_owned(), now));
        before.is_some_and(|(other, at)| {
            other != tenant && now.saturating_duration_since(at) <= FAILURES_WITHIN
        })
    }

    /// A call of the tenant was answered.
    pub(crate) fn answered(&mut self, tenant: &str) {
        if let Some(deaths) = self.deaths.get_mut(tenant) {
            deaths.in_a_row = 0;
        }
    }

    /// An instance ended under a call of the tenant.
    pub(crate) fn died(&mut self, tenant: &str, now: Instant) {
        self.deaths.retain(|_, deaths| !deaths.is_forgotten(now));
        let Some(deaths) = self.deaths.get_mut(tenant) else {
            let first = Deaths { in_a_row: 1, last: now, refusals: 0, refused_until: None };
            self.deaths.insert(tenant.to_owned(), first);
            return;
        };
        if now.saturating_duration_since(deaths.last) < DEATHS_APART {
            return;
        }
        deaths.in_a_row = deaths.in_a_row.saturating_add(1);
        deaths.last = now;
        if deaths.in_a_row >= DEATHS_MAX {
            deaths.refusals = deaths.refusals.saturating_add(1);
            deaths.refused_until = Some(now + DEATHS_REFUSED.after(deaths.refusals));
        }
    }

    /// How long calls of the tenant are refused yet, if they are.
    pub(crate) fn refused(&self, tenant: &str, now: Instant) -> Option<Duration> {
        let until = self.deaths.get(tenant)?.refused_until?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

impl Deaths {
    fn is_forgotten(&self, now: Instant) -> bool {
        let since = self.refused_until.unwrap_or(self.last).max(self.last);
        now.saturating_duration_since(since) > DEATHS_WITHIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_one_tenant_alone_say_nothing_against_the_plugin() {
        let (mut tenants, now) = (Tenants::default(), Instant::now());
        for _ in 0..100 {
            assert!(!tenants.failed("a", now));
        }
        assert!(tenants.failed("b", now) && tenants.failed("a", now));
        assert!(!tenants.failed("a", now));
        assert!(!tenants.failed("b", now + FAILURES_WITHIN + Duration::from_millis(1)));
    }

    #[test]
    fn a_tenant_under_whose_calls_instances_end_is_refused_for_longer_each_time() {
        let (mut tenants, mut now) = (Tenants::default(), Instant::now());
        for minutes in [1, 2, 4, 8, 10, 10] {
            while tenants.refused("a", now).is_none() {
                tenants.died("a", now);
                // Other calls under the same death.
                tenants.died("a", now);
                if tenants.refused("a", now).is_none() {
                    now += DEATHS_APART;
                }
            }
            let pause = Duration::from_secs(60 * minutes);
            assert_eq!(tenants.refused("a", now), Some(pause));
            assert_eq!(tenants.refused("b", now), None);
            now += pause;
            assert_eq!(tenants.refused("a", now), None);
        }
    }

    #[test]
    fn deaths_between_answers_and_long_ago_refuse_nobody() {
        let (mut tenants, mut now) = (Tenants::default(), Instant::now());
        for _ in 0..10 {
            tenants.died("a", now);
            now += DEATHS_APART;
            tenants.died("a", now);
            tenants.answered("a");
            now += DEATHS_APART;
        }
        assert_eq!(tenants.refused("a", now), None);
        for _ in 0..10 {
            now += DEATHS_WITHIN + Duration::from_millis(1);
            tenants.died("a", now);
        }
        assert_eq!(tenants.refused("a", now), None);
        assert_eq!(tenants.deaths.len(), 1);
    }
}
