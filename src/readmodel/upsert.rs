//! The statements that change rows: of all rows that are changed the same way at once.

use flexcore_definition::{Cell, Column};
use sqlx::{Arguments as _, postgres::PgArguments};

use crate::{
    cell::bind_all,
    fold::{Delta, ON_ITS_WAY_MAX, Row},
    plan::{Layout, size_bytes},
};

/// Most bytes of values in a statement, but for those of a single row: Postgres takes messages of 1 GiB, and
/// both sides have a statement in memory several times.
const STATEMENT_BYTES_MAX: usize = 32 << 20;

/// A row, and how its columns are changed.
pub(crate) type Changed<'r> = (&'r Row<'r>, &'r [Delta]);

/// Binds the rows' keys; returns the table `_k` of them. No column's name begins with `_`, as those do that
/// statements make up.
pub(crate) fn bind_keys<'r, 'a: 'r>(
    arguments: &mut PgArguments,
    layout: &Layout,
    rows: impl Iterator<Item = &'r Row<'a>> + Clone,
) -> String {
    let tenants: Vec<&str> = rows.clone().map(|row| row.tenant.as_str()).collect();
    arguments.add(tenants).expect("BUG: text encodes without fail");
    let (mut types, mut names) = (vec!["$1::text[]".to_owned()], vec!["tenant".to_owned()]);
    for (at, column) in layout.key.iter().enumerate() {
        bind_all(arguments, column.column_type, rows.clone().map(|row| &row.key[at]));
        types.push(format!("${}::{}[]", at + 2, column.column_type.sql()));
        names.push(format!("\"{}\"", column.name));
    }
    format!("unnest({}) with ordinality as _k({}, _place)", types.join(", "), names.join(", "))
}

/// The condition that a row of `_t` is the one of `_k`.
pub(crate) fn matches(layout: &Layout) -> String {
    let equal = |column: &Column| format!(" and _t.\"{0}\" = _k.\"{0}\"", column.name);
    format!("_t.tenant = _k.tenant{}", layout.key.iter().map(equal).collect::<String>())
}

/// The statement that inserts or changes rows whose deltas touch the same columns the same way.
pub(crate) fn upsert(
    table: &str,
    layout: &Layout,
    shape: &[u8],
    rows: &[Changed<'_>],
    arguments: &mut PgArguments,
) -> String {
    let tenants: Vec<&str> = rows.iter().map(|(row, _)| row.tenant.as_str()).collect();
    arguments.add(tenants).expect("BUG: text encodes without fail");
    let (mut names, mut types) = (vec!["tenant".to_owned()], vec!["$1::text[]".to_owned()]);
    let mut placed = |column: &Column| {
        names.push(format!("\"{}\"", column.name));
        types.push(format!("${}::{}[]", types.len() + 1, column.column_type.sql()));
    };
    for (at, column) in layout.key.iter().enumerate() {
        bind_all(arguments, column.column_type, rows.iter().map(|(row, _)| &row.key[at]));
        placed(column);
    }
    let mut sets = Vec::new();
    for (at, (column, operation)) in layout.columns.iter().zip(shape).enumerate() {
        let name = format!("\"{}\"", column.name);
        sets.push(match operation {
            b'-' => continue,
            b's' => format!("{name} = excluded.{name}"),
            b'a' => format!("{name} = coalesce(_t.{name}, 0) + excluded.{name}"),
            // A value so large may pass 64 bits on the way: refused, it is added to one by one.
            b'b' => format!(
                "{name} = coalesce(_t.{name}, 0) + excluded.{name} \
                 + 0 / (coalesce(_t.{name}, 0) between -{ON_ITS_WAY_MAX} and {ON_ITS_WAY_MAX})::int"
            ),
            b'<' => format!("{name} = least(_t.{name}, excluded.{name})"),
            _ => format!("{name} = greatest(_t.{name}, excluded.{name})"),
        });
        placed(column);
        if matches!(operation, b'a' | b'b') {
            let sums = rows.iter().map(|(_, deltas)| match &deltas[at] {
                Delta::Add(sum) => sum.total,
                _ => 0,
            });
            arguments.add(sums.collect::<Vec<i64>>()).expect("BUG: integers encode without fail");
        } else {
            bind_all(
                arguments,
                column.column_type,
                rows.iter().map(|(_, deltas)| operand(&deltas[at])),
            );
        }
    }
    let key: Vec<String> = layout.key.iter().map(|c| format!("\"{}\"", c.name)).collect();
    let action = match sets.as_slice() {
        [] => "nothing".to_owned(),
        sets => format!("update set {}", sets.join(", ")),
    };
    format!(
        "insert into {table} as _t ({}) select * from unnest({}) \
         on conflict (tenant, {}) do {action}",
        names.join(", "),
        types.join(", "),
        key.join(", "),
    )
}

fn operand(delta: &Delta) -> &Cell {
    match delta {
        Delta::Set(cell) | Delta::Min(cell) | Delta::Max(cell) => cell,
        Delta::Same | Delta::Add(_) | Delta::Replay(_) => &Cell::Null,
    }
}

/// The way in which a column is changed, in the shape of a row's change.
pub(crate) fn operation(delta: &Delta) -> u8 {
    match delta {
        Delta::Same => b'-',
        Delta::Set(_) => b's',
        Delta::Add(sum) if sum.comes_back() => b'b',
        Delta::Add(_) => b'a',
        Delta::Min(_) => b'<',
        Delta::Max(_) => b'>',
        Delta::Replay(_) => unreachable!("BUG: replays are resolved before rows are written"),
    }
}

/// The rows of a shape in runs, each for a statement.
pub(crate) fn runs<'s, 'r>(rows: &'s [Changed<'r>]) -> Vec<&'s [Changed<'r>]> {
    in_runs(rows, STATEMENT_BYTES_MAX, row_bytes)
}

/// The items in runs, each of so many bytes at most, or of one item.
fn in_runs<T>(items: &[T], bytes_max: usize, bytes_of: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut runs, mut start, mut bytes) = (Vec::new(), 0, 0_usize);
    for (at, item) in items.iter().enumerate() {
        let more = bytes_of(item);
        if at > start && bytes + more > bytes_max {
            runs.push(&items[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    if start < items.len() {
        runs.push(&items[start..]);
    }
    runs
}

/// The bytes of a row that are sent to Postgres, or more.
fn row_bytes((row, deltas): &Changed<'_>) -> usize {
    let cells = row.key.iter().chain(deltas.iter().map(operand));
    row.tenant.as_str().len() + cells.map(size_bytes).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One statement for all rows was once longer than Postgres takes: it closed the connection, and the batch
    /// was sent again for ever.
    #[test]
    fn long_rows_go_in_several_statements() {
        let cut = |sizes: &[usize]| -> Vec<Vec<usize>> {
            in_runs(sizes, 10, |size| *size).into_iter().map(<[usize]>::to_vec).collect()
        };
        assert_eq!(cut(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(cut(&[4, 6]), [vec![4, 6]]);
        assert_eq!(cut(&[4, 7, 3, 1]), [vec![4], vec![7, 3], vec![1]]);
        assert_eq!(cut(&[11, 1, 12]), [vec![11], vec![1], vec![12]], "each by itself");
    }
}
