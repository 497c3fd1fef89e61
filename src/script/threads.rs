//! Threads on which functions are called, and which are left behind when a call does not come back.
//!
//! The engine looks at the time every 10,000 steps, and a call of one of its own functions is one
//! step, so that a loop of such calls runs on for minutes, and nothing can end it. A task is
//! therefore a future. It is polled on a thread that also runs its calls of functions, each between
//! two polls: a call costs no change of threads. While a call runs the task lies in a shared place.
//! Where the call has used far too much, the [`watch`] gives the task to a fresh thread, on which the
//! call has failed. The old thread ends when the engine comes back to it.

pub(crate) mod mark;
mod runaways;
mod watch;

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread,
};

use flexcore_definition::AggregateDefinition;
use flexcore_domain::{AggregateKey, Refusal};
use rustix::{process::Pid, thread::gettid};

use mark::Mark;
pub use watch::{give_way, used_by};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Job<L> = Box<dyn FnOnce(&mut L) + Send>;

/// For whom functions are called, and whose functions they are.
#[derive(Clone, Debug)]
pub struct Of {
    /// The aggregate.
    pub key: AggregateKey,
    /// Its functions; `None`: they are in Rust.
    pub definition: Option<Arc<AggregateDefinition>>,
}

/// Where a task has functions called, one call at a time. `L` is what a thread keeps from one call to
/// the next, such as its engines. Cheap to clone.
pub struct Scripts<L>(Arc<Shared<L>>);

impl<L> Clone for Scripts<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<L> {
    name: String,
    make: Box<dyn Fn() -> L + Send + Sync>,
    state: Mutex<Progress<L>>,
}

struct Progress<L> {
    /// Threads that were left behind so far.
    generation: u64,
    /// The task, while a call runs.
    task: Option<Task>,
    /// A call that the task has asked for.
    asked: Option<Job<L>>,
    /// Of the last call.
    of: Option<Of>,
    /// The last call will have no other answer.
    failed: Option<Refusal>,
    /// The thread that has the task.
    driver: Option<Driver>,
}

#[derive(Clone)]
struct Driver {
    thread: Pid,
    mark: Arc<Mark>,
}

/// Starts a task on a thread of its own, with `make` for what each of its threads keeps. Fails when
/// there is no thread. The task is dropped when it panics.
pub fn spawn<L: 'static, F>(
    name: &str,
    make: impl Fn() -> L + Send + Sync + 'static,
    task: impl FnOnce(Scripts<L>) -> F,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let scripts = Scripts::new(name, make);
    let task = task(scripts.clone());
    scripts.0.lock().task = Some(Box::pin(task));
    watch::watch(&scripts.0)?;
    start(&scripts.0, 0)
}

/// Calls of this process that were left behind and run on, [`RUNAWAYS_MAX`](crate::limits::RUNAWAYS_MAX)
/// at most.
#[must_use]
pub fn left_behind() -> usize {
    runaways::running()
}

impl<L: 'static> Scripts<L> {
    fn new(name: &str, make: impl Fn() -> L + Send + Sync + 'static) -> Self {
        let state = Progress {
            generation: 0,
            task: None,
            asked: None,
            of: None,
            failed: None,
            driver: None,
        };
        let (name, make) = (name.to_owned(), Box::new(make));
        Self(Arc::new(Shared { name, make, state: Mutex::new(state) }))
    }

    /// Scripts of a task that is run by [`run_here`].
    pub fn unwatched(make: impl Fn() -> L + Send + Sync + 'static) -> Self {
        Self::new("", make)
    }

    /// Has a function called on the task's thread. Fails with [`Refusal::Faulty`] when the call
    /// went on for too long and was left behind, and at once when that has happened to the
    /// aggregate lately, or more than once to its tenant with these functions.
    pub async fn call<T: Send + 'static>(
        &self,
        of: Of,
        job: impl FnOnce(&mut L) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        runaways::admit(&of)?;
        let answer = Arc::new(Mutex::new(None));
        let to = answer.clone();
        {
            let mut state = self.0.lock();
            assert!(state.asked.is_none(), "BUG: a task makes one call at a time");
            state.failed = None;
            state.of = Some(of);
            state.asked = Some(Box::new(move |own| {
                let answer = job(own);
                *locked(&to) = Some(answer);
            }));
        }
        poll_fn(|_| {
            // First: a call that was left behind may come back a moment later, and is left all the same.
            if let Some(refusal) = self.0.lock().failed.take() {
                return Poll::Ready(Err(refusal));
            }
            locked(&answer).take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer)))
        })
        .await
    }
}

/// Runs a future whose calls are made on this thread, with nobody to leave it behind: for tests.
///
/// # Panics
///
/// When the future waits for anything else.
pub fn run_here<L: 'static, F: Future>(scripts: &Scripts<L>, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut own = (scripts.0.make)();
    loop {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let asked = scripts.0.lock().asked.take();
        asked.expect("BUG: it waits for something that is no call")(&mut own);
    }
}

impl<L> Shared<L> {
    fn lock(&self) -> MutexGuard<'_, Progress<L>> {
        locked(&self.state)
    }

    /// The last call came back, but late.
    fn overran(&self, generation: u64) {
        let state = self.lock();
        // A call that was left behind is known already.
        if let Some(of) = state.of.as_ref().filter(|_| state.generation == generation) {
            runaways::note(of);
        }
    }

    /// The task, unless another thread has it.
    fn take(&self, generation: u64) -> Option<Task> {
        let mut state = self.lock();
        if state.generation == generation { state.task.take() } else { None }
    }
}

fn start<L: 'static>(shared: &Arc<Shared<L>>, generation: u64) -> io::Result<()> {
    let here = shared.clone();
    let started = thread::Builder::new().name(shared.name.clone());
    if let Err(error) = started.spawn(move || drive(&here, generation)) {
        // A caller that waits for the task learns that it has ended.
        let task = shared.lock().task.take();
        drop(task);
        return Err(error);
    }
    Ok(())
}

/// Work for the end of a thread, in every case, once its engines are gone.
struct Ends<'a, L> {
    shared: &'a Shared<L>,
    generation: u64,
    mark: Arc<Mark>,
}

impl<L> Drop for Ends<'_, L> {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(self.shared.take(self.generation));
        }
        if let Some(number) = self.mark.left_as() {
            runaways::ended(number);
        }
    }
}

struct Unparks(thread::Thread);

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls the task and makes its calls until it is done, or another thread has it.
fn drive<L: 'static>(shared: &Shared<L>, generation: u64) {
    let mark = Arc::new(Mark::default());
    let _ends = Ends { shared, generation, mark: mark.clone() };
    mark::install(mark.clone());
    let mut own = (shared.make)();
    shared.lock().driver = Some(Driver { thread: gettid(), mark: mark.clone() });
    let waker = Waker::from(Arc::new(Unparks(thread::current())));
    let mut context = Context::from_waker(&waker);
    let Some(mut task) = shared.take(generation) else { return };
    loop {
        if task.as_mut().poll(&mut context).is_ready() {
            return;
        }
        let mut state = shared.lock();
        let Some(job) = state.asked.take() else {
            drop(state);
            thread::park();
            continue;
        };
        state.task = Some(task);
        drop(state);
        job(&mut own);
        if mark.overran() {
            shared.overran(generation);
        }
        match shared.take(generation) {
            Some(taken) => task = taken,
            None => return,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
