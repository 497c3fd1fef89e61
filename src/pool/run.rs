//! One life of an instance: a process that takes calls.

mod decide;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flexcore_plugin::{
    Connection, Error, Plugin, Reflection,
    contract::{CallOutcome, CallRequest, Client, Description, is_unknown},
    guard::{Bounds, MeasureState},
};
use futures::FutureExt as _;
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tonic::Code;

use crate::{
    configured::{Configurations, Configured},
    error::PoolError,
    limits::{CONFIGURE_WAIT, DEATH_WAIT, LINGER_MIN},
    measure::{CountedCall, CountedReady},
    memory,
    spec::{PoolCall, Spec},
};

pub(crate) use decide::Decided;

/// The limit in a manifest of which it is told whether it holds.
const PROCESSES: &str = "limits.processes";

/// A process that takes calls. It does not keep the process: whoever supervises it does.
pub(crate) struct Run {
    name: String,
    connection: Connection,
    spoken: Spoken,
    configurations: Configurations,
    configured: Configured,
    deciders: decide::Deciders,
    places: Arc<Semaphore>,
    places_max: usize,
    output_bytes_max: usize,
    memory_bytes: AtomicU64,
    /// A call has found that the process ended under it.
    ended_under_call: AtomicBool,
    /// What of its sandbox was asked for, by name: whether it holds.
    pub(crate) sandbox: Vec<(String, String)>,
    _counted: CountedReady,
}

/// What a plugin is called in.
enum Spoken {
    Contract(Client, Arc<Description>),
    /// By reflection, or why not.
    Own(Result<Reflection, String>),
}

impl Run {
    /// Asks a plugin that has just been started what it can do. Fails where it does not say so, or
    /// says what the contract does not allow. A foreign one need not say anything. `bounds`: it was started with them.
    pub(crate) async fn begin(
        plugin: &Plugin,
        bounds: Bounds,
        spec: &Spec,
        name: &str,
    ) -> Result<Self, Error> {
        let connection = plugin.connection().clone();
        let spoken = if spec.contract {
            let client = Client::new(&connection);
            let description = client.describe().await?;
            Spoken::Contract(client, Arc::new(description))
        } else {
            Spoken::Own(Reflection::load(&connection).await.map_err(|error| error.to_string()))
        };
        let asked = plugin.sandbox().iter().filter(|(_, held)| **held != MeasureState::NotAsked);
        let asked = asked.map(|(measure, held)| (measure.to_string(), held.to_string()));
        // The one limit of a process that does not hold for everybody.
        let processes = bounds.holds_processes(plugin.pid());
        let processes = processes.map(|held| (PROCESSES.to_owned(), held.to_string()));
        let sandbox = asked.chain(processes).collect();
        let places_max = spec.concurrency();
        let run = Self {
            name: name.to_owned(),
            connection,
            spoken,
            configurations: spec.configurations.clone(),
            configured: Configured::default(),
            deciders: decide::Deciders::default(),
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            output_bytes_max: spec.output_bytes_max,
            memory_bytes: AtomicU64::new(0),
            ended_under_call: AtomicBool::new(false),
            sandbox,
            _counted: CountedReady::new(name),
        };
        run.weigh(plugin.pid()).await;
        Ok(run)
    }

    /// Looks how much memory the process and all that it has started take.
    pub(crate) async fn weigh(&self, pid: u32) {
        if let Ok(bytes) = spawn_blocking(move || memory::of_tree(pid)).await {
            self.memory_bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// As of the last look.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// What the plugin says of itself; none of a foreign one.
    pub(crate) fn description(&self) -> Option<&Arc<Description>> {
        match &self.spoken {
            Spoken::Contract(_, description) => Some(description),
            Spoken::Own(_) => None,
        }
    }

    /// Calls under way.
    pub(crate) fn under_way(&self) -> usize {
        self.places_max.saturating_sub(self.places.available_permits())
    }

    /// Of one that has ended: whether calls were under way then.
    pub(crate) fn ended_under_call(&self) -> bool {
        self.under_way() > 0 || self.ended_under_call.load(Ordering::Relaxed)
    }

    /// It can take no more calls now.
    pub(crate) fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// False once its process or its connection has ended, and once it is being ended.
    pub(crate) fn takes_calls(&self) -> bool {
        !self.places.is_closed() && self.connection.closed().now_or_never().is_none()
    }

    /// Whether something has this error because the process has ended.
    async fn died(&self, error: &Error) -> bool {
        let may_be =
            matches!(error, Error::Ended | Error::Unreachable { .. } | Error::Status { .. })
                && is_unknown(error);
        let died = may_be && timeout(DEATH_WAIT, self.connection.closed()).await.is_ok();
        if died {
            self.ended_under_call.store(true, Ordering::Relaxed);
        }
        died
    }

    /// A place for one call, if there is one.
    pub(crate) fn place(self: &Arc<Self>) -> Option<CallPlace> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let counted = CountedCall::new(&self.name);
        Some(CallPlace { run: Arc::clone(self), _permit: permit, _counted: counted })
    }

    /// Waits until no call is under way, or their time is over. No call begins from then on.
    pub(crate) async fn drained(&self, over: impl Future<Output = ()>) {
        let all = u32::try_from(self.places_max).unwrap_or(u32::MAX);
        let free = tokio::select! {
            free = self.places.acquire_many(all) => free.ok(),
            () = over => None,
        };
        // While all places are held.
        self.places.close();
        // The plugin may wait for the end of its streams before it ends.
        self.deciders.end();
        drop(free);
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The right to make one call of an instance, which goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct CallPlace {
    run: Arc<Run>,
    _permit: OwnedSemaphorePermit,
    _counted: CountedCall,
}

/// A call that was made and has no output.
#[derive(Debug)]
pub(crate) struct Broken {
    /// For its caller.
    pub(crate) error: PoolError,
    /// The instance has ended during the call.
    pub(crate) died: bool,
    /// The instance lives, and did not answer in time, or its connection did not carry the call.
    pub(crate) is_fault: bool,
}

impl CallPlace {
    /// Whether a call of this function may be repeated. Fails where there is none such.
    pub(crate) fn is_idempotent(&self, function: &str) -> Result<bool, PoolError> {
        let Some(description) = self.run.description() else {
            return Err(PoolError::UnknownFunction);
        };
        let found = description.functions.iter().find(|told| told.name == function);
        found.map(|told| told.idempotent).ok_or(PoolError::UnknownFunction)
    }

    /// Gives the process the tenant's configuration unless it has it. To be done before each call and each
    /// question of a tenant, and before the breaker is asked: it says nothing of calls. Fails where no call may
    /// follow, and nothing was done. A configuration under which the process ends is told to `on_death`. While one is
    /// late, calls of its tenant fail at once.
    pub(crate) async fn configured(
        &self,
        tenant: &str,
        within: Duration,
        on_death: impl FnOnce() + Send + 'static,
    ) -> Result<(), Broken> {
        let number = || self.run.configurations.number(tenant);
        let Spoken::Contract(client, description) = &self.run.spoken else { return Ok(()) };
        if number() == 0 || description.configuration_schema.is_empty() {
            return Ok(());
        }
        let failed = |failure| Broken::not_made(PoolError::Failed(failure));
        let (began, of) = (Instant::now(), self.run.configured.of(tenant));
        let turn = Arc::clone(&of.given).lock_owned();
        let locked = timeout(within.min(of.patience(began)), turn).await;
        let mut given = locked.map_err(|_| Broken::not_made(being_configured()))?;
        // As of now: it may have changed while another one was being given.
        let number = number();
        if let Some(holds) = given.holds(number, Instant::now()) {
            return holds.map_err(failed);
        }
        let (run, tenant) = (Arc::clone(&self.run), tenant.to_owned());
        let (client, description) = (client.clone(), Arc::clone(description));
        of.begins(Instant::now());
        // It goes on when its caller has left: the next one finds it done.
        let giving = async move {
            let from = &run.configurations;
            let of_tenant = (tenant.as_str(), number);
            let holds = match given.give(&client, &description, from, of_tenant).await {
                Ok(holds) => holds.map_err(failed),
                Err(error) => {
                    if run.died(&error).await {
                        let message = format!("it ended under the tenant's configuration: {error}");
                        Err(Broken { died: true, ..Broken::not_made(PoolError::Away(message)) })
                    } else {
                        given.fails(number, &error).map_err(failed)
                    }
                }
            };
            of.ends();
            holds
        };
        let left = within.saturating_sub(began.elapsed()).min(CONFIGURE_WAIT);
        waited(left, on_death, giving).await.map_err(|broken| match broken.error {
            PoolError::Late | PoolError::Unknown(_) => Broken::not_made(being_configured()),
            _ => broken,
        })
    }

    /// Calls a function of the contract.
    pub(crate) async fn call(
        self,
        call: &PoolCall,
        within: Duration,
        on_death: impl FnOnce() + Send + 'static,
    ) -> Result<Bytes, Broken> {
        let PoolCall { function, context, input } = call.clone();
        let request = CallRequest { context: Some(context), function, input };
        waited(within, on_death, async move { self.called(request, within).await }).await
    }

    async fn called(&self, request: CallRequest, within: Duration) -> Result<Bytes, Broken> {
        let Spoken::Contract(client, _) = &self.run.spoken else {
            return Err(Broken::not_made(PoolError::UnknownFunction));
        };
        let output_max = self.run.output_bytes_max;
        let called: Result<CallOutcome, Error> =
            client.call_lingering(request, within, LINGER_MIN, output_max).await;
        match called {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(failure)) => Err(Broken::not_made(PoolError::Failed(failure))),
            Err(error) => {
                let died = self.run.died(&error).await;
                let is_fault = matches!(error, Error::Late { .. }) || is_unreached(&error);
                let error = PoolError::of_call(&error);
                Err(Broken { error, died, is_fault: is_fault && !died })
            }
        }
    }

    /// Calls a method of a foreign plugin.
    pub(crate) async fn call_method(
        self,
        method: &str,
        input: Value,
        within: Duration,
        on_death: impl FnOnce() + Send + 'static,
    ) -> Result<Value, Broken> {
        let (method, limit) = (method.to_owned(), within.max(LINGER_MIN));
        let called = async move { self.method_called(&method, input, limit).await };
        waited(within, on_death, called).await
    }

    async fn method_called(
        &self,
        method: &str,
        input: Value,
        limit: Duration,
    ) -> Result<Value, Broken> {
        let reflection = match &self.run.spoken {
            Spoken::Own(Ok(reflection)) => reflection,
            Spoken::Own(Err(reason)) => {
                let fault = format!("it does not tell its methods: {reason}");
                return Err(Broken::not_made(PoolError::Faulty(fault)));
            }
            Spoken::Contract(..) => return Err(Broken::not_made(PoolError::UnknownFunction)),
        };
        if !has_method(reflection, method) {
            return Err(Broken::not_made(PoolError::UnknownFunction));
        }
        let called = reflection.call(&self.run.connection, method, input, limit).await;
        let error = match called {
            Ok(output) => return Ok(output),
            Err(error) => error,
        };
        let died = self.run.died(&error).await;
        let is_fault = matches!(error, Error::Late { .. });
        let error = PoolError::of_method(&error, died);
        Err(Broken { error, died, is_fault: is_fault && !died })
    }
}

impl Broken {
    /// It says nothing against the instance.
    pub(crate) fn not_made(error: PoolError) -> Self {
        Self { error, died: false, is_fault: false }
    }
}

/// Said to a caller whose time is over before the process has the tenant's configuration. No call was made.
fn being_configured() -> PoolError {
    PoolError::Away("it is being given the tenant's configuration".to_owned())
}

/// The answer to a call, for a caller who waits so long. A call whose caller has left keeps its place and runs
/// on until its own time is over: a connection on which many calls are given up at once is ended, for all.
async fn waited<T: Send + 'static>(
    within: Duration,
    on_death: impl FnOnce() + Send + 'static,
    call: impl Future<Output = Result<T, Broken>> + Send + 'static,
) -> Result<T, Broken> {
    let call = async move {
        let called = call.await;
        if matches!(called, Err(Broken { died: true, .. })) {
            on_death();
        }
        called
    };
    match timeout(within, tokio::spawn(call)).await {
        Ok(Ok(called)) => called,
        Ok(Err(error)) => Err(Broken::not_made(PoolError::Unknown(error.to_string()))),
        Err(_) => Err(Broken { error: PoolError::Late, died: false, is_fault: true }),
    }
}

/// The connection did not carry the call. Any other status is the answer to this one call.
fn is_unreached(error: &Error) -> bool {
    matches!(error, Error::Status { status, .. } if status.code() == Code::Unavailable)
}

fn has_method(reflection: &Reflection, name: &str) -> bool {
    let Some((service, _)) = name.split_once('/') else { return false };
    let methods = reflection.methods(service);
    methods.is_ok_and(|methods| methods.iter().any(|method| method.name == name))
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    /// A function that raised counted against the plugin, and so one tenant took it from all.
    #[test]
    fn a_status_of_one_call_says_nothing_against_the_plugin() {
        for code in (1..=16).map(Code::from_i32) {
            let status = Box::new(Status::new(code, "as asked"));
            let error = Error::Status { method: "a.B/C".to_owned(), status };
            assert_eq!(is_unreached(&error), code == Code::Unavailable, "{code:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_caller_has_left_runs_on() {
        let (done, is_done) = tokio::sync::oneshot::channel();
        let call = async move {
            tokio::time::sleep(LINGER_MIN).await;
            done.send(()).map_err(|()| Broken::not_made(PoolError::Late))
        };
        let broken = waited(Duration::from_millis(5), || (), call).await.unwrap_err();
        assert!(broken.error == PoolError::Late && broken.is_fault);
        is_done.await.unwrap();
    }

    /// A tenant in a hurry was never counted, and took the plugin from all.
    #[tokio::test(start_paused = true)]
    async fn a_death_is_told_when_the_caller_has_left() {
        let (told, is_told) = tokio::sync::oneshot::channel();
        let call = async move {
            tokio::time::sleep(LINGER_MIN).await;
            Err::<(), _>(Broken { error: PoolError::Late, died: true, is_fault: false })
        };
        let on_death = || told.send(()).unwrap();
        let broken = waited(Duration::from_millis(5), on_death, call).await.unwrap_err();
        assert!(!broken.died);
        is_told.await.unwrap();
    }
}
