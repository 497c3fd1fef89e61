//! What a worker owns of a version: all of it, or some of its portions. The slots of a portion are those
//! that leave its number when divided by the number of portions.

use std::collections::BTreeMap;

use flexcore_domain::{Name, Slot};
use sqlx::Row as _;

use crate::{Error, ReadModels, epoch::Owned, version::Version};

/// The portions of a version that a worker owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portions {
    /// How many the version has; 1: it is not shared.
    pub count: u16,
    /// The epoch of each that the worker owns, by number.
    pub epochs: BTreeMap<u16, i64>,
}

impl Portions {
    /// Those that a worker owns of a read model's version with so many.
    pub(crate) fn owned(owned: Owned<'_>, name: &Name, count: u16) -> Self {
        let epochs = (0..count).filter_map(|portion| Some((portion, owned(name, portion)?)));
        Self { count, epochs: epochs.collect() }
    }

    /// Whether their owner manages the read model: makes and drops versions and indexes, and swaps.
    #[must_use]
    pub fn manage(&self) -> bool {
        self.epochs.contains_key(&0)
    }

    /// The portion of a slot.
    #[must_use]
    pub fn of(&self, slot: Slot) -> u16 {
        slot.number() % self.count
    }

    /// Whether a slot's portion is owned.
    #[must_use]
    pub fn has(&self, slot: Slot) -> bool {
        self.epochs.contains_key(&self.of(slot))
    }

    /// The slots that are owned.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        Slot::all().filter(|slot| self.has(*slot))
    }

    /// The slot in whose row a portion's checkpoint moves.
    #[must_use]
    pub fn row(portion: u16) -> Slot {
        Slot::new(portion).expect("BUG: no more portions than slots")
    }

    /// The epoch of the owner of a slot's portion; one that is refused, when it is not owned.
    pub(crate) fn epoch_of(&self, slot: Slot) -> i64 {
        self.epochs.get(&self.of(slot)).copied().unwrap_or(-1)
    }
}

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
    /// Notes that there is nothing up to this stream sequence that the versions follow, beyond what they
    /// have. Where another writer has moved the checkpoint or taken over, nothing is noted.
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
    pub async fn take_over(&self, version: &Version) -> Result<Vec<u64>, Error> {
        let portions = &version.portions;
        let (numbers, epochs): (Vec<i16>, Vec<i64>) =
            portions.epochs.iter().map(|(number, epoch)| (*number as i16, *epoch)).unzip();
        #[cfg(feature = "defects")]
        {
            let ids = vec![version.id; epochs.len()];
            let connection = &mut *self.pool.acquire().await?;
            crate::defects::forget_later(connection, &ids, &epochs).await?;
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
