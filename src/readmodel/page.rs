//! Pages of a read model: the statement of a selection, and the cursor that continues it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flexcore_domain::{
    Name, Tenant,
    definition::{ColumnKind, ReadModelDefinition},
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _, postgres::PgArguments};

use crate::{
    Error, ReadModels,
    cell::Cell,
    error::code,
    select::{self, Filter, Op, Select},
};

/// Rows of a read model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// A JSON array of objects.
    pub rows: String,
    /// What continues after the last row; `None`: there are no more.
    pub next_cursor: Option<String>,
}

/// Longest cursor that is read, in bytes: the sort values of one row.
const CURSOR_BYTES_MAX: usize = 16 * 1024;

/// A column of the order, with whether it descends, its type, and whether it may be null.
struct Order<'a> {
    column: &'a Name,
    descends: bool,
    kind: ColumnKind,
    nullable: bool,
}

struct Statement {
    sql: String,
    arguments: PgArguments,
    count: usize,
}

impl Statement {
    /// Adds a value; returns its placeholder.
    fn bind(&mut self, kind: ColumnKind, cell: &Cell) -> String {
        cell.bind(kind, &mut self.arguments);
        self.count += 1;
        format!("${}", self.count)
    }
}

impl ReadModels {
    /// The rows of one tenant that the selection asks for. Fails when the selection does not fit
    /// the declaration, with [`Error::NotBuilt`] while no version with these columns serves, with
    /// [`Error::Timeout`] and with [`Error::Unavailable`].
    pub async fn select(
        &self,
        tenant: &Tenant,
        model: &ReadModelDefinition,
        select: &Select,
    ) -> Result<Page, Error> {
        select.check(model)?;
        let order = order(model, select)?;
        let after = select.cursor.as_deref().map(|text| read_cursor(model, select, &order, text));
        let statement = statement(model, select, &order, after.transpose()?.as_deref())?;
        let mut reading = self.read_as(tenant).await?;
        let fetched = sqlx::query_with(AssertSqlSafe(statement.sql), statement.arguments)
            .fetch_all(&mut *reading)
            .await;
        reading.end().await;
        let fetched = fetched.map_err(|error| self.failed(model, error))?;
        let limit = select.limit() as usize;
        let mut rows = String::from("[");
        for (index, row) in fetched.iter().take(limit).enumerate() {
            if index > 0 {
                rows.push(',');
            }
            rows.push_str(row.try_get("row")?);
        }
        rows.push(']');
        let next_cursor = match fetched.get(limit).and_then(|_| fetched.get(limit - 1)) {
            Some(last) => Some(write_cursor(model, select, last.try_get("after")?)),
            None => None,
        };
        Ok(Page { rows, next_cursor })
    }

    fn failed(&self, model: &ReadModelDefinition, error: sqlx::Error) -> Error {
        match code(&error).as_deref() {
            // undefined_table, undefined_column, and undefined_function, as two types have no
            // comparison: what serves is not what was looked up.
            Some("42P01" | "42703" | "42883") => Error::NotBuilt(model.name.to_string()),
            Some("57014") => Error::Timeout(self.settings.statement_timeout),
            _ => error.into(),
        }
    }
}

/// The whole order: what is asked for, then the key, so that no two rows are equal in it.
fn order<'a>(model: &'a ReadModelDefinition, select: &'a Select) -> Result<Vec<Order<'a>>, Error> {
    let rest = model.key.iter().filter(|key| select.sort.iter().all(|(name, _)| name != *key));
    let asked = select.sort.iter().map(|(name, descends)| (name, *descends));
    asked
        .chain(rest.map(|name| (name, false)))
        .map(|(name, descends)| {
            let (column, kind) = select::kind(model, name.as_str())?;
            Ok(Order { column, descends, kind, nullable: !model.key.contains(column) })
        })
        .collect()
}

fn statement(
    model: &ReadModelDefinition,
    select: &Select,
    order: &[Order<'_>],
    after: Option<&[Cell]>,
) -> Result<Statement, Error> {
    let mut statement =
        Statement { sql: String::new(), arguments: PgArguments::default(), count: 0 };
    let mut conditions = vec!["true".to_owned()];
    for filter in &select.filters {
        conditions.push(condition(&mut statement, model, filter)?);
    }
    if let Some(after) = after {
        conditions.push(beyond(&mut statement, order, after));
    }
    let quoted = |name: &Name| format!("\"{name}\"");
    let fields: Vec<String> = match select.fields.as_slice() {
        [] => model.columns.iter().map(|column| format!("_m.{}", quoted(&column.name))).collect(),
        fields => fields.iter().map(|name| format!("_m.{}", quoted(name))).collect(),
    };
    let places: Vec<String> = order.iter().map(|o| format!("_m.{}", quoted(o.column))).collect();
    let sort: Vec<String> = order
        .iter()
        .map(|o| match (o.descends, o.nullable) {
            (false, _) => format!("_m.{}", quoted(o.column)),
            (true, true) => format!("_m.{} desc nulls last", quoted(o.column)),
            (true, false) => format!("_m.{} desc", quoted(o.column)),
        })
        .collect();
    statement.sql = format!(
        "select (select row_to_json(_row) from (select {}) _row)::text as row, \
                json_build_array({})::text as after \
         from rm.\"{}\" _m where {} order by {} limit {}",
        fields.join(", "),
        places.join(", "),
        model.name,
        conditions.join(" and "),
        sort.join(", "),
        select.limit() + 1,
    );
    Ok(statement)
}

fn condition(
    statement: &mut Statement,
    model: &ReadModelDefinition,
    filter: &Filter,
) -> Result<String, Error> {
    let (kind, cells) = select::cells(model, filter)?;
    let column = format!("_m.\"{}\"", filter.column);
    let operator = match filter.op {
        Op::IsNull => return Ok(format!("{column} is null")),
        Op::IsNotNull => return Ok(format!("{column} is not null")),
        Op::Eq | Op::In => "=",
        Op::Ne => "<>",
        Op::Lt => "<",
        Op::Le => "<=",
        Op::Gt => ">",
        Op::Ge => ">=",
        Op::Prefix => "^@",
    };
    let placeholders: Vec<String> = cells.iter().map(|cell| statement.bind(kind, cell)).collect();
    Ok(match filter.op {
        Op::In => format!("{column} in ({})", placeholders.join(", ")),
        _ => format!("{column} {operator} {}", placeholders.join(", ")),
    })
}

/// Rows after the cursor's: greater in the first column, or equal there and greater in the next,
/// and so on. The order by key alone is one comparison of rows, which the index answers.
fn beyond(statement: &mut Statement, order: &[Order<'_>], after: &[Cell]) -> String {
    let placeholders: Vec<String> =
        order.iter().zip(after).map(|(o, cell)| statement.bind(o.kind, cell)).collect();
    if order.iter().all(|o| !o.nullable && !o.descends) {
        let columns: Vec<String> = order.iter().map(|o| format!("_m.\"{}\"", o.column)).collect();
        return format!("({}) > ({})", columns.join(", "), placeholders.join(", "));
    }
    let mut alternatives = Vec::new();
    for (at, (o, cell)) in order.iter().zip(after).enumerate() {
        let column = format!("_m.\"{}\"", o.column);
        let sign = if o.descends { '<' } else { '>' };
        let mut parts: Vec<String> = (0..at)
            .map(|before| {
                let column = order[before].column;
                format!("_m.\"{column}\" is not distinct from {}", placeholders[before])
            })
            .collect();
        parts.push(match (cell, o.nullable) {
            // Nothing sorts after null. The placeholder keeps its type in the statement.
            (Cell::Null, _) => format!("({} is not null)", placeholders[at]),
            (_, true) => format!("({column} {sign} {} or {column} is null)", placeholders[at]),
            (_, false) => format!("{column} {sign} {}", placeholders[at]),
        });
        alternatives.push(format!("({})", parts.join(" and ")));
    }
    format!("({})", alternatives.join(" or "))
}

/// What the cursor belongs to: FNV-1a 64 over read model, filters and sort.
fn shape(model: &ReadModelDefinition, select: &Select) -> u64 {
    let text = format!("{} {:?} {:?}", model.name, select.filters, select.sort);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn write_cursor(model: &ReadModelDefinition, select: &Select, after: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(format!("{:x} {after}", shape(model, select)))
}

fn read_cursor(
    model: &ReadModelDefinition,
    select: &Select,
    order: &[Order<'_>],
    text: &str,
) -> Result<Vec<Cell>, Error> {
    if text.len() > CURSOR_BYTES_MAX {
        return Err(Error::InvalidCursor);
    }
    let parse = || {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (of, after) = text.split_once(' ')?;
        let values: Vec<Value> = serde_json::from_str(after).ok()?;
        if of != format!("{:x}", shape(model, select)) || values.len() != order.len() {
            return None;
        }
        order
            .iter()
            .zip(&values)
            .map(|(o, value)| {
                Cell::from_json(o.kind, value).filter(|cell| o.nullable || *cell != Cell::Null)
            })
            .collect()
    };
    parse().ok_or(Error::InvalidCursor)
}
