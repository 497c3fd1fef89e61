//! Names that are taken, each with who took it.

/// Names of columns: the tenant's, and Postgres' own hidden ones.
const COLUMNS: [&str; 7] = ["tenant", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// Parameters of a question for rows.
pub const LIMIT: &str = "limit";
/// See [`LIMIT`].
pub const SORT: &str = "sort";
/// See [`LIMIT`].
pub const FIELDS: &str = "fields";
/// See [`LIMIT`].
pub const CURSOR: &str = "cursor";
/// Parameters of every question, for rows and of a named query.
pub const MIN_POSITION: &str = "min_position";
/// See [`MIN_POSITION`].
pub const WAIT_MS: &str = "wait_ms";

/// True if no column can have the name, because it could not be written, or not be filtered by.
pub(super) fn is_no_column(name: &str) -> bool {
    COLUMNS.contains(&name)
        || [LIMIT, SORT, FIELDS, CURSOR].contains(&name)
        || is_no_parameter(name)
}

/// True if no parameter of a named query can have the name, because it could not be given.
pub(super) fn is_no_parameter(name: &str) -> bool {
    [MIN_POSITION, WAIT_MS].contains(&name)
}

/// True if tables of versions have such names: `orders_v1` is one of the read model `orders`.
pub(super) fn is_of_a_version(name: &str) -> bool {
    let number = name.rsplit_once("_v").map(|(_, number)| number);
    number.is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
}
