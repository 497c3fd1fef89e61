//! A tenant's database, and the connections to it: few for each tenant, bounded over all of them, and
//! closed when nobody needs them.

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flexcore_sdk::Failure;
use futures::TryStreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Either,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::{
    bridge::{Bridged, bridged, too_large},
    failed::Trouble,
    rows::{Found, Rows},
    security::Security,
};
use crate::{
    places::Places,
    reach::{self, Networks},
};

/// Connections that one tenant has at once, to whatever databases; further calls wait. 4: a database has
/// a hundred for all.
const OF_TENANT_MAX: usize = 4;
/// Connections of all tenants. 64: each has a socket, two buffers and up to 16 MiB for a message.
const OF_ALL_MAX: usize = 64;
/// Of these, so many are never idle: whoever comes first after a rest need not wait for others.
const SPARE: usize = 16;
/// A connection that nobody uses is closed after this. 30 s: calls come in bursts.
const IDLE: Duration = Duration::from_secs(30);
/// Longest time for cleaning a connection. 5 s: then it is closed.
const CLEAN_WAIT: Duration = Duration::from_secs(5);
/// Bytes of all answers after which a connection is not used again. 64 MiB: sqlx remembers some of what a
/// database says, such as its settings and types, for as long as the connection is there.
const RECEIVED_BYTES_MAX: usize = 64 * 1024 * 1024;

static OF_ALL: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(OF_ALL_MAX)));
/// A tenant that is configured otherwise gets no further ones while former calls have them.
static OF_TENANTS: Places = Places::new(OF_TENANT_MAX);

/// The schema of the configuration.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["url"],
        "additionalProperties": false,
        "properties": {
            "url": {
                "type": "string",
                "writeOnly": true,
                "description": "postgres://user:password@host:5432/database. TLS that proves the host's \
                    name, unless ?sslmode= says verify-ca, require or disable.",
            },
            "networks": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Networks beside the internet, such as 10.1.0.0/16. Whoever runs the \
                    installation has to permit them.",
            },
            "authorities": {
                "type": "string",
                "description": "Certificates of the only authorities to trust, as PEM; those that \
                    browsers trust unless said otherwise.",
            },
        },
    })
}

/// The configuration as it comes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Given {
    url: String,
    #[serde(default)]
    networks: Vec<String>,
    authorities: Option<String>,
}

/// A tenant's database.
pub(super) struct Database {
    host: String,
    options: PgConnectOptions,
    security: Security,
    networks: Networks,
    idle: Arc<Idle>,
}

/// Connections that wait for their next call.
#[derive(Default)]
struct Idle {
    waiting: Mutex<Vec<Waiting>>,
    numbers: AtomicU64,
}

struct Waiting {
    number: u64,
    open: Open,
    _closes: AbortOnDropHandle<()>,
}

/// A connection that is logged in.
struct Open {
    bridged: Bridged,
    _of_all: OwnedSemaphorePermit,
}

/// A connection for one call. Where it is not kept, it is closed.
pub(super) struct Lease {
    open: Open,
    place: OwnedSemaphorePermit,
    idle: Arc<Idle>,
}

impl Database {
    /// Fails where the configuration cannot be used; the address is not quoted.
    pub(super) fn new(given: Given) -> Result<Self, Failure> {
        let (host, options) = login(&given.url)?;
        let authorities = given.authorities.as_deref();
        let security = Security::new(options.get_ssl_mode(), &host, authorities)?;
        // The bridge has the TLS. Neither statements nor what they are about belong into a log.
        let options = options.ssl_mode(PgSslMode::Disable).application_name("flexcore");
        Ok(Self {
            host,
            options: options.disable_statement_logging(),
            security,
            networks: Networks::parse(&given.networks)?,
            idle: Arc::default(),
        })
    }

    /// A connection of this tenant on which the transaction has begun. Waits for a place; the caller
    /// bounds the time.
    pub(super) async fn begin(&self, tenant: &str, sql: &str) -> Result<Lease, Failure> {
        let place = OF_TENANTS.take(tenant).await?;
        // The database may have closed it meanwhile.
        while let Some(mut open) = self.idle.take() {
            if open.run(sql).await.is_ok() {
                return Ok(Lease { open, place, idle: Arc::clone(&self.idle) });
            }
        }
        let of_all = Arc::clone(&OF_ALL).acquire_owned().await;
        let of_all = of_all.map_err(|error| Failure::passing("busy", error))?;
        let port = self.options.get_port();
        let stream = reach::connect(tenant, &self.host, port, &self.networks).await?;
        let bridged = bridged(self.options.clone(), &self.security, stream).await?;
        let mut open = Open { bridged, _of_all: of_all };
        open.run(sql).await?;
        Ok(Lease { open, place, idle: Arc::clone(&self.idle) })
    }
}

/// Host and login of an address. Nothing of it leads to a file of this machine.
fn login(text: &str) -> Result<(String, PgConnectOptions), Failure> {
    let unfit =
        |why: &str| Failure::new("bad_configuration", format!("the database's `url` {why}"));
    let url = Url::parse(text).map_err(|error| unfit(&format!("is none: {error}")))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.username().is_empty() {
        return Err(unfit("has to be postgres://user:password@host:5432/database"));
    }
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    // An encoded slash would be a folder of sockets.
    if host.is_empty() || host.contains(['%', '/']) {
        return Err(unfit("has no host"));
    }
    let mut mode = PgSslMode::VerifyFull;
    for (key, value) in url.query_pairs() {
        mode = match (&*key, &*value) {
            ("sslmode", "disable") => PgSslMode::Disable,
            ("sslmode", "require") => PgSslMode::Require,
            ("sslmode", "verify-ca") => PgSslMode::VerifyCa,
            ("sslmode", "verify-full") => PgSslMode::VerifyFull,
            ("sslmode", _) => {
                return Err(unfit(
                    "has an sslmode other than disable, require, verify-ca, verify-full",
                ));
            }
            _ => return Err(unfit("has parameters other than sslmode")),
        };
    }
    let options: PgConnectOptions = text.parse().map_err(|_| unfit("cannot be read"))?;
    Ok((host, options.ssl_mode(mode)))
}

impl Idle {
    fn take(&self) -> Option<Open> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let last = waiting.pop();
        drop(waiting);
        last.map(|waiting| waiting.open)
    }

    fn put(self: &Arc<Self>, open: Open) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let closes = close_in_time(Arc::downgrade(self), number);
        let closes = AbortOnDropHandle::new(tokio::spawn(closes));
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(Waiting { number, open, _closes: closes });
    }
}

async fn close_in_time(idle: Weak<Idle>, number: u64) {
    sleep(IDLE).await;
    if let Some(idle) = idle.upgrade() {
        let mut waiting = idle.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|waiting| waiting.number != number);
    }
}

impl Open {
    /// Runs one of our own statements.
    async fn run(&mut self, sql: &str) -> Result<(), Trouble> {
        self.bridged.meter.reset();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.bridged.connection).await?;
        Ok(())
    }
}

impl Lease {
    /// Runs one of our own statements.
    pub(super) async fn run(&mut self, sql: &str) -> Result<(), Trouble> {
        self.open.run(sql).await
    }

    /// Prepares and executes the caller's statement.
    pub(super) async fn found(&mut self, prepare: &str, execute: String) -> Result<Found, Trouble> {
        let connection = &mut self.open.bridged.connection;
        // As a message of its own kind, in which there cannot be more than one statement.
        let prepare =
            sqlx::query::<sqlx::Postgres>(AssertSqlSafe(prepare.to_owned())).persistent(false);
        prepare.execute(&mut *connection).await?;
        let mut answer = sqlx::raw_sql(AssertSqlSafe(execute)).fetch_many(connection);
        let (mut rows, mut rows_affected) = (Rows::default(), 0);
        while let Some(next) = answer.try_next().await? {
            match next {
                Either::Left(done) => rows_affected = done.rows_affected(),
                Either::Right(row) => rows.add(&row)?,
            }
        }
        drop(answer);
        rows.found(rows_affected)
    }

    /// The failure that a caller gets.
    pub(super) fn explained(&self, trouble: Trouble) -> Failure {
        if self.open.bridged.meter.is_over() {
            return too_large();
        }
        trouble.into()
    }

    /// Keeps the connection for the next call, when it is as it was at first. Nobody waits for that.
    pub(super) fn keep(self) {
        tokio::spawn(async move {
            let Self { mut open, place, idle } = self;
            let cleaned = timeout(CLEAN_WAIT, open.run("discard all")).await;
            let is_fresh = open.bridged.meter.total() < RECEIVED_BYTES_MAX;
            let is_usable = matches!(cleaned, Ok(Ok(()))) && is_fresh;
            if is_usable && OF_ALL.available_permits() >= SPARE {
                idle.put(open);
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_a_host_and_to_no_file() {
        let (host, options) = login("postgres://u:p%40@db.example:5433/d").unwrap();
        assert_eq!((host.as_str(), options.get_port()), ("db.example", 5433));
        assert_eq!(options.get_database(), Some("d"));
        assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
        let (host, options) = login("postgresql://u@[::1]/d?sslmode=disable").unwrap();
        assert_eq!((host.as_str(), options.get_port()), ("::1", 5432));
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable));
        for url in [
            "",
            "mysql://u:s3cr3t@h/d",
            "postgres://h/d",
            "postgres://u:s3cr3t@/d",
            "postgres://u:s3cr3t@%2Fvar%2Frun/d",
            "postgres://u:s3cr3t@h/d?host=/var/run",
            "postgres://u:s3cr3t@h/d?hostaddr=127.0.0.1",
            "postgres://u:s3cr3t@h/d?sslrootcert=/etc/passwd",
            "postgres://u:s3cr3t@h/d?sslmode=prefer",
            "postgres://u:s3cr3t@h/d?options=-csearch_path%3Dx",
            "postgres://u:s3cr3t@h:99999/d",
        ] {
            let failure = login(url).map(drop).unwrap_err();
            assert_eq!(failure.code, "bad_configuration", "{url}");
            assert!(!failure.message.contains("s3cr3t"), "{failure}");
        }
    }
}
