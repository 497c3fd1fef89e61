//! The installed plugins and who runs them, as they were found last. `routes/plugins.rs` asks.

use std::{sync::Arc, time::Instant};

use flexcore_eventstore::{EventStore, plugins::InstalledPlugins};
use flexcore_operations::plugins::{self, PluginView};
use tokio::sync::{Mutex, watch};

use crate::{error::Problem, limits::PLUGINS_AGE};

/// What was found last, and when.
pub(crate) struct InstalledSeen {
    /// As the process follows it in any case: a look reads nothing from the log.
    installed: watch::Receiver<Arc<InstalledPlugins>>,
    found: Mutex<Option<(Instant, Arc<[PluginView]>)>>,
}

impl InstalledSeen {
    pub(crate) fn new(installed: watch::Receiver<Arc<InstalledPlugins>>) -> Self {
        Self { installed, found: Mutex::default() }
    }

    /// Asks the workers, unless they were asked just now. One look at a time, whoever asks. Fails when the
    /// broker is away.
    pub(crate) async fn look(&self, store: &EventStore) -> Result<Arc<[PluginView]>, Problem> {
        let mut found = self.found.lock().await;
        if let Some((at, views)) = &*found
            && at.elapsed() < PLUGINS_AGE
        {
            return Ok(views.clone());
        }
        let installed = self.installed.borrow().clone();
        let views: Arc<[PluginView]> = plugins::on_workers(store, &installed).await?.into();
        *found = Some((Instant::now(), views.clone()));
        Ok(views)
    }
}
