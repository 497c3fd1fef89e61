//! Places that each tenant has for itself, whatever it has configured meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use flexcore_sdk::Failure;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many places for each tenant.
pub(crate) struct Places {
    each: usize,
    /// Those of tenants that have some in use.
    tenants: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

impl Places {
    pub(crate) const fn new(each: usize) -> Self {
        Self { each, tenants: Mutex::new(BTreeMap::new()) }
    }

    /// A place of the tenant, as soon as it has one. The caller bounds the time.
    pub(crate) async fn take(&self, tenant: &str) -> Result<OwnedSemaphorePermit, Failure> {
        let place = self.of(tenant).acquire_owned().await;
        place.map_err(|error| Failure::passing("busy", error))
    }

    fn of(&self, tenant: &str) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = tenants.get(tenant).and_then(Weak::upgrade) {
            return places;
        }
        // Nothing is kept of tenants that have no place in use.
        tenants.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.each));
        tenants.insert(tenant.to_owned(), Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_tenant_has_its_own() {
        let places = Places::new(2);
        let first = places.take("a").await.unwrap();
        let second = places.take("a").await.unwrap();
        let third = timeout(Duration::from_millis(50), places.take("a")).await;
        assert!(third.is_err(), "it waits");
        drop(places.take("b").await.unwrap());
        drop(first);
        let third = places.take("a").await.unwrap();
        drop((second, third));
        drop(places.take("c").await.unwrap());
        let tenants: Vec<_> = places.tenants.lock().unwrap().keys().cloned().collect();
        assert_eq!(tenants, ["c"], "nothing is left of others");
    }
}
