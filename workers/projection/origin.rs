//! Checks that the rows are of the log at hand: before anything is written, and again and again,
//! since the log may be replaced while the worker runs.

use std::time::Duration;

use flexcore_domain::log::OtherLog;
use flexcore_eventstore::{Error as LogError, EventStore};
use flexcore_readmodel::{Error, ReadModels};
use metrics::gauge;
use tokio::time::Instant;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A log that ends before a checkpoint for this long is taken to be another one. A deposed leader
/// answers from its own copy until it hears of that, or has heard of nobody for ten seconds.
const REPLACED_AFTER: Duration = Duration::from_secs(20);

/// The result so far.
#[derive(Default)]
pub(super) struct Origin {
    looked_at: Option<Instant>,
    /// Since when the log has ended too early.
    short_since: Option<Instant>,
    refused: Option<OtherLog>,
}

impl Origin {
    /// True if read models may be written: the rows are of this log, as far as anybody can tell.
    /// Fails when Postgres is away.
    pub(super) async fn is_this_log(
        &mut self,
        store: &EventStore,
        read_models: &ReadModels,
    ) -> Result<bool, Error> {
        if self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            let marks = read_models.marks().await?;
            match store.recognise(&marks).await {
                Ok(end) if marks.identity.is_none() => {
                    let rows = read_models.claim_log(&end.identity).await?;
                    let log = end.identity;
                    let other = (rows != log).then_some(OtherLog::Identity { rows, log });
                    self.found(other, Instant::now());
                }
                Ok(_) => self.found(None, Instant::now()),
                Err(LogError::OtherLog(other)) => self.found(Some(other), Instant::now()),
                // The broker is away, and readers wait for it.
                Err(_) => {}
            }
        }
        Ok(self.refused.is_none())
    }

    /// Keeps what a look found. A log that ends too early is refused only when it stays so.
    fn found(&mut self, other: Option<OtherLog>, now: Instant) {
        self.looked_at = Some(now);
        let other = match other {
            Some(short @ OtherLog::Shorter { .. }) => {
                let since = *self.short_since.get_or_insert(now);
                (now - since >= REPLACED_AFTER).then_some(short)
            }
            other => {
                self.short_since = None;
                other
            }
        };
        gauge!("flexcore_projection_other_log").set(f64::from(u8::from(other.is_some())));
        if let Some(other) = &other
            && self.refused.as_ref() != Some(other)
        {
            tracing::error!(%other, "no read model is written");
        }
        if other.is_none() && self.refused.is_some() {
            tracing::info!("the read models are of this log again");
        }
        self.refused = other;
    }
}

#[cfg(test)]
mod tests {
    use flexcore_domain::Name;

    use super::*;

    #[test]
    fn a_log_that_ends_too_early_is_refused_when_it_stays_so() {
        let read_model = Name::parse("sums").unwrap();
        let short =
            || Some(OtherLog::Shorter { last: 1, read_model: read_model.clone(), sequence: 2 });
        let (mut origin, start) = (Origin::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        origin.found(short(), at(0));
        origin.found(short(), at(19));
        assert!(origin.refused.is_none());
        origin.found(None, at(20));
        origin.found(short(), at(30));
        assert!(origin.refused.is_none(), "it was whole meanwhile");
        origin.found(short(), at(50));
        assert!(origin.refused.is_some());
        origin.found(None, at(52));
        assert!(origin.refused.is_none());
        let (rows, log) = ("a".to_owned(), "b".to_owned());
        origin.found(Some(OtherLog::Identity { rows, log }), at(54));
        assert!(origin.refused.is_some(), "another log at once");
    }
}
