//! Applying a batch: rows and checkpoints in one transaction.

use std::{collections::BTreeMap, sync::Arc};

use flexcore_definition::{Cell, Column, ColumnType};
use flexcore_domain::{Hash, Name, Slot};
use futures::future::BoxFuture;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _, Transaction, postgres::PgArguments};

use crate::{
    Error, ReadModels,
    cell::read,
    error::{LOCKED, code},
    fold::{self, Delta, Fate, Fold, Row},
    plan::{Change, Layout},
    transaction,
    upsert::{Changed, bind_keys, matches, operation, runs, upsert},
    version::Version,
};

/// The part of a batch that one version takes from the log.
#[derive(Debug)]
pub struct Part {
    /// The version.
    pub version: Arc<Version>,
    /// The effect of the batch's events on its rows, in log order.
    pub changes: Vec<Change>,
    /// Events that it cannot apply; they are in FLEX_DEAD by now.
    pub parked: Vec<Parked>,
    /// Where its checkpoint is, and where it is after the batch, for each slot that moves.
    pub moves: Vec<Move>,
}

/// A slot's checkpoint before and after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The slot.
    pub slot: Slot,
    /// Its position before.
    pub from: u64,
    /// Its position after.
    pub to: u64,
    /// Link in the hash chain of the commit there; `None`: the message there is no commit.
    pub hash: Option<Hash>,
}

/// An event that could not be applied.
#[derive(Clone, Debug)]
pub struct Parked {
    /// Stream sequence of its commit.
    pub sequence: u64,
    /// The aggregate's version with it.
    pub event_version: u64,
    /// The aggregate.
    pub key: flexcore_domain::AggregateKey,
    /// The event's name.
    pub event: flexcore_domain::EventName,
    /// Why.
    pub reason: String,
    /// It is where its aggregate breaks: later events of it are held back.
    pub holds: bool,
}

/// Longest wait of a batch for a lock, in milliseconds. A vacuum, an index that is built `concurrently` and
/// the swap of a version lock for less, and after 1 s Postgres looks for deadlocks. Whoever locks a table
/// for longer delays its read model; the batch has others in it, which must not wait as long.
const LOCK_TIMEOUT_MS: u32 = 2_000;

/// Rows whose old texts are read at once. Each may have a hundred columns.
const TEXT_ROWS_MAX: usize = 64;

/// The start of every transaction that writes rows: as a role that owns nothing.
fn start() -> String {
    format!("set local lock_timeout = {LOCK_TIMEOUT_MS}; set local role flexcore_projection")
}

impl ReadModels {
    /// Applies the parts and moves their checkpoints, all or nothing, each under its version's epoch.
    /// Fails with [`Error::Fenced`] when another writer has taken over, with [`Error::Moved`] when
    /// a checkpoint is not where the part says, with [`Error::Locked`] when somebody keeps a part's
    /// table locked, and with [`Error::Unappliable`] when values fit their columns but not the table:
    /// leave those changes out, and apply the rest.
    #[boxed::async_recursion]
    pub async fn apply(&self, parts: &[Part]) -> Result<(), Error> {
        let mut transaction = transaction::begin_by(&self.pool, start()).await?;
        move_checkpoints(&mut transaction, parts).await?;
        for part in parts {
            let all: Vec<usize> = (0..part.changes.len()).collect();
            match write(&mut transaction, part, &all).await {
                Ok(()) => park(&mut transaction, part).await?,
                Err(Failure::Unfit(_)) => {
                    transaction.rollback().await?;
                    return self.apply_by_halves(parts).await;
                }
                Err(Failure::Locked) => return Err(part.locked()),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The same by ever fewer changes at once: finds those that the table refuses. Where it refuses
    /// none of them alone, they are applied.
    async fn apply_by_halves(&self, parts: &[Part]) -> Result<(), Error> {
        let mut transaction = transaction::begin_by(&self.pool, start()).await?;
        move_checkpoints(&mut transaction, parts).await?;
        for (index, part) in parts.iter().enumerate() {
            let mut changes = Vec::new();
            let all: Vec<usize> = (0..part.changes.len()).collect();
            halve(&mut transaction, part, &all, &mut changes).await?;
            if !changes.is_empty() {
                transaction.rollback().await?;
                return Err(Error::Unappliable { part: index, changes });
            }
            park(&mut transaction, part).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// Moves the checkpoints from where the writer believes them to be. This comes first: it locks them,
/// and a writer that was overtaken fails before it writes a row.
async fn move_checkpoints(
    transaction: &mut Transaction<'_, Postgres>,
    parts: &[Part],
) -> Result<(), Error> {
    let (mut ids, mut epochs, mut slots) = (vec![], vec![], vec![]);
    let (mut from, mut to, mut hashes, mut changes) = (vec![], vec![], vec![], vec![]);
    for part in parts {
        let changed = !part.changes.is_empty() || !part.parked.is_empty();
        for step in &part.moves {
            ids.push(part.version.id);
            epochs.push(part.version.portions.epoch_of(step.slot));
            slots.push(step.slot.number() as i16);
            from.push(step.from.cast_signed());
            to.push(step.to.cast_signed());
            changes.push(changed);
            hashes.push(step.hash.as_ref().map(|hash| hash.as_bytes().as_slice()));
        }
    }
    #[cfg(feature = "defects")]
    crate::defects::forget_later(transaction, &ids, &slots, &epochs).await?;
    let moved = sqlx::query(
        "update flexcore.checkpoints c set position = m.till, epoch = m.epoch, hash = m.hash, \
             changed = case when m.changes then m.till else c.changed end \
         from unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], \
                     $6::bytea[], $7::boolean[]) \
             as m(projection_id, slot, since, till, epoch, hash, changes) \
         where c.projection_id = m.projection_id and c.slot = m.slot \
           and c.epoch <= m.epoch and c.position = m.since",
    )
    .bind(&ids)
    .bind(slots)
    .bind(from)
    .bind(to)
    .bind(&epochs)
    .bind(hashes)
    .bind(changes)
    .execute(&mut **transaction)
    .await?;
    if moved.rows_affected() == ids.len() as u64 {
        return Ok(());
    }
    let later = sqlx::query(
        "select m.epoch, c.epoch from flexcore.checkpoints c \
         join unnest($1::bigint[], $2::bigint[]) as m(projection_id, epoch) \
             on c.projection_id = m.projection_id and c.epoch > m.epoch limit 1",
    )
    .bind(ids)
    .bind(epochs)
    .fetch_optional(&mut **transaction)
    .await?;
    match later {
        Some(row) => Err(Error::Fenced { held: row.try_get(0)?, found: row.try_get(1)? }),
        None => Err(Error::Moved),
    }
}

/// Why rows were not written.
enum Failure {
    /// The table refuses a value: the data's fault.
    Unfit(String),
    /// Somebody keeps the table locked.
    Locked,
    Other(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        // 22 data exception, 23 constraint, 54 limits: an index entry that is too long.
        match code(&error).as_deref() {
            Some(LOCKED) => Self::Locked,
            Some(code) if ["22", "23", "54"].contains(&&code[..2.min(code.len())]) => {
                Self::Unfit(error.as_database_error().map_or_else(String::new, ToString::to_string))
            }
            _ => Self::Other(error.into()),
        }
    }
}

fn halve<'a>(
    connection: &'a mut PgConnection,
    part: &'a Part,
    changes: &'a [usize],
    found: &'a mut Vec<(usize, String)>,
) -> BoxFuture<'a, Result<(), Error>> {
    Box::pin(async move {
        sqlx::raw_sql("savepoint half").execute(&mut *connection).await?;
        match write(connection, part, changes).await {
            Ok(()) => {
                sqlx::raw_sql("release savepoint half").execute(&mut *connection).await?;
                return Ok(());
            }
            Err(Failure::Locked) => return Err(part.locked()),
            Err(Failure::Other(error)) => return Err(error),
            Err(Failure::Unfit(reason)) => {
                sqlx::raw_sql("rollback to savepoint half; release savepoint half")
                    .execute(&mut *connection)
                    .await?;
                if let [only] = changes {
                    found.push((*only, reason));
                    return Ok(());
                }
            }
        }
        let (left, right) = changes.split_at(changes.len() / 2);
        halve(connection, part, left, found).await?;
        halve(connection, part, right, found).await
    })
}

/// Folds the changes with these indices and writes the rows. Where texts are worked out from those that
/// stand in the rows, a few rows at once: nobody knows how long they are.
async fn write(
    connection: &mut PgConnection,
    part: &Part,
    indices: &[usize],
) -> Result<(), Failure> {
    let layout = &part.version.plan.layout;
    let chosen = indices.iter().map(|index| (*index, &part.changes[*index]));
    let rows = Fold::new(layout.columns.len(), chosen).rows;
    let columns = replayed(layout, &rows);
    let has_texts = columns.iter().any(|at| layout.columns[*at].column_type == ColumnType::Text);
    let at_once = if has_texts { TEXT_ROWS_MAX } else { rows.len().max(1) };
    let turns = rows.len().div_ceil(at_once);
    let mut rest = rows.into_iter();
    for _ in 0..turns {
        let mut rows: Vec<Row<'_>> = rest.by_ref().take(at_once).collect();
        resolve(connection, part, &columns, &mut rows).await?;
        write_rows(connection, part, &rows).await?;
    }
    Ok(())
}

/// Writes the rows: for each set of columns that they touch a statement, or several where their values are
/// long, and one for deletions.
async fn write_rows(
    connection: &mut PgConnection,
    part: &Part,
    rows: &[Row<'_>],
) -> Result<(), Failure> {
    let layout = &part.version.plan.layout;
    let mut deleted = Vec::new();
    let mut shapes: BTreeMap<Vec<u8>, Vec<Changed<'_>>> = BTreeMap::new();
    for row in rows {
        match &row.fate {
            Fate::Delete => deleted.push(row),
            Fate::Keep(deltas) => {
                let shape = deltas.iter().map(operation).collect();
                shapes.entry(shape).or_default().push((row, deltas));
            }
        }
    }
    let table = &part.version.table;
    if !deleted.is_empty() {
        let mut arguments = PgArguments::default();
        let keys = bind_keys(&mut arguments, layout, deleted.iter().copied());
        let on = matches(layout);
        let sql = format!("delete from {table} _t using {keys} where {on}");
        sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *connection).await?;
    }
    for (shape, rows) in shapes {
        for rows in runs(&rows) {
            let mut arguments = PgArguments::default();
            let sql = upsert(table, layout, &shape, rows, &mut arguments);
            sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// The columns of which an operation depends on the old value.
fn replayed(layout: &Layout, rows: &[Row<'_>]) -> Vec<usize> {
    let is_replayed = |row: &Row<'_>, at: usize| match &row.fate {
        Fate::Keep(deltas) => matches!(deltas[at], Delta::Replay(_)),
        Fate::Delete => false,
    };
    let columns = 0..layout.columns.len();
    columns.filter(|at| rows.iter().any(|row| is_replayed(row, *at))).collect()
}

/// Turns operations that depend on the old value, all of them in these columns, into the value that they
/// give.
async fn resolve(
    connection: &mut PgConnection,
    part: &Part,
    columns: &[usize],
    rows: &mut [Row<'_>],
) -> Result<(), Failure> {
    let layout = &part.version.plan.layout;
    let is_concerned = |row: &Row<'_>| match &row.fate {
        Fate::Keep(deltas) => columns.iter().any(|at| matches!(deltas[*at], Delta::Replay(_))),
        Fate::Delete => false,
    };
    let concerned: Vec<usize> = (0..rows.len()).filter(|at| is_concerned(&rows[*at])).collect();
    if concerned.is_empty() {
        return Ok(());
    }
    let mut arguments = PgArguments::default();
    let keys = bind_keys(&mut arguments, layout, concerned.iter().map(|at| &rows[*at]));
    let name = |at: &usize| format!(", _t.\"{}\"", layout.columns[*at].name);
    let sql = format!(
        "select _k._place{} from {} _t join {keys} on {}",
        columns.iter().map(name).collect::<String>(),
        part.version.table,
        matches(layout)
    );
    let old = sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(connection).await?;
    let mut by_place = vec![None; concerned.len()];
    for row in &old {
        let place = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
        by_place[place] = Some(row);
    }
    for (at, old) in concerned.into_iter().zip(by_place) {
        let Fate::Keep(deltas) = &mut rows[at].fate else { continue };
        for (nth, index) in (1..).zip(columns) {
            let Delta::Replay(operations) = &deltas[*index] else { continue };
            let Column { name, column_type } = &layout.columns[*index];
            let before = match old {
                Some(row) => read(row, nth, *column_type)?,
                None => Cell::Null,
            };
            let after = fold::replay(before, operations)
                .map_err(|_| Failure::Unfit(format!("column {name}: out of range")))?;
            deltas[*index] = Delta::Set(after);
        }
    }
    Ok(())
}

/// Keeps a row for each event that was put aside.
async fn park(connection: &mut PgConnection, part: &Part) -> Result<(), Error> {
    if part.parked.is_empty() {
        return Ok(());
    }
    let all = || part.parked.iter();
    sqlx::query(
        "insert into flexcore.parked (projection_id, sequence, event_version, slot, tenant, \
         aggregate, aggregate_id, event, reason, holds) \
         select $1, * from unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::text[], \
             $6::text[], $7::text[], $8::text[], $9::text[], $10::boolean[]) \
         on conflict (projection_id, sequence, event_version) do update set holds = excluded.holds",
    )
    .bind(part.version.id)
    .bind(all().map(|parked| parked.sequence.cast_signed()).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.event_version.cast_signed()).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.key.slot().number() as i16).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.key.tenant().as_str()).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.key.aggregate().as_str()).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.key.id().as_str()).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.event.as_str()).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.reason.replace('\0', " ")).collect::<Vec<_>>())
    .bind(all().map(|parked| parked.holds).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

impl Part {
    /// The read model that it is for.
    #[must_use]
    pub fn read_model(&self) -> &Name {
        &self.version.read_model
    }

    fn locked(&self) -> Error {
        let Version { id, read_model, .. } = &*self.version;
        Error::Locked { version: *id, read_model: read_model.clone() }
    }
}
