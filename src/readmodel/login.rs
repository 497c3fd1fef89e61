//! The login that queries run over: made, looked at, let in.

use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgPool, Row as _, postgres::PgConnectOptions};

use flexcore_domain::Tenant;

use crate::{
    Error,
    error::{FORBIDDEN, NO_TABLE, code},
    functions, transaction,
};

/// The lock under which the login is made: FNV-1a of `flexcore login`, as any number of ours would
/// do.
const LOCK: i64 = 0x666c_6578_6c6f_6769;

/// The login, and the key that seals tenants for its sessions.
#[derive(PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) name: String,
    /// `None`: it came with `--postgres-query`, its password with it.
    pub(crate) password: Option<String>,
    key: Vec<u8>,
}

impl Login {
    /// The login as the database has it. Fails with [`Error::NotBuilt`] before the first migration.
    pub(crate) async fn read(owner: &PgPool) -> Result<Self, Error> {
        let sql = "select name, password, key from flexcore.query_login";
        let row = sqlx::query(sql).fetch_optional(owner).await;
        let missing = || Error::NotBuilt("the login of queries".to_owned());
        let row = match row {
            Ok(row) => row.ok_or_else(missing)?,
            // Somebody asks before anybody has migrated.
            Err(error) if code(&error).as_deref() == Some(NO_TABLE) => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { name: row.try_get(0)?, password: row.try_get(1)?, key: row.try_get(2)? })
    }

    /// The value of `flexcore.tenant` for this tenant, in the session at this place. The tenant is
    /// checked to have no quote and no space in it.
    pub(crate) fn seal(&self, place: &str, tenant: &Tenant) -> String {
        let inner = Sha256::new()
            .chain_update(&self.key)
            .chain_update(format!("{place} {tenant}"))
            .finalize();
        let seal = Sha256::new().chain_update(&self.key).chain_update(inner).finalize();
        let hex: String = seal.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{tenant} {hex}")
    }

    /// A session's process at Postgres, and where it is: what its seals are made for.
    pub(crate) async fn place(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(i32, String), Error> {
        let row = sqlx::query(
            "select pg_backend_pid(), coalesce(inet_client_port(), -1), \
                 session_user = $1 and current_user = $1",
        )
        .bind(&self.name)
        .fetch_one(connection)
        .await?;
        if row.try_get::<Option<bool>, _>(2)? != Some(true) {
            let name = &self.name;
            return Err(Error::Misconfigured(format!("the login of queries is not {name}")));
        }
        let (pid, port): (i32, i32) = (row.try_get(0)?, row.try_get(1)?);
        Ok((pid, format!("{pid} {port}")))
    }

    /// Looks whether the login may run queries. Fails with [`Error::Misconfigured`] when it could
    /// become somebody else, or see the rows of every tenant. The owner asks: the login itself sees
    /// no catalogue.
    pub(crate) async fn look(&self, owner: &PgPool) -> Result<(), Error> {
        let row = sqlx::query(WRONG).bind(&self.name).fetch_optional(owner).await?;
        let Some(row) = row else { return Ok(()) };
        let wrong: String = row.try_get(0)?;
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::Misconfigured(format!(
            "no query is answered: {}, the login of queries, {wrong}. Revoke that, or drop \
             the login and start again: it is then created",
            self.name
        )))
    }
}

/// The faults of the login: every right by which it could become somebody else or see past
/// row-level security. No row: there is no such login.
const WRONG: &str = "select array_to_string(array[ \
        case when r.rolsuper then 'is a superuser' end, \
        case when r.rolbypassrls then 'passes row-level security by' end, \
        case when r.rolcreaterole then 'may create roles' end, \
        case when r.rolcreatedb then 'may create databases' end, \
        case when r.rolreplication then 'may replicate' end, \
        case when exists (select from pg_auth_members where member = r.oid) \
            then 'is a member of another role' end, \
        case when exists (select from pg_shdepend where refclassid = 'pg_authid'::regclass \
            and refobjid = r.oid and deptype = 'o') then 'owns something' end \
    ], ', ') \
    from pg_roles r where r.rolname = $1";

/// Makes the login, or takes the one that is given; lets it in, and closes to it the functions that
/// queries may not call. Safe when several processes do it at once.
pub(crate) async fn open(
    owner: &PgPool,
    given: Option<&PgConnectOptions>,
    anew: bool,
) -> Result<(), Error> {
    let given = given.map(PgConnectOptions::get_username);
    let mut transaction = transaction::begin(owner).await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    sqlx::query("select flexcore.open_query_login($1, $2)")
        .bind(given)
        .bind(anew)
        .execute(&mut *transaction)
        .await
        .map_err(|error| cannot_make(error, given))?;
    let login: String = sqlx::query("select name from flexcore.query_login")
        .fetch_one(&mut *transaction)
        .await?
        .try_get(0)?;
    let beyond = functions::close(&mut transaction, &login).await?;
    transaction.commit().await?;
    if beyond > 0 {
        tracing::warn!(
            open = beyond,
            "Postgres lets queries use functions and catalogues beyond the list, and only a superuser \
             can close them: start a gateway or worker once with a superuser's --postgres"
        );
    }
    Ok(())
}

fn cannot_make(error: sqlx::Error, given: Option<&str>) -> Error {
    match (code(&error).as_deref(), given) {
        (Some(FORBIDDEN), None) => Error::Misconfigured(format!(
            "the login of queries cannot be created ({error}): let the owner create roles, or give \
             a login that owns nothing by --postgres-query"
        )),
        // undefined_object
        (Some("42704"), Some(login)) => Error::Misconfigured(format!(
            "--postgres-query names {login}, which Postgres does not know"
        )),
        _ => error.into(),
    }
}
