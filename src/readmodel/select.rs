//! A selection from one read model, as a URL's query string asks for it.
//!
//! ```text
//! ?carrier=UA                                 equal (also carrier=eq.UA)
//! &departure_delay_minutes=gte.60             eq ne lt lte gt gte
//! &origin=in.EWR,JFK                          one of
//! &id=prefix.UA15                             text that starts so
//! &cancelled_at=is.null                       is.null, is.not_null
//! &sort=-departure_delay_minutes,id           minus: descending; without a value last, either way
//! &fields=id,carrier                          else all columns
//! &limit=50&cursor=…                          cursor: next_cursor of the page before
//! ```
//! Several filters must all hold, two on one column too. A text that itself starts with an operator
//! is written with `eq.` before it.

use flexcore_definition::{Cell, Column, ColumnType, ReadModelDefinition, taken};
use flexcore_domain::Name;

use crate::{Error, error::cut};

/// Rows of a page when no limit is given.
pub const LIMIT_DEFAULT: u32 = 50;
/// Most rows of a page: more are for the cursor, or for a named query.
pub const LIMIT_MAX: u32 = 1_000;
/// Most filters of a selection: statements stay small and plannable.
pub const FILTERS_MAX: usize = 32;
/// Most values of an `in` filter, for the same reason.
pub const IN_VALUES_MAX: usize = 100;
/// Most columns to sort by: the cursor's condition grows with their square.
pub const SORT_MAX: usize = 8;

/// A selection from one read model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// Columns of the rows, in this order; none: all.
    pub fields: Vec<Name>,
    /// Conditions, all of which hold.
    pub filters: Vec<Filter>,
    /// Columns to sort by, with whether they descend; the key columns follow by themselves.
    pub sort: Vec<(Name, bool)>,
    /// Most rows of the page; 0: [`LIMIT_DEFAULT`].
    pub limit: u32,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// A condition on a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The column.
    pub column: Name,
    /// Its comparison.
    pub op: Op,
    /// With what, as text: one value, several for [`Op::In`], none for [`Op::IsNull`] and
    /// [`Op::IsNotNull`].
    pub values: Vec<String>,
}

/// A column's comparison with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Equal.
    Eq,
    /// Not equal; a row without a value does not match.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// One of.
    In,
    /// Text that starts with the value.
    Prefix,
    /// Without a value.
    IsNull,
    /// With a value.
    IsNotNull,
}

/// The operators as they are written before a value.
const OPERATORS: [(&str, Op); 8] = [
    ("eq.", Op::Eq),
    ("ne.", Op::Ne),
    ("lt.", Op::Lt),
    ("lte.", Op::Le),
    ("gt.", Op::Gt),
    ("gte.", Op::Ge),
    ("in.", Op::In),
    ("prefix.", Op::Prefix),
];

impl Select {
    /// Reads the decoded pairs of a query string. Fails when a column is unknown, a value does not
    /// fit its column, or an option is malformed.
    pub fn parse(model: &ReadModelDefinition, pairs: &[(String, String)]) -> Result<Self, Error> {
        let mut select = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                taken::FIELDS => select.fields = columns(model, value)?,
                taken::SORT => select.sort = sort(model, value)?,
                taken::LIMIT => select.limit = limit(value)?,
                taken::CURSOR => select.cursor = Some(value.clone()),
                name => select.filters.push(filter(model, name, value)?),
            }
        }
        select.check(model)?;
        Ok(select)
    }

    /// Checks what the types leave open. Fails as [`Select::parse`] does.
    pub(crate) fn check(&self, model: &ReadModelDefinition) -> Result<(), Error> {
        if self.filters.len() > FILTERS_MAX {
            return Err(option("filters", format!("at most {FILTERS_MAX}")));
        }
        if self.sort.len() > SORT_MAX {
            return Err(option(taken::SORT, format!("at most {SORT_MAX} columns")));
        }
        if self.limit > LIMIT_MAX {
            return Err(option(taken::LIMIT, format!("at most {LIMIT_MAX}")));
        }
        for name in self.fields.iter().chain(self.sort.iter().map(|(name, _)| name)) {
            column(model, name.as_str())?;
        }
        for filter in &self.filters {
            cells(model, filter)?;
        }
        Ok(())
    }

    /// Rows of the page.
    pub(crate) fn limit(&self) -> u32 {
        if self.limit == 0 { LIMIT_DEFAULT } else { self.limit }
    }
}

/// A filter's values, typed by its column. Fails when one does not fit.
pub(crate) fn cells(
    model: &ReadModelDefinition,
    filter: &Filter,
) -> Result<(ColumnType, Vec<Cell>), Error> {
    let Column { name: column, column_type } = column(model, filter.column.as_str())?;
    let wanted = match filter.op {
        Op::IsNull | Op::IsNotNull => 0..=0,
        Op::In => 1..=IN_VALUES_MAX,
        _ => 1..=1,
    };
    if !wanted.contains(&filter.values.len()) {
        let reason = format!("takes {} to {} values", wanted.start(), wanted.end());
        return Err(option(column.as_str(), reason));
    }
    if filter.op == Op::Prefix && *column_type != ColumnType::Text {
        return Err(option(column.as_str(), "prefix compares text columns only".to_owned()));
    }
    let read = |value: &String| {
        Cell::from_text(*column_type, value).ok_or_else(|| Error::InvalidValue {
            name: column.to_string(),
            value: cut(value),
            expected: column_type.describe().to_owned(),
        })
    };
    Ok((*column_type, filter.values.iter().map(read).collect::<Result<_, _>>()?))
}

/// The declared column of this name. Fails with the existing ones.
pub(crate) fn column<'a>(model: &'a ReadModelDefinition, name: &str) -> Result<&'a Column, Error> {
    let found = model.columns.iter().find(|column| column.name.as_str() == name);
    found.ok_or_else(|| Error::UnknownColumn {
        read_model: model.name.clone(),
        column: cut(name),
        known: model.columns.iter().map(|column| column.name.to_string()).collect(),
    })
}

fn option(name: &str, reason: String) -> Error {
    Error::InvalidOption { name: name.to_owned(), reason }
}

fn columns(model: &ReadModelDefinition, value: &str) -> Result<Vec<Name>, Error> {
    let mut columns: Vec<Name> = Vec::new();
    for part in value.split(',') {
        let Column { name, .. } = column(model, part)?;
        if columns.contains(name) {
            return Err(option(taken::FIELDS, format!("{name} is named twice")));
        }
        columns.push(name.clone());
    }
    Ok(columns)
}

fn sort(model: &ReadModelDefinition, value: &str) -> Result<Vec<(Name, bool)>, Error> {
    let mut columns: Vec<(Name, bool)> = Vec::new();
    for part in value.split(',') {
        let Column { name, .. } = column(model, part.strip_prefix('-').unwrap_or(part))?;
        if columns.iter().any(|(other, _)| other == name) {
            return Err(option(taken::SORT, format!("{name} is named twice")));
        }
        columns.push((name.clone(), part.starts_with('-')));
    }
    Ok(columns)
}

fn limit(value: &str) -> Result<u32, Error> {
    match value.parse() {
        Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
        _ => Err(option(taken::LIMIT, format!("must be a number from 1 to {LIMIT_MAX}"))),
    }
}

fn filter(model: &ReadModelDefinition, name: &str, value: &str) -> Result<Filter, Error> {
    let column = column(model, name)?.name.clone();
    match value {
        "is.null" => return Ok(Filter { column, op: Op::IsNull, values: Vec::new() }),
        "is.not_null" => return Ok(Filter { column, op: Op::IsNotNull, values: Vec::new() }),
        _ => {}
    }
    let prefixed =
        OPERATORS.iter().find_map(|(prefix, op)| Some((*op, value.strip_prefix(prefix)?)));
    let (op, operand) = prefixed.unwrap_or((Op::Eq, value));
    let values = match op {
        Op::In => operand.split(',').map(str::to_owned).collect(),
        _ => vec![operand.to_owned()],
    };
    Ok(Filter { column, op, values })
}
