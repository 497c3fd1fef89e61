//! The installed plugins and who runs them, as they were found last. `routes/plugins.rs` asks.

use std::{sync::Arc, time::Instant};

use flexcore_eventstore::EventStore;
use flexcore_operations::plugins::{self, PluginView};
use tokio::sync::Mutex;

use crate::{error::Problem, limits::PLUGINS_AGE};

/// What was found last, and when.
#[derive(Default)]
pub(crate) struct InstalledSeen {
    found: Mutex<Option<(Instant, Arc<[PluginView]>)>>,
}

impl InstalledSeen {
    /// Asks the log and the workers, unless they were asked just now. One look at a time, whoever asks.
    /// Fails when the broker is away.
    pub(crate) async fn look(&self, store: &EventStore) -> Result<Arc<[PluginView]>, Problem> {
        let mut found = self.found.lock().await;
        if let Some((at, installed)) = &*found
            && at.elapsed() < PLUGINS_AGE
        {
            return Ok(installed.clone());
        }
        let installed: Arc<[PluginView]> = plugins::view(store).await?.into();
        *found = Some((Instant::now(), installed.clone()));
        Ok(installed)
    }
}
