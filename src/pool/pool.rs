//! A pool: the version in service, and what is put in its place.

use std::{
    fmt, mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use flexcore_plugin::contract::{DecisionResult, Question};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    calls, decide,
    error::{ChangeError, PoolError},
    figures::Figures,
    group::{Group, Supervised},
    lifecycle::Stage,
    limits::DRAIN_MORE,
    locked::locked,
    notice::Notice,
    spec::{PoolCall, Spec},
    status::{PoolState, PoolStatus},
};

/// The instances of one plugin, kept running. A cheap clone; when the last one is dropped, all
/// processes are killed.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    figures: Arc<Figures>,
    /// None once it was stopped.
    in_service: Mutex<Option<Supervised>>,
    /// Held while a version is put in the place of another.
    changing: tokio::sync::Mutex<()>,
    /// What was replaced and still has calls under way.
    draining: Mutex<Vec<Draining>>,
}

/// A group that was replaced, until its last call has ended.
struct Draining {
    notice: Arc<Notice>,
    task: AbortOnDropHandle<()>,
}

impl Pool {
    /// Begins to start the instances, and returns at once; [`Pool::ready`] waits for them.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(spec: Spec) -> Self {
        let figures = Arc::new(Figures::new(spec.name.clone()));
        let supervised = Supervised::begin(Arc::new(spec), &figures);
        Self(Arc::new(Inner {
            figures,
            in_service: Mutex::new(Some(supervised)),
            changing: tokio::sync::Mutex::default(),
            draining: Mutex::default(),
        }))
    }

    /// Calls a function of the contract, within this time and [`Spec::call_max`]. Returns its
    /// output, which is JSON; fails as [`PoolError`] says. The input is held to no schema. A
    /// function that is idempotent is called once more if its instance ended under the call, by the
    /// version that is in service then. One that is late before [`LINGER_MIN`](crate::LINGER_MIN)
    /// keeps its place until then; one with less than [`LEFT_MIN`](crate::LEFT_MIN) is late at once.
    pub async fn call(&self, call: PoolCall, within: Duration) -> Result<Bytes, PoolError> {
        let (began, group) = (Instant::now(), self.group());
        let mut called = match &group {
            Some(group) => calls::call(group, &call, within, || self.group()).await,
            None => Err(stopped()),
        };
        if let Some(group) = self.instead(group.as_ref(), &called) {
            called = calls::call(&group, &call, within, || self.group()).await;
        }
        self.0.figures.called(&called, began.elapsed());
        called
    }

    /// Calls a method (`package.Service/Method`) of a foreign plugin by reflection, for a tenant within this
    /// time and [`Spec::call_max`]. Returns its answer; fails as [`PoolError`] says. A status that
    /// it answers with is a failure whose code is the status', such as `not_found`; an input that
    /// does not fit the method is one with the code `invalid_input`.
    pub async fn call_method(
        &self,
        tenant: &str,
        method: &str,
        input: Value,
        within: Duration,
    ) -> Result<Value, PoolError> {
        let (began, group) = (Instant::now(), self.group());
        let mut called = match &group {
            Some(group) => calls::call_method(group, tenant, method, input.clone(), within).await,
            None => Err(stopped()),
        };
        if let Some(group) = self.instead(group.as_ref(), &called) {
            called = calls::call_method(&group, tenant, method, input, within).await;
        }
        self.0.figures.called(&called, began.elapsed());
        called
    }

    /// True if an instance is ready, and says that it decides.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.group().is_some_and(|group| group.runs().iter().any(|run| run.decides()))
    }

    /// Asks for decisions on questions of one tenant, each within its own time and [`Spec::call_max`]. They take
    /// the place of one call together. Returns what came of each, in their order; the errors are those of calls.
    /// A question under which the instance ended is asked once more, by what is in service then. Where the
    /// instance ended again it is [`PoolError::Unknown`], which may be the question's fault. Any other error but
    /// [`PoolError::Faulty`] and [`PoolError::TooLarge`] may pass.
    pub async fn decide(
        &self,
        tenant: &str,
        questions: &[(Question, Duration)],
    ) -> Vec<Result<DecisionResult, PoolError>> {
        let (began, group) = (Instant::now(), self.group());
        let mut decided = match &group {
            Some(group) => decide::decide(group, tenant, questions, || self.group()).await,
            None => questions.iter().map(|_| Err(stopped())).collect(),
        };
        if decide::is_away(&decided)
            && let Some(group) = self.instead(group.as_ref(), &decide::summary(&decided))
        {
            let left = |(question, within): &(Question, Duration)| {
                (question.clone(), within.saturating_sub(began.elapsed()))
            };
            let again: Vec<(Question, Duration)> = questions.iter().map(left).collect();
            decided = decide::decide(&group, tenant, &again, || self.group()).await;
        }
        self.0.figures.called(&decide::summary(&decided), began.elapsed());
        decided
    }

    /// Waits until an instance is ready. Fails with [`PoolError::Away`] and the reason when none is
    /// within this time, and as soon as all were given up.
    pub async fn ready(&self, within: Duration) -> Result<(), PoolError> {
        let looked = async {
            let mut changes = self.0.figures.changes();
            loop {
                let Some(group) = self.group() else { return Err(stopped()) };
                if !group.runs().is_empty() {
                    return Ok(());
                }
                if group.is_over() {
                    return Err(group.away());
                }
                // Its other end is here.
                let _ = changes.changed().await;
            }
        };
        let away = || self.group().map_or_else(stopped, |group| group.away());
        timeout(within, looked).await.unwrap_or_else(|_| Err(away()))
    }

    /// Puts another version, or the same in another way, in the place of this one: starts it,
    /// waits until all its instances are ready, gives it all further calls, and ends the old one
    /// when its calls under way have ended, each within its [`Spec::call_max`]. Returns without
    /// waiting for that; until then both take memory.
    ///
    /// Fails when one of its instances does not start, and has been tried three times unless that
    /// is in vain. The old one stays in service then, unless it was given up: in that case the new
    /// one is in its place and tried again as any other, and [`ChangeError::in_place`] says so.
    /// Dropped before it returns, it leaves the old one in service.
    pub async fn upgrade(&self, spec: Spec) -> Result<(), ChangeError> {
        let _turn = self.0.changing.lock().await;
        self.replace(Arc::new(spec)).await
    }

    /// Starts all instances anew, as [`Pool::upgrade`] does. Where none is ready, the new ones take
    /// the place of the old ones at once, and are tried again as any other when this fails.
    pub async fn restart(&self) -> Result<(), ChangeError> {
        let _turn = self.0.changing.lock().await;
        let group = self.group().ok_or_else(not_changed)?;
        let spec = Arc::clone(&group.spec);
        if !group.runs().is_empty() {
            return self.replace(spec).await;
        }
        let new = Supervised::begin(spec, &self.0.figures);
        let group = Arc::clone(&new.group);
        self.swap(new)?;
        group.all_ready().await.map_err(|why| ChangeError { why, in_place: true })
    }

    /// Ends all instances, those of versions that were replaced included. Calls under way have this
    /// time; then the processes have some seconds. Returns when all of them have ended. Later calls,
    /// and what waits for a place, fail with [`PoolError::Away`].
    pub async fn stop(&self, within: Duration) {
        let until = Instant::now() + within;
        let supervised = locked(&self.0.in_service).take();
        self.0.figures.changed();
        let draining = mem::take(&mut *locked(&self.0.draining));
        for Draining { notice, .. } in &draining {
            notice.give(until);
        }
        if let Some(supervised) = supervised {
            supervised.drain(until).await;
        }
        for Draining { task, .. } in draining {
            drop(task.await);
        }
    }

    /// What it is and has done. Never waits.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let group = self.group();
        let seen = group.as_ref().map_or_else(Vec::new, |group| group.seen());
        let stages: Vec<Stage> = seen.iter().map(|seen| seen.stage).collect();
        let runs: Vec<_> = seen.iter().filter_map(|seen| seen.run.clone()).collect();
        let [calls, errors, restarts] = self.0.figures.counts();
        let (p50, p99) = self.0.figures.percentiles();
        PoolStatus {
            state: PoolState::of(&stages, runs.iter().all(|run| run.is_full())),
            instances: seen.len(),
            ready: runs.len(),
            restarts,
            calls,
            errors,
            under_way: runs.iter().map(|run| run.under_way()).sum(),
            p50,
            p99,
            memory_bytes: runs.iter().map(|run| run.memory_bytes()).sum(),
            reason: seen.into_iter().find_map(|seen| seen.reason),
            description: runs.iter().find_map(|run| run.description().cloned()),
            sandbox: runs.first().map(|run| run.sandbox.clone()).unwrap_or_default(),
        }
    }

    /// The last 256 lines that the plugin printed or logged, those of earlier processes included,
    /// the oldest first. Each is cut to 4 KiB.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.figures.lines.all()
    }

    /// What is in service.
    fn group(&self) -> Option<Arc<Group>> {
        locked(&self.0.in_service).as_ref().map(|supervised| Arc::clone(&supervised.group))
    }

    /// What to call in place of a group that was away, since it has been replaced meanwhile.
    fn instead<T>(
        &self,
        group: Option<&Arc<Group>>,
        called: &Result<T, PoolError>,
    ) -> Option<Arc<Group>> {
        let is_away = matches!(called, Err(PoolError::Away(_)));
        let now = self.group().filter(|_| is_away)?;
        (!Arc::ptr_eq(&now, group?)).then_some(now)
    }

    async fn replace(&self, spec: Arc<Spec>) -> Result<(), ChangeError> {
        let old = self.group().ok_or_else(not_changed)?;
        let new = Supervised::begin(spec, &self.0.figures);
        let checked = new.group.all_ready().await;
        let in_place = checked.is_ok() || old.is_over();
        if in_place {
            self.swap(new)?;
        }
        checked.map_err(|why| ChangeError { why, in_place })
    }

    /// Gives all further calls to another group, and lets the old one end when its calls have. Fails
    /// if the pool was stopped.
    fn swap(&self, new: Supervised) -> Result<(), ChangeError> {
        // Held until the old one is among those that a stop waits for.
        let mut draining = locked(&self.0.draining);
        let old = {
            let mut in_service = locked(&self.0.in_service);
            if in_service.is_none() {
                return Err(not_changed());
            }
            in_service.replace(new)
        };
        if let Some(old) = old {
            let (notice, call_max) = (old.notice(), old.group.spec.call_max);
            let until = Instant::now() + call_max + DRAIN_MORE;
            let task = AbortOnDropHandle::new(tokio::spawn(old.drain(until)));
            draining.retain(|draining| !draining.task.is_finished());
            draining.push(Draining { notice, task });
        }
        drop(draining);
        self.0.figures.changed();
        Ok(())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.0.figures.name).finish_non_exhaustive()
    }
}

fn stopped() -> PoolError {
    PoolError::Away("it was stopped".to_owned())
}

/// A change of a pool that was stopped.
fn not_changed() -> ChangeError {
    ChangeError { why: stopped(), in_place: false }
}
