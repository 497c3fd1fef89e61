//! The end of a build: a version that has caught up gets its indexes, and takes over.

use std::{sync::Arc, time::Duration};

use flexcore_readmodel::{Error, Version};
use tokio::time::Instant;

use super::{
    super::{batch::Model, failure::Failure, indexing::Unindexed},
    Running,
};

/// A version this close to the log's end takes over: the rest is a batch.
const CAUGHT_UP_COMMITS: u64 = 1_000;
/// For so long all portions of a version have time to come as far as the log's end was at a look. Each is
/// read by somebody else, and the log goes on meanwhile.
const END_COUNTS: Duration = Duration::from_secs(10);

impl Running<'_> {
    /// Lets the version take over when it is close enough to the log's end.
    pub(super) async fn promote(&mut self, now: Instant) -> Result<bool, Failure> {
        let (end, at) = match self.end.filter(|(_, at)| now - *at < END_COUNTS) {
            Some(end) => end,
            None => (self.reader.store.last_sequence().await?, now),
        };
        self.end = Some((end, at));
        if self.read_to + CAUGHT_UP_COMMITS < end {
            return Ok(false);
        }
        let Model { version, waits, .. } = &self.models[0];
        let read_models = &self.reader.read_models;
        // The owner of the first portion looks if all of them have come so far.
        if *waits || !version.portions.manage() {
            return Ok(false);
        }
        if read_models.reached(version).await? + CAUGHT_UP_COMMITS < end {
            return Ok(false);
        }
        let version = version.clone();
        if !self.index(&version)? {
            return Ok(false);
        }
        let promoted = self.reader.read_models.promote(&version, &mut self.ahead).await?;
        if promoted {
            tracing::info!(
                read_model = %version.read_model,
                version = version.number,
                "read model serves"
            );
        }
        Ok(promoted)
    }

    /// Returns true if the version has its indexes; has them made, when nobody does. Made when the
    /// rows are there, an index costs one sort, and not a write with each row of the log. The
    /// reader reads on meanwhile.
    fn index(&mut self, version: &Arc<Version>) -> Result<bool, Failure> {
        if self.is_indexed || version.indexes_wanted().is_empty() {
            return Ok(true);
        }
        let Some(made) = self.indexing.try_join_next() else {
            if self.indexing.is_empty() {
                let (read_models, version) = (self.reader.read_models.clone(), version.clone());
                self.indexing.spawn(async move { read_models.index(&version).await });
            }
            return Ok(false);
        };
        self.is_indexed = match made.map_err(|error| Error::Unavailable(error.to_string()))? {
            Ok(made) => made,
            Err(error) if error.is_passing() => return Err(error.into()),
            // It serves without; the worker raises the alarm, and tries again.
            Err(error) => {
                tracing::error!(read_model = %version.read_model, %error, "an index cannot be made");
                let (id, wanted) = (version.id(), version.indexes_wanted());
                self.unindexed = Some(Unindexed { id, wanted, error });
                true
            }
        };
        Ok(self.is_indexed)
    }
}
