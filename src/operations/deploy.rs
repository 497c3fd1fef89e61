//! Deploying an application: its queries are checked, it is compared with the one in force, and it
//! becomes an event of the log. Running processes pick it up with no restart.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flexcore_definition::{Application, Catalog, compare};
use flexcore_domain::ActorName;
use flexcore_eventstore::{self as eventstore, EventStore, catalog};
use flexcore_readmodel::{ReadModels, Settings};
use serde::Serialize;

use crate::{Error, deciders};

/// The result of a deployment.
#[derive(Debug, Serialize)]
pub struct Deployed {
    /// Its name.
    pub application: String,
    /// The version in force now.
    pub version: u32,
    /// In words; empty: nothing changed, and nothing was deployed.
    pub changes: Vec<String>,
    /// Milliseconds until a worker had it; `None`: none is running.
    pub picked_up_ms: Option<u64>,
    /// What will not work as things are, such as a plugin that decides and is not installed.
    pub warnings: Vec<String>,
}

/// Longest wait for a worker to pick a version up.
const PICKED_UP_WITHIN: Duration = Duration::from_secs(5);
/// Times that another application may be deployed between our look and our deployment.
const OTHERS_FIRST_MAX: u32 = 20;
/// Pause between two questions for it.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Has Postgres prepare the queries, against the columns that the deployment will have. Fails with
/// all problems that were found, and when Postgres cannot be asked.
#[boxed::async_recursion]
pub async fn check_queries(postgres: &str, application: &Application) -> Result<(), Error> {
    let read_models = ReadModels::connect(postgres, Settings::default()).await?;
    let problems = read_models.check_queries(application).await;
    read_models.close().await;
    let problems = problems.map_err(Error::QueriesUnchecked)?;
    if problems.is_empty() { Ok(()) } else { Err(Error::Refused(problems)) }
}

/// Deploys an application if it differs from the one in force, and waits until a worker has it.
#[boxed::async_recursion]
pub async fn deploy(store: &EventStore, application: &Application) -> Result<Deployed, Error> {
    let mut deployments = 0;
    let (version, changes) = loop {
        let (before, changes) = compared(store, application).await?;
        let version = before.version();
        if changes.is_empty() {
            break (version, changes);
        }
        let actor = ActorName::parse("apply").expect("BUG: a valid name");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::Clock)?;
        let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        match catalog::deploy(store, application, &before, &actor, now_ms).await {
            Ok(version) => break (version, changes),
            Err(eventstore::Error::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
        // Another application's deployment may have taken a name that this one declares: look again.
        deployments += 1;
        let after = catalog::deployment(store, &application.name).await?;
        if after.expected != before.expected || deployments == OTHERS_FIRST_MAX {
            let same = after.expected == before.expected;
            let of = if same { "applications" } else { application.name.as_str() };
            return Err(Error::Overtaken(of.to_owned()));
        }
    };
    let picked_up_ms = picked_up(store, application.name.as_str(), version).await;
    // It is in force: whoever reads what came of it must not take it for failed.
    let warnings = deciders::warnings(store, application).await.unwrap_or_else(|error| {
        vec![format!("nobody says whether the plugins that decide are there: {error}")]
    });
    let application = application.name.to_string();
    Ok(Deployed { application, version, changes, picked_up_ms, warnings })
}

/// The result that a deployment would have, with the version in force now; 0: none is. Fails with the
/// reasons when a change is incompatible or a name belongs to another application.
#[boxed::async_recursion]
pub async fn dry_run(store: &EventStore, application: &Application) -> Result<Deployed, Error> {
    let (before, changes) = compared(store, application).await?;
    let warnings = deciders::warnings(store, application).await?;
    let (application, version) = (application.name.to_string(), before.version());
    Ok(Deployed { application, version, changes, picked_up_ms: None, warnings })
}

/// The version in force, and the changes.
async fn compared(
    store: &EventStore,
    application: &Application,
) -> Result<(catalog::Deployment, Vec<String>), Error> {
    let before = catalog::deployment(store, &application.name).await?;
    let others: std::sync::Arc<Catalog> = catalog::watch(store).await?.borrow().clone();
    others.with(application.clone()).map_err(Error::Refused)?;
    let changes = match &before.application {
        None => vec![format!("application {} is new", application.name)],
        Some(old) => {
            let comparison = compare(old, application);
            if !comparison.refusals.is_empty() {
                let (version, problems) = (old.version, comparison.refusals);
                return Err(Error::Incompatible { version, problems });
            }
            comparison.changes
        }
    };
    Ok((before, changes))
}

/// Asks the workers until one has the version. Returns how long that took in milliseconds, or
/// `None` when no worker answers.
async fn picked_up(store: &EventStore, name: &str, version: u32) -> Option<u64> {
    let since = Instant::now();
    while since.elapsed() < PICKED_UP_WITHIN {
        let asked = store.client().request(format!("ctl.catalog.{name}"), "".into()).await.ok()?;
        let answer = std::str::from_utf8(&asked.payload).ok().and_then(|text| text.parse().ok());
        if answer.is_some_and(|found: u32| found >= version) {
            return u64::try_from(since.elapsed().as_millis()).ok();
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    None
}
