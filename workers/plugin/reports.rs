//! What this worker has of each plugin, and the answers to whoever asks for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use flexcore_domain::{
    Name, PluginDescription, PluginFunction, PluginReport, PluginStatus,
    plugin::{LOGS_SUBJECTS, REPORT_BYTES_MAX, REPORTS_SUBJECT, lines_within, plugin_of_logs},
};
use flexcore_eventstore::{
    Error,
    plugins::{InstalledPlugin, InstalledPlugins},
};
use flexcore_plugin::contract::Description;
use flexcore_pool::Pool;
use futures::StreamExt;
use serde_json::value::RawValue;
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Shared;

/// What this worker has of all plugins. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Board(Arc<Mutex<BTreeMap<Name, Standing>>>);

/// What this worker has of one plugin.
#[derive(Clone)]
pub(super) struct Standing {
    /// The number of the last installation or restart that was taken up.
    pub(super) number: u32,
    /// Processes that should run.
    pub(super) instances: usize,
    /// What is in service, and the pool of its instances.
    pub(super) in_service: Option<(Arc<InstalledPlugin>, Pool)>,
    /// The state, as long as nothing is in service.
    pub(super) word: &'static str,
    /// Why it is not as it should be.
    pub(super) reason: Option<String>,
}

impl Board {
    pub(super) fn set(&self, name: &Name, standing: Standing) {
        self.lock().insert(name.clone(), standing);
    }

    pub(super) fn remove(&self, name: &Name) {
        self.lock().remove(name);
    }

    /// The SHA-256 of every file that is in service.
    pub(super) fn files(&self) -> BTreeSet<String> {
        let in_service = |standing: &Standing| {
            standing.in_service.as_ref().map(|(installed, _)| installed.sha256.clone())
        };
        self.lock().values().filter_map(in_service).collect()
    }

    /// What of the plugin is in service, and the pool of its instances.
    pub(super) fn in_service(&self, name: &Name) -> Option<(Arc<InstalledPlugin>, Pool)> {
        self.lock().get(name).and_then(|standing| standing.in_service.clone())
    }

    fn lines(&self, name: &Name) -> Vec<String> {
        self.in_service(name).map(|(_, pool)| pool.lines()).unwrap_or_default()
    }

    /// All of them, with those that are installed and cannot be read here.
    fn report(&self, member: &str, unreadable: &BTreeMap<Name, String>) -> PluginReport {
        let all = self.lock().clone();
        let mut plugins: BTreeMap<Name, PluginStatus> =
            all.iter().map(|(name, standing)| (name.clone(), standing.status(name))).collect();
        for (name, reason) in unreadable {
            let reason = format!("what is installed cannot be read by this worker: {reason}");
            let status = plugins.entry(name.clone()).or_insert_with(|| bare(name, "unreadable"));
            status.reason = Some(reason);
        }
        PluginReport { member: member.to_owned(), plugins: plugins.into_values().collect() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Standing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    /// It looks at the plugin's processes, which takes some system calls for each.
    fn status(&self, name: &Name) -> PluginStatus {
        let nothing = PluginStatus {
            number: self.number,
            instances: self.instances,
            reason: self.reason.clone(),
            ..bare(name, self.word)
        };
        let Some((installed, pool)) = &self.in_service else { return nothing };
        let now = pool.status();
        PluginStatus {
            version: installed.manifest.version.clone(),
            state: now.state.word().to_owned(),
            instances: now.instances,
            ready: now.ready,
            restarts: now.restarts,
            calls: now.calls,
            errors: now.errors,
            under_way: now.under_way,
            p50_ms: now.p50.as_secs_f64() * 1_000.0,
            p99_ms: now.p99.as_secs_f64() * 1_000.0,
            memory_bytes: now.memory_bytes,
            reason: self.reason.clone().or(now.reason),
            description: now.description.as_deref().map(described),
            sandbox: now.sandbox,
            ..nothing
        }
    }
}

fn bare(name: &Name, word: &str) -> PluginStatus {
    PluginStatus {
        name: name.clone(),
        number: 0,
        version: String::new(),
        state: word.to_owned(),
        instances: 0,
        ready: 0,
        restarts: 0,
        calls: 0,
        errors: 0,
        under_way: 0,
        p50_ms: 0.0,
        p99_ms: 0.0,
        memory_bytes: 0,
        reason: None,
        description: None,
        sandbox: Vec::new(),
    }
}

fn described(description: &Description) -> PluginDescription {
    // Empty where any JSON fits.
    let schema = |text: &str| RawValue::from_string(text.to_owned()).ok();
    let functions = description.functions.iter().map(|function| PluginFunction {
        name: function.name.clone(),
        summary: function.summary.clone(),
        input_schema: schema(&function.input_schema),
        output_schema: schema(&function.output_schema),
        idempotent: function.idempotent,
    });
    PluginDescription { functions: functions.collect(), decides: description.decides }
}

/// Answers questions for reports and logs until the token is cancelled. Fails when the broker refuses a
/// subscription.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    installed: watch::Receiver<Arc<InstalledPlugins>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), Error> {
    for subject in [REPORTS_SUBJECT, LOGS_SUBJECTS] {
        let subscribed = shared.store.client().subscribe(subject).await;
        let subscription = subscribed.map_err(|error| Error::Unavailable(error.to_string()))?;
        let answering = answer(shared.clone(), installed.clone(), subscription, stop.clone());
        tasks.spawn(answering);
    }
    Ok(())
}

async fn answer(
    shared: Arc<Shared>,
    installed: watch::Receiver<Arc<InstalledPlugins>>,
    mut subscription: Subscriber,
    stop: CancellationToken,
) {
    while let Some(Some(message)) = stop.run_until_cancelled(subscription.next()).await {
        let Some(to) = crate::inbox(&message) else { continue };
        let (asked, now) = (shared.clone(), installed.borrow().clone());
        let body = spawn_blocking(move || body(&asked, &now, &message)).await;
        match body {
            Ok(body) => drop(shared.store.client().publish(to, body).await),
            Err(error) => tracing::error!(%error, "plugins cannot be reported"),
        }
    }
}

fn body(shared: &Shared, installed: &InstalledPlugins, message: &Message) -> Bytes {
    let json = match plugin_of_logs(message.subject.as_str()) {
        Some(name) => {
            let lines = shared.board.lines(&name);
            serde_json::to_vec(lines_within(&lines, REPORT_BYTES_MAX))
        }
        None => {
            let report = shared.board.report(&shared.settings.member, &installed.unreadable);
            serde_json::to_vec(&report.shortened())
        }
    };
    json.expect("BUG: reports serialise").into()
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Function;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn a_report_has_what_does_not_run_too() {
        let board = Board::default();
        let reason = Some("no such file".to_owned());
        let failed = |number| Standing {
            number,
            instances: 2,
            in_service: None,
            word: "failed",
            reason: reason.clone(),
        };
        board.set(&name("b"), failed(3));
        board.set(&name("gone"), failed(4));
        board.remove(&name("gone"));
        let unreadable = BTreeMap::from([(name("a"), "no name".to_owned())]);
        let report = board.report("w1", &unreadable);
        let [a, b] = &report.plugins[..] else { panic!("two of them: {report:?}") };
        assert_eq!((report.member.as_str(), a.name.as_str(), &*a.state), ("w1", "a", "unreadable"));
        assert!(a.reason.as_ref().unwrap().ends_with("no name"));
        assert_eq!((b.number, &*b.state, b.instances, &b.reason), (3, "failed", 2, &reason));
        assert!(board.lines(&name("b")).is_empty());
    }

    #[test]
    fn a_description_has_the_schemas_as_they_are() {
        let function = Function {
            name: "greet".to_owned(),
            input_schema: r#"{"b": 1, "a": 2}"#.to_owned(),
            idempotent: true,
            ..Function::default()
        };
        let described =
            described(&Description { functions: vec![function], ..Description::default() });
        let [greet] = &described.functions[..] else { panic!("one function") };
        assert_eq!(greet.input_schema.as_ref().unwrap().get(), r#"{"b": 1, "a": 2}"#);
        assert!(greet.output_schema.is_none() && greet.idempotent && !described.decides);
    }
}
