//! The subjects of the log, `evt.<slot>.<tenant>.<aggregate>.<id>`: spelt here and nowhere else.

use std::fmt::Display;

use flexcore_domain::{AggregateKey, AggregateName, Slot, Tenant};

/// All of them.
pub(crate) const ALL: &str = "evt.>";
/// Those of deployments.
pub(crate) const DEPLOYMENTS: &str = "evt.*.flexcore.application.*";

/// The subject of an aggregate's commits: `evt.<slot>.<tenant>.<aggregate>.<id>`.
#[must_use]
pub fn subject(key: &AggregateKey) -> String {
    format!("evt.{}", key.subject_part())
}

/// The same as AsyncAPI writes it, with parameters in braces.
#[must_use]
pub fn address(aggregate: &AggregateName) -> String {
    format!("evt.{{slot}}.{{tenant}}.{aggregate}.{{id}}")
}

/// The aggregate of a subject; `None`: it is none of the log's.
pub(crate) fn key(subject: &str) -> Option<AggregateKey> {
    AggregateKey::from_subject_part(subject.strip_prefix("evt.")?)
}

pub(crate) fn of_slot(slot: Slot) -> String {
    format!("evt.{slot}.>")
}

pub(crate) fn of_tenant(tenant: &Tenant) -> String {
    format!("evt.*.{tenant}.>")
}

/// The aggregates of this name, in a slot or in `*`.
pub(crate) fn of_aggregates(slot: impl Display, aggregate: &AggregateName) -> String {
    format!("evt.{slot}.*.{aggregate}.*")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;

    #[test]
    fn deployments_are_commits_of_the_platforms_own_aggregate() {
        assert_eq!(DEPLOYMENTS, format!("evt.*.{}.{}.*", Tenant::PLATFORM, catalog::AGGREGATE));
    }
}
