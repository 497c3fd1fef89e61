//! The instances of one [`Spec`]: which of them takes a call, and whether they are worth one.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use flexcore_plugin::contract::Failure;
use flexcore_resilience::{
    Verdict,
    circuit::{Circuit, CircuitState, Ticket},
    jitter,
    policy::BreakerPolicy,
};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    error::PoolError,
    figures::Figures,
    instance::{Instance, Seen, supervise},
    lifecycle::Stage,
    limits::TRIES_MAX,
    locked::locked,
    notice::Notice,
    run::{CallPlace, Run},
    spec::Spec,
    tenants::Tenants,
};

/// The instances of one spec, for whoever calls them.
pub(crate) struct Group {
    pub(crate) spec: Arc<Spec>,
    pub(crate) figures: Arc<Figures>,
    instances: Vec<Arc<Instance>>,
    /// Of all instances together. Calls under which one ended say nothing: it is started anew.
    circuit: Mutex<Circuit>,
    /// A version that is put in its place is called by all of them again.
    tenants: Arc<Mutex<Tenants>>,
}

impl Group {
    /// All instances, as they are now.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.instances.iter().map(|instance| instance.seen()).collect()
    }

    /// What takes calls now.
    pub(crate) fn runs(&self) -> Vec<Arc<Run>> {
        let runs = self.seen().into_iter().filter_map(|seen| seen.run);
        runs.filter(|run| run.takes_calls()).collect()
    }

    /// Nothing will be ready soon.
    pub(crate) fn is_over(&self) -> bool {
        self.seen().iter().all(|seen| matches!(seen.stage, Stage::Failed | Stage::Gone))
    }

    /// Why it takes no calls.
    pub(crate) fn away(&self) -> PoolError {
        let reason = self.seen().into_iter().find_map(|seen| seen.reason);
        PoolError::Away(reason.unwrap_or_else(|| "it is being started".to_owned()))
    }

    /// A place at the instance with the fewest calls. Fails with [`PoolError::Away`] and
    /// [`PoolError::Busy`].
    pub(crate) fn place(&self) -> Result<CallPlace, PoolError> {
        let mut runs = self.runs();
        runs.sort_by_key(|run| run.under_way());
        let place = runs.iter().find_map(Run::place);
        // The last one may have ended meanwhile.
        place.ok_or_else(|| if self.runs().is_empty() { self.away() } else { PoolError::Busy })
    }

    /// Waits until all instances are ready. Fails when one of them was given up, is not wanted any
    /// more, or has failed [`TRIES_MAX`] times.
    pub(crate) async fn all_ready(&self) -> Result<(), PoolError> {
        let mut changes = self.figures.changes();
        loop {
            match outlook(&self.seen()) {
                Outlook::Ready => return Ok(()),
                Outlook::Dim => return Err(self.away()),
                Outlook::Open => {}
            }
            // Its other end is here.
            let _ = changes.changed().await;
        }
    }

    /// Fails while calls of this tenant are refused, since instances ended under them. Nothing was sent.
    pub(crate) fn may_call(&self, tenant: &str) -> Result<(), PoolError> {
        let refused = locked(&self.tenants).refused(tenant, Instant::now());
        refused.map_or(Ok(()), |left| {
            let message = "the plugin ended under this tenant's last calls: none is made for now";
            let failure = Failure::passing("ended_under_calls", message).retry_after(left);
            Err(PoolError::Failed(failure))
        })
    }

    /// For the case that an instance ends under a call of this tenant: the call tells it, even when its caller
    /// has left.
    pub(crate) fn on_death(&self, tenant: &str) -> impl FnOnce() + Send + use<> {
        let (tenants, tenant) = (Arc::clone(&self.tenants), tenant.to_owned());
        move || locked(&tenants).died(&tenant, Instant::now())
    }

    /// The right to make a call for a tenant, as far as the breaker is concerned.
    pub(crate) fn admit<'a>(&'a self, tenant: &'a str) -> Result<Admitted<'a>, PoolError> {
        let decided = locked(&self.circuit).decide(Instant::now());
        let ticket = decided.map_err(|pause| {
            let pause_ms = pause.as_millis();
            PoolError::Away(format!("calls of it fail; it is called again in {pause_ms} ms"))
        })?;
        Ok(Admitted { group: self, tenant, ticket: Some(ticket) })
    }
}

/// What may become of a version that is being started.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    /// It is ready.
    Ready,
    /// It may be soon.
    Open,
    /// It is not likely to be.
    Dim,
}

fn outlook(seen: &[Seen]) -> Outlook {
    let is_dim = |seen: &Seen| match seen.stage {
        Stage::Ready => false,
        Stage::Failed | Stage::Gone => true,
        _ => seen.failures >= TRIES_MAX,
    };
    if seen.iter().all(|seen| seen.stage == Stage::Ready) {
        Outlook::Ready
    } else if seen.iter().any(is_dim) {
        Outlook::Dim
    } else {
        Outlook::Open
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// A call that the breaker has let through. Dropped, it says nothing.
pub(crate) struct Admitted<'a> {
    group: &'a Group,
    tenant: &'a str,
    ticket: Option<Ticket>,
}

impl Admitted<'_> {
    /// With what the call says of the plugin.
    pub(crate) fn leave(mut self, verdict: Verdict) {
        self.give_back(verdict);
    }

    fn give_back(&mut self, verdict: Verdict) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = Instant::now();
        let mut circuit = locked(&self.group.circuit);
        let verdict = match verdict {
            Verdict::Failure => {
                let is_shared = locked(&self.group.tenants).failed(self.tenant, now);
                // A probe that fails leaves the circuit open, whoever made it.
                let counts = is_shared || circuit.state() != CircuitState::Closed;
                if counts { Verdict::Failure } else { Verdict::Neutral }
            }
            Verdict::Success => {
                locked(&self.group.tenants).answered(self.tenant);
                verdict
            }
            Verdict::Neutral => verdict,
        };
        circuit.on_result(ticket, verdict, now, chance());
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.give_back(Verdict::Neutral);
    }
}

/// A number in 0..1: what [`jitter`] takes away, which is half of the whole at most.
fn chance() -> f64 {
    2.0 - 2.0 * jitter(Duration::from_secs(1)).as_secs_f64()
}

/// A group, and the tasks that run it. When it is dropped, its processes are killed.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) group: Arc<Group>,
    notice: Arc<Notice>,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Supervised {
    /// Begins at once, in the runtime of the caller.
    pub(crate) fn begin(spec: Arc<Spec>, figures: &Arc<Figures>) -> Self {
        // Slow is what takes longer than a call may, and that is late.
        let policy = BreakerPolicy { slow_call: Duration::MAX, ..BreakerPolicy::default() };
        let notice = Arc::new(Notice::default());
        let instances: Vec<Arc<Instance>> = (0..spec.instances()).map(|_| Arc::default()).collect();
        let task = |instance: &Arc<Instance>| {
            let (instance, spec) = (Arc::clone(instance), Arc::clone(&spec));
            let run = supervise(instance, spec, Arc::clone(figures), notice.heard());
            AbortOnDropHandle::new(tokio::spawn(run))
        };
        let tasks = instances.iter().map(task).collect();
        let circuit = Mutex::new(Circuit::new(policy));
        let (figures, tenants) = (Arc::clone(figures), Arc::default());
        let group = Group { spec, figures, instances, circuit, tenants };
        Self { group: Arc::new(group), notice, tasks }
    }

    /// For whoever has to say, once this is being drained, that calls have less time.
    pub(crate) fn notice(&self) -> Arc<Notice> {
        Arc::clone(&self.notice)
    }

    /// Ends all instances, each when its calls under way have ended, or their time is over.
    pub(crate) async fn drain(self, until: Instant) {
        self.notice.give(until);
        for task in self.tasks {
            // One that panicked has killed its process.
            drop(task.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_may_fail_to_start_now_and_then() {
        let seen = |stage, failures| Seen { stage, failures, ..Seen::default() };
        let ready = || seen(Stage::Ready, TRIES_MAX);
        assert_eq!(outlook(&[ready(), ready()]), Outlook::Ready);
        for stage in [Stage::Starting, Stage::BackingOff] {
            assert_eq!(outlook(&[ready(), seen(stage, TRIES_MAX - 1)]), Outlook::Open);
            assert_eq!(outlook(&[seen(stage, TRIES_MAX), ready()]), Outlook::Dim);
        }
        for stage in [Stage::Failed, Stage::Gone] {
            assert_eq!(outlook(&[ready(), seen(stage, 0)]), Outlook::Dim);
        }
    }
}
