//! What a pool runs, and what it is asked.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use flexcore_plugin::{Start, contract::Context};

use crate::{
    configured::Configurations,
    limits::{CONCURRENCY_MAX, INSTANCES_MAX},
};

/// All that running the instances of a plugin takes.
#[derive(Clone)]
pub struct Spec {
    /// Says how an instance is started; called before each start. What it says of output is told
    /// what the plugin prints, behind the pool itself. Its `start_wait` is replaced by the one here.
    pub start: Arc<dyn Fn() -> Start + Send + Sync>,
    /// Processes; 1 to 16, and cut to that.
    pub instances: usize,
    /// Calls under way at one instance; 1 to 1,024, and cut to that.
    pub concurrency: usize,
    /// Longest time from the start of an instance to its first line.
    pub start_wait: Duration,
    /// Longest time of one call, whatever its caller says.
    pub call_max: Duration,
    /// Largest output of a call of the contract, in bytes, with what stands around it. As much is
    /// in memory for each call under way; a larger one is [`PoolError::Faulty`](crate::PoolError).
    pub output_bytes_max: usize,
    /// True for a plugin of FlexCore's contract; others are called by reflection.
    pub contract: bool,
    /// The configurations of its tenants. A plugin whose description has no schema of one gets none.
    pub configurations: Configurations,
    /// The plugin's name: a label of metrics.
    pub name: String,
}

impl Spec {
    pub(crate) fn instances(&self) -> usize {
        self.instances.clamp(1, INSTANCES_MAX)
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency.clamp(1, CONCURRENCY_MAX)
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, instances, concurrency, .. } = self;
        f.debug_struct("Spec")
            .field("name", name)
            .field("instances", instances)
            .field("concurrency", concurrency)
            .finish_non_exhaustive()
    }
}

/// A call of a function of the contract.
#[derive(Clone, Debug)]
pub struct PoolCall {
    /// The function's name.
    pub function: String,
    /// On whose behalf; its `timeout_ms` is replaced by the time that is left.
    pub context: Context,
    /// JSON.
    pub input: Bytes,
}
