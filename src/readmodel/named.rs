//! Named queries: `:name` becomes a typed argument, the rest is the author's SQL.

use flexcore_definition::{Cell, ColumnType, QueryDefinition, with_parameters};
use flexcore_domain::{Name, Tenant};
use sqlx::{AssertSqlSafe, Row as _, postgres::PgArguments};

use crate::{
    Error, ReadModels, cell,
    error::{CANCELLED, FORBIDDEN, code, cut},
};

/// Most rows that a named query returns.
pub const ROWS_MAX: usize = 10_000;
/// Most bytes of a named query's rows as JSON, and of a page's but for its last row: the caller
/// holds them in memory, and a statement can make a gigabyte of a few words.
pub const RESULT_BYTES_MAX: usize = 16 << 20;

impl ReadModels {
    /// Runs a named query for one tenant, read only; returns a JSON array of objects. Fails when a
    /// parameter is unknown, missing or of another type, with [`Error::NotBuilt`], with
    /// [`Error::Timeout`], with [`Error::TooManyRows`], and with [`Error::QueryFailed`] when the
    /// statement itself is at fault.
    #[boxed::async_recursion]
    pub async fn run_query(
        &self,
        tenant: &Tenant,
        query: &QueryDefinition,
        params: &[(String, String)],
    ) -> Result<String, Error> {
        let values = values(query, params)?;
        let names: Vec<&Name> = values.iter().map(|(name, _)| *name).collect();
        let (sql, used) = positional(&query.sql, &query.name, &names)?;
        let mut arguments = PgArguments::default();
        for index in used {
            let (parameter, value) = (&query.parameters[index], &values[index].1);
            cell::bind(&mut arguments, parameter.column_type, value);
        }
        let sql = whole(&sql).text;
        let mut reading = self.read_as(tenant).await?;
        let run = sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_one(&mut *reading);
        let row = self.sessions.in_time(self.settings.statement_timeout, run).await?;
        reading.end().await;
        let row = match row {
            Ok(row) => row,
            Err(error) => return Err(self.query_failed(query, error).await),
        };
        let count: i64 = row.try_get("count")?;
        if count > ROWS_MAX as i64 {
            return Err(Error::TooManyRows { query: query.name.clone(), max: ROWS_MAX });
        }
        let rows: Option<String> = row.try_get("rows")?;
        rows.ok_or_else(|| Error::ResultTooLarge {
            query: query.name.clone(),
            bytes_max: RESULT_BYTES_MAX,
        })
    }

    pub(crate) async fn query_failed(&self, query: &QueryDefinition, error: sqlx::Error) -> Error {
        let outdated = code(&error).as_deref() == Some(FORBIDDEN)
            && matches!(self.sessions.drop_outdated().await, Ok(true) | Err(Error::NotBuilt(_)));
        if outdated {
            // Everything was made anew since, and is being filled.
            let reads: Vec<&str> = query.reads.iter().map(Name::as_str).collect();
            return Error::NotBuilt(reads.join(", "));
        }
        let failed = match (code(&error).as_deref(), Error::from(error)) {
            (Some(CANCELLED), _) => return Error::Timeout(self.settings.statement_timeout),
            // Syntax and names: the version that it was prepared against may not serve yet.
            (Some(code), Error::Database(message) | Error::Gone(message))
                if code.starts_with("42") =>
            {
                message
            }
            (_, Error::Database(message)) => {
                return Error::QueryFailed { query: query.name.clone(), message };
            }
            (_, other) => return other,
        };
        match self.serve_as_declared(query).await {
            Ok(true) => Error::QueryFailed { query: query.name.clone(), message: failed },
            Ok(false) => {
                let reads: Vec<&str> = query.reads.iter().map(Name::as_str).collect();
                Error::NotBuilt(format!("{} ({failed})", reads.join(", ")))
            }
            Err(error) => error,
        }
    }

    /// Checks that each read model of a query serves as it is declared beside it.
    async fn serve_as_declared(&self, query: &QueryDefinition) -> Result<bool, Error> {
        let names: Vec<&str> = query.reads.iter().map(Name::as_str).collect();
        let row = sqlx::query(
            "select count(*) from flexcore.projections p \
             join unnest($1::text[], $2::text[]) as d (name, fingerprint) \
                 on p.read_model = d.name and p.fingerprint = d.fingerprint \
             where p.state = 'serving'",
        )
        .bind(&names)
        .bind(&query.fingerprints)
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs() == names.len() as u64)
    }
}

/// A statement as it runs.
pub(crate) struct Whole {
    pub(crate) text: String,
    /// Bytes of it before the author's part.
    pub(crate) before: usize,
}

/// The whole statement that runs an author's: its rows as one JSON array, null where that is too large.
pub(crate) fn whole(sql: &str) -> Whole {
    let head = format!(
        "select case when octet_length(rows) <= {RESULT_BYTES_MAX} then rows end as rows, count \
         from (select coalesce(json_agg(row_to_json(_q)), '[]')::text as rows, \
         count(*) as count from (select * from ("
    );
    // The statement may end in a comment: hence the line's end after it.
    let text = format!("{head}{sql}\n) as _statement limit {}) as _q) as _all", ROWS_MAX + 1);
    Whole { text, before: head.len() }
}

/// A value for each declared parameter, in the order of their declaration.
fn values<'q>(
    query: &'q QueryDefinition,
    params: &[(String, String)],
) -> Result<Vec<(&'q Name, Cell)>, Error> {
    for (given, _) in params {
        if !query.parameters.iter().any(|parameter| parameter.name.as_str() == given) {
            return Err(Error::UnknownParameter {
                query: query.name.clone(),
                parameter: cut(given),
                known: query.parameters.iter().map(|p| p.name.to_string()).collect(),
            });
        }
    }
    let invalid = |name: &Name, value: &str, of: ColumnType| Error::InvalidValue {
        name: name.to_string(),
        value: cut(value),
        expected: of.describe().to_owned(),
    };
    let mut values = Vec::with_capacity(query.parameters.len());
    for parameter in &query.parameters {
        let (name, column_type) = (&parameter.name, parameter.column_type);
        let mut given = params.iter().filter(|(given, _)| given == name.as_str());
        let cell = match (given.next(), given.next(), &parameter.default) {
            (Some(_), Some(_), _) => {
                let reason = "is given twice".to_owned();
                return Err(Error::InvalidOption { name: name.to_string(), reason });
            }
            (Some((_, text)), None, _) => Cell::from_text(column_type, text)
                .ok_or_else(|| invalid(name, text, column_type))?,
            (None, _, Some(default)) => Cell::from_json(column_type, default)
                .ok_or_else(|| invalid(name, &default.to_string(), column_type))?,
            (None, _, None) => {
                let (query, parameter) = (query.name.clone(), name.clone());
                return Err(Error::MissingParameter { query, parameter });
            }
        };
        values.push((name, cell));
    }
    Ok(values)
}

/// The statement with `$n` for each `:name`, and which parameter each `$n` is.
pub(crate) fn positional(
    sql: &str,
    query: &Name,
    names: &[&Name],
) -> Result<(String, Vec<usize>), Error> {
    let mut used: Vec<usize> = Vec::new();
    let sql = substitute(sql, query, names, |index| {
        let at = used.iter().position(|known| *known == index).unwrap_or_else(|| {
            used.push(index);
            used.len() - 1
        });
        format!("${}", at + 1)
    })?;
    Ok((sql, used))
}

/// The statement with something else for each `:name`, line by line as it was. Fails with
/// [`Error::QueryFailed`] when a name is not among `names`, or the statement has a token without an end.
pub(crate) fn substitute(
    sql: &str,
    query: &Name,
    names: &[&Name],
    mut by: impl FnMut(usize) -> String,
) -> Result<String, Error> {
    let by = |name: &str| names.iter().position(|known| known.as_str() == name).map(&mut by);
    with_parameters(sql, by).map_err(|message| Error::QueryFailed { query: query.clone(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_are_replaced() {
        let names = [Name::parse("a").unwrap(), Name::parse("b_2").unwrap()];
        let names: Vec<&Name> = names.iter().collect();
        let query = Name::parse("q").unwrap();
        let read = |sql| positional(sql, &query, &names).map_err(|error| error.to_string());
        let sql = "select ':a', \":a\", e'\\':a', $$:a$$, $t$ $$:a$t$, x::a -- :a\n \
                   /* :a /* */ :a */ where c = :b_2 and d=:a and é = :b_2;";
        let (out, used) = read(sql).unwrap();
        let expected = sql.replace("c = :b_2", "c = $1").replace("d=:a", "d=$2");
        let expected = expected.replace("é = :b_2;", "é = $1");
        assert_eq!((out, used), (expected, vec![1, 0]));
        assert!(read("select :c").unwrap_err().contains(":c is not a declared parameter"));
        for open in ["'", "\"", "/* /*", "e'\\", "$t$", "$"] {
            assert!(read(open).is_err(), "{open}");
        }
    }
}
