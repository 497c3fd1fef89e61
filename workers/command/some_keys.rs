//! Aggregates for the tests of what tenants share.

use flexcore_domain::{AggregateId, AggregateKey, AggregateName, Tenant};

/// A tenant's counter of this number.
pub(super) fn key(tenant: &str, id: usize) -> AggregateKey {
    AggregateKey::new(
        Tenant::parse(tenant).unwrap(),
        AggregateName::parse("counter").unwrap(),
        AggregateId::parse(&id.to_string()).unwrap(),
    )
}
