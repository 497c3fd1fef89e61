//! Named queries: `:name` becomes a typed argument, the rest is the author's SQL.

use flexcore_domain::{Name, Tenant, definition::QueryDefinition};
use sqlx::{AssertSqlSafe, Row as _, postgres::PgArguments};

use crate::{
    Error, ReadModels,
    cell::{Cell, expected},
    error::{code, cut},
};

/// Most rows that a named query returns.
pub const ROWS_MAX: usize = 10_000;

impl ReadModels {
    /// Runs a named query for one tenant, read only; returns a JSON array of objects. Fails when a
    /// parameter is unknown, missing or of another type, with [`Error::NotBuilt`], with
    /// [`Error::Timeout`], with [`Error::TooManyRows`], and with [`Error::QueryFailed`] when the
    /// statement itself is at fault.
    pub async fn run_query(
        &self,
        tenant: &Tenant,
        query: &QueryDefinition,
        params: &[(String, String)],
    ) -> Result<String, Error> {
        let values = values(query, params)?;
        let (sql, used) = positional(&query.sql, &query.name, &values)?;
        let mut arguments = PgArguments::default();
        for index in used {
            let (parameter, cell) = (&query.parameters[index], &values[index].1);
            cell.bind(parameter.kind, &mut arguments);
        }
        // The statement may end in a comment: hence the line's end after it.
        let sql = format!(
            "select coalesce(json_agg(row_to_json(_q)), '[]')::text as rows, count(*) as count \
             from (select * from ({sql}\n) as _statement limit {}) as _q",
            ROWS_MAX + 1
        );
        let mut transaction = self.read_as(tenant).await?;
        let row = sqlx::query_with(AssertSqlSafe(sql), arguments)
            .fetch_one(&mut *transaction)
            .await
            .map_err(|error| self.query_failed(query, error))?;
        transaction.rollback().await?;
        let count: i64 = row.try_get("count")?;
        if count > ROWS_MAX as i64 {
            return Err(Error::TooManyRows { query: query.name.clone(), max: ROWS_MAX });
        }
        Ok(row.try_get("rows")?)
    }

    fn query_failed(&self, query: &QueryDefinition, error: sqlx::Error) -> Error {
        match code(&error).as_deref() {
            Some("57014") => Error::Timeout(self.settings.statement_timeout),
            Some("42P01" | "42703") => {
                let reads: Vec<&str> = query.reads.iter().map(Name::as_str).collect();
                Error::NotBuilt(format!(
                    "{} (or something that it reads: {error})",
                    reads.join(", ")
                ))
            }
            _ => match Error::from(error) {
                Error::Database(message) => {
                    Error::QueryFailed { query: query.name.clone(), message }
                }
                other => other,
            },
        }
    }
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
    let invalid = |name: &Name, value: &str, kind| Error::InvalidValue {
        name: name.to_string(),
        value: cut(value),
        expected: expected(kind).to_owned(),
    };
    let mut values = Vec::with_capacity(query.parameters.len());
    for parameter in &query.parameters {
        let (name, kind) = (&parameter.name, parameter.kind);
        let mut given = params.iter().filter(|(given, _)| given == name.as_str());
        let cell = match (given.next(), given.next(), &parameter.default) {
            (Some(_), Some(_), _) => {
                let reason = "is given twice".to_owned();
                return Err(Error::InvalidOption { name: name.to_string(), reason });
            }
            (Some((_, text)), None, _) => {
                Cell::from_text(kind, text).ok_or_else(|| invalid(name, text, kind))?
            }
            (None, _, Some(default)) => Cell::from_json(kind, default)
                .ok_or_else(|| invalid(name, &default.to_string(), kind))?,
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
fn positional(
    sql: &str,
    query: &Name,
    values: &[(&Name, Cell)],
) -> Result<(String, Vec<usize>), Error> {
    let failed = |message: String| Error::QueryFailed { query: query.clone(), message };
    let sql = sql.trim().trim_end_matches(';');
    let mut out = String::with_capacity(sql.len());
    let mut used: Vec<usize> = Vec::new();
    let mut rest = sql;
    while !rest.is_empty() {
        let (token, kind) = next_token(rest);
        rest = &rest[token.len()..];
        match kind {
            Token::Parameter => {
                let name = &token[1..];
                let index = values
                    .iter()
                    .position(|(known, _)| known.as_str() == name)
                    .ok_or_else(|| failed(format!("{token} is not a declared parameter")))?;
                let at = used.iter().position(|known| *known == index).unwrap_or_else(|| {
                    used.push(index);
                    used.len() - 1
                });
                out.push_str(&format!("${}", at + 1));
            }
            // Would let a statement choose the tenant that it runs for.
            Token::Word if token.eq_ignore_ascii_case("set_config") => {
                return Err(failed("set_config is not allowed in a query".to_owned()));
            }
            Token::Word | Token::Other => out.push_str(token),
        }
    }
    Ok((out, used))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Parameter,
    Word,
    Other,
}

/// The first token of a text that is not empty: a string, comment, quoted name or cast as a whole.
fn next_token(text: &str) -> (&str, Token) {
    let end_of = |from: usize, mark: &str| {
        text[from..].find(mark).map_or(text.len(), |at| from + at + mark.len())
    };
    let word = |from: usize| {
        text[from..]
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
            .map_or(text.len(), |at| from + at)
    };
    let bytes = text.as_bytes();
    let (length, token) = match (bytes[0], bytes.get(1)) {
        (b'\'', _) => (end_of(1, "'"), Token::Other),
        (b'"', _) => (end_of(1, "\""), Token::Other),
        (b'-', Some(b'-')) => (end_of(2, "\n"), Token::Other),
        (b'/', Some(b'*')) => (comment_length(text), Token::Other),
        (b':', Some(b':')) => (2, Token::Other),
        (b':', Some(b'a'..=b'z')) => (word(1), Token::Parameter),
        (b'e' | b'E', Some(b'\'')) => (escaped_length(text), Token::Other),
        (b'$', _) => (dollar_length(text), Token::Other),
        (first, _) if first.is_ascii_alphanumeric() || first == b'_' || first >= 0x80 => {
            (word(0).max(text.chars().next().map_or(1, char::len_utf8)), Token::Word)
        }
        _ => (1, Token::Other),
    };
    (&text[..length], token)
}

/// Comments nest.
fn comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// `e'…'`, in which a backslash escapes a quote.
fn escaped_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `$tag$ … $tag$`, or the dollar alone.
fn dollar_length(text: &str) -> usize {
    let tag = text[1..].find(|c: char| !(c.is_alphanumeric() || c == '_')).map(|at| at + 1);
    match tag {
        Some(end) if text.as_bytes()[end] == b'$' => {
            let tag = &text[..=end];
            text[tag.len()..].find(tag).map_or(text.len(), |at| at + 2 * tag.len())
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_are_replaced() {
        let names = [Name::parse("a").unwrap(), Name::parse("b_2").unwrap()];
        let values: Vec<_> = names.iter().map(|name| (name, Cell::Null)).collect();
        let query = Name::parse("q").unwrap();
        let read = |sql| positional(sql, &query, &values).map_err(|error| error.to_string());
        let sql = "select ':a', \":a\", e'\\':a', $$:a$$, $t$ $$:a$t$, x::a -- :a\n \
                   /* :a /* */ :a */ where c = :b_2 and d=:a and é = :b_2;";
        let (out, used) = read(sql).unwrap();
        let expected = sql.replace("c = :b_2", "c = $1").replace("d=:a", "d=$2");
        let expected = expected.replace("é = :b_2;", "é = $1");
        assert_eq!((out, used), (expected, vec![1, 0]));
        assert!(read("select :c").unwrap_err().contains(":c is not a declared parameter"));
        assert!(read("select Set_Config('flexcore.tenant', 'b', true)").is_err());
        for open in ["'", "\"", "/* /*", "e'\\", "$t$", "$", ":", "-- x"] {
            assert_eq!(read(open).unwrap().0, open);
        }
    }
}
