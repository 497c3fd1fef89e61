//! Calls of one plugin: taken while it is ready, checked, and answered. So are questions for its decisions.

mod decisions;
mod telling;

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use flexcore_definition::PluginContract;
use flexcore_domain::{
    Name, PluginRefusal, PluginReply, Tenant, Violation, json,
    plugin::{INPUT_BYTES_MAX, QUEUE_GROUP, call_subjects, decisions::subject, told},
};
use flexcore_eventstore::{EventStore, plugins::InstalledPlugin};
use flexcore_pool::{LEFT_MIN, LINGER_MIN, Pool, PoolCall, PoolError};
use flexcore_resilience::{HeldPlace, Shares};
use futures::StreamExt;
use serde_json::Value;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    checks::{Checks, Suspects, Unchecked},
    functions::{Functions, Takes, fits},
    reply,
    request::{self, Asked},
};

/// Calls of one tenant that are under way at a plugin on one worker: so many times as many as are left for
/// others.
const CALLS_TIMES: usize = 3;

/// Longest wait for a plugin that is not ready, before this looks again whether it is to stop.
const READY_WAIT: Duration = Duration::from_secs(1);

/// Time between two looks whether a plugin still has a ready instance.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time without a ready instance after which other workers get the calls. A crash is over by then, and calls
/// meanwhile are told that the plugin is away.
const AWAY_MAX: Duration = Duration::from_secs(3);

/// Pause before calls are taken again: after a refused subscription, and where the plugin has failed for good.
const PAUSE: Duration = Duration::from_millis(200);

/// What is in service.
pub(super) struct InForce {
    pub(super) installed: Arc<InstalledPlugin>,
    /// Places for calls under way. A message with questions for decisions takes one, too.
    places: Shares<Tenant>,
    /// Known as soon as an instance was ready.
    functions: OnceLock<Functions>,
    suspects: Arc<Suspects>,
    /// Another version is on its way into its place, and may answer calls already.
    is_leaving: AtomicBool,
}

impl InForce {
    pub(super) fn new(installed: Arc<InstalledPlugin>) -> Self {
        let manifest = &installed.manifest;
        let places = manifest.instances.saturating_mul(manifest.concurrency);
        let (places, functions) = (Shares::new(places, CALLS_TIMES), OnceLock::new());
        let (suspects, is_leaving) = (Arc::default(), AtomicBool::new(false));
        Self { installed, places, functions, suspects, is_leaving }
    }

    /// Reads what the plugin says about itself, if it has said so and that was not read before.
    pub(super) async fn learn(self: &Arc<Self>, pool: &Pool) {
        if self.functions.get().is_some() {
            return;
        }
        let (this, pool) = (self.clone(), pool.clone());
        let learnt = spawn_blocking(move || {
            if let Some(description) = pool.status().description {
                this.functions.get_or_init(|| Functions::of(&description));
            }
        });
        if let Err(error) = learnt.await {
            tracing::error!(%error, "a plugin's description cannot be read");
        }
    }

    /// From now on calls may be answered by what comes after this; or that has not come, and is gone.
    pub(super) fn leaves(&self, is_leaving: bool) {
        self.is_leaving.store(is_leaving, Ordering::SeqCst);
    }

    /// The answer to a call that names its version, where another one may have answered it.
    fn other_version(&self, wanted: Option<&str>) -> Option<PluginReply> {
        let (manifest, wanted) = (&self.installed.manifest, wanted?);
        let (name, version) = (&manifest.name, manifest.version.trim());
        let message = if version != wanted {
            format!("version {version} of the plugin {name} is in service, and {wanted} is meant")
        } else if self.is_leaving.load(Ordering::SeqCst) {
            format!("another version of the plugin {name} is taking the place of {wanted}")
        } else {
            return None;
        };
        Some(PluginReply::refused(PluginRefusal::OtherVersion, message))
    }

    fn is_for(&self, tenant: &Tenant) -> bool {
        self.installed.manifest.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }
}

/// What is asked of a plugin on one subject, and how it is answered.
struct Taking {
    subject: String,
    /// Whether the plugin is asked that at all.
    is_for_it: fn(&Pool) -> bool,
    receive: fn(&Calls, Message, &TaskTracker),
}

/// A plugin as its calls are answered. Cheap to clone.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) store: EventStore,
    pub(super) name: Name,
    pub(super) pool: Pool,
    pub(super) in_force: watch::Receiver<Arc<InForce>>,
    pub(super) checks: Checks,
}

impl Calls {
    /// Takes calls, and questions for decisions, while the plugin is ready for them, until the token is cancelled.
    /// Then it answers what had come, and returns.
    pub(super) async fn serve(self, stop: CancellationToken) {
        let of = |subject| Taking { subject, is_for_it: |_| true, receive: telling::receive };
        let subjects = call_subjects(&self.name);
        let (told, calls) = (of(told::subject(&subjects)), of(subjects));
        let questions = Taking {
            subject: subject(&self.name),
            is_for_it: Pool::decides,
            receive: decisions::receive,
        };
        tokio::join!(
            self.take(&told, &stop),
            self.take(&calls, &stop),
            self.take(&questions, &stop)
        );
    }

    async fn take(&self, taking: &Taking, stop: &CancellationToken) {
        let tasks = TaskTracker::new();
        while !stop.is_cancelled() {
            if stop.run_until_cancelled(self.ready(taking)).await.is_none() {
                break;
            }
            let in_force = self.now();
            in_force.learn(&self.pool).await;
            let (subject, group) = (taking.subject.clone(), QUEUE_GROUP.to_owned());
            match self.store.client().queue_subscribe(subject, group).await {
                Ok(subscription) => self.answer(subscription, taking, &tasks, stop).await,
                Err(error) => {
                    tracing::warn!(plugin = %self.name, %error, "calls cannot be taken");
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        }
        tasks.close();
        tasks.wait().await;
    }

    fn now(&self) -> Arc<InForce> {
        self.in_force.borrow().clone()
    }

    /// Returns when an instance is ready for this.
    async fn ready(&self, taking: &Taking) {
        while self.pool.ready(READY_WAIT).await.is_err() || !(taking.is_for_it)(&self.pool) {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns when no instance has been ready for this for a while.
    async fn away(&self, taking: &Taking) {
        tokio::time::sleep(LOOK_EVERY).await;
        while self.pool.ready(AWAY_MAX).await.is_ok() && (taking.is_for_it)(&self.pool) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Answers what is asked until the plugin is away or to be stopped, and then what had come.
    async fn answer(
        &self,
        mut subscription: Subscriber,
        taking: &Taking,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let mut over = pin!(stop.run_until_cancelled(self.away(taking)));
        loop {
            let message = tokio::select! {
                _ = &mut over => None,
                message = subscription.next() => message,
            };
            let Some(message) = message else { break };
            (taking.receive)(self, message, tasks);
        }
        let _ = subscription.drain().await;
        while let Some(message) = subscription.next().await {
            (taking.receive)(self, message, tasks);
        }
    }

    async fn reply(&self, message: Message) -> PluginReply {
        let in_force = self.now();
        let manifest = &in_force.installed.manifest;
        let (headers, now) = (message.headers.as_ref(), Instant::now());
        let subject = told::call(message.subject.as_str());
        let bytes = message.payload.len();
        let asked = match request::read(subject, headers, bytes, manifest.call, now) {
            Ok(asked) => asked,
            Err(reply) => return reply,
        };
        let version = asked.version.clone();
        // Of another version nothing else counts: that may be for other tenants, too.
        if let Some(refused) = in_force.other_version(version.as_deref()) {
            return refused;
        }
        if !in_force.is_for(&asked.tenant) {
            let message = format!("the plugin {} is not for this tenant", self.name);
            return PluginReply::refused(PluginRefusal::NotForTenant, message);
        }
        if let Some(refused) = telling::unrepeatable(&self.pool, headers, &asked.function) {
            return refused;
        }
        let Some(place) = in_force.places.enter(&asked.tenant) else {
            let message = "the tenant has as many calls under way as it may have".to_owned();
            return PluginReply::refused(PluginRefusal::Busy, message);
        };
        let span = tracing::info_span!("plugin call", otel.kind = "consumer", plugin = %self.name);
        flexcore_telemetry::link(&span, &asked.context.traceparent);
        let called = self.call(&in_force, asked, message.payload, Arc::new(place));
        let reply = tracing::Instrument::instrument(called, span).await;
        // It may have been replaced under the call.
        in_force.other_version(version.as_deref()).unwrap_or(reply)
    }

    /// Checks the input, calls, and waits for what comes of it.
    async fn call(
        &self,
        in_force: &Arc<InForce>,
        asked: Asked,
        input: Bytes,
        place: Arc<HeldPlace<Tenant>>,
    ) -> PluginReply {
        if in_force.installed.manifest.contract == PluginContract::None {
            return self.call_method(asked, &input, place).await;
        }
        in_force.learn(&self.pool).await;
        let Some(functions) = in_force.functions.get() else {
            let message = "the plugin has not said yet what it can do";
            return PluginReply::refused(PluginRefusal::Away, message);
        };
        let Some(takes) = functions.takes(&asked.function) else {
            let (name, told) = (&self.name, functions.told());
            let message = format!("the plugin {name} has no such function; it has: {told}");
            return PluginReply::refused(PluginRefusal::UnknownFunction, message);
        };
        let of = Of { suspects: &in_force.suspects, tenant: &asked.tenant, place: &place };
        let checked = check(&self.checks, of, takes, input.clone());
        match timeout_at(asked.until, checked).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => return refused,
            Err(_) => {
                let message = "the input could not be checked in time, and nothing was done";
                return PluginReply::refused(PluginRefusal::Busy, message);
            }
        }
        let within = asked.until.saturating_duration_since(Instant::now());
        let call = PoolCall { function: asked.function, context: asked.context, input };
        let called = self.pool.call(call, within).await;
        leave(place, within, &called);
        called.map_or_else(reply::of_error, |output| reply::of_output(&output))
    }

    /// Calls a method of a foreign plugin, whose messages say what they take.
    async fn call_method(
        &self,
        asked: Asked,
        input: &[u8],
        place: Arc<HeldPlace<Tenant>>,
    ) -> PluginReply {
        let input = match read(input) {
            Ok(input) => input,
            Err(reply) => return reply,
        };
        let within = asked.until.saturating_duration_since(Instant::now());
        let tenant = asked.tenant.as_str();
        let called = self.pool.call_method(tenant, &asked.function, input, within).await;
        leave(place, within, &called);
        called.map_or_else(reply::of_method_error, |output| reply::of_value(&output))
    }
}

/// Gives a tenant's place back when the call is not under way any more: one that is late runs on for a while, and
/// its tenant would have others in its place.
fn leave<T>(place: Arc<HeldPlace<Tenant>>, within: Duration, called: &Result<T, PoolError>) {
    let was_made = within >= LEFT_MIN;
    let runs_on = LINGER_MIN.saturating_sub(within);
    if was_made && !runs_on.is_zero() && matches!(called, Err(PoolError::Late)) {
        tokio::spawn(async move {
            tokio::time::sleep(runs_on).await;
            drop(place);
        });
    }
}

/// An input's text, which is held to the rules of a command's payload, but for its size.
fn text(input: &[u8]) -> Result<&str, PluginReply> {
    let checked = json::check_within(input, INPUT_BYTES_MAX);
    checked.map_err(|violations| {
        let reason = |Violation { field, reason }: Violation| match &*field {
            "" => reason,
            field => format!("{field}: {reason}"),
        };
        let reasons: Vec<String> = violations.into_iter().map(reason).collect();
        let message = format!("the input is not accepted: {}", reasons.join("; "));
        PluginReply::refused(PluginRefusal::InvalidInput, message)
    })
}

fn read(input: &[u8]) -> Result<Value, PluginReply> {
    serde_json::from_str(text(input)?).map_err(|error| {
        let message = format!("the input is no JSON: {error}");
        PluginReply::refused(PluginRefusal::InvalidInput, message)
    })
}

/// Whose input is checked.
struct Of<'a> {
    suspects: &'a Arc<Suspects>,
    tenant: &'a Tenant,
    place: &'a Arc<HeldPlace<Tenant>>,
}

/// Checks an input. Fails with the answer to give. A check may run on when nobody waits for it any more, as the
/// schema is the plugin's; it keeps the caller's place for so long.
async fn check(
    checks: &Checks,
    of: Of<'_>,
    takes: &Takes,
    input: Bytes,
) -> Result<(), PluginReply> {
    let schema = match takes {
        Takes::Any => return text(&input).map(|_| ()),
        Takes::Unclear(reason) => {
            let message = format!("the plugin's schema of the input is none: {reason}");
            return Err(PluginReply::refused(PluginRefusal::Faulty, message));
        }
        Takes::Fitting(schema) => schema.clone(),
    };
    let place = of.place.clone();
    let checked = checks.check(of.suspects, of.tenant, move || {
        let _place = place;
        let fits = fits(&schema, &read(&input)?);
        fits.map_err(|reasons| PluginReply::refused(PluginRefusal::InvalidInput, reasons))
    });
    checked.await.unwrap_or_else(|unchecked| {
        Err(match unchecked {
            // Each of them would be a line in the log as the plugin's fault.
            Unchecked::Long(why) => PluginReply::refused(PluginRefusal::InvalidInput, why),
            Unchecked::Failed(error) => {
                let message = format!("the input could not be checked: {error}");
                PluginReply::refused(PluginRefusal::Faulty, message)
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flexcore_definition::PluginManifest;
    use flexcore_plugin::contract::{Description, Function};

    use super::{super::change::plugin, *};

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    async fn checked(schema: &str, input: &str) -> Option<(PluginRefusal, String)> {
        let (name, input_schema) = ("f".to_owned(), schema.to_owned());
        let function = Function { name, input_schema, ..Function::default() };
        let functions =
            Functions::of(&Description { functions: vec![function], ..Description::default() });
        let place = Shares::new(1, 1).enter(&tenant("acme")).unwrap();
        let (input, place) = (Bytes::copy_from_slice(input.as_bytes()), Arc::new(place));
        let of = Of { suspects: &Arc::default(), tenant: &tenant("acme"), place: &place };
        match check(&Checks::default(), of, functions.takes("f").unwrap(), input).await {
            Ok(()) => None,
            Err(PluginReply::Refused { refusal, message }) => Some((refusal, message)),
            Err(other) => panic!("not refused: {other:?}"),
        }
    }

    #[tokio::test]
    async fn only_what_fits_goes_to_the_plugin() {
        assert_eq!(checked("", "[1]").await, None);
        assert_eq!(checked(r#"{"type": "object"}"#, "{}").await, None);
        let large = format!("{:?}", "x".repeat(INPUT_BYTES_MAX - 2));
        for schema in ["", "{}"] {
            assert_eq!(checked(schema, &large).await, None, "{schema}");
        }
        let deep = format!("{}{}", "[".repeat(33), "]".repeat(33));
        for (schema, input, expected) in [
            ("", "", PluginRefusal::InvalidInput),
            ("", "{} {}", PluginRefusal::InvalidInput),
            ("", r#"{"a": 1, "a": 2}"#, PluginRefusal::InvalidInput),
            ("", &*deep, PluginRefusal::InvalidInput),
            ("{}", &*deep, PluginRefusal::InvalidInput),
            (r#"{"type": "object"}"#, "[]", PluginRefusal::InvalidInput),
            (r#"{"type": "object"}"#, "{", PluginRefusal::InvalidInput),
            (r#"{"type": "strin"}"#, "{}", PluginRefusal::Faulty),
        ] {
            let (refusal, message) = checked(schema, input).await.unwrap();
            assert_eq!(refusal, expected, "{schema} {input}: {message}");
        }
    }

    #[tokio::test]
    async fn a_late_call_that_runs_on_keeps_its_tenants_place() {
        let (places, rest) = (Shares::new(2, 1), Duration::from_millis(50));
        let within = LINGER_MIN.saturating_sub(rest);
        for (within, called, is_kept) in [
            (within, Ok(()), false),
            (within, Err(PoolError::Busy), false),
            (LINGER_MIN, Err(PoolError::Late), false),
            (LEFT_MIN / 2, Err(PoolError::Late), false),
            (within, Err(PoolError::Late), true),
        ] {
            leave(Arc::new(places.enter(&tenant("acme")).unwrap()), within, &called);
            let is_free = places.enter(&tenant("acme")).is_some();
            assert_eq!(is_free, !is_kept, "{within:?} {called:?}");
        }
        tokio::time::sleep(rest * 4).await;
        assert!(places.enter(&tenant("acme")).is_some());
    }

    fn in_force(change: impl FnOnce(&mut PluginManifest)) -> InForce {
        let mut installed = Arc::into_inner(plugin(1, 0, "a")).unwrap();
        change(&mut installed.manifest);
        InForce::new(Arc::new(installed))
    }

    #[test]
    fn a_plugin_is_for_the_tenants_that_its_manifest_names() {
        assert!(in_force(|_| ()).is_for(&tenant("acme")));
        let acmes = in_force(|manifest| manifest.tenants = Some(BTreeSet::from([tenant("acme")])));
        assert!(acmes.is_for(&tenant("acme")) && !acmes.is_for(&tenant("globex")));
    }

    /// What is kept under a version has to be of that version.
    #[test]
    fn a_call_that_names_its_version_gets_no_answer_of_another() {
        let in_force = in_force(|manifest| manifest.version = "1.2.0".to_owned());
        let refused = |wanted| match in_force.other_version(wanted) {
            None => false,
            Some(PluginReply::Refused { refusal: PluginRefusal::OtherVersion, .. }) => true,
            other => panic!("another reply: {other:?}"),
        };
        let told = || [None, Some("1.2.0"), Some("1.2"), Some("")].map(refused);
        assert_eq!(told(), [false, false, true, true]);
        in_force.leaves(true);
        assert_eq!(told(), [false, true, true, true]);
        in_force.leaves(false);
        assert_eq!(told(), [false, false, true, true]);
    }

    #[test]
    fn a_flood_of_calls_leaves_places_for_others() {
        let in_force = in_force(|manifest| (manifest.instances, manifest.concurrency) = (2, 8));
        let (flood, calm) = (tenant("flood"), tenant("calm"));
        let held: Vec<_> = (0..40).filter_map(|_| in_force.places.enter(&flood)).collect();
        assert_eq!(held.len(), 12);
        assert!(in_force.places.enter(&calm).is_some());
    }
}
