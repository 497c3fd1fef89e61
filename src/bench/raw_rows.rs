//! The raw limit of Postgres: the benches' rows written by plain `unnest` upserts, in batches of the
//! same size, with checkpoints in the same transaction.

use std::time::Instant;

use flexcore_domain::SLOTS;
use sqlx::{Connection, PgConnection};

use crate::counter::payload;

/// Rows of a batch: as many as the projection worker takes commits at once.
pub(crate) const BATCH: u64 = 5_000;

pub(crate) struct RawRows {
    connection: PgConnection,
}

/// One row, as wide as the read model's; microseconds in place of the timestamp.
struct Row {
    id: String,
    by: i64,
    version: i64,
    at: i64,
    open: bool,
    note: String,
}

impl RawRows {
    /// Makes the table beside the read models.
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        let mut connection = PgConnection::connect(url).await?;
        sqlx::raw_sql(
            "create schema raw; \
             create table raw.counters (tenant text not null, id text not null, total bigint, \
               changes bigint, largest bigint, smallest bigint, latest bigint, version bigint, \
               at bigint, open boolean, note text, primary key (tenant, id)); \
             create table raw.checkpoints (slot smallint primary key, position bigint not null)",
        )
        .execute(&mut connection)
        .await?;
        sqlx::query("insert into raw.checkpoints select n, 0 from generate_series(0, $1 - 1) as n")
            .bind(i32::from(SLOTS))
            .execute(&mut connection)
            .await?;
        Ok(Self { connection })
    }

    /// Writes rows of aggregates from `first` on, each so many times, one round through all after
    /// the other. Returns rows a second.
    pub(crate) async fn write(
        &mut self,
        first: u64,
        aggregates: u64,
        times: u64,
    ) -> anyhow::Result<f64> {
        let total = aggregates * times;
        // A statement can touch a row once.
        let size = BATCH.min(aggregates);
        let batches = total.div_ceil(size);
        let mut busy_s = 0.0;
        for batch in 0..batches {
            let numbers = (batch * size)..((batch + 1) * size).min(total);
            let rows: Vec<Row> =
                numbers.map(|n| row(first + n % aggregates, 1 + n / aggregates)).collect();
            // Making rows up is not what Postgres is measured by.
            let started = Instant::now();
            self.upsert(rows, batch).await?;
            busy_s += started.elapsed().as_secs_f64();
        }
        Ok(total as f64 / busy_s)
    }

    async fn upsert(&mut self, rows: Vec<Row>, batch: u64) -> anyhow::Result<()> {
        let mut transaction = self.connection.begin().await?;
        sqlx::query("update raw.checkpoints set position = $1")
            .bind(batch.cast_signed())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "insert into raw.counters as t (tenant, id, total, changes, largest, smallest, latest, \
               version, at, open, note) \
             select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], \
               $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::boolean[], $11::text[]) \
             on conflict (tenant, id) do update set \
               total = coalesce(t.total, 0) + excluded.total, \
               changes = coalesce(t.changes, 0) + excluded.changes, \
               largest = greatest(t.largest, excluded.largest), \
               smallest = least(t.smallest, excluded.smallest), \
               latest = excluded.latest, version = excluded.version, at = excluded.at, \
               open = excluded.open, note = excluded.note",
        )
        .bind(vec!["bench"; rows.len()])
        .bind(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.by).collect::<Vec<_>>())
        .bind(vec![1_i64; rows.len()])
        .bind(rows.iter().map(|row| row.by).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.by).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.by).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.version).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.at).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.open).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.note.as_str()).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}

fn row(aggregate: u64, version: u64) -> Row {
    let data: serde_json::Value =
        serde_json::from_str(&payload(version)).expect("BUG: the payload is JSON");
    Row {
        id: format!("c{aggregate}"),
        by: version.cast_signed(),
        version: version.cast_signed(),
        at: 1_357_035_720_000_000,
        open: true,
        note: data["note"].as_str().unwrap_or_default().to_owned(),
    }
}
