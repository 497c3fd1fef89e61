//! Errors of the database, as failures: with their SQLSTATE, and whether they pass.

use std::io;

use flexcore_sdk::Failure;
use serde_json::json;
use sqlx::postgres::PgDatabaseError;

/// Characters of a name in the details. 63: what Postgres takes.
const NAME_CHARACTERS_MAX: usize = 63;

/// Why a statement was not run, or its rows are not told.
pub(super) enum Trouble {
    /// From the database or on the way there.
    Sql(sqlx::Error),
    /// Of this plugin: the connection has an answer in it that nobody has read to its end.
    Unread(Failure),
}

impl Trouble {
    /// Of this machine.
    pub(super) fn here(error: io::Error) -> Self {
        Self::Sql(sqlx::Error::Io(error))
    }

    /// True if the database has said no and waits for what is next.
    pub(super) fn leaves_a_connection(&self) -> bool {
        matches!(self, Self::Sql(sqlx::Error::Database(_)))
    }

    /// The database may have committed, unless it says that it has not.
    pub(super) fn while_committing(self) -> Failure {
        if self.leaves_a_connection() {
            return self.into();
        }
        unknown_outcome(&Failure::from(self).message)
    }
}

/// Nobody is to run the statement again without a look at what came of it.
pub(super) fn unknown_outcome(why: &str) -> Failure {
    Failure::new("unknown_outcome", format!("it is not known what came of the statement: {why}"))
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let error = match trouble {
            Trouble::Unread(failure) => return failure,
            Trouble::Sql(error) => error,
        };
        if let Some(error) = of_database(&error) {
            return failure(error);
        }
        match error {
            sqlx::Error::Io(error) => Self::passing("no_connection", format!("database: {error}")),
            sqlx::Error::Tls(error) => Self::new("no_tls", format!("database: {error}")),
            error => Self::new("broken_answer", format!("database: {error}")),
        }
    }
}

fn of_database(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// The details of Postgres itself are left out: they quote rows.
fn failure(error: &PgDatabaseError) -> Failure {
    let state = error.code();
    let code = if state == QUERY_CANCELED { "late".to_owned() } else { word(state) };
    let failure = if passes(state) {
        Failure::passing(code, error.message())
    } else {
        Failure::new(code, error.message())
    };
    failure.details(&json!({
        "sqlstate": named(Some(state)),
        "table": named(error.table()),
        "column": named(error.column()),
        "constraint": named(error.constraint()),
    }))
}

/// A name of a database that may be none.
fn named(name: Option<&str>) -> Option<String> {
    name.map(|name| name.chars().take(NAME_CHARACTERS_MAX).collect())
}

/// A statement that took longer than it may.
const QUERY_CANCELED: &str = "57014";

/// The code of the failure. A database that is none may send anything.
fn word(state: &str) -> String {
    let is_state = state.len() == 5 && state.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_state { format!("sqlstate_{}", state.to_ascii_lowercase()) } else { "refused".to_owned() }
}

/// True for outages, for what others were in the way of, and for what is full: classes and codes of
/// Postgres's appendix A.
fn passes(state: &str) -> bool {
    let class = state.get(..2).unwrap_or_default();
    let is_temporary_class = matches!(class, "08" | "40" | "53" | "58");
    // Locks that are not to be had, an object in use, and what an administrator does to a connection.
    let codes = ["55006", "55P03", QUERY_CANCELED, "57P01", "57P02", "57P03", "57P05"];
    // That a transaction cannot be serialised passes; that a statement's part of it failed does not.
    (is_temporary_class && state != "40002") || codes.contains(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_pass_and_mistakes_do_not() {
        for state in
            ["08006", "40001", "40P01", "53300", "53100", "55P03", "57014", "57P03", "58030"]
        {
            assert!(passes(state), "{state}");
        }
        for state in
            ["23505", "22P02", "25006", "28P01", "3D000", "42601", "42501", "40002", "", "é"]
        {
            assert!(!passes(state), "{state}");
        }
    }

    #[test]
    fn a_code_is_a_word_whatever_is_sent() {
        assert_eq!(word("42P01"), "sqlstate_42p01");
        for state in ["", "4", "42P011", "42 01", "ééé"] {
            assert_eq!(word(state), "refused");
        }
    }

    #[test]
    fn a_commit_without_an_answer_is_not_to_be_repeated() {
        let broken = || Trouble::here(io::Error::from(io::ErrorKind::BrokenPipe));
        let failure = Failure::from(broken());
        assert_eq!((failure.code.as_str(), failure.temporary), ("no_connection", true));
        let failure = broken().while_committing();
        assert_eq!((failure.code.as_str(), failure.temporary), ("unknown_outcome", false));
        assert!(!broken().leaves_a_connection());
    }
}
