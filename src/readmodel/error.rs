//! Errors, by the action that a caller can take.

use std::time::Duration;

use flexcore_domain::{Name, Slot};

/// Why a read model could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The caller named a column that the read model does not declare.
    #[error("{read_model} has no column {column}; it has: {}", known.join(", "))]
    UnknownColumn {
        /// The read model.
        read_model: Name,
        /// The column as it was given, cut short.
        column: String,
        /// The columns that there are.
        known: Vec<String>,
    },
    /// A value does not fit the type of its column or parameter.
    #[error("{name}: {value:?} is not {expected}")]
    InvalidValue {
        /// The column or parameter.
        name: String,
        /// The value, cut short.
        value: String,
        /// The expected kind, such as `an integer`.
        expected: String,
    },
    /// `sort`, `fields`, `limit` or a filter is malformed or asks for too much.
    #[error("{name}: {reason}")]
    InvalidOption {
        /// Its name.
        name: String,
        /// Why, and what would do.
        reason: String,
    },
    /// The cursor is no cursor, or one of another query.
    #[error(
        "cursor: not the cursor of this query; \
         pass on next_cursor unchanged, with the same filters and sort"
    )]
    InvalidCursor,
    /// The query has no such parameter.
    #[error("{query} has no parameter {parameter}; it has: {}", known.join(", "))]
    UnknownParameter {
        /// The query.
        query: Name,
        /// The parameter as it was given, cut short.
        parameter: String,
        /// The parameters that there are.
        known: Vec<String>,
    },
    /// The query needs a parameter that was not given.
    #[error("{query} needs the parameter {parameter}")]
    MissingParameter {
        /// The query.
        query: Name,
        /// The parameter.
        parameter: Name,
    },
    /// The query's statement itself fails: a mistake of its author, or a division by zero.
    #[error("query {query} fails: {message}")]
    QueryFailed {
        /// The query.
        query: Name,
        /// Postgres' message.
        message: String,
    },
    /// The server's settings contradict what its acknowledgements are to promise.
    #[error("{0}")]
    Misconfigured(String),
    /// The query has more rows than are returned at once.
    #[error("query {query} has more than {max} rows; add a limit to its statement")]
    TooManyRows {
        /// The query.
        query: Name,
        /// Most rows that are returned.
        max: usize,
    },
    /// The query's rows take more bytes than are returned at once.
    #[error(
        "the rows of query {query} take more than {bytes_max} bytes; let its statement return less"
    )]
    ResultTooLarge {
        /// The query.
        query: Name,
        /// Most bytes that are returned.
        bytes_max: usize,
    },
    /// The column is declared, but the version that has it is being built. Leave it out, or try again
    /// later.
    #[error(
        "{read_model} has no column {column} yet: the version that has it is being built; leave it \
         out, or try again in a while"
    )]
    ColumnNotBuilt {
        /// The read model.
        read_model: Name,
        /// The column.
        column: String,
    },
    /// No version of the read model serves yet, or the one that serves has another declaration:
    /// it is being built. Try again later.
    #[error("{0} is being built; try again in a while")]
    NotBuilt(String),
    /// The read model has not passed the position in time.
    #[error("{read_model} has not passed position {wanted} of slot {slot} yet; it is at {passed}")]
    NotYet {
        /// The read model.
        read_model: Name,
        /// The position's slot.
        slot: Slot,
        /// The position's sequence.
        wanted: u64,
        /// Where the read model is.
        passed: u64,
    },
    /// Too many requests wait for a position already.
    #[error("too many requests wait for read models; try again")]
    TooManyWaiters,
    /// The query took longer than it may.
    #[error("the query took longer than {} ms; narrow it", .0.as_millis())]
    Timeout(Duration),
    /// The tenant's other queries have all the sessions that it may have.
    #[error("the tenant's other queries take all the places that it has")]
    NoPlace,
    /// Postgres does not answer, or not now. A write's outcome is unknown then: read the checkpoint.
    #[error("Postgres is unavailable: {0}")]
    Unavailable(String),
    /// A statement takes more of Postgres than one may, such as bytes of temporary files: it does each time.
    #[error("the statement takes more than it may: {0}")]
    TooMuch(String),
    /// Postgres is there, and has no memory or no disk for this. What takes less may find some; later this
    /// may, too.
    #[error("Postgres has no room for this: {0}")]
    Exhausted(String),
    /// A statement would write where nothing can be written. A query never may; a writer's server only reads
    /// until another one has taken over.
    #[error("nothing can be written: {0}")]
    ReadOnly(String),
    /// Somebody keeps a version's table locked, for longer than a batch waits. Nothing was written:
    /// write the other versions without it.
    #[error("somebody has locked its table; it is written when the lock is gone")]
    Locked {
        /// The version's id.
        version: i64,
        /// Its read model.
        read_model: Name,
    },
    /// Another worker has taken the projection over: this one must stop writing.
    #[error("fenced: epoch {held} was overtaken by {found}")]
    Fenced {
        /// The epoch that this worker holds.
        held: i64,
        /// The one that the checkpoint has.
        found: i64,
    },
    /// The checkpoint is not where this writer left it: read it again, and go on from there.
    #[error("the checkpoint moved since it was read")]
    Moved,
    /// These changes cannot be applied; nothing was written.
    #[error("{} events cannot be applied", changes.len())]
    Unappliable {
        /// Index of the part.
        part: usize,
        /// The changes, by their index in the part, each with the reason.
        changes: Vec<(usize, String)>,
    },
    /// A table or view cannot be changed: somebody uses it, or somebody else's object depends on
    /// it.
    #[error("{0}")]
    InTheWay(String),
    /// A part of the schemas `flexcore` and `rm` is not there.
    #[error("read models' tables are missing: {0}")]
    Gone(String),
    /// Nothing has this name.
    #[error("no read model {name}; there are: {}", known.join(", "))]
    UnknownReadModel {
        /// The name as it was given.
        name: String,
        /// The read models that there are.
        known: Vec<String>,
    },
    /// Postgres refused for a reason that no retry cures.
    #[error("Postgres refused: {0}")]
    Database(String),
}

/// Classes and codes of SQLSTATE that say "not now".
fn is_passing(code: &str) -> bool {
    // 08 connection, 28 the login is refused, 3D the database is not there, 40 serialisation and
    // deadlock, 53 resources (too many connections, disk full), but for a limit that the statement meets
    // each time, 57 shutdown, start and cancelled; 54, limits of Postgres itself, is not among them;
    // 25006 read only, as another server is until it has taken over, 55P03 lock not available, 58030 its
    // disk fails, until it has another one, or another server has taken over; 25P02 a transaction that
    // failed before, 25P03 one that paused for too long.
    let classes = ["08", "28", "3D", "40", "53", "57"];
    let is_of_class = classes.iter().any(|class| code.starts_with(class));
    is_of_class && code != OVER_LIMIT
        || [READ_ONLY, "25P02", "25P03", LOCKED, "58030"].contains(&code)
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(inner) => {
                Self::raised(&inner.code().unwrap_or_default(), inner.message().to_owned())
            }
            sqlx::Error::PoolTimedOut => Self::Unavailable("no connection in time".to_owned()),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error.to_string()),
            _ => Self::Database(error.to_string()),
        }
    }
}

impl Error {
    /// What Postgres raised, by its SQLSTATE.
    fn raised(code: &str, message: String) -> Self {
        match code {
            // invalid_schema_name.
            "3F000" | NO_TABLE => Self::Gone(message),
            OVER_LIMIT => Self::TooMuch(message),
            DISK_FULL | NO_MEMORY => Self::Exhausted(message),
            READ_ONLY => Self::ReadOnly(message),
            code if is_passing(code) => Self::Unavailable(message),
            _ => Self::Database(message),
        }
    }

    /// True if a query string is at fault that may fit other columns than those it was held to.
    #[must_use]
    pub fn hangs_on_columns(&self) -> bool {
        matches!(self, Self::UnknownColumn { .. } | Self::InvalidValue { .. })
    }

    /// True if trying again later may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::Exhausted(_)
                | Self::ReadOnly(_)
                | Self::Moved
                | Self::Gone(_)
                | Self::Locked { .. }
        )
    }
}

/// dependent_objects_still_exist.
pub(crate) const DEPENDENT: &str = "2BP01";
/// lock_not_available.
pub(crate) const LOCKED: &str = "55P03";
/// insufficient_privilege.
pub(crate) const FORBIDDEN: &str = "42501";
/// undefined_table.
pub(crate) const NO_TABLE: &str = "42P01";
/// read_only_sql_transaction.
const READ_ONLY: &str = "25006";
/// disk_full.
const DISK_FULL: &str = "53100";
/// out_of_memory.
const NO_MEMORY: &str = "53200";
/// configuration_limit_exceeded: here `temp_file_limit`, which the login of queries has.
const OVER_LIMIT: &str = "53400";
/// query_canceled: here by its time limit.
pub(crate) const CANCELLED: &str = "57014";

/// The obstacle to a change of a read model's tables or view; `None`: the error is another.
pub(crate) fn in_the_way(error: &sqlx::Error) -> Option<Error> {
    let raised = error.as_database_error()?;
    let advice = match raised.code().as_deref() {
        Some(LOCKED) => "it is in use; tried again until it is free",
        Some(DEPENDENT) => "drop what depends on it; tried again until then",
        _ => return None,
    };
    let raised = raised.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let detail = raised.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    Some(Error::InTheWay(format!("{}{detail}: {advice}", raised.message())))
}

/// SQLSTATE of an error that Postgres raised.
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|inner| inner.code()).map(Into::into)
}

/// True if an error says "not now" about any request to Postgres.
pub(crate) fn passes(error: &sqlx::Error) -> bool {
    code(error).is_none_or(|code| is_passing(&code))
}

/// True if an error says that Postgres is not there: the connection was lost or refused, the server
/// starts, ends or only reads, or our objects in it are gone.
pub(crate) fn is_absent(error: &sqlx::Error) -> bool {
    let codes = ["57P", "08", "28", "3D", READ_ONLY, "3F000", NO_TABLE];
    code(error).is_none_or(|code| codes.iter().any(|start| code.starts_with(start)))
}

/// At most 40 characters of what a stranger sent, for an error's text.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_waited_out_and_a_mistake_is_not() {
        for code in [
            "08006", "28P01", "3D000", "40001", "53100", "53200", "53300", "57P01", "25006",
            "25P02", "25P03", "55P03", "58030",
        ] {
            assert!(is_passing(code), "{code}");
        }
        for code in ["42703", "42501", "22012", "23505", "53400", "54001", "XX001", "58P01", ""] {
            assert!(!is_passing(code), "{code}");
        }
    }

    /// One tenant's query that took too many temporary files had everybody's refused.
    #[test]
    fn what_a_statement_asks_for_is_told_from_an_outage() {
        let of = |code| Error::raised(code, "why".to_owned());
        assert!(matches!(of("53400"), Error::TooMuch(_)));
        assert!(matches!(of("54001"), Error::Database(_)));
        assert!(matches!(of("53100"), Error::Exhausted(_)));
        assert!(matches!(of("53200"), Error::Exhausted(_)));
        assert!(matches!(of("25006"), Error::ReadOnly(_)));
        for code in ["53300", "53000", "57P01", "08006"] {
            assert!(matches!(of(code), Error::Unavailable(_)), "{code}");
        }
        for code in ["53100", "53200", "53300", "25006", "57P01", "3F000"] {
            assert!(of(code).is_passing(), "{code}: writers wait for it");
        }
        assert!(!of("53400").is_passing());
    }
}
