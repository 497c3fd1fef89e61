//! Faults of our own making, for the chaos harness: with one switched on its checker must complain.
//! `FLEXCORE_DEFECT` names it. Here, since all that can be made wrong stands on read models. Only in
//! builds with the feature `defects`, which nothing but the tests turns on.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use flexcore_domain::Tenant;
use sqlx::PgConnection;

use crate::Error;

/// A projection worker goes on with places that were taken from it, and nothing stops it.
pub const NO_FENCE: &str = "no-fence";

/// A query is answered with another tenant's rows.
const LEAK_TENANT: &str = "leak-tenant";

/// Of what could go wrong, each so many does.
const EACH: usize = 10;

/// True if the defect of this name is switched on.
#[must_use]
pub fn is_on(name: &str) -> bool {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("FLEXCORE_DEFECT").ok()).as_deref() == Some(name)
}

/// True if this defect is switched on, and this is one of the cases that go wrong.
#[must_use]
pub fn is_due(name: &str) -> bool {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    is_on(name) && COUNT.fetch_add(1, Ordering::Relaxed).is_multiple_of(EACH)
}

/// The tenant whose rows a query shows: where they leak, now and then the one before.
pub(crate) fn leaked(tenant: &Tenant) -> Tenant {
    /// Number of queries so far, and the tenant of the last one.
    static BEFORE: Mutex<(u64, Option<Tenant>)> = Mutex::new((0, None));
    if !is_on(LEAK_TENANT) {
        return tenant.clone();
    }
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    before.0 += 1;
    let last = before.1.replace(tenant.clone());
    last.filter(|_| before.0.is_multiple_of(2)).unwrap_or_else(|| tenant.clone())
}

/// Without the fence, forgets that a slot of a version had an owner later than its writer. Slots that the
/// writer never had stay as they are: their epochs are others'.
pub(crate) async fn forget_later(
    connection: &mut PgConnection,
    versions: &[i64],
    slots: &[i16],
    held: &[i64],
) -> Result<(), Error> {
    if is_on(NO_FENCE) {
        let statement = "update flexcore.checkpoints c set epoch = m.epoch \
                         from unnest($1::bigint[], $2::smallint[], $3::bigint[]) \
                             as m(projection_id, slot, epoch) \
                         where c.projection_id = m.projection_id and c.slot = m.slot \
                           and c.epoch > m.epoch";
        let forgets = sqlx::query(statement).bind(versions).bind(slots).bind(held);
        forgets.execute(connection).await?;
    }
    Ok(())
}
