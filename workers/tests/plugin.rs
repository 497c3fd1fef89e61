//! The plugin worker on a real broker, with a real plugin.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

use std::{fmt::Write as _, path::Path, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_domain::{
    Name, PluginRefusal, PluginReply, PluginReport, PluginStatus, command,
    plugin::{self as words, REPORTS_SUBJECT, call_subject, logs_subject, told},
    plugin_configuration::look_subject,
};
use flexcore_eventstore::{
    Error, EventStore, Profile,
    plugins::{InstalledPlugin, InstalledPlugins},
};
use flexcore_plugin::Checked;
use flexcore_servers::{Options, Servers, Sync, Want};
use flexcore_workers::plugin;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const LAB: &str = env!("CARGO_BIN_EXE_flexcore-workers-lab");

/// Its answer, once it has one.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(said) = ask().await {
            return said;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A worker, and what it hears of installations.
struct Rig {
    _servers: Servers,
    store: EventStore,
    installed: watch::Sender<Arc<InstalledPlugins>>,
    sha256: String,
    stop: CancellationToken,
    worker: JoinHandle<Result<(), Error>>,
    folder: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
        let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache) };
        let servers = Servers::start(&options).await.unwrap();
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let settings = flexcore_eventstore::Settings {
            profile: Profile::Relaxed,
            replicas: 1,
            monitor_urls: vec![servers.nats_monitor_url()],
        };
        let store = EventStore::open(client, settings).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (installed, followed) = watch::channel(Arc::default());
        let settings = plugin::Settings {
            folder: folder.path().join("files"),
            member: "w1".to_owned(),
            guard: LAB.into(),
        };
        let stop = CancellationToken::new();
        let running = plugin::run(store.clone(), followed, settings, stop.clone());
        let worker = tokio::spawn(running);
        let sha256 = stored(&store).await;
        Self { _servers: servers, store, installed, sha256, stop, worker, folder }
    }

    /// The plugin, started with this argument, is wanted from now on.
    fn install(&self, number: u32, argument: &str) {
        self.want(number, argument, &self.sha256);
    }

    fn want(&self, number: u32, argument: &str, sha256: &str) {
        let text = format!(
            "name: greeter\nversion: {argument}\nfile: lab\narguments: [{argument}]\n\
             tenants: [acme]\nstart: 20s\n"
        );
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let manifest = PluginManifest::read(source).unwrap();
        let bytes = std::fs::metadata(LAB).unwrap().len();
        let sha256 = sha256.to_owned();
        let plugin = InstalledPlugin { manifest, number, restarts: 0, sha256, bytes };
        let mut state = InstalledPlugins::default();
        state.installed.insert(greeter(), Arc::new(plugin));
        self.installed.send_replace(Arc::new(state));
    }

    /// What comes of a call; `None`: no worker takes it.
    async fn call(&self, tenant: &str, function: &str, input: &str) -> Option<PluginReply> {
        let subject = call_subject(&greeter(), function).unwrap();
        self.ask(subject, headers(tenant), input).await
    }

    /// The same, after another worker that is gone and may have done it.
    async fn call_again(&self, function: &str, input: &str) -> Option<PluginReply> {
        let subject = told::subject(&call_subject(&greeter(), function).unwrap());
        let mut headers = headers("acme");
        headers.insert(told::header::REPEATED, "true");
        self.ask(subject, headers, input).await
    }

    async fn ask(&self, subject: String, headers: HeaderMap, input: &str) -> Option<PluginReply> {
        let input = input.to_owned().into();
        let asked = self.store.client().request_with_headers(subject, headers, input).await;
        asked.ok().map(|answer| serde_json::from_slice(&answer.payload).unwrap())
    }

    async fn version(&self) -> Option<String> {
        match self.call("acme", "version", "null").await? {
            PluginReply::Output(version) => serde_json::from_str(version.get()).ok(),
            _ => None,
        }
    }

    /// What comes of a question for a look at the tenant's configuration; `None`: no worker takes it.
    async fn look(&self) -> Option<PluginReply> {
        self.ask(look_subject(&greeter()), headers("acme"), "").await
    }

    async fn refusal(&self, tenant: &str, function: &str, input: &str) -> PluginRefusal {
        match self.call(tenant, function, input).await {
            Some(PluginReply::Refused { refusal, .. }) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn status(&self) -> Option<PluginStatus> {
        let asked = self.store.client().request(REPORTS_SUBJECT, "".into()).await.ok()?;
        let report: PluginReport = serde_json::from_slice(&asked.payload).unwrap();
        assert_eq!(report.member, "w1");
        report.plugins.into_iter().next()
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.worker).await.unwrap().unwrap().unwrap();
    }
}

fn greeter() -> Name {
    Name::parse("greeter").unwrap()
}

fn headers(tenant: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(words::header::TENANT, tenant);
    headers.insert(command::header::OWN_COMMAND_ID, "k-1");
    headers.insert(command::header::ACTOR, "ann");
    headers
}

/// Stores the plugin's file. Returns its SHA-256.
async fn stored(store: &EventStore) -> String {
    let hash = Checked::open(Path::new(LAB), None).unwrap().sha256();
    let mut sha256 = String::new();
    hash.iter().for_each(|byte| write!(sha256, "{byte:02x}").unwrap());
    let mut file = tokio::fs::File::open(LAB).await.unwrap();
    store.put_plugin_file(&mut file, &sha256).await.unwrap();
    sha256
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_plugin_answers_what_its_contract_and_manifest_allow() {
    let rig = Rig::start().await;
    assert!(rig.call("acme", "greet", "{}").await.is_none(), "nobody takes it");
    rig.install(1, "v1");
    assert_eq!(until(async || rig.version().await).await, "v1");
    let Some(PluginReply::Output(greeted)) = rig.call("acme", "greet", r#"{"name":"Bo"}"#).await
    else {
        panic!("not greeted")
    };
    let greeted: Value = serde_json::from_str(greeted.get()).unwrap();
    assert_eq!(greeted, json!({"text": "Hello, Bo!", "for": "acme", "by": "ann"}));
    let failed = rig.call("acme", "greet", r#"{"name":""}"#).await.unwrap();
    assert!(matches!(failed, PluginReply::Failed { code, .. } if code == "no_name"));
    assert_eq!(rig.refusal("acme", "greet", r#"{"name":1}"#).await, PluginRefusal::InvalidInput);
    assert_eq!(rig.refusal("acme", "greet", "{").await, PluginRefusal::InvalidInput);
    assert_eq!(rig.refusal("acme", "other", "{}").await, PluginRefusal::UnknownFunction);
    assert_eq!(rig.refusal("globex", "greet", "{}").await, PluginRefusal::NotForTenant);
    let status = rig.status().await.unwrap();
    assert_eq!((status.number, &*status.version, &*status.state), (1, "v1", "ready"));
    assert_eq!((status.instances, status.ready, status.reason), (1, 1, None));
    let functions = status.description.unwrap().functions;
    assert!(functions.iter().any(|of| of.name == "greet" && of.input_schema.is_some()));
    let printed = until(async || {
        let logs = rig.store.client().request(logs_subject(&greeter()), "".into()).await.ok()?;
        let lines: Vec<String> = serde_json::from_slice(&logs.payload).unwrap();
        lines.into_iter().find(|line| line.contains("greeting Bo"))
    });
    printed.await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_upgraded_comes_back_after_a_crash_and_goes_when_it_is_removed() {
    let rig = Rig::start().await;
    rig.install(1, "v1");
    assert_eq!(until(async || rig.version().await).await, "v1");
    rig.install(2, "v2");
    until(async || {
        // Some worker takes each call all the time.
        let version = rig.version().await.unwrap();
        (version == "v2").then_some(())
    })
    .await;
    assert_eq!(rig.refusal("acme", "crash", "null").await, PluginRefusal::Unknown);
    assert_eq!(until(async || rig.version().await).await, "v2");
    // One that does not start leaves the one before in service.
    rig.install(3, "ends");
    let status = until(async || rig.status().await.filter(|status| status.number == 3)).await;
    assert_eq!((&*status.version, &*status.state), ("v2", "ready"));
    assert!(status.reason.unwrap().contains("version ends does not start"));
    assert_eq!(rig.version().await.as_deref(), Some("v2"));
    rig.installed.send_replace(Arc::default());
    until(async || rig.call("acme", "version", "null").await.is_none().then_some(())).await;
    until(async || rig.status().await.is_none().then_some(())).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_worker_may_have_done_is_done_again_only_where_the_function_allows_it() {
    let rig = Rig::start().await;
    rig.install(1, "v1");
    let version = until(async || rig.call_again("version", "null").await).await;
    assert!(matches!(version, PluginReply::Output(_)), "{version:?}");
    for function in ["greet", "other"] {
        let reply = rig.call_again(function, r#"{"name":"Bo"}"#).await.unwrap();
        let PluginReply::Refused { refusal, .. } = reply else { panic!("done: {reply:?}") };
        assert_eq!(refusal, PluginRefusal::Unknown, "{function}");
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_there_is_told_and_holds_nobody_up() {
    let rig = Rig::start().await;
    rig.want(1, "v1", &"0f".repeat(32));
    let status = until(async || rig.status().await.filter(|status| status.number == 1)).await;
    assert_eq!((&*status.state, &*status.version, status.instances), ("failed", "", 1));
    assert!(status.reason.is_some());
    rig.install(2, "v2");
    assert_eq!(until(async || rig.version().await).await, "v2");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_is_told_until_it_works() {
    let rig = Rig::start().await;
    let files = rig.folder.path().join("files");
    std::fs::write(&files, "it is no folder").unwrap();
    rig.install(1, "v1");
    let status = until(async || rig.status().await.filter(|status| status.reason.is_some())).await;
    assert_eq!((&*status.state, status.number), ("fetching", 0));
    assert!(status.reason.unwrap().contains("files"));
    std::fs::remove_file(&files).unwrap();
    assert_eq!(until(async || rig.version().await).await, "v1");
    assert_eq!(rig.status().await.unwrap().reason, None);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_slow_to_start_holds_up_none_after_it() {
    let rig = Rig::start().await;
    rig.install(1, "v1");
    assert_eq!(until(async || rig.version().await).await, "v1");
    rig.install(2, "hangs");
    // Long enough for its start to begin.
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.install(3, "v3");
    // Three starts of the one before would take a minute.
    until(async || (rig.version().await? == "v3").then_some(())).await;
    rig.end().await;
}

/// It got its part of the questions, and could only say that the plugin does not run on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_which_a_plugin_does_not_run_is_not_asked_about_its_configurations() {
    let rig = Rig::start().await;
    // Its folder is a file: it fetches for ever.
    let folder = rig.folder.path().join("no_folder");
    std::fs::write(&folder, "").unwrap();
    let settings = plugin::Settings { folder, member: "w2".to_owned(), guard: LAB.into() };
    let (followed, stop) = (rig.installed.subscribe(), rig.stop.clone());
    let other = tokio::spawn(plugin::run(rig.store.clone(), followed, settings, stop));
    assert!(rig.look().await.is_none(), "no plugin runs");
    rig.install(1, "v1");
    until(async || rig.look().await).await;
    for _ in 0..40 {
        let looked = rig.look().await.unwrap();
        assert!(matches!(looked, PluginReply::Output(_)), "{looked:?}");
    }
    rig.stop.cancel();
    tokio::time::timeout(PATIENCE, other).await.unwrap().unwrap().unwrap();
    rig.end().await;
}
