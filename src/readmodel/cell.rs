//! Values of columns on their way to Postgres and back: each type as Postgres encodes it.

use flexcore_definition::{Cell, ColumnType};
use sqlx::{
    Arguments as _, Decode, Encode, Postgres, Row as _, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgRow, PgTypeInfo, PgValueRef},
};

/// `timestamptz`.
struct Micros(i64);

/// `date`.
struct Days(i32);

macro_rules! pg_type {
    ($type:ty, $scalar:literal, $array:literal) => {
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(sqlx::postgres::types::Oid($scalar))
            }
        }
        impl PgHasArrayType for $type {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(sqlx::postgres::types::Oid($array))
            }
        }
        impl<'r> Decode<'r, Postgres> for $type {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                Ok(Self(Decode::<Postgres>::decode(value)?))
            }
        }
        impl Encode<'_, Postgres> for $type {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                buffer.extend_from_slice(&self.0.to_be_bytes());
                Ok(IsNull::No)
            }
        }
    };
}
// The object ids of timestamptz, timestamptz[], date and date[] are the same in every Postgres.
pg_type!(Micros, 1184, 1185);
pg_type!(Days, 1082, 1182);

/// Reads a column of a row.
pub(crate) fn read(row: &PgRow, at: usize, column_type: ColumnType) -> Result<Cell, sqlx::Error> {
    let cell = match column_type {
        ColumnType::Text => row.try_get::<Option<&str>, _>(at)?.map(|t| Cell::Text(t.into())),
        ColumnType::Integer => row.try_get::<Option<_>, _>(at)?.map(Cell::Integer),
        ColumnType::Number => row.try_get::<Option<_>, _>(at)?.map(Cell::Number),
        ColumnType::Boolean => row.try_get::<Option<_>, _>(at)?.map(Cell::Boolean),
        ColumnType::Timestamp => {
            row.try_get::<Option<_>, _>(at)?.map(|Micros(value)| Cell::Timestamp(value))
        }
        ColumnType::Date => row.try_get::<Option<_>, _>(at)?.map(|Days(value)| Cell::Date(value)),
    };
    Ok(cell.unwrap_or(Cell::Null))
}

/// Adds a value to a statement's arguments, with the type of its column.
pub(crate) fn bind(arguments: &mut PgArguments, column_type: ColumnType, cell: &Cell) {
    macro_rules! one {
        ($type:ty, $cell:pat => $value:expr) => {{
            let value: Option<$type> = if let $cell = cell { Some($value) } else { None };
            arguments.add(value)
        }};
    }
    let added = match column_type {
        ColumnType::Text => one!(&str, Cell::Text(text) => &**text),
        ColumnType::Integer => one!(i64, Cell::Integer(value) => *value),
        ColumnType::Number => one!(f64, Cell::Number(value) => *value),
        ColumnType::Boolean => one!(bool, Cell::Boolean(value) => *value),
        ColumnType::Timestamp => one!(Micros, Cell::Timestamp(value) => Micros(*value)),
        ColumnType::Date => one!(Days, Cell::Date(value) => Days(*value)),
    };
    added.expect("BUG: these types encode without fail");
}

/// Adds the values of a column as one array.
pub(crate) fn bind_all<'c>(
    arguments: &mut PgArguments,
    column_type: ColumnType,
    cells: impl Iterator<Item = &'c Cell>,
) {
    macro_rules! array {
        ($type:ty, $cell:pat => $value:expr) => {{
            let values: Vec<Option<$type>> =
                cells.map(|cell| if let $cell = cell { Some($value) } else { None }).collect();
            arguments.add(values)
        }};
    }
    let added = match column_type {
        ColumnType::Text => array!(&str, Cell::Text(text) => &**text),
        ColumnType::Integer => array!(i64, Cell::Integer(value) => *value),
        ColumnType::Number => array!(f64, Cell::Number(value) => *value),
        ColumnType::Boolean => array!(bool, Cell::Boolean(value) => *value),
        ColumnType::Timestamp => array!(Micros, Cell::Timestamp(value) => Micros(*value)),
        ColumnType::Date => array!(Days, Cell::Date(value) => Days(*value)),
    };
    added.expect("BUG: these types encode without fail");
}
