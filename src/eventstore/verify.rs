//! Verify: walks the log, or one aggregate, and names the first break.

use std::time::Duration;

use flexcore_domain::AggregateKey;
use serde::Serialize;

use crate::{Error, EventStore, Filter};

/// What a walk found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Commits read.
    pub commits: u64,
    /// Events in them.
    pub events: u64,
    /// Last stream sequence read.
    pub last_sequence: u64,
    /// The first break, in words; `None`: contiguous and unchanged.
    pub broken: Option<String>,
}

/// Commits between two calls of the progress function.
const STEP: usize = 1_000;

/// Walks the whole log, or one aggregate: stream sequences and versions must follow one another
/// and every commit must carry the hash that follows from its predecessor. `progress` is called
/// with (commits read, commits in all). Fails with [`Error::Unavailable`] when the broker goes away;
/// a break is not a failure but the report's `broken`.
pub async fn verify(
    store: &EventStore,
    aggregate: Option<&AggregateKey>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    let mut report = Report::default();
    if let Some(key) = aggregate {
        match store.load(key, 0).await {
            Ok(commits) => {
                for recorded in &commits {
                    report.count(recorded);
                }
            }
            Err(error @ (Error::Unavailable(_) | Error::Misconfigured(_))) => return Err(error),
            Err(broken) => report.broken = Some(broken.to_string()),
        }
        return Ok(report);
    }
    let end = store.last_sequence().await?;
    let mut subscription = store.subscribe(Filter::Everything, 1).await?;
    let mut silent = 0;
    while report.last_sequence < end {
        match subscription.next_batch(STEP, Duration::from_secs(2)).await {
            Ok(batch) if batch.is_empty() => {
                silent += 1;
                if silent == 5 {
                    return Err(Error::Unavailable("the broker sends nothing more".to_owned()));
                }
            }
            Ok(batch) => {
                silent = 0;
                for recorded in &batch {
                    report.count(recorded);
                }
                progress(report.last_sequence, end);
            }
            Err(broken) => {
                report.broken = Some(broken.to_string());
                break;
            }
        }
    }
    Ok(report)
}

impl Report {
    fn count(&mut self, recorded: &crate::Recorded) {
        self.commits += 1;
        self.events += recorded.commit.events.len() as u64;
        self.last_sequence = recorded.sequence;
    }
}
