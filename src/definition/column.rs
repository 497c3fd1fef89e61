//! Columns, their types, and the values that they hold. All that there is to say about a type stands
//! here, but for how its values go over the wire to Postgres (`src/readmodel/cell.rs`).

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use flexcore_domain::{Name, commit::rfc3339, limits::INTEGER_EXACT_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::date};

use super::{Operation, notes::Notes, problem::did_you_mean, yaml::Node};

/// A declared column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub column_type: ColumnType,
}

/// Types of columns, and of parameters of named queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// Without U+0000, which Postgres cannot hold.
    Text,
    /// 64 bits.
    Integer,
    /// A finite double.
    Number,
    /// True or false.
    Boolean,
    /// To the microsecond.
    Timestamp,
    /// A day.
    Date,
}

/// A type in the words of everybody who meets it.
struct Words {
    /// In definitions.
    name: &'static str,
    /// In messages, with its article.
    described: &'static str,
    /// In SQL.
    sql: &'static str,
    /// In JSON Schema: type and format.
    json: (&'static str, Option<&'static str>),
}

impl ColumnType {
    /// Every type.
    pub const ALL: [Self; 6] =
        [Self::Text, Self::Integer, Self::Number, Self::Boolean, Self::Timestamp, Self::Date];

    const fn words(self) -> Words {
        let (name, described, sql, json) = match self {
            Self::Text => ("text", "a text without NUL", "text", ("string", None)),
            Self::Integer => {
                ("integer", "a whole number of 64 bits", "bigint", ("integer", Some("int64")))
            }
            Self::Number => ("number", "a number", "double precision", ("number", Some("double"))),
            Self::Boolean => ("boolean", "true or false", "boolean", ("boolean", None)),
            Self::Timestamp => (
                "timestamp",
                "a time such as 2013-01-01T05:15:00Z (RFC 3339)",
                "timestamptz",
                ("string", Some("date-time")),
            ),
            Self::Date => ("date", "a date such as 2013-01-01", "date", ("string", Some("date"))),
        };
        Words { name, described, sql, json }
    }

    /// Its name in definitions.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.words().name
    }

    /// A value of this type in words, with its article: `a whole number of 64 bits`.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        self.words().described
    }

    /// Its name in SQL.
    #[must_use]
    pub const fn sql(self) -> &'static str {
        self.words().sql
    }

    /// The declaration of such a column in SQL. Text compares by bytes: the same order on every
    /// system, and a prefix is a range of the index.
    #[must_use]
    pub fn sql_column(self) -> String {
        let collation = if self == Self::Text { " collate \"C\"" } else { "" };
        format!("{}{collation}", self.sql())
    }

    /// The JSON Schema of its values.
    #[must_use]
    pub fn json_schema(self) -> Value {
        match self.words().json {
            (json_type, Some(format)) => json!({"type": json_type, "format": format}),
            (json_type, None) => json!({"type": json_type}),
        }
    }

    /// True if it takes values of a JSON Schema type.
    pub(super) fn takes(self, schema_type: &str) -> bool {
        let own = self.words().json.0;
        schema_type == own || own == "number" && schema_type == "integer"
    }

    /// True if the operation makes sense on it.
    pub(super) fn allows(self, operation: Operation) -> bool {
        match operation {
            Operation::Set => true,
            Operation::Add => matches!(self, Self::Integer | Self::Number),
            Operation::Min | Operation::Max => self != Self::Boolean,
        }
    }

    /// Reads the type of a column or parameter.
    pub(super) fn read(node: &Node, notes: &mut Notes) -> Option<Self> {
        let word = notes.text(node, "a type")?;
        Self::ALL.into_iter().find(|known| known.as_str() == word).or_else(|| {
            let hint = did_you_mean(word, Self::ALL.map(Self::as_str));
            let known = Self::ALL.map(Self::as_str).join(", ");
            notes.add(node.line, format!("`{word}` is no type{hint}; there are {known}"))
        })
    }
}

/// A value of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// No value.
    Null,
    /// Without U+0000. Shared: a literal is set by every event.
    Text(Arc<str>),
    /// 64 bits.
    Integer(i64),
    /// Finite, and not -0.
    Number(f64),
    /// True or false.
    Boolean(bool),
    /// Microseconds since 2000-01-01 UTC, as Postgres stores them.
    Timestamp(i64),
    /// Days since 2000-01-01, as Postgres stores them.
    Date(i32),
}

/// A JSON value that is neither an array nor an object.
#[derive(Clone, Debug)]
pub enum Scalar<'a> {
    /// `null`, or nothing.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(std::borrow::Cow<'a, str>),
}

impl Cell {
    /// Reads text as a query string has it. `None`: not a value of this type.
    #[must_use]
    pub fn from_text(column_type: ColumnType, text: &str) -> Option<Self> {
        match column_type {
            ColumnType::Text => (!text.contains('\0')).then(|| Self::Text(text.into())),
            ColumnType::Integer => text.parse().ok().map(Self::Integer),
            ColumnType::Number => number_from(text),
            ColumnType::Boolean => match text {
                "true" => Some(Self::Boolean(true)),
                "false" => Some(Self::Boolean(false)),
                _ => None,
            },
            ColumnType::Timestamp => micros(text).map(Self::Timestamp),
            ColumnType::Date => days(text).map(Self::Date),
        }
    }

    /// Reads a JSON value; `null` is [`Cell::Null`]. `None`: not a value of this type.
    #[must_use]
    pub fn from_scalar(column_type: ColumnType, value: &Scalar<'_>) -> Option<Self> {
        match (column_type, value) {
            (_, Scalar::Null) => Some(Self::Null),
            (ColumnType::Integer, Scalar::Number(number)) => integer(number).map(Self::Integer),
            (ColumnType::Number, Scalar::Number(number)) => exact_double(number).and_then(finite),
            (ColumnType::Boolean, Scalar::Boolean(value)) => Some(Self::Boolean(*value)),
            (ColumnType::Text | ColumnType::Timestamp | ColumnType::Date, Scalar::Text(text)) => {
                Self::from_text(column_type, text)
            }
            _ => None,
        }
    }

    /// The same of a whole JSON value. `None`, too, for an array or an object.
    #[must_use]
    pub fn from_json(column_type: ColumnType, value: &Value) -> Option<Self> {
        let scalar = match value {
            Value::Null => Scalar::Null,
            Value::Bool(value) => Scalar::Boolean(*value),
            Value::Number(number) => Scalar::Number(number.clone()),
            Value::String(text) => Scalar::Text(text.as_str().into()),
            Value::Array(_) | Value::Object(_) => return None,
        };
        Self::from_scalar(column_type, &scalar)
    }

    /// A time in milliseconds since 1970-01-01 UTC. `None`: not for a column of this type.
    #[must_use]
    pub fn from_unix_ms(column_type: ColumnType, ms: i64) -> Option<Self> {
        let text = || rfc3339(ms);
        match column_type {
            ColumnType::Timestamp => {
                within_years(i128::from(ms) * 1_000 - EPOCH_MICROS).map(Self::Timestamp)
            }
            ColumnType::Date => Self::from_text(column_type, text().get(..10)?),
            ColumnType::Text => Some(Self::Text(text().into())),
            ColumnType::Integer | ColumnType::Number | ColumnType::Boolean => None,
        }
    }

    /// An aggregate's version. `None`: not for a column of this type.
    #[must_use]
    pub fn from_version(column_type: ColumnType, version: u64) -> Option<Self> {
        match column_type {
            ColumnType::Integer => i64::try_from(version).ok().map(Self::Integer),
            ColumnType::Number => Some(Self::Number(version as f64)),
            _ => None,
        }
    }

    /// The order of Postgres: numbers by value, text by bytes, false before true. Two values of
    /// different types have none.
    #[must_use]
    pub fn is_less(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a.as_bytes() < b.as_bytes(),
            (Self::Integer(a), Self::Integer(b)) | (Self::Timestamp(a), Self::Timestamp(b)) => {
                a < b
            }
            (Self::Number(a), Self::Number(b)) => a < b,
            (Self::Boolean(a), Self::Boolean(b)) => !a & b,
            (Self::Date(a), Self::Date(b)) => a < b,
            _ => false,
        }
    }
}

/// Numbers are finite and never -0, so that equal ones have the same bits.
impl Eq for Cell {}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Null => {}
            Self::Text(text) => text.hash(state),
            Self::Integer(value) | Self::Timestamp(value) => value.hash(state),
            Self::Number(value) => value.to_bits().hash(state),
            Self::Boolean(value) => value.hash(state),
            Self::Date(value) => value.hash(state),
        }
    }
}

/// Microseconds from 1970 to 2000.
const EPOCH_MICROS: i128 = 946_684_800_000_000;

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;

/// Reads RFC 3339; finer digits than microseconds are dropped.
fn micros(text: &str) -> Option<i64> {
    let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
    within_years(nanos.div_euclid(1_000) - EPOCH_MICROS)
}

/// A time in the years 1 to 9999 UTC: Postgres writes others in a way that is no RFC 3339, and the cursor
/// of a page would not be read again.
fn within_years(micros: i128) -> Option<i64> {
    let day = |date: Date| i64::from(date.to_julian_day() - date!(2000 - 01 - 01).to_julian_day());
    let first = day(date!(0001 - 01 - 01)) * DAY_MICROS;
    let end = (day(date!(9999 - 12 - 31)) + 1) * DAY_MICROS;
    i64::try_from(micros).ok().filter(|micros| (first..end).contains(micros))
}

/// Reads `YYYY-MM-DD`.
fn days(text: &str) -> Option<i32> {
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
    Some(date.to_julian_day() - date!(2000 - 01 - 01).to_julian_day())
}

/// A JSON number that is an integer: `60`, and `60.0` as JavaScript and Python may write it.
fn integer(number: &Number) -> Option<i64> {
    if let Some(value) = number.as_i64() {
        return Some(value);
    }
    // Beyond it a float no longer says which integer was meant.
    let value = number.as_f64().filter(|_| number.is_f64())?;
    (value.fract() == 0.0 && value.abs() <= INTEGER_EXACT_MAX as f64).then_some(value as i64)
}

/// A JSON number as a double, when it is no integer that a double cannot hold.
fn exact_double(number: &Number) -> Option<f64> {
    let double = number.as_f64()?;
    let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    // A double of that size is an integer, and 128 bits hold it.
    whole.is_none_or(|whole| double as i128 == whole).then_some(double)
}

/// Reads a number as a query string has it, integers only as far as doubles tell them apart.
fn number_from(text: &str) -> Option<Cell> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let whole: i128 = text.parse().ok()?;
        return (whole as f64 as i128 == whole).then_some(Cell::Number(whole as f64));
    }
    text.parse().ok().and_then(finite)
}

/// A finite number; -0 becomes 0, because Postgres counts them as equal.
fn finite(value: f64) -> Option<Cell> {
    value.is_finite().then_some(Cell::Number(value + 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A type is said what it is in one place: this one. The documents that people read follow it.
    #[test]
    fn every_type_is_in_the_documents_for_authors() {
        let readme = include_str!("../../schemas/README.md");
        for column_type in ColumnType::ALL {
            let row = format!("| `{}` | {} |", column_type.as_str(), column_type.describe());
            assert!(readme.contains(&row), "schemas/README.md lacks {row}");
            let json = serde_json::to_value(column_type).unwrap();
            assert_eq!(json, column_type.as_str(), "as versions of read models keep it");
        }
    }

    #[test]
    fn dates_and_times_are_read_strictly() {
        assert_eq!(days("2000-01-02"), Some(1));
        assert_eq!(days("1999-12-31"), Some(-1));
        for text in
            ["", "2000-1-2", "2000-02-30", "0000-01-01", "+200-01-01", "2000-01-02T", "2o00-01-01"]
        {
            assert_eq!(days(text), None, "{text}");
        }
        assert_eq!(micros("2000-01-01T01:00:00.000001+01:00"), Some(1));
        assert_eq!(micros("1999-12-31T23:59:59.9999999Z"), Some(-1));
        assert_eq!(micros("2000-01-01"), None);
        // A page had them, and its own cursor was refused.
        for (last, next) in [
            ("0001-01-01T00:00:00Z", "0000-12-31T23:59:59.999999Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01"),
            ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:59"),
            ("9999-12-31T23:58:59-00:01", "9999-12-31T23:59:00-00:01"),
        ] {
            assert!(micros(last).is_some() && micros(next).is_none(), "{last}, {next}");
        }
        assert_eq!(micros("0000-06-01T00:00:00Z"), None);
        let at = Cell::from_unix_ms(ColumnType::Timestamp, 946_684_800_001);
        assert_eq!(at, Some(Cell::Timestamp(1_000)));
    }

    /// `bigint` holds 64 bits; a double tells integers apart up to 2^53.
    #[test]
    fn integers_are_kept_exactly_or_refused() {
        use serde_json::json;
        for exact in [9_007_199_254_740_993, -9_007_199_254_740_993, i64::MAX, i64::MIN] {
            let (json, text) = (json!(exact), exact.to_string());
            assert_eq!(Cell::from_json(ColumnType::Integer, &json), Some(Cell::Integer(exact)));
            assert_eq!(Cell::from_text(ColumnType::Integer, &text), Some(Cell::Integer(exact)));
        }
        let refused = ["9007199254740993", "-9007199254740993", "18446744073709551615"];
        for text in refused {
            let json = serde_json::from_str(text).unwrap();
            assert_eq!(Cell::from_json(ColumnType::Number, &json), None, "{text}");
            assert_eq!(Cell::from_text(ColumnType::Number, text), None, "{text}");
        }
        assert_eq!(Cell::from_text(ColumnType::Number, "36893488147419103233"), None, "2^65 + 1");
        assert_eq!(Cell::from_json(ColumnType::Integer, &json!(9_007_199_254_740_994_f64)), None);
        let even = Some(Cell::Number(9_007_199_254_740_994.0));
        assert_eq!(Cell::from_text(ColumnType::Number, "9007199254740994"), even);
        assert_eq!(Cell::from_json(ColumnType::Number, &json!(9_007_199_254_740_994_i64)), even);
        assert_eq!(Cell::from_text(ColumnType::Number, "-0"), Some(Cell::Number(0.0)));
        assert_eq!(Cell::from_text(ColumnType::Number, "1e300"), Some(Cell::Number(1e300)));
    }

    #[test]
    fn json_values_must_fit_their_column() {
        use serde_json::json;
        let read = Cell::from_json;
        assert_eq!(read(ColumnType::Integer, &json!(60.0)), Some(Cell::Integer(60)));
        assert_eq!(read(ColumnType::Integer, &json!(u64::MAX)), None);
        assert_eq!(read(ColumnType::Integer, &json!(0.5)), None);
        assert_eq!(read(ColumnType::Integer, &json!("1")), None);
        assert_eq!(read(ColumnType::Text, &json!("a\u{0}")), None);
        assert_eq!(read(ColumnType::Text, &json!({"a": 1})), None);
        assert_eq!(read(ColumnType::Number, &json!(1)), Some(Cell::Number(1.0)));
        assert_eq!(read(ColumnType::Number, &json!(-0.0)), Some(Cell::Number(0.0)));
        assert_eq!(read(ColumnType::Date, &json!(null)), Some(Cell::Null));
    }
}
