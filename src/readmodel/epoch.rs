//! Who owns a read model. The cluster's map gives it to one worker at a time, with an epoch; what makes
//! that safe is that everything written under an older epoch is refused here.

use flexcore_domain::Name;
use sqlx::{PgConnection, Row as _};

use crate::Error;

/// Says under which epoch the worker owns a read model; `None`: another one does.
pub type Owned<'a> = &'a (dyn Fn(&Name) -> Option<i64> + Send + Sync);

/// Takes the fence away, for the chaos harness: its checker must notice.
#[cfg(feature = "defects")]
pub static UNFENCED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Answers some queries with another tenant's rows, for the chaos harness: its checker must notice.
#[cfg(feature = "defects")]
pub static LEAKING: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// The tenant whose rows a query shows: where they leak, now and then the one before.
#[cfg(feature = "defects")]
pub(crate) fn leaked(tenant: &flexcore_domain::Tenant) -> flexcore_domain::Tenant {
    use std::sync::{Mutex, PoisonError, atomic::Ordering};
    /// How many queries there were, and whose the last one was.
    static BEFORE: Mutex<(u64, Option<flexcore_domain::Tenant>)> = Mutex::new((0, None));
    if !LEAKING.load(Ordering::Relaxed) {
        return tenant.clone();
    }
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    before.0 += 1;
    let last = before.1.replace(tenant.clone());
    last.filter(|_| before.0.is_multiple_of(2)).unwrap_or_else(|| tenant.clone())
}

/// Without the fence, forgets that a version had an owner later than its writer.
#[cfg(feature = "defects")]
pub(crate) async fn forget_later(
    connection: &mut PgConnection,
    versions: &[i64],
    held: &[i64],
) -> Result<(), Error> {
    if UNFENCED.load(std::sync::atomic::Ordering::Relaxed) {
        let statement = "update flexcore.checkpoints c set epoch = m.epoch \
                         from unnest($1::bigint[], $2::bigint[]) as m(projection_id, epoch) \
                         where c.projection_id = m.projection_id and c.epoch > m.epoch";
        sqlx::query(statement).bind(versions).bind(held).execute(connection).await?;
    }
    Ok(())
}

/// Fails with [`Error::Fenced`] when a read model has a later owner.
pub(crate) async fn check_epoch(
    connection: &mut PgConnection,
    name: &Name,
    held: i64,
) -> Result<(), Error> {
    #[cfg(feature = "defects")]
    if UNFENCED.load(std::sync::atomic::Ordering::Relaxed) {
        return Ok(());
    }
    let found: Option<i64> = sqlx::query(
        "select max(epoch) from flexcore.checkpoints where epoch > $2 and projection_id in \
             (select id from flexcore.projections where read_model = $1)",
    )
    .bind(name.as_str())
    .bind(held)
    .fetch_one(connection)
    .await?
    .try_get(0)?;
    found.map_or(Ok(()), |found| Err(Error::Fenced { held, found }))
}
