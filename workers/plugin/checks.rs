//! Checks of inputs against the schemas of plugins, each on a thread of its own. Nothing can stop a check that
//! takes long. It is left behind, and nobody waits for its thread: not its caller, and not the end of the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use flexcore_domain::Tenant;
use flexcore_script::{
    limits::{DECIDE_MAX, LEAVE_AFTER, RUNAWAY_REFUSED},
    threads::{give_way, used_by},
};
use rustix::{process::Pid, thread::gettid};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        oneshot::{self, error::TryRecvError},
    },
    time::{Instant, timeout},
};

/// Most processor time of a check. As for a command's functions, whose checks are left behind after as much.
const CHECK_MAX: Duration = DECIDE_MAX.saturating_add(LEAVE_AFTER);

/// Checks at once on a worker. 2: nearly all take some microseconds.
const AT_ONCE_MAX: usize = 2;

/// Checks of a worker that were left behind and run on at once, with a low priority. With so many a further one
/// keeps its place until one of them has ended.
const LEFT_MAX: usize = 8;

/// Checks of one plugin that were left behind and run on, before no input of it is checked. Its schema is to
/// blame by then.
const LEFT_OF_ONE_MAX: usize = 2;

/// Time between looks at a check. An end is noticed at once.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Stack of a check, in bytes. 16 MiB, of which only what is used is there: each reference in a chain of
/// thousands takes some.
const STACK_BYTES: usize = 16 << 20;

/// The places for the checks of a worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    at_once: Arc<Semaphore>,
    /// Of each tenant that has a check or waits for one: one place at a time.
    of_tenants: Arc<Mutex<BTreeMap<Tenant, Weak<Semaphore>>>>,
    left: Arc<Semaphore>,
}

impl Default for Checks {
    fn default() -> Self {
        let places = |places| Arc::new(Semaphore::new(places));
        Self { at_once: places(AT_ONCE_MAX), of_tenants: Arc::default(), left: places(LEFT_MAX) }
    }
}

/// Why there is no answer to a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unchecked {
    /// It takes more time than it may, or another one of the tenant did.
    Long(&'static str),
    /// It could not be made.
    Failed(String),
}

impl Checks {
    /// The place of a tenant. It is there while somebody has it, or waits for it.
    fn of_tenant(&self, tenant: &Tenant) -> Arc<Semaphore> {
        let mut all = self.of_tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.get(tenant).and_then(Weak::upgrade) {
            return place;
        }
        all.retain(|_, place| place.strong_count() > 0);
        let place = Arc::new(Semaphore::new(1));
        all.insert(tenant.clone(), Arc::downgrade(&place));
        place
    }

    /// Makes a check of a tenant's input. Fails when it takes more than [`CHECK_MAX`], and for a while after
    /// that. It runs to its end, or is left behind, when its caller does not wait for that.
    pub(super) async fn check<T: Send + 'static>(
        &self,
        suspects: &Arc<Suspects>,
        tenant: &Tenant,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unchecked> {
        // Their own first: who has many waiting keeps nobody from the places of all.
        let own = place(self.of_tenant(tenant)).await?;
        let place = CheckPlace { _own: own, _of_all: place(self.at_once.clone()).await? };
        // Now: those that have waited with it may have been left behind.
        suspects.admit(tenant, Instant::now())?;
        let (left, suspects, tenant) = (self.left.clone(), suspects.clone(), tenant.clone());
        let watched = async move {
            let running = Running::begin(place, check)?;
            running.watch(&left, suspects, tenant).await
        };
        // The span names the plugin.
        let watched = tracing::Instrument::instrument(watched, tracing::Span::current());
        tokio::spawn(watched)
            .await
            .unwrap_or_else(|error| Err(Unchecked::Failed(error.to_string())))
    }
}

/// The place of a check that runs.
struct CheckPlace {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

async fn place(of: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Unchecked> {
    of.acquire_owned().await.map_err(|error| Unchecked::Failed(error.to_string()))
}

/// A check that runs.
struct Running<T> {
    place: CheckPlace,
    thread: oneshot::Receiver<Pid>,
    answer: oneshot::Receiver<T>,
}

impl<T: Send + 'static> Running<T> {
    fn begin(
        place: CheckPlace,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, Unchecked> {
        let (number, thread) = oneshot::channel();
        let (to, answer) = oneshot::channel();
        let named = thread::Builder::new().name("plugin-check".to_owned()).stack_size(STACK_BYTES);
        let begun = named.spawn(move || {
            let _ = number.send(gettid());
            let _ = to.send(check());
        });
        begun.map_err(|error| Unchecked::Failed(error.to_string()))?;
        Ok(Self { place, thread, answer })
    }

    /// Waits for the answer, and leaves the check behind when it takes long.
    async fn watch(
        mut self,
        left: &Arc<Semaphore>,
        suspects: Arc<Suspects>,
        tenant: Tenant,
    ) -> Result<T, Unchecked> {
        let ended = |()| Unchecked::Failed("its thread has ended".to_owned());
        let (began, thread) = (Instant::now(), self.thread.await.map_err(|_| ended(()))?);
        let mut used = Duration::ZERO;
        while used < CHECK_MAX {
            if let Ok(answer) = timeout(LOOK_EVERY, &mut self.answer).await {
                return answer.map_err(|_| ended(()));
            }
            // Where the system does not say what the thread has used, the time on the wall counts.
            used = used_by(thread).unwrap_or_else(|| began.elapsed());
        }
        match self.answer.try_recv() {
            Ok(answer) => return Ok(answer),
            Err(TryRecvError::Closed) => return Err(ended(())),
            Err(TryRecvError::Empty) => {}
        }
        tracing::error!(%tenant, "a check of a plugin's input does not end, and was left behind");
        give_way(thread);
        suspects.begin(tenant, Instant::now());
        let place_left = tokio::select! {
            // Nobody closes it.
            place = left.clone().acquire_owned() => place.ok(),
            _ = &mut self.answer => None,
        };
        drop(self.place);
        let answer = self.answer;
        tokio::spawn(async move {
            // One that has been received is gone, too.
            if place_left.is_some() {
                let _ = answer.await;
            }
            suspects.end();
        });
        Err(Unchecked::Long("the check of the input against the function's schema takes too long"))
    }
}

/// Whose checks took too long, of one plugin.
#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Checks that run on.
    running: usize,
    /// When a tenant's last one was left behind.
    tenants: BTreeMap<Tenant, Instant>,
}

impl Suspects {
    fn admit(&self, tenant: &Tenant, now: Instant) -> Result<(), Unchecked> {
        let mut known = self.lock();
        known.tenants.retain(|_, at| now.saturating_duration_since(*at) < RUNAWAY_REFUSED);
        if known.tenants.contains_key(tenant) {
            let why = "a check of this tenant's input took too long, and none is made for a minute";
            return Err(Unchecked::Long(why));
        }
        if known.running >= LEFT_OF_ONE_MAX {
            let why = "checks of other inputs of this plugin do not end";
            return Err(Unchecked::Failed(why.to_owned()));
        }
        Ok(())
    }

    fn begin(&self, tenant: Tenant, now: Instant) {
        let mut known = self.lock();
        known.running += 1;
        known.tenants.insert(tenant, now);
    }

    fn end(&self) {
        self.lock().running -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    /// Until it is told to end.
    fn endless(stop: Arc<AtomicBool>) -> impl FnOnce() + Send + 'static {
        move || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
    }

    /// It held a thread of the runtime, and so the end of the process.
    #[tokio::test]
    async fn a_check_that_does_not_end_is_left_behind() {
        let (checks, stop) = (Checks::default(), Arc::new(AtomicBool::new(false)));
        let suspects: Vec<Arc<Suspects>> = (0..3).map(|_| Arc::default()).collect();
        let long = |result: Result<(), Unchecked>| matches!(result, Err(Unchecked::Long(_)));
        for of_plugin in &suspects {
            let left = checks.check(of_plugin, &tenant("acme"), endless(stop.clone())).await;
            assert!(long(left));
        }
        let [one, ..] = &suspects[..] else { panic!("three of them") };
        assert!(long(checks.check(one, &tenant("acme"), || ()).await), "it is refused");
        checks.check(one, &tenant("globex"), || ()).await.unwrap();
        assert!(long(checks.check(one, &tenant("globex"), endless(stop.clone())).await));
        let blocked = checks.check(one, &tenant("other"), || ()).await;
        assert!(matches!(blocked, Err(Unchecked::Failed(_))), "two of them run on");
        stop.store(true, Ordering::Relaxed);
        while one.lock().running > 0 {
            tokio::task::yield_now().await;
        }
        checks.check(one, &tenant("other"), || ()).await.unwrap();
        assert_eq!(checks.at_once.available_permits(), AT_ONCE_MAX);
    }

    /// Inputs that take nearly as long as they may held both places.
    #[tokio::test]
    async fn checks_of_one_tenant_leave_a_place_to_others() {
        let (checks, suspects) = (Checks::default(), Arc::default());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let stopped = Arc::new(Mutex::new(stopped));
        let slow = (0..3).map(|_| {
            let (checks, suspects) = (checks.clone(), Arc::clone(&suspects));
            let stopped = stopped.clone();
            let wait = move || {
                let _ = stopped.lock().unwrap().recv();
            };
            tokio::spawn(async move { checks.check(&suspects, &tenant("acme"), wait).await })
        });
        let slow: Vec<_> = slow.collect();
        while checks.at_once.available_permits() == AT_ONCE_MAX {
            tokio::task::yield_now().await;
        }
        let globex = tenant("globex");
        let other = checks.check(&suspects, &globex, || ());
        timeout(Duration::from_secs(10), other).await.unwrap().unwrap();
        drop(stop);
        for check in slow {
            check.await.unwrap().unwrap();
        }
        drop(checks.of_tenant(&tenant("other")));
        assert_eq!(checks.of_tenants.lock().unwrap().len(), 1, "those before are gone");
    }

    #[test]
    fn a_tenant_is_refused_for_a_while() {
        let (suspects, now) = (Suspects::default(), Instant::now());
        suspects.begin(tenant("acme"), now);
        suspects.end();
        assert!(suspects.admit(&tenant("acme"), now).is_err());
        suspects.admit(&tenant("globex"), now).unwrap();
        suspects.admit(&tenant("acme"), now + RUNAWAY_REFUSED).unwrap();
    }

    #[tokio::test]
    async fn a_check_that_panics_is_an_error() {
        let checks = Checks::default();
        let panics = || assert!(std::hint::black_box(false), "as asked");
        let failed = checks.check(&Arc::default(), &tenant("acme"), panics).await;
        assert!(matches!(failed, Err(Unchecked::Failed(_))), "{failed:?}");
    }
}
