//! Configurations of plugins' tenants: given to the pools, and looked at for whoever sets or shows one. They are open
//! in this process alone, and for moments.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use flexcore_definition::PluginContract;
use flexcore_domain::{
    Name, PluginRefusal, PluginReply, Tenant, json,
    plugin::{QUEUE_GROUP, header},
    plugin_configuration::{
        CONFIGURATION_BYTES_MAX, ConfigurationLook, LOOK_MAX, look_subject, plugin_of_look,
    },
};
use flexcore_eventstore::{
    EventStore,
    plugin_configurations::{ConfigurationNumbers, Locked},
};
use flexcore_plugin::contract::{Description, Failure};
use flexcore_pool::{Configurations, Pool};
use flexcore_resilience::Shares;
use futures::{FutureExt as _, StreamExt as _};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Shared,
    checks::{Suspects, Unchecked},
    functions::{Takes, fits_unquoted, takes},
    masked::masked,
};

/// Looks at configurations that are under way. Each holds one in memory.
const LOOKS_MAX: usize = 16;

/// Those of one tenant: so many times as many as are left for others.
const LOOKS_TIMES: usize = 3;

/// Largest schema that is shown, in bytes, so that an answer fits a message: 256 KiB.
const SCHEMA_SHOWN_MAX: usize = 256 * 1024;

/// Longest wait for a plugin that is not ready, before this looks again whether it is to stop.
const READY_WAIT: Duration = Duration::from_secs(1);

/// Time between two looks whether a plugin still has a ready instance.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time without a ready instance after which other workers get the questions. A crash is over by then.
const AWAY_MAX: Duration = Duration::from_secs(3);

/// Pause before questions are taken again: after a refused subscription, and where the plugin has failed for good.
const PAUSE: Duration = Duration::from_millis(200);

/// Code of the failure where a tenant's configuration cannot be used by this worker.
const UNCONFIGURED: &str = Configurations::UNCONFIGURED;

/// Least time between two lines of the log that say that a configuration does not open. 10 s: every tenant's may be
/// tried every few seconds.
const LOCKED_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Said where a configuration is not held to its schema in time.
const UNCHECKED: &str = "this tenant's configuration cannot be held to the plugin's schema in time";

/// What a pool asks for the configurations of its plugin's tenants. It keeps nothing that keeps a pool.
pub(super) fn of(shared: &Shared, plugin: &Name) -> Configurations {
    let (numbers, name) = (shared.configurations.numbers.clone(), plugin.clone());
    let (suspects, checks) = (shared.configurations.suspects(plugin), shared.checks.clone());
    let (store, plugin) = (shared.store.clone(), plugin.clone());
    let told = shared.configurations.told_locked.clone();
    Configurations::new(
        move |tenant| numbers.of(&name, tenant),
        move |tenant, description| {
            let (suspects, checks, description) =
                (suspects.clone(), checks.clone(), description.clone());
            let (store, plugin, tenant) = (store.clone(), plugin.clone(), tenant.to_owned());
            let told = told.clone();
            async move {
                let tenant =
                    Tenant::parse(&tenant).map_err(|error| Failure::new(UNCONFIGURED, error))?;
                let Some(configuration) = open(&store, &plugin, &tenant, &told).await? else {
                    return Ok(None);
                };
                // Another version may be in service than when it was set.
                let held = configuration.clone();
                let checked = checks.check(&suspects, &tenant, move || fits(&description, &held));
                let checked = checked.await;
                let fits = checked.map_err(|_| Failure::passing(UNCONFIGURED, UNCHECKED))?;
                fits.map(|()| Some(configuration)).map_err(|reason| {
                    let why = "this tenant's configuration does not fit the plugin's schema";
                    Failure::new(UNCONFIGURED, format!("{why}: {reason}"))
                })
            }
            .boxed()
        },
    )
}

/// Reads a tenant's configuration. Fails with the reason for which its calls are refused.
async fn open(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
    told: &ToldLocked,
) -> Result<Option<Bytes>, Failure> {
    let sealed = store.plugin_configuration(plugin, tenant).await.map_err(|error| {
        let message = format!("this tenant's configuration cannot be read now: {error}");
        Failure::passing(UNCONFIGURED, message)
    })?;
    let Some(sealed) = sealed else { return Ok(None) };
    let opened = store.open_plugin_configuration(plugin, tenant, &sealed);
    opened.map(Some).map_err(|locked| {
        if told.is_due(Instant::now()) {
            // It is for whoever runs the workers: the caller cannot mend it.
            tracing::error!(%plugin, %tenant, %locked, "calls of a plugin are refused, maybe of more tenants");
        }
        unopened()
    })
}

/// The failure of calls whose tenant's configuration does not open here. It passes: when the key has been changed, a
/// tenant's configuration does not open until it is set again. Events and stored commands of the tenant wait for that,
/// and would be put aside otherwise.
fn unopened() -> Failure {
    Failure::passing(UNCONFIGURED, "the worker cannot open this tenant's configuration")
}

/// When it was said last that configurations do not open: each is tried again and again.
#[derive(Default)]
struct ToldLocked(Mutex<Option<Instant>>);

impl ToldLocked {
    /// True if it is to be said again.
    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due =
            last.is_none_or(|told| now.saturating_duration_since(told) >= LOCKED_TOLD_EVERY);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

fn fits(description: &Description, configuration: &[u8]) -> Result<(), String> {
    match looked_at(description, Some(configuration)) {
        Ok(look) => look.unfit.map_or(Ok(()), Err),
        Err((_, reason)) => Err(reason),
    }
}

/// What a worker knows of configurations.
pub(super) struct Known {
    numbers: ConfigurationNumbers,
    looks: Shares<Tenant>,
    /// Of each plugin: its schema may be one whose checks do not end.
    suspects: Mutex<BTreeMap<Name, Arc<Suspects>>>,
    told_locked: Arc<ToldLocked>,
}

impl Known {
    pub(super) fn new(numbers: ConfigurationNumbers) -> Self {
        let looks = Shares::new(LOOKS_MAX, LOOKS_TIMES);
        Self { numbers, looks, suspects: Mutex::default(), told_locked: Arc::default() }
    }

    /// Of an installed plugin.
    fn suspects(&self, plugin: &Name) -> Arc<Suspects> {
        let mut all = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(plugin.clone()).or_default().clone()
    }
}

/// Answers questions for looks at configurations of a plugin while it runs here, until the token is cancelled. Then it
/// answers what had come, and returns. A worker where it does not run gets no question: it could only say so, while
/// others know the schema.
pub(super) async fn serve(shared: Arc<Shared>, plugin: Name, pool: Pool, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    while !stop.is_cancelled() {
        if stop.run_until_cancelled(ready(&pool)).await.is_none() {
            break;
        }
        let (subject, group) = (look_subject(&plugin), QUEUE_GROUP.to_owned());
        match shared.store.client().queue_subscribe(subject, group).await {
            Ok(subscription) => answer(&shared, subscription, &pool, (&tasks, &stop)).await,
            Err(error) => {
                tracing::warn!(%plugin, %error, "looks at configurations cannot be taken");
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
    tasks.close();
    tasks.wait().await;
}

/// Returns when an instance is ready.
async fn ready(pool: &Pool) {
    while pool.ready(READY_WAIT).await.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns when no instance has been ready for a while.
async fn away(pool: &Pool) {
    tokio::time::sleep(LOOK_EVERY).await;
    while pool.ready(AWAY_MAX).await.is_ok() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Answers what is asked until the plugin is away or the token is cancelled, and then what had come.
async fn answer(
    shared: &Arc<Shared>,
    mut subscription: Subscriber,
    pool: &Pool,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) {
    let mut over = pin!(stop.run_until_cancelled(away(pool)));
    loop {
        let message = tokio::select! {
            _ = &mut over => None,
            message = subscription.next() => message,
        };
        let Some(message) = message else { break };
        receive(shared, message, tasks);
    }
    let _ = subscription.drain().await;
    while let Some(message) = subscription.next().await {
        receive(shared, message, tasks);
    }
}

fn receive(shared: &Arc<Shared>, message: Message, tasks: &TaskTracker) {
    let Some(to) = crate::inbox(&message) else { return };
    let shared = shared.clone();
    tasks.spawn(async move {
        let looked = timeout(LOOK_MAX, look(&shared, message)).await;
        let reply = looked.unwrap_or_else(|_| {
            refused(PluginRefusal::Busy, "the configuration could not be checked in time")
        });
        let body = serde_json::to_vec(&reply.shortened()).expect("BUG: replies serialise");
        // Whoever asked learns from a timeout when the connection is gone.
        let _ = shared.store.client().publish(to, body.into()).await;
    });
}

fn refused(refusal: PluginRefusal, message: impl Into<String>) -> PluginReply {
    PluginReply::refused(refusal, message)
}

/// Opens a configuration, holds it to its plugin's schema, and masks it.
async fn look(shared: &Shared, message: Message) -> PluginReply {
    let headers = message.headers.as_ref();
    let tenant = headers.and_then(|headers| headers.get(header::TENANT));
    let tenant = tenant.and_then(|tenant| Tenant::parse(tenant.as_str()).ok());
    let (Some(plugin), Some(tenant)) = (plugin_of_look(&message.subject), tenant) else {
        return refused(PluginRefusal::InvalidInput, "a plugin and a tenant have to be named");
    };
    let Some((installed, pool)) = shared.board.in_service(&plugin) else {
        return refused(PluginRefusal::Away, "the plugin does not run on the worker");
    };
    let tenants = installed.manifest.tenants.as_ref();
    if tenants.is_some_and(|tenants| !tenants.contains(&tenant)) {
        let message = format!("the plugin {plugin} is not for this tenant");
        return refused(PluginRefusal::NotForTenant, message);
    }
    let Some(place) = shared.configurations.looks.enter(&tenant) else {
        let message = "the tenant has as many checks of configurations under way as it may have";
        return refused(PluginRefusal::Busy, message);
    };
    let sealed = message.payload;
    if installed.manifest.contract == PluginContract::None {
        return output(&untaken(&sealed));
    }
    let Some(description) = pool.status().description else {
        return refused(PluginRefusal::Away, "the plugin has not said yet what it can do");
    };
    if description.configuration_schema.is_empty() {
        return output(&untaken(&sealed));
    }
    let configuration = if sealed.is_empty() {
        None
    } else {
        match shared.store.open_plugin_configuration(&plugin, &tenant, &sealed) {
            Ok(configuration) => Some(configuration),
            Err(locked) => return output(&unopened_look(&description, locked)),
        }
    };
    let suspects = shared.configurations.suspects(&plugin);
    let checked = shared.checks.check(&suspects, &tenant, move || {
        // As long as the check runs, be it left behind or not.
        let _place = place;
        looked_at(&description, configuration.as_deref())
    });
    match checked.await {
        Ok(Ok(look)) => output(&look),
        Ok(Err((refusal, message))) => refused(refusal, message),
        Err(Unchecked::Long(_)) => {
            let message = "the check of the configuration against its schema takes too long";
            refused(PluginRefusal::InvalidInput, message)
        }
        Err(Unchecked::Failed(error)) => {
            let message = format!("the configuration could not be checked: {error}");
            refused(PluginRefusal::Faulty, message)
        }
    }
}

/// What is said of a sealed configuration where the plugin takes none.
fn untaken(sealed: &[u8]) -> ConfigurationLook {
    let why = || "the plugin takes no configuration".to_owned();
    let unfit = (!sealed.is_empty()).then(why);
    ConfigurationLook { schema: None, schema_too_large: false, configuration: None, unfit }
}

/// What is said of a sealed configuration that does not open here. It is no outage: another try says the same until
/// somebody sets it again, or gives all processes one key.
fn unopened_look(description: &Description, locked: Locked) -> ConfigurationLook {
    let unfit = Some(format!("a worker cannot open it: {locked}"));
    ConfigurationLook { unfit, ..schema_alone(description) }
}

/// What is said where there is no configuration.
fn schema_alone(description: &Description) -> ConfigurationLook {
    let schema = RawValue::from_string(description.configuration_schema.clone()).ok();
    let schema_too_large =
        schema.as_ref().is_some_and(|schema| schema.get().len() > SCHEMA_SHOWN_MAX);
    let schema = schema.filter(|_| !schema_too_large);
    ConfigurationLook { schema, schema_too_large, configuration: None, unfit: None }
}

fn output(look: &ConfigurationLook) -> PluginReply {
    to_raw_value(look)
        .map_or_else(|error| refused(PluginRefusal::Faulty, error.to_string()), PluginReply::Output)
}

/// Holds a configuration to the schema. It may take long, as the schema is the plugin's. Nothing of the
/// configuration is quoted.
fn looked_at(
    description: &Description,
    configuration: Option<&[u8]>,
) -> Result<ConfigurationLook, (PluginRefusal, String)> {
    let text = &description.configuration_schema;
    let mut look = schema_alone(description);
    let Some(configuration) = configuration else { return Ok(look) };
    let no_schema = |reason: String| {
        let message = format!("the plugin's schema of the configuration is none: {reason}");
        (PluginRefusal::Faulty, message)
    };
    let fitting = match takes(text) {
        Takes::Fitting(fitting) => fitting,
        Takes::Unclear(reason) => return Err(no_schema(reason)),
        Takes::Any => return Err(no_schema("it is empty".to_owned())),
    };
    let described: Value = serde_json::from_str(text).map_err(|e| no_schema(e.to_string()))?;
    let value = read(configuration).map_err(|reason| (PluginRefusal::InvalidInput, reason))?;
    if value.is_null() {
        let message = "null is no configuration: take it away instead, with --remove or DELETE";
        return Err((PluginRefusal::InvalidInput, message.to_owned()));
    }
    look.unfit = fits_unquoted(&fitting, &value).err();
    let masked = to_raw_value(&masked(&described, &value));
    look.configuration = Some(masked.map_err(|error| (PluginRefusal::Faulty, error.to_string()))?);
    Ok(look)
}

/// Reads a configuration, which is held to the rules of a command's payload, but for its size.
fn read(configuration: &[u8]) -> Result<Value, String> {
    let text =
        json::check_within(configuration, CONFIGURATION_BYTES_MAX).map_err(|violations| {
            // The reasons may quote it.
            let places = violations.iter().map(|violation| match violation.field.as_str() {
                "" => "as a whole",
                place => place,
            });
            let places: Vec<&str> = places.collect();
            format!("the configuration is not accepted as JSON: {}", places.join(", "))
        })?;
    serde_json::from_str(text).map_err(|error| format!("the configuration is no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn looked(
        schema: &str,
        configuration: Option<&str>,
    ) -> Result<ConfigurationLook, PluginRefusal> {
        let configuration_schema = schema.to_owned();
        let description = Description { configuration_schema, ..Description::default() };
        let looked = looked_at(&description, configuration.map(str::as_bytes));
        looked.map_err(|(refusal, message)| {
            assert!(!message.contains("s3cret"), "{message}");
            refusal
        })
    }

    #[test]
    fn a_configuration_is_held_to_its_schema_and_masked() {
        let schema = json!({
            "type": "object",
            "required": ["host"],
            "properties": {"host": {"type": "string"}, "key": {"type": "string", "writeOnly": true}},
        });
        let schema = schema.to_string();
        let look = looked(&schema, Some(r#"{"host": "a", "key": "s3cret"}"#)).unwrap();
        assert_eq!(look.configuration.unwrap().get(), r#"{"host":"a","key":"***"}"#);
        assert!(look.unfit.is_none() && look.schema.unwrap().get() == schema);
        let unfit = looked(&schema, Some(r#"{"key": 7}"#)).unwrap();
        assert!(unfit.unfit.unwrap().contains("host"));
        assert!(looked(&schema, None).unwrap().configuration.is_none());
    }

    /// A plugin without a configuration was said to have a schema that is too large.
    #[test]
    fn a_schema_that_is_not_there_is_told_from_one_that_is_too_large() {
        let large = json!({"title": "x".repeat(SCHEMA_SHOWN_MAX)}).to_string();
        let look = looked(&large, None).unwrap();
        assert!(look.schema.is_none() && look.schema_too_large);
        let none = untaken(b"");
        assert!(none.schema.is_none() && !none.schema_too_large && none.unfit.is_none());
        assert!(untaken(b"sealed").unfit.is_some());
    }

    /// While the key was changed, transformed events were put aside and stored commands were, for good.
    #[test]
    fn a_configuration_that_does_not_open_is_a_failure_that_passes() {
        let failure = unopened();
        assert!(failure.temporary && failure.code == UNCONFIGURED);
    }

    /// That it is to be set again was in the log alone, and whoever asked was told to try again.
    #[test]
    fn a_configuration_that_does_not_open_is_told_as_such() {
        let configuration_schema = r#"{"type": "object"}"#.to_owned();
        let description = Description { configuration_schema, ..Description::default() };
        let look = unopened_look(&description, Locked::NoKey);
        assert!(look.schema.is_some() && look.configuration.is_none());
        assert!(look.unfit.unwrap().contains("no key for secrets"));
    }

    #[test]
    fn what_does_not_open_is_told_at_times() {
        let (told, first) = (ToldLocked::default(), Instant::now());
        assert!(told.is_due(first) && !told.is_due(first));
        assert!(!told.is_due(first + LOCKED_TOLD_EVERY / 2));
        assert!(told.is_due(first + LOCKED_TOLD_EVERY));
    }

    #[test]
    fn what_is_no_json_or_no_schema_is_said_without_a_quotation() {
        for wrong in ["", "null", "s3cret", r#"{"a": "s3cret", "a": 1}"#, "{\"a\": s3cret}"] {
            assert_eq!(looked("{}", Some(wrong)).unwrap_err(), PluginRefusal::InvalidInput);
        }
        let large = format!("{:?}", "x".repeat(CONFIGURATION_BYTES_MAX));
        assert_eq!(looked("{}", Some(&large)).unwrap_err(), PluginRefusal::InvalidInput);
        assert_eq!(looked(r#"{"type": "strin"}"#, Some("{}")).unwrap_err(), PluginRefusal::Faulty);
    }
}
