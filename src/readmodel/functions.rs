//! Functions that a query may call: an allow-list, kept by Postgres as a privilege.
//!
//! Allowed are those of Postgres's own that compute from their arguments alone (`immutable` in its
//! catalogue: operators, `lower`, `round`, `jsonb_path_query`, `regexp_replace`, …) and the ones
//! named below. A function that reads files, tables by name, other sessions or settings, runs text
//! as SQL, locks, sleeps, signals, notifies or writes is neither, and so is everything of an
//! extension.

use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgRow};

use crate::Error;

/// Functions that are not immutable, and allowed. They depend on the transaction's time, on the
/// session's time zone and formats, or on chance, and reach nothing beyond their arguments.
pub(crate) const ALLOWED: &[&str] = &[
    // Times: the present, and functions that depend on the time zone (which is UTC).
    "now statement_timestamp transaction_timestamp clock_timestamp age date_add date_subtract",
    "date_part date_trunc extract generate_series make_timestamptz overlaps timezone",
    "to_char to_date to_number to_timestamp date time timetz timestamp timestamptz",
    // Their operators.
    "date_cmp_timestamptz date_eq_timestamptz date_ge_timestamptz date_gt_timestamptz",
    "date_le_timestamptz date_lt_timestamptz date_ne_timestamptz",
    "timestamp_cmp_timestamptz timestamp_eq_timestamptz timestamp_ge_timestamptz",
    "timestamp_gt_timestamptz timestamp_le_timestamptz timestamp_lt_timestamptz",
    "timestamp_ne_timestamptz timestamptz_cmp_date timestamptz_eq_date timestamptz_ge_date",
    "timestamptz_gt_date timestamptz_le_date timestamptz_lt_date timestamptz_ne_date",
    "timestamptz_cmp_timestamp timestamptz_eq_timestamp timestamptz_ge_timestamp",
    "timestamptz_gt_timestamp timestamptz_le_timestamp timestamptz_lt_timestamp",
    "timestamptz_ne_timestamp timestamptz_pl_interval timestamptz_mi_interval",
    "interval_pl_timestamptz",
    // Text, and values as text.
    "anytextcat textanycat concat concat_ws format quote_literal quote_nullable array_to_string",
    "convert convert_from convert_to length numeric pg_typeof",
    // JSON.
    "array_to_json row_to_json to_json to_jsonb json_agg json_agg_strict jsonb_agg",
    "jsonb_agg_strict json_build_array json_build_object jsonb_build_array jsonb_build_object",
    "json_object_agg json_object_agg_strict json_object_agg_unique json_object_agg_unique_strict",
    "jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict json_populate_record json_populate_recordset json_to_record",
    "json_to_recordset jsonb_populate_record jsonb_populate_recordset jsonb_to_record",
    "jsonb_to_recordset jsonb_path_exists_tz jsonb_path_match_tz jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz jsonb_path_query_tz",
    // Searching in text.
    "to_tsvector json_to_tsvector jsonb_to_tsvector to_tsquery plainto_tsquery phraseto_tsquery",
    "websearch_to_tsquery ts_headline ts_match_tq ts_match_tt",
    // Chance.
    "random random_normal gen_random_uuid uuidv4 uuidv7",
    // The session itself: what its seal is made for.
    "pg_backend_pid inet_client_port",
];

/// Most disk that one session's sorts and joins may take for the time of a statement: what a tenant
/// fills is everybody's.
const TEMP_FILE_LIMIT: &str = "1GB";

/// The names, one by one.
pub(crate) fn allowed() -> Vec<&'static str> {
    ALLOWED.iter().flat_map(|line| line.split(' ')).collect()
}

/// True if function `p` of schema `n` is allowed; the names are `$1`.
///
/// The list has no function that compares each element of two large values with each, or reads XML by a
/// path: such a function never checks whether it must stop, so no time limit holds it.
pub(crate) const LISTED: &str = "(n.nspname = 'pg_catalog' and (p.provolatile = 'i' or p.proname = any($1)) \
       and p.proname not in ('arrayoverlap', 'arraycontains', 'arraycontained') \
       and p.proname not like 'xml\\_is\\_well\\_formed%' \
       and not '{xml,path,polygon}'::regtype[]::oid[] && (p.proargtypes::oid[] || p.prorettype))";

/// Functions that everybody or the login `$2` may call, to be followed by what is not [`LISTED`]; and
/// whether it is everybody. Left out is what nobody can call from a statement: functions of triggers,
/// and those that take or give what only the server can make.
const CALLABLE: &str = "select p.oid::regprocedure::text, \
         has_function_privilege('public', p.oid, 'execute') as everybody \
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
     where (has_function_privilege('public', p.oid, 'execute') or exists ( \
             select from aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee \
             where r.rolname = $2)) \
       and has_schema_privilege($2, n.oid, 'usage') and n.nspname <> 'flexcore' \
       and p.prorettype <> all('{trigger,event_trigger,internal,language_handler,\
           index_am_handler,table_am_handler,tsm_handler,fdw_handler}'::regtype[]) \
       and not 'internal'::regtype = any(p.proargtypes) \
       and not ";

/// Catalogues that everybody or the login `$1` may read, and whether it is everybody: sizes of tables
/// and what sessions run are in them.
const READABLE: &str = "select format('%I.%I', n.nspname, c.relname), \
         has_table_privilege('public', c.oid, 'select') as everybody \
     from pg_class c join pg_namespace n on n.oid = c.relnamespace \
     where n.nspname in ('pg_catalog', 'information_schema') and c.relkind in ('r', 'v') \
       and (has_table_privilege('public', c.oid, 'select') or exists ( \
             select from aclexplode(c.relacl) a join pg_roles r on r.oid = a.grantee \
             where r.rolname = $1)) \
     order by 1";

/// Takes from everybody, the login of queries with it, the functions that the list has not, and the
/// catalogues. Those keep them who are superusers, members of `pg_monitor`, the owner or the
/// projections' role; `flexcore_functions` is for the rest. Returns how many stay open: none, unless
/// we are no superuser.
pub(crate) async fn close(connection: &mut PgConnection, login: &str) -> Result<usize, Error> {
    let callable = AssertSqlSafe(format!("{CALLABLE}{LISTED} order by 1"));
    let callable = sqlx::query(callable).bind(allowed()).bind(login);
    let callable = callable.fetch_all(&mut *connection).await?;
    let readable = sqlx::query(READABLE).bind(login).fetch_all(&mut *connection).await?;
    // The owner may be another than the superuser who starts us this once.
    let row = sqlx::query(
        "select r.rolsuper, n.nspowner::regrole::text from pg_roles r, pg_namespace n \
         where r.rolname = current_user and n.nspname = 'flexcore'",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (superuser, owner): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
    if !superuser {
        return Ok(callable.len() + readable.len());
    }
    let mut sql = format!(
        "do $$ begin execute format('revoke temporary on database %I from public', \
             current_database()); end $$; \
         alter role \"{login}\" set temp_file_limit = '{TEMP_FILE_LIMIT}';"
    );
    let others = format!("pg_monitor, flexcore_functions, flexcore_projection, {owner}");
    for (what, rows) in [("execute on routine", callable), ("select on", readable)] {
        let (everybodys, own) = parted(&rows)?;
        if !everybodys.is_empty() {
            sql.push_str(&format!(
                "revoke {what} {everybodys} from public; grant {what} {everybodys} to {others};"
            ));
        }
        if !own.is_empty() {
            sql.push_str(&format!("revoke {what} {own} from \"{login}\";"));
        }
    }
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(0)
}

/// Names that everybody has, and all of them, since the login may have been granted either: two lists
/// of SQL.
fn parted(rows: &[PgRow]) -> Result<(String, String), sqlx::Error> {
    let (mut everybodys, mut own) = (Vec::new(), Vec::new());
    for row in rows {
        let name: &str = row.try_get(0)?;
        own.push(name);
        if row.try_get(1)? {
            everybodys.push(name);
        }
    }
    Ok((everybodys.join(", "), own.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_functions_of_the_list_and_says_rightly_which_are_not() {
        let document = include_str!("../../schemas/README.md");
        let (_, section) = document.split_once("### What a query may call").unwrap();
        let (table, rest) = section.split_once("The whole list is").unwrap();
        let (rest, _) = rest.split_once("\n## ").unwrap();
        let quoted = |text: &'static str| text.split('`').skip(1).step_by(2);
        // The head of the table, and its row of the functions that are immutable.
        let rows = table.lines().filter(|line| line.starts_with("| ")).skip(3);
        let named: Vec<&str> = rows.flat_map(quoted).collect();
        assert!(named.len() > 25, "{named:?}");
        for name in named {
            assert!(allowed().contains(&name), "{name} is not on the list");
        }
        for name in quoted(rest) {
            assert!(!allowed().contains(&name), "{name} is on the list");
        }
    }
}
