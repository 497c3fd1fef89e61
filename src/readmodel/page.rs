//! Pages of a read model: the statement of a selection, and the cursor that continues it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flexcore_definition::{Cell, Column, ColumnType, ReadModelDefinition};
use flexcore_domain::{Name, Tenant};
use futures::{Stream, TryStreamExt as _};
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Row as _,
    postgres::{PgArguments, PgRow},
    types::Json,
};

use crate::{
    Error, ReadModels,
    access::{self, Access},
    cell,
    error::{CANCELLED, FORBIDDEN, NO_TABLE, code},
    index,
    named::RESULT_BYTES_MAX,
    select::{self, Filter, Op, Select},
};

/// Rows of a read model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// A JSON array of objects.
    pub rows: String,
    /// The condition that continues after the last row; `None`: there are no more.
    pub next_cursor: Option<String>,
}

/// Longest cursor that is read, in bytes: the sort values of one row.
const CURSOR_BYTES_MAX: usize = 16 * 1024;

/// A column of the order, with whether it descends, its type, and whether it may be null.
pub(crate) struct Order<'a> {
    column: &'a Name,
    descends: bool,
    column_type: ColumnType,
    nullable: bool,
}

struct Statement {
    sql: String,
    arguments: PgArguments,
    count: usize,
}

impl Statement {
    /// Adds a value; returns its placeholder.
    fn bind(&mut self, column_type: ColumnType, cell: &Cell) -> String {
        cell::bind(&mut self.arguments, column_type, cell);
        self.count += 1;
        format!("${}", self.count)
    }
}

impl ReadModels {
    /// The rows of one tenant that the selection asks for. Fails when the selection does not fit
    /// the declaration, with [`Error::NotBuilt`] while no version with these columns serves, with
    /// [`Error::Timeout`] and with [`Error::Unavailable`].
    #[boxed::async_recursion]
    pub async fn select(
        &self,
        tenant: &Tenant,
        model: &ReadModelDefinition,
        select: &Select,
    ) -> Result<Page, Error> {
        let statement = self.statement(model, select).await?;
        let mut reading = self.read_as(tenant).await?;
        let fetched = sqlx::query_with(AssertSqlSafe(statement.sql), statement.arguments)
            .fetch(&mut *reading);
        let gathered = gather(fetched, select.limit() as usize).await;
        reading.end().await;
        let (rows, after) = match gathered {
            Ok(gathered) => gathered,
            Err(error) => return Err(self.failed(model, error).await),
        };
        let next_cursor = after.map(|after| write_cursor(model, select, &after));
        Ok(Page { rows, next_cursor })
    }

    /// Postgres' plan for a selection, without costs and numbers of rows. Not for a tenant, since a
    /// plan depends on the rows of all. Fails as [`ReadModels::select`] does.
    #[boxed::async_recursion]
    pub async fn plan(
        &self,
        tenant: &Tenant,
        model: &ReadModelDefinition,
        select: &Select,
    ) -> Result<Value, Error> {
        let statement = self.statement(model, select).await?;
        let sql = format!("explain (costs off, format json) {}", statement.sql);
        let mut reading = self.read_as(tenant).await?;
        let row = sqlx::query_with(AssertSqlSafe(sql), statement.arguments)
            .fetch_one(&mut *reading)
            .await;
        reading.end().await;
        match row {
            Ok(row) => Ok(row.try_get::<Json<Value>, _>(0)?.0),
            Err(error) => Err(self.failed(model, error).await),
        }
    }

    async fn statement(
        &self,
        model: &ReadModelDefinition,
        select: &Select,
    ) -> Result<Statement, Error> {
        select.check(model)?;
        let order = order(model, select)?;
        let after = select.cursor.as_deref().map(|text| read_cursor(model, select, &order, text));
        let after = after.transpose()?;
        let built = self.built(model).await?;
        let access = access::best(model, select, &names(&order), &built);
        let asked = Asked { model, select, order: &order, access: access.as_ref() };
        asked.statement(after.as_deref())
    }

    async fn failed(&self, model: &ReadModelDefinition, error: sqlx::Error) -> Error {
        match code(&error).as_deref() {
            // Everything was dropped, and is being made anew. The statement is ours, and what the login may
            // do was looked at when it came in.
            Some(FORBIDDEN) => {
                let _ = self.sessions.drop_outdated().await;
                Error::NotBuilt(model.name.to_string())
            }
            // No table, undefined_column, and undefined_function, as two types have no comparison: the
            // serving version is not the one that was looked up.
            Some(NO_TABLE | "42703" | "42883") => Error::NotBuilt(model.name.to_string()),
            Some(CANCELLED) => Error::Timeout(self.settings.statement_timeout),
            _ => error.into(),
        }
    }
}

/// As many rows as a page may have, as a JSON array; and the last one's place in the order, when there
/// are more.
async fn gather(
    mut fetched: impl Stream<Item = Result<PgRow, sqlx::Error>> + Unpin,
    limit: usize,
) -> Result<(String, Option<String>), sqlx::Error> {
    let (mut rows, mut count, mut last) = (String::from("["), 0, None);
    while let Some(row) = fetched.try_next().await? {
        if count == limit || rows.len() > RESULT_BYTES_MAX {
            rows.push(']');
            return Ok((rows, last));
        }
        if count > 0 {
            rows.push(',');
        }
        rows.push_str(row.try_get("row")?);
        last = Some(row.try_get("after")?);
        count += 1;
    }
    rows.push(']');
    Ok((rows, None))
}

/// The whole order: the requested columns, then the key, so that no two rows are equal in it.
pub(crate) fn order<'a>(
    model: &'a ReadModelDefinition,
    select: &'a Select,
) -> Result<Vec<Order<'a>>, Error> {
    let rest = model.key.iter().filter(|key| select.sort.iter().all(|(name, _)| name != *key));
    let asked = select.sort.iter().map(|(name, descends)| (name, *descends));
    asked
        .chain(rest.map(|name| (name, false)))
        .map(|(name, descends)| {
            let Column { name: column, column_type } = select::column(model, name.as_str())?;
            let (column_type, nullable) = (*column_type, !model.key.contains(column));
            Ok(Order { column, descends, column_type, nullable })
        })
        .collect()
}

/// The order by name.
pub(crate) fn names(order: &[Order<'_>]) -> Vec<(Name, bool)> {
    order.iter().map(|o| (o.column.clone(), o.descends)).collect()
}

impl Order<'_> {
    /// The term of `order by` for the value that is written so.
    fn term(&self, value: &str) -> String {
        match (self.descends, self.nullable) {
            (false, _) => value.to_owned(),
            (true, true) => format!("{value} desc nulls last"),
            (true, false) => format!("{value} desc"),
        }
    }
}

/// A selection, and how it comes at its rows.
struct Asked<'a> {
    model: &'a ReadModelDefinition,
    select: &'a Select,
    order: &'a [Order<'a>],
    access: Option<&'a Access>,
}

impl Asked<'_> {
    fn statement(&self, after: Option<&[Cell]>) -> Result<Statement, Error> {
        let mut statement =
            Statement { sql: String::new(), arguments: PgArguments::default(), count: 0 };
        let parts = self.parts(&mut statement, after)?;
        statement.sql = match parts.as_slice() {
            [only] => self.part(only, false),
            parts => {
                let all: Vec<String> =
                    parts.iter().map(|part| format!("({})", self.part(part, true))).collect();
                let sort: Vec<String> = (0_usize..)
                    .zip(self.order)
                    .map(|(at, o)| o.term(&format!("_u._o{at}")))
                    .collect();
                format!(
                    "select _u.row, _u.after from ({}) _u order by {} limit {}",
                    all.join(" union all "),
                    sort.join(", "),
                    self.select.limit() + 1
                )
            }
        };
        Ok(statement)
    }

    /// The conditions of the rows, in parts that have no row in common. One part is enough, but for
    /// an index: the rows beyond a cursor are one range of it for each column of the order, and
    /// texts that are too long for it stand elsewhere.
    fn parts(
        &self,
        statement: &mut Statement,
        after: Option<&[Cell]>,
    ) -> Result<Vec<String>, Error> {
        let mut filters = vec!["true".to_owned()];
        for filter in &self.select.filters {
            filters.push(condition(statement, self.model, filter)?);
        }
        let filters = filters.join(" and ");
        let after = after.map(|after| Beyond::new(statement, self.order, after));
        let whole = match &after {
            Some(after) => format!("{filters} and {}", after.whole()),
            None => filters.clone(),
        };
        let Some(access) = self.access else { return Ok(vec![whole]) };
        let mut parts = match &after {
            Some(after) if access.in_order => {
                let of = |part: &String| format!("{filters} and {part}");
                after.parts(&access.fixed).iter().map(of).collect()
            }
            _ => vec![whole.clone()],
        };
        let texts = match &access.index {
            Some(declared) => index::texts(declared, &self.model.columns, &self.model.key),
            None => Vec::new(),
        };
        if !texts.is_empty() {
            let short = index::short(&texts, "_m.");
            parts.iter_mut().for_each(|part| part.push_str(&format!(" and {short}")));
            let is_short = |text: &&Name| {
                let mut on = self.select.filters.iter().filter(|filter| filter.column == **text);
                on.any(|filter| index::is_short(filter) == Some(true))
            };
            if !texts.iter().all(is_short) {
                parts.push(format!("{whole} and {}", index::long(&texts, "_m.")));
            }
        }
        Ok(parts)
    }

    /// The rows of a part; with the values of the order, where several parts are to be put together.
    fn part(&self, condition: &str, with_order: bool) -> String {
        let quoted = |name: &Name| format!("_m.\"{name}\"");
        let fields: Vec<String> = match self.select.fields.as_slice() {
            [] => self.model.columns.iter().map(|column| quoted(&column.name)).collect(),
            fields => fields.iter().map(quoted).collect(),
        };
        let places: Vec<String> = self.order.iter().map(|o| quoted(o.column)).collect();
        let sort: Vec<String> = self.order.iter().map(|o| o.term(&quoted(o.column))).collect();
        let order: String = match with_order {
            true => (0_usize..).zip(&places).map(|(at, o)| format!(", {o} as _o{at}")).collect(),
            false => String::new(),
        };
        format!(
            "select (select row_to_json(_row) from (select {}) _row)::text as row, \
                    json_build_array({})::text as after{order} \
             from rm.\"{}\" _m where {condition} order by {} limit {}",
            fields.join(", "),
            places.join(", "),
            self.model.name,
            sort.join(", "),
            self.select.limit() + 1,
        )
    }
}

fn condition(
    statement: &mut Statement,
    model: &ReadModelDefinition,
    filter: &Filter,
) -> Result<String, Error> {
    let (column_type, cells) = select::cells(model, filter)?;
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
    let placeholders: Vec<String> =
        cells.iter().map(|cell| statement.bind(column_type, cell)).collect();
    Ok(match filter.op {
        Op::In => format!("{column} in ({})", placeholders.join(", ")),
        // Texts compare by bytes, so that those with a prefix are a range of an index.
        Op::Prefix => {
            let from = placeholders.join(", ");
            let range = match next_prefix(&filter.values.concat()) {
                Some(next) => {
                    let next = statement.bind(column_type, &Cell::Text(next.into()));
                    format!(" and {column} < {next}")
                }
                None => String::new(),
            };
            format!("{column} ^@ {from} and {column} >= {from}{range}")
        }
        _ => format!("{column} {operator} {}", placeholders.join(", ")),
    })
}

/// The first text, by bytes, after all that begin so; `None`: there is none.
fn next_prefix(prefix: &str) -> Option<String> {
    let mut next = prefix.to_owned();
    while let Some(last) = next.pop() {
        if let Some(after) = (last..=char::MAX).nth(1) {
            next.push(after);
            return Some(next);
        }
    }
    None
}

/// Rows after the cursor's.
struct Beyond<'a> {
    order: &'a [Order<'a>],
    after: &'a [Cell],
    placeholders: Vec<String>,
}

impl<'a> Beyond<'a> {
    fn new(statement: &mut Statement, order: &'a [Order<'a>], after: &'a [Cell]) -> Self {
        let placeholders =
            order.iter().zip(after).map(|(o, cell)| statement.bind(o.column_type, cell)).collect();
        Self { order, after, placeholders }
    }

    /// The comparison of rows that an index answers: where no column descends or has nulls.
    fn as_row(&self, of: &[usize]) -> Option<String> {
        if of.is_empty() || of.iter().any(|at| self.order[*at].nullable || self.order[*at].descends)
        {
            return None;
        }
        let columns: Vec<String> =
            of.iter().map(|at| format!("_m.\"{}\"", self.order[*at].column)).collect();
        let values: Vec<&str> = of.iter().map(|at| self.placeholders[*at].as_str()).collect();
        Some(format!("({}) > ({})", columns.join(", "), values.join(", ")))
    }

    /// As one condition: greater in the first column, or equal there and greater in the next, and so
    /// on.
    fn whole(&self) -> String {
        let all: Vec<usize> = (0..self.order.len()).collect();
        if let Some(row) = self.as_row(&all) {
            return row;
        }
        let mut alternatives = Vec::new();
        for (at, (o, cell)) in self.order.iter().zip(self.after).enumerate() {
            let (column, value) = (format!("_m.\"{}\"", o.column), &self.placeholders[at]);
            let sign = if o.descends { '<' } else { '>' };
            let mut parts: Vec<String> = (0..at)
                .map(|before| {
                    let (o, value) = (&self.order[before], &self.placeholders[before]);
                    format!("_m.\"{}\" is not distinct from {value}", o.column)
                })
                .collect();
            parts.push(match (cell, o.nullable) {
                // Nothing sorts after null. The placeholder keeps its type in the statement.
                (Cell::Null, _) => format!("({value} is not null)"),
                (_, true) => format!("({column} {sign} {value} or {column} is null)"),
                (_, false) => format!("{column} {sign} {value}"),
            });
            alternatives.push(format!("({})", parts.join(" and ")));
        }
        format!("({})", alternatives.join(" or "))
    }

    /// As conditions that exclude each other, each a range of an index in this order. Columns of
    /// `fixed` have one value in all rows.
    fn parts(&self, fixed: &[Name]) -> Vec<String> {
        let free: Vec<usize> =
            (0..self.order.len()).filter(|at| !fixed.contains(self.order[*at].column)).collect();
        let (mut parts, mut equal) = (Vec::new(), Vec::<String>::new());
        let with = |equal: &[String], last: String| {
            let all: Vec<String> = equal.iter().cloned().chain([last]).collect();
            all.join(" and ")
        };
        for (place, at) in free.iter().enumerate() {
            if let Some(row) = self.as_row(&free[place..]) {
                parts.push(with(&equal, row));
                return parts;
            }
            let (o, value) = (&self.order[*at], &self.placeholders[*at]);
            let (column, sign) =
                (format!("_m.\"{}\"", o.column), if o.descends { '<' } else { '>' });
            if self.after[*at] == Cell::Null {
                equal.push(format!("{column} is null"));
                continue;
            }
            parts.push(with(&equal, format!("{column} {sign} {value}")));
            if o.nullable {
                parts.push(with(&equal, format!("{column} is null")));
            }
            equal.push(format!("{column} = {value}"));
        }
        if parts.is_empty() {
            parts.push("false".to_owned());
        }
        parts
    }
}

/// The query that the cursor belongs to: FNV-1a 64 over read model, filters and sort.
fn shape(model: &ReadModelDefinition, select: &Select) -> u64 {
    let text = format!("{} {:?} {:?}", model.name, select.filters, select.sort);
    index::fnv1a(&text)
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
                Cell::from_json(o.column_type, value)
                    .filter(|cell| o.nullable || *cell != Cell::Null)
            })
            .collect()
    };
    parse().ok_or(Error::InvalidCursor)
}
