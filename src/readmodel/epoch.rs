//! The owner of a read model. The cluster's map gives it to one worker at a time, with an epoch;
//! what makes that safe is that everything written under an older epoch is refused here.

use flexcore_domain::Name;
use sqlx::{PgConnection, Row as _};

use crate::Error;

/// Says under which epoch the worker owns a portion of a read model; `None`: another one does. The
/// owner of the first portion manages the read model, shared or not.
pub type Owned<'a> = &'a (dyn Fn(&Name, u16) -> Option<i64> + Send + Sync);

/// Fails with [`Error::Fenced`] when a read model has a later owner.
pub(crate) async fn check_epoch(
    connection: &mut PgConnection,
    name: &Name,
    held: i64,
) -> Result<(), Error> {
    #[cfg(feature = "defects")]
    if crate::defects::is_on(crate::defects::NO_FENCE) {
        return Ok(());
    }
    let found: Option<i64> = sqlx::query(
        // Slot 0 is of the first portion, whose owner manages the read model.
        "select max(epoch) from flexcore.checkpoints where epoch > $2 and slot = 0 \
             and projection_id in (select id from flexcore.projections where read_model = $1)",
    )
    .bind(name.as_str())
    .bind(held)
    .fetch_one(connection)
    .await?
    .try_get(0)?;
    found.map_or(Ok(()), |found| Err(Error::Fenced { held, found }))
}
