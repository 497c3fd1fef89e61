//! Values of columns, as Postgres has them: checked here, so that no value fails inside a batch.

use flexcore_definition::{ColumnKind, exact_double};
use flexcore_domain::limits::INTEGER_EXACT_MAX;
use serde_json::Value;
use sqlx::{
    Arguments as _, Decode, Encode, Postgres, Row as _, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgRow, PgTypeInfo, PgValueRef},
};
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::date};

/// Microseconds since 2000-01-01 UTC: what Postgres stores as `timestamptz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) i64);

/// Days since 2000-01-01: what Postgres stores as `date`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Days(pub(crate) i32);

/// A value of a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// No value.
    Null,
    /// `text`, without NUL.
    Text(Box<str>),
    /// `bigint`.
    Integer(i64),
    /// `double precision`, finite.
    Number(f64),
    /// `boolean`.
    Boolean(bool),
    /// `timestamptz`.
    Timestamp(Micros),
    /// `date`.
    Date(Days),
}

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

/// Microseconds from 1970 to 2000.
const EPOCH_MICROS: i128 = 946_684_800_000_000;

impl Micros {
    /// From milliseconds since 1970-01-01 UTC; `None` beyond what Postgres can hold.
    #[must_use]
    pub(crate) fn from_unix_ms(ms: i64) -> Option<Self> {
        i64::try_from(i128::from(ms) * 1_000 - EPOCH_MICROS).ok().map(Self)
    }

    /// Reads RFC 3339; finer digits than microseconds are dropped.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
        i64::try_from(nanos.div_euclid(1_000) - EPOCH_MICROS).ok().map(Self)
    }
}

impl Days {
    /// Reads `YYYY-MM-DD`.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let number = |range: std::ops::Range<usize>| {
            let digits = text.get(range)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?
        };
        let month = u8::try_from(number(5..7)?).ok()?.try_into().ok()?;
        let day = u8::try_from(number(8..10)?).ok()?;
        let year = number(0..4).filter(|year| *year > 0)?;
        let date = Date::from_calendar_date(year.into(), month, day).ok()?;
        Some(Self(date.to_julian_day() - date!(2000 - 01 - 01).to_julian_day()))
    }
}

/// What a value of this kind is, for an error's text.
pub(crate) fn expected(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text => "text without NUL",
        ColumnKind::Integer => "an integer of 64 bits",
        ColumnKind::Number => "a number",
        ColumnKind::Boolean => "true or false",
        ColumnKind::Timestamp => "a time as in 2013-01-31T05:15:00Z (RFC 3339)",
        ColumnKind::Date => "a date as in 2013-01-31",
    }
}

/// The column's Postgres type. Text compares by bytes: the same order on every system, and a prefix
/// is a range of the index.
pub(crate) fn sql_type(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text => "text collate \"C\"",
        ColumnKind::Integer => "bigint",
        ColumnKind::Number => "double precision",
        ColumnKind::Boolean => "boolean",
        ColumnKind::Timestamp => "timestamptz",
        ColumnKind::Date => "date",
    }
}

impl Cell {
    /// Reads text as a query string has it. `None`: not a value of this kind.
    #[must_use]
    pub(crate) fn from_text(kind: ColumnKind, text: &str) -> Option<Self> {
        match kind {
            ColumnKind::Text => (!text.contains('\0')).then(|| Self::Text(text.into())),
            ColumnKind::Integer => text.parse().ok().map(Self::Integer),
            ColumnKind::Number => Self::number_from(text),
            ColumnKind::Boolean => match text {
                "true" => Some(Self::Boolean(true)),
                "false" => Some(Self::Boolean(false)),
                _ => None,
            },
            ColumnKind::Timestamp => Micros::parse(text).map(Self::Timestamp),
            ColumnKind::Date => Days::parse(text).map(Self::Date),
        }
    }

    /// Reads a JSON value; `null` is [`Cell::Null`]. `None`: not a value of this kind.
    #[must_use]
    pub(crate) fn from_json(kind: ColumnKind, value: &Value) -> Option<Self> {
        match (kind, value) {
            (_, Value::Null) => Some(Self::Null),
            (ColumnKind::Integer, Value::Number(number)) => integer(number).map(Self::Integer),
            (ColumnKind::Number, Value::Number(number)) => {
                exact_double(number).and_then(Self::number)
            }
            (ColumnKind::Boolean, Value::Bool(value)) => Some(Self::Boolean(*value)),
            (ColumnKind::Text | ColumnKind::Timestamp | ColumnKind::Date, Value::String(text)) => {
                Self::from_text(kind, text)
            }
            _ => None,
        }
    }

    /// Reads a column of a row.
    pub(crate) fn read(row: &PgRow, at: usize, kind: ColumnKind) -> Result<Self, sqlx::Error> {
        let cell = match kind {
            ColumnKind::Text => row.try_get::<Option<Box<str>>, _>(at)?.map(Self::Text),
            ColumnKind::Integer => row.try_get::<Option<_>, _>(at)?.map(Self::Integer),
            ColumnKind::Number => row.try_get::<Option<_>, _>(at)?.map(Self::Number),
            ColumnKind::Boolean => row.try_get::<Option<_>, _>(at)?.map(Self::Boolean),
            ColumnKind::Timestamp => row.try_get::<Option<_>, _>(at)?.map(Self::Timestamp),
            ColumnKind::Date => row.try_get::<Option<_>, _>(at)?.map(Self::Date),
        };
        Ok(cell.unwrap_or(Self::Null))
    }

    /// Reads a number as a query string has it, integers only as far as doubles tell them apart.
    fn number_from(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let whole: i128 = text.parse().ok()?;
            return (whole as f64 as i128 == whole).then_some(Self::Number(whole as f64));
        }
        text.parse().ok().and_then(Self::number)
    }

    /// A finite number; -0 becomes 0, because Postgres counts them as equal.
    fn number(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self::Number(value + 0.0))
    }

    /// Adds the value to a statement's arguments, with the type of its column.
    pub(crate) fn bind(&self, kind: ColumnKind, arguments: &mut PgArguments) {
        let added = match (self, kind) {
            (Self::Text(text), _) => arguments.add(&**text),
            (Self::Integer(value), _) => arguments.add(*value),
            (Self::Number(value), _) => arguments.add(*value),
            (Self::Boolean(value), _) => arguments.add(*value),
            (Self::Timestamp(value), _) => arguments.add(*value),
            (Self::Date(value), _) => arguments.add(*value),
            (Self::Null, ColumnKind::Text) => arguments.add(None::<String>),
            (Self::Null, ColumnKind::Integer) => arguments.add(None::<i64>),
            (Self::Null, ColumnKind::Number) => arguments.add(None::<f64>),
            (Self::Null, ColumnKind::Boolean) => arguments.add(None::<bool>),
            (Self::Null, ColumnKind::Timestamp) => arguments.add(None::<Micros>),
            (Self::Null, ColumnKind::Date) => arguments.add(None::<Days>),
        };
        added.expect("BUG: these types encode without fail");
    }
}

/// A JSON number that is an integer: `60`, and `60.0` as JavaScript and Python may write it.
pub(crate) fn integer(number: &serde_json::Number) -> Option<i64> {
    if let Some(value) = number.as_i64() {
        return Some(value);
    }
    // Beyond it a float no longer says which integer was meant.
    let value = number.as_f64().filter(|_| number.is_f64())?;
    (value.fract() == 0.0 && value.abs() <= INTEGER_EXACT_MAX as f64).then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_read_strictly() {
        assert_eq!(Days::parse("2000-01-02"), Some(Days(1)));
        assert_eq!(Days::parse("1999-12-31"), Some(Days(-1)));
        for text in
            ["", "2000-1-2", "2000-02-30", "0000-01-01", "+200-01-01", "2000-01-02T", "2o00-01-01"]
        {
            assert_eq!(Days::parse(text), None, "{text}");
        }
        assert_eq!(Micros::parse("2000-01-01T01:00:00.000001+01:00"), Some(Micros(1)));
        assert_eq!(Micros::parse("1999-12-31T23:59:59.9999999Z"), Some(Micros(-1)));
        assert_eq!(Micros::parse("2000-01-01"), None);
        assert_eq!(Micros::from_unix_ms(946_684_800_001), Some(Micros(1_000)));
    }

    /// `bigint` holds 64 bits; a double tells integers apart up to 2^53.
    #[test]
    fn integers_are_kept_exactly_or_refused() {
        use serde_json::json;
        for exact in [9_007_199_254_740_993, -9_007_199_254_740_993, i64::MAX, i64::MIN] {
            let (json, text) = (json!(exact), exact.to_string());
            assert_eq!(Cell::from_json(ColumnKind::Integer, &json), Some(Cell::Integer(exact)));
            assert_eq!(Cell::from_text(ColumnKind::Integer, &text), Some(Cell::Integer(exact)));
        }
        let refused = ["9007199254740993", "-9007199254740993", "18446744073709551615"];
        for text in refused {
            let json = serde_json::from_str(text).unwrap();
            assert_eq!(Cell::from_json(ColumnKind::Number, &json), None, "{text}");
            assert_eq!(Cell::from_text(ColumnKind::Number, text), None, "{text}");
        }
        assert_eq!(Cell::from_text(ColumnKind::Number, "36893488147419103233"), None, "2^65 + 1");
        assert_eq!(Cell::from_json(ColumnKind::Integer, &json!(9_007_199_254_740_994_f64)), None);
        let even = Some(Cell::Number(9_007_199_254_740_994.0));
        assert_eq!(Cell::from_text(ColumnKind::Number, "9007199254740994"), even);
        assert_eq!(Cell::from_json(ColumnKind::Number, &json!(9_007_199_254_740_994_i64)), even);
        assert_eq!(Cell::from_text(ColumnKind::Number, "-0"), Some(Cell::Number(0.0)));
        assert_eq!(Cell::from_text(ColumnKind::Number, "1e300"), Some(Cell::Number(1e300)));
    }

    #[test]
    fn json_values_must_fit_their_column() {
        use serde_json::json;
        let read = Cell::from_json;
        assert_eq!(read(ColumnKind::Integer, &json!(60.0)), Some(Cell::Integer(60)));
        assert_eq!(read(ColumnKind::Integer, &json!(u64::MAX)), None);
        assert_eq!(read(ColumnKind::Integer, &json!(0.5)), None);
        assert_eq!(read(ColumnKind::Integer, &json!("1")), None);
        assert_eq!(read(ColumnKind::Text, &json!("a\u{0}")), None);
        assert_eq!(read(ColumnKind::Text, &json!({"a": 1})), None);
        assert_eq!(read(ColumnKind::Number, &json!(1)), Some(Cell::Number(1.0)));
        assert_eq!(read(ColumnKind::Number, &json!(-0.0)), Some(Cell::Number(0.0)));
        assert_eq!(read(ColumnKind::Date, &json!(null)), Some(Cell::Null));
    }
}
