//! How transactions begin.
//!
//! Nothing but the beginning itself is sent before the pool knows of the transaction, and it is not given up
//! half-way when its caller is. Otherwise its session would go back to the pool with the transaction open: the
//! session's next statement would fail, or would never be committed.

use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};

use crate::Error;

/// Begins a transaction. Fails with [`Error::Unavailable`] when there is no connection in time.
pub(crate) async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, Error> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin().await }).await;
    Ok(begun.map_err(|error| Error::Unavailable(error.to_string()))??)
}

/// Begins a transaction with these statements. Fails as they do, and as [`begin`] does.
pub(crate) async fn begin_by(
    pool: &PgPool,
    statements: impl Into<String>,
) -> Result<Transaction<'static, Postgres>, Error> {
    let mut transaction = begin(pool).await?;
    let statements = sqlx::raw_sql(AssertSqlSafe(statements.into()));
    statements.execute(&mut *transaction).await?;
    Ok(transaction)
}
