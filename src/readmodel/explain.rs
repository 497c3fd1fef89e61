//! The index that a query uses, in words, and the index to declare where it has none.
//!
//! Postgres reckons the cost of a plan, and its number of rows, over all tenants' rows: neither is
//! told. A selection is explained by the declaration. A named query's statement is planned without
//! its parameters' values, for the same reason.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use flexcore_definition::{
    INDEX_COLUMNS_MAX, INDEX_TEXT_BYTES_MAX, Index, QueryDefinition, ReadModelDefinition,
};
use flexcore_domain::{Name, Tenant};
use serde::Serialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _, types::Json};

use crate::{
    Error, ReadModels, Select,
    access::{self, Access},
    error::{CANCELLED, code},
    index,
    named::{positional, whole},
    page,
    select::Op,
};

/// Counts statements that were explained: each has a name of its own in its session.
static EXPLAINED: AtomicU64 = AtomicU64::new(0);

/// The way in which one read model is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The read model.
    pub read_model: Name,
    /// The index, as it is declared, or `key`; `None`: every row of the tenant may be read.
    pub index: Option<String>,
    /// The same for a person, and what to declare.
    pub says: String,
}

impl ReadModels {
    /// The way in which the rows of a query string are found. Fails as [`ReadModels::query`] does.
    #[boxed::async_recursion]
    pub async fn explain(
        &self,
        declared: &ReadModelDefinition,
        pairs: &[(String, String)],
    ) -> Result<Explained, Error> {
        self.check(declared, pairs).await?;
        let served = self.served(declared).await?;
        let model = served.as_ref().unwrap_or(declared);
        let select = Select::parse(model, pairs)?;
        let built = self.built(model).await?;
        explained(model, &select, &built)
    }

    /// The way in which the statement of a named query finds the rows of each read model, as
    /// Postgres would run it with the rows that exist now. `models` are those that it reads. Fails
    /// as [`ReadModels::run_query`] does.
    #[boxed::async_recursion]
    pub async fn explain_query(
        &self,
        tenant: &Tenant,
        query: &QueryDefinition,
        models: &[&ReadModelDefinition],
    ) -> Result<Vec<Explained>, Error> {
        let names: Vec<&Name> = query.parameters.iter().map(|parameter| &parameter.name).collect();
        let (sql, used) = positional(&query.sql, &query.name, &names)?;
        let types: Vec<&str> =
            used.iter().map(|index| query.parameters[*index].column_type.sql()).collect();
        let bracketed = |list: Vec<&str>| match list.as_slice() {
            [] => String::new(),
            list => format!("({})", list.join(", ")),
        };
        let values = bracketed(vec!["null"; types.len()]);
        // Its session keeps it until it is told to forget it.
        let name = format!("_e{}", EXPLAINED.fetch_add(1, Ordering::Relaxed));
        let prepare = format!("prepare {name}{} as {}", bracketed(types), whole(&sql).text);
        let explain = format!("explain (costs off, format json) execute {name}{values}");
        let mut reading = self.read_as(tenant).await?;
        let generic = "set local plan_cache_mode = force_generic_plan";
        sqlx::raw_sql(generic).execute(&mut *reading).await?;
        // One statement, for every text of the author: `query` takes no second one.
        let prepare = sqlx::query(AssertSqlSafe(prepare)).persistent(false);
        let explained = async {
            prepare.execute(&mut *reading).await?;
            let explain = sqlx::query(AssertSqlSafe(explain)).persistent(false);
            explain.fetch_one(&mut *reading).await
        };
        // Postgres computes constants when it plans.
        let row = self.sessions.in_time(self.settings.statement_timeout, explained).await?;
        let forget = format!("rollback; deallocate {name}");
        // Where it could not be prepared there is nothing to forget.
        let _ = sqlx::raw_sql(AssertSqlSafe(forget)).execute(&mut *reading).await;
        reading.end().await;
        let plan = match row {
            Ok(row) => row.try_get::<Json<Value>, _>(0)?.0,
            Err(error) if code(&error).as_deref() == Some(CANCELLED) => {
                return Err(Error::Timeout(self.settings.statement_timeout));
            }
            Err(error) => return Err(self.query_failed(query, error).await),
        };
        let mut scans = BTreeMap::new();
        gather(&plan, None, &mut scans);
        Ok(models.iter().map(|model| planned(model, &scans)).collect())
    }
}

/// The way in which a selection finds its rows with these indexes.
fn explained(
    model: &ReadModelDefinition,
    select: &Select,
    built: &[Index],
) -> Result<Explained, Error> {
    let order = page::order(model, select)?;
    let order = page::names(&order);
    let best = |indexes: &[Index]| access::best(model, select, &order, indexes);
    let now = best(built);
    let later = best(&model.indexes).filter(|later| now.as_ref() != Some(later));
    let mut says = match &now {
        Some(access) => found(select, access),
        None => nothing(select),
    };
    let is_enough =
        |access: &Access| access.in_order && access.found_by.len() == select.filters.len();
    match (later.and_then(|later| later.index), &now) {
        (Some(index), _) => says.push_str(&format!("; index {index} is declared, and being built")),
        (None, Some(access)) if is_enough(access) => {}
        (None, _) => {
            if let Some(advice) = advice(model, select, now.as_ref()) {
                says.push_str(&advice);
            }
        }
    }
    let index = now.map(|access| name(access.index.as_ref()));
    Ok(Explained { read_model: model.name.clone(), index, says })
}

fn name(index: Option<&Index>) -> String {
    index.map_or_else(|| "key".to_owned(), ToString::to_string)
}

/// The part that the index does, and the rest.
fn found(select: &Select, access: &Access) -> String {
    let columns = |by_index: bool| {
        let filters = select.filters.iter().enumerate();
        let of = filters.filter(|(at, _)| access.found_by.contains(at) == by_index);
        let mut names: Vec<String> = of.map(|(_, filter)| format!("`{}`", filter.column)).collect();
        names.dedup();
        names.join(", ")
    };
    let index = match &access.index {
        Some(index) => format!("index {index}"),
        None => "the key's index".to_owned(),
    };
    let (by_index, by_row) = (columns(true), columns(false));
    let mut says = match (by_index.as_str(), access.in_order) {
        ("", _) => format!("{index} has the rows in the order that is asked for"),
        (found, true) => format!("{index} finds {found}, in the order that is asked for"),
        (found, false) => format!("{index} finds {found}; what it finds is sorted"),
    };
    if !by_row.is_empty() {
        says.push_str(&format!("; {by_row}: held against each row that it has"));
    }
    says
}

/// The advice when no index serves.
fn nothing(select: &Select) -> String {
    let mut columns: Vec<String> =
        select.filters.iter().map(|filter| format!("`{}`", filter.column)).collect();
    columns.extend(select.sort.iter().map(|(name, _)| format!("`{name}`")));
    columns.dedup();
    match columns.as_slice() {
        [] => "all rows of the tenant, a page at a time in the order of the key".to_owned(),
        columns => {
            format!("no index for {}: every row of the tenant may be read", columns.join(", "))
        }
    }
}

/// The index that would do better.
fn advice(model: &ReadModelDefinition, select: &Select, now: Option<&Access>) -> Option<String> {
    let too_long = |op, values: &[String]| {
        op == Op::Eq && values.iter().any(|value| value.len() > INDEX_TEXT_BYTES_MAX)
    };
    if select.filters.iter().any(|filter| too_long(filter.op, &filter.values)) {
        let max = INDEX_TEXT_BYTES_MAX;
        return Some(format!("; a text of more than {max} bytes is in no index"));
    }
    let mut columns: Vec<(Name, bool)> = Vec::new();
    let mut add = |name: &Name, descends| {
        if !columns.iter().any(|(other, _)| other == name) {
            columns.push((name.clone(), descends));
        }
    };
    let filters = || select.filters.iter();
    filters().filter(|f| f.op == Op::Eq).for_each(|f| add(&f.column, false));
    select.sort.iter().for_each(|(name, descends)| add(name, *descends));
    if select.sort.is_empty() {
        let range = filters().find(|f| !matches!(f.op, Op::Eq | Op::Ne));
        range.into_iter().for_each(|f| add(&f.column, false));
    }
    columns.truncate(INDEX_COLUMNS_MAX);
    let index = Index { columns };
    let is_key = index.columns.iter().zip(&model.key).all(|((name, d), key)| !d && name == key);
    let is_there = now.is_some_and(|now| now.index.as_ref() == Some(&index));
    (!is_key && !is_there && !model.indexes.contains(&index))
        .then(|| format!("; declare `indexes: [{index}]`"))
}

/// The way in which a plan reads one table.
#[derive(Default)]
struct Scan {
    /// Postgres's indexes by which rows are found, each with whether by more than the tenant.
    by: Vec<(String, bool)>,
    /// Somewhere every row is read.
    whole: bool,
}

/// The scans of a plan, by table.
fn gather(node: &Value, table: Option<&str>, scans: &mut BTreeMap<String, Scan>) {
    if let Value::Array(nodes) = node {
        nodes.iter().for_each(|node| gather(node, table, scans));
        return;
    }
    let text = |name: &str| node.get(name).and_then(Value::as_str);
    let table = text("Relation Name").or(table);
    if let Some(table) = table {
        let scan = scans.entry(table.to_owned()).or_default();
        match (text("Index Name"), text("Index Cond")) {
            // Conditions are written `((tenant = …) AND (…))`.
            (Some(index), condition) => {
                let narrows = condition.is_some_and(|condition| condition.contains(") AND ("));
                scan.by.push((index.to_owned(), narrows));
            }
            (None, _) if text("Node Type") == Some("Seq Scan") => scan.whole = true,
            (None, _) => {}
        }
    }
    for name in ["Plan", "Plans"] {
        node.get(name).into_iter().for_each(|inner| {
            let of_bitmap = text("Node Type").is_some_and(|kind| kind.starts_with("Bitmap"));
            gather(inner, table.filter(|_| of_bitmap), scans);
        });
    }
}

/// The scans of a plan for one read model.
fn planned(model: &ReadModelDefinition, scans: &BTreeMap<String, Scan>) -> Explained {
    let of_model = |table: &str| {
        let number = table.strip_prefix(model.name.as_str()).and_then(|t| t.strip_prefix("_v"));
        number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
    };
    let scans: Vec<&Scan> =
        scans.iter().filter(|(table, _)| of_model(table)).map(|(_, scan)| scan).collect();
    let declared = |made: &str| {
        let id = index::id_of(made)?;
        let is_of = |index: &&Index| {
            let all = index::made(id, index, &model.columns, &model.key);
            all.iter().any(|of| of.name == made)
        };
        model.indexes.iter().find(is_of)
    };
    let (mut narrow, mut wide) = (Vec::new(), scans.iter().any(|scan| scan.whole));
    for (made, narrows) in scans.iter().flat_map(|scan| &scan.by) {
        match narrows {
            true => narrow.push(name(declared(made))),
            false => wide = true,
        }
    }
    narrow.sort();
    narrow.dedup();
    let index = (!narrow.is_empty()).then(|| narrow.join(", "));
    let says = match (&index, wide) {
        (Some(index), false) => format!("rows are found by index {index}"),
        (Some(index), true) => {
            format!(
                "rows are found by index {index}, and in another place every row of the tenant is read"
            )
        }
        (None, true) => {
            "every row of the tenant is read, with the rows that there are now".to_owned()
        }
        (None, false) => "no row is read".to_owned(),
    };
    Explained { read_model: model.name.clone(), index, says }
}
