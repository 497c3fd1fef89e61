//! Rows of the log: whether they are, building a read model anew, and dropping those of another log.

use std::time::{Duration, Instant};

use flexcore_domain::Name;
use flexcore_eventstore::{self as eventstore, EventStore};
use flexcore_readmodel::{ReadModels, Rebuild, Settings};

use crate::Error;

/// Between two looks at how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// After this time without a worker that takes the rebuild up, the person is told to start one.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(15);

/// The progress of a rebuild.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// So many commits of so many are read.
    Read(u64, u64),
    /// Postgres does not answer just now.
    Waiting,
}

/// The result of the build.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// The version that serves now.
    pub version: i32,
    /// Its progress at the last look, in commits.
    pub position: u64,
}

/// Builds a read model anew beside the one that serves, and returns when it has taken over. Fails when
/// no worker takes it up, and when it is not needed any more.
pub async fn rebuild(
    read_models: &ReadModels,
    name: &str,
    progress: impl Fn(Progress),
) -> Result<Built, Error> {
    let started = Instant::now();
    let request = read_models.request_rebuild(name).await.map_err(Error::NotAsked)?;
    let mut reached = 0;
    loop {
        match read_models.rebuild(request).await {
            Ok(Rebuild::Waiting) if started.elapsed() > TAKEN_UP_WITHIN => {
                return Err(Error::NotTakenUp);
            }
            Ok(Rebuild::Waiting) => {}
            Ok(Rebuild::Building { position, target, .. }) => {
                reached = position;
                progress(Progress::Read(position, target.max(position)));
            }
            Ok(Rebuild::Done { version }) => return Ok(Built { version, position: reached }),
            Ok(Rebuild::Superseded) => return Err(Error::Superseded),
            // The worker goes on without us; so do we, once Postgres is back.
            Err(error) if error.is_passing() => progress(Progress::Waiting),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Drops rows of another log; the workers build them anew from this one. Returns this log's identity,
/// and the names of the read models that were dropped.
#[boxed::async_recursion]
pub async fn adopt(
    store: &EventStore,
    read_models: &ReadModels,
) -> Result<(String, Vec<Name>), Error> {
    let log = store.log().await.map_err(Error::NoLog)?.identity;
    let dropped = read_models.adopt_log(&log).await.map_err(Error::NotDropped)?;
    Ok((log, dropped))
}

/// Why the rows in Postgres are not of this log; `None`: they are, or Postgres is away, so that
/// nothing is known.
#[boxed::async_recursion]
pub async fn other_log(store: &EventStore, postgres: &str) -> Result<Option<String>, Error> {
    let read_models = ReadModels::connect(postgres, Settings::default()).await?;
    let Ok(marks) = read_models.marks().await else { return Ok(None) };
    match store.recognise(&marks).await {
        Ok(_) => Ok(None),
        Err(eventstore::Error::OtherLog(other)) => Ok(Some(other.to_string())),
        Err(error) => Err(Error::NotCompared(error)),
    }
}
