//! Checkpoints, portion by portion: taken over, marked, and how far they have come.

use flexcore_domain::Slot;
use sqlx::Row as _;

use crate::{Error, ReadModels, portion::Portions, version::Version};

/// A portion whose checkpoint stays where it is while the log goes on.
#[derive(Clone, Copy, Debug)]
pub struct Mark<'a> {
    /// The version.
    pub version: &'a Version,
    /// The portion.
    pub portion: u16,
    /// Its checkpoint, in the row of [`Portions::row`].
    pub position: u64,
}

impl ReadModels {
    /// Notes that up to this stream sequence there is nothing that the versions follow, beyond the
    /// commits that they have. Where another writer has moved the checkpoint or taken over, nothing
    /// is noted.
    #[boxed::async_recursion]
    pub async fn mark(&self, marks: &[Mark<'_>], seen: u64) -> Result<(), Error> {
        let epoch = |mark: &Mark<'_>| mark.version.portions.epoch_of(Portions::row(mark.portion));
        let sql = "update flexcore.checkpoints c set seen = $1 \
                   from unnest($2::bigint[], $3::smallint[], $4::bigint[], $5::bigint[]) \
                       as m(projection_id, slot, position, epoch) \
                   where c.projection_id = m.projection_id and c.slot = m.slot \
                     and c.position = m.position and c.epoch <= m.epoch and c.seen < $1";
        sqlx::query(sql)
            .bind(seen.cast_signed())
            .bind(marks.iter().map(|mark| mark.version.id).collect::<Vec<_>>())
            .bind(marks.iter().map(|mark| mark.portion as i16).collect::<Vec<_>>())
            .bind(marks.iter().map(|mark| mark.position.cast_signed()).collect::<Vec<_>>())
            .bind(marks.iter().map(epoch).collect::<Vec<_>>())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The stream sequence up to which a version has all that it follows, in all its portions.
    #[boxed::async_recursion]
    pub async fn reached(&self, version: &Version) -> Result<u64, Error> {
        let row = sqlx::query("select coalesce(min(place), 0) from flexcore.reached($1)")
            .bind(version.id)
            .fetch_one(&self.pool)
            .await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    /// The checkpoints of the portions of a version that are owned, by slot, taken over: from now on a
    /// writer with an older epoch is refused. Those of other slots are 0. Fails with [`Error::Fenced`]
    /// when a portion has a later owner.
    #[boxed::async_recursion]
    pub async fn take_over(&self, version: &Version) -> Result<Vec<u64>, Error> {
        let portions = &version.portions;
        let (numbers, epochs): (Vec<i16>, Vec<i64>) =
            portions.epochs.iter().map(|(number, epoch)| (*number as i16, *epoch)).unzip();
        #[cfg(feature = "defects")]
        {
            let slots: Vec<i16> = portions.slots().map(|slot| slot.number() as i16).collect();
            let held: Vec<i64> = portions.slots().map(|slot| portions.epoch_of(slot)).collect();
            let ids = vec![version.id; slots.len()];
            let connection = &mut *self.pool.acquire().await?;
            crate::defects::forget_later(connection, &ids, &slots, &held).await?;
        }
        let rows = sqlx::query(
            "update flexcore.checkpoints c set epoch = greatest(c.epoch, m.epoch) \
             from unnest($2::smallint[], $3::bigint[]) as m(portion, epoch) \
             where c.projection_id = $1 and c.slot % $4::smallint = m.portion \
             returning c.slot, c.position, c.epoch",
        )
        .bind(version.id)
        .bind(numbers)
        .bind(epochs)
        .bind(portions.count as i16)
        .fetch_all(&self.pool)
        .await?;
        if rows.len() != portions.slots().count() {
            return Err(Error::Moved);
        }
        let mut positions = vec![0; Slot::all().count()];
        for row in &rows {
            let slot = row.try_get::<i16, _>(0)?.unsigned_abs();
            let slot = Slot::new(slot).ok_or(Error::Moved)?;
            let (held, found) = (portions.epoch_of(slot), row.try_get(2)?);
            if found > held {
                return Err(Error::Fenced { held, found });
            }
            positions[usize::from(slot.number())] = row.try_get::<i64, _>(1)?.unsigned_abs();
        }
        Ok(positions)
    }
}
