//! A call, as its function sees it.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flexcore_plugin::{contract::Context, limits::CALL_WAIT_MAX};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{Failure, configured::Configured};

/// Shortest time between two lines that say how far a call is. 1 s: a person reads them.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// A call of a function: its input, and on whose behalf it is made.
pub struct Call<I> {
    /// What the caller sent.
    pub input: I,
    about: About,
}

/// All about a call but its input. A cheap clone.
#[derive(Clone)]
pub(crate) struct About {
    pub(crate) context: Arc<Context>,
    pub(crate) ends: Instant,
    pub(crate) stop: CancellationToken,
    configured: Arc<Configured>,
    progress: Arc<Mutex<Option<Instant>>>,
}

impl About {
    pub(crate) fn new(context: Context, configured: &Arc<Configured>) -> Self {
        let left = Duration::from_millis(context.timeout_ms).min(CALL_WAIT_MAX);
        Self {
            context: Arc::new(context),
            ends: Instant::now() + left,
            stop: CancellationToken::new(),
            configured: Arc::clone(configured),
            progress: Arc::default(),
        }
    }

    /// The same for one of many calls of a stream, under a key of its own.
    pub(crate) fn of(&self, batch: u64, index: usize) -> Self {
        let mut context = Context::clone(&self.context);
        if !context.idempotency_key.is_empty() {
            context.idempotency_key = format!("{}:{batch}:{index}", context.idempotency_key);
        }
        Self {
            context: Arc::new(context),
            stop: self.stop.child_token(),
            progress: Arc::default(),
            ..self.clone()
        }
    }
}

/// The answer when the caller's time is over; mostly nobody hears it.
pub(crate) fn late() -> Status {
    Status::deadline_exceeded("the caller's time is over")
}

impl<I> Call<I> {
    pub(crate) fn new(input: I, about: About) -> Self {
        Self { input, about }
    }

    /// Whose data it is. Never mix what you keep for two tenants.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.about.context.tenant
    }

    /// Who caused it, as recorded.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.about.context.actor
    }

    /// The same for every attempt of this call, and for no other call.
    #[must_use]
    pub fn idempotency_key(&self) -> &str {
        &self.about.context.idempotency_key
    }

    /// W3C Trace Context: `traceparent` and `tracestate`, for requests that are made for this call.
    #[must_use]
    pub fn trace(&self) -> Option<(&str, &str)> {
        let Context { traceparent, tracestate, .. } = &*self.about.context;
        (!traceparent.is_empty()).then_some((traceparent.as_str(), tracestate.as_str()))
    }

    /// How long the caller still waits. At its end the function is dropped.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.about.ends.saturating_duration_since(Instant::now())
    }

    /// Is cancelled when nobody waits for this call any more, and when it has ended: for what goes
    /// on elsewhere, on another thread or task.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.about.stop.clone()
    }

    /// The tenant's configuration, as [`Plugin::configured`](crate::Plugin::configured) makes it.
    /// A later configuration does not change it during the call. Fails where there is none, and
    /// where it is of another type.
    pub fn configured<C: Any + Send + Sync>(&self) -> Result<Arc<C>, Failure> {
        self.about.configured.get(self.tenant())
    }

    /// Logs how far the call is, once a second at most.
    pub fn progress(&self, done: u64, of: u64) {
        let now = Instant::now();
        let mut last = self.about.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if done >= of || last.is_none_or(|last| now.duration_since(last) >= PROGRESS_PAUSE) {
            *last = Some(now);
            tracing::info!(done, of, "progress");
        }
    }
}

impl<I: fmt::Debug> fmt::Debug for Call<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("input", &self.input).finish_non_exhaustive()
    }
}
