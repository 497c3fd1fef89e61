//! A read model whose events go through a plugin, with a real plugin and its real worker.

use std::{fmt::Write as _, path::Path};

use flexcore_definition::PluginManifest;
use flexcore_domain::{
    PluginRefusal, PluginReply,
    plugin::{QUEUE_GROUP, call_subjects, header as plugin_header},
};
use flexcore_eventstore::plugins::{InstalledPlugin, InstalledPlugins};
use flexcore_plugin::Checked;
use flexcore_workers::plugin;
use futures::StreamExt as _;

use super::*;

const LAB: &str = env!("CARGO_BIN_EXE_flexcore-workers-lab");

/// A worker with the role plugin, and what it hears of installations.
struct Plugins {
    installed: watch::Sender<Arc<InstalledPlugins>>,
    sha256: String,
    stop: CancellationToken,
    worker: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Plugins {
    async fn start(rig: &Rig) -> Self {
        let hash = Checked::open(Path::new(LAB), None).unwrap().sha256();
        let mut sha256 = String::new();
        hash.iter().for_each(|byte| write!(sha256, "{byte:02x}").unwrap());
        let mut file = tokio::fs::File::open(LAB).await.unwrap();
        rig.store.put_plugin_file(&mut file, &sha256).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let settings = plugin::Settings {
            folder: folder.path().join("files"),
            member: "w1".to_owned(),
            guard: LAB.into(),
        };
        let (installed, followed) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let running = plugin::run(rig.store.clone(), followed, settings, stop.clone());
        let worker = tokio::spawn(async move { running.await.unwrap() });
        Self { installed, sha256, stop, worker, _folder: folder }
    }

    /// This version is wanted from now on.
    fn install(&self, number: u32, version: &str) {
        let text = format!(
            "name: greeter\nversion: {version}\nfile: lab\narguments: [{version}]\n\
             tenants: [acme]\nstart: 20s\n"
        );
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let manifest = PluginManifest::read(source).unwrap();
        let bytes = std::fs::metadata(LAB).unwrap().len();
        let sha256 = self.sha256.clone();
        let plugin = InstalledPlugin { manifest, number, restarts: 0, sha256, bytes };
        let mut state = InstalledPlugins::default();
        state.installed.insert(name("greeter"), Arc::new(plugin));
        self.installed.send_replace(Arc::new(state));
    }

    fn remove(&self) {
        self.installed.send_replace(Arc::default());
    }

    async fn end(self) {
        self.stop.cancel();
        self.worker.await.unwrap();
    }
}

/// `sums`, of what this version of the plugin makes of the payments, and `plain`, of the payments themselves.
fn transformed(version: &str) -> Arc<Catalog> {
    let model = |of: &str, transform: &str| {
        format!(
            "read_model: {of}
columns: {{ group: text, count: integer, total: integer }}
key: [group]
on:
  account.paid:
    {transform}key: {{ group: $.group }}
    add: {{ count: 1, total: $.amount }}
"
        )
    };
    let aggregate = "aggregate: account
commands:
  pay: { decide: '() => []' }
events:
  paid:
    data: { type: object }
    evolve: (state) => state
";
    let by =
        format!("transform: {{ plugin: greeter, function: locate, version: {version} }}\n    ");
    let text = format!("{aggregate}---\n{}---\n{}", model("sums", &by), model("plain", ""));
    let files = vec![SourceFile { path: "bank.yaml".to_owned(), text }];
    let mut catalog = Catalog::default();
    catalog.put(Application::read(name("bank"), files).unwrap());
    Arc::new(catalog)
}

/// Waits until people are told this about `sums`; `None`: nothing.
async fn told(rig: &Rig, what: Option<&str>) {
    until(&format!("not told: {what:?}"), async || {
        let troubles = rig.read_models.troubles().await.unwrap();
        match what {
            None => troubles.is_empty(),
            Some(what) => troubles.get("sums").is_some_and(|trouble| trouble.contains(what)),
        }
    })
    .await;
}

/// `sums` has not passed the position, and `plain` has.
async fn only_plain_passes(rig: &Rig, position: Position) {
    passes(rig, "plain", position).await;
    let short = Duration::from_millis(300);
    assert!(rig.read_models.wait(&[name("sums")], &[position], short).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_of_what_a_plugin_returns_and_those_of_a_rebuild() {
    let rig = Rig::start().await;
    let plugins = Plugins::start(&rig).await;
    plugins.install(1, "v1");
    rig.catalog.send_replace(transformed("v1"));
    let mut amounts = ones(300);
    amounts.extend([json!("nowhere"), json!("a list"), json!(7)]);
    rig.pay("a", "x", &amounts).await;
    let (stop, worker) = rig.work().await;
    let position = rig.pay("b", "y", &ones(3)).await;
    passes(&rig, "sums", position).await;
    passes(&rig, "plain", position).await;
    let rows = json!([{"group": "x-v1", "count": 301, "total": 3_070},
                      {"group": "y-v1", "count": 3, "total": 30}]);
    assert_eq!(rig.rows().await, rows);
    let status = rig.read_models.status().await.unwrap();
    let sums = status.iter().find(|status| status.read_model == name("sums")).unwrap();
    assert_eq!((sums.state, sums.parked), (VersionState::Serving, 2));

    let request = rig.read_models.request_rebuild("sums").await.unwrap();
    until("it is not built anew", async || {
        rig.read_models.rebuild(request).await.unwrap() == Rebuild::Done { version: 2 }
    })
    .await;
    passes(&rig, "sums", position).await;
    assert_eq!(rig.rows().await, rows);
    told(&rig, None).await;
    stop.cancel();
    worker.await.unwrap();
    plugins.end().await;
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_waits_for_its_plugin_and_no_other_does() {
    let rig = Rig::start().await;
    let plugins = Plugins::start(&rig).await;
    rig.catalog.send_replace(transformed("v1"));
    let (stop, worker) = rig.work().await;
    let first = rig.pay("a", "x", &ones(3)).await;
    passes(&rig, "plain", first).await;
    told(&rig, Some("plugin greeter (function locate, version v1): no worker runs it now")).await;

    plugins.install(1, "v1");
    passes(&rig, "sums", first).await;
    told(&rig, None).await;
    plugins.remove();
    until("it is still there", async || {
        let calls = flexcore_domain::plugin::call_subject(&name("greeter"), "version").unwrap();
        rig.store.client().request(calls, "null".into()).await.is_err()
    })
    .await;
    let second = rig.pay("b", "x", &ones(2)).await;
    only_plain_passes(&rig, second).await;
    told(&rig, Some("no worker runs it now")).await;
    plugins.install(2, "v1");
    passes(&rig, "sums", second).await;
    assert_eq!(rig.rows().await, json!([{"group": "x-v1", "count": 5, "total": 50}]));
    told(&rig, None).await;
    stop.cancel();
    worker.await.unwrap();
    plugins.end().await;
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_of_one_version_of_a_plugin_alone() {
    let rig = Rig::start().await;
    let plugins = Plugins::start(&rig).await;
    plugins.install(1, "v1");
    rig.catalog.send_replace(transformed("v1"));
    let (stop, worker) = rig.work().await;
    passes(&rig, "sums", rig.pay("a", "x", &ones(3)).await).await;

    plugins.install(2, "v2");
    // As long as the first one is in service, what is paid goes through it.
    let paid = std::sync::atomic::AtomicU32::new(0);
    until("version v2 is not refused", async || {
        let nth = paid.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        passes(&rig, "plain", rig.pay(&format!("b{nth}"), "x", &ones(1)).await).await;
        let troubles = rig.read_models.troubles().await.unwrap();
        troubles.get("sums").is_some_and(|what| what.contains("version v2 of the plugin"))
    })
    .await;
    let rows = rig.rows().await;
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert_eq!(rows[0]["group"], "x-v1");

    rig.catalog.send_replace(transformed("v2"));
    let last = rig.pay("z", "x", &ones(1)).await;
    passes(&rig, "sums", last).await;
    until("it is not built anew", async || {
        let rows = rig.rows().await;
        rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["group"] == "x-v2"))
    })
    .await;
    told(&rig, None).await;
    stop.cancel();
    worker.await.unwrap();
    plugins.end().await;
    rig.servers.stop().await;
}

/// Answers calls as the plugin's worker does, by their tenant and the event's data.
async fn answering(
    rig: &Rig,
    reply: impl Fn(&str, &Value) -> PluginReply + Send + 'static,
) -> JoinHandle<()> {
    let client = rig.store.client().clone();
    let subject = call_subjects(&name("greeter"));
    let mut calls = client.queue_subscribe(subject, QUEUE_GROUP.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(call) = calls.next().await {
            let headers = call.headers.as_ref().unwrap();
            let says = |name: &str| headers.get(name).unwrap().as_str();
            // One tenant's slow events hold up all others.
            assert_eq!(says(flexcore_resilience::HEADER), "5000");
            let input: Value = serde_json::from_slice(&call.payload).unwrap();
            let reply = reply(says(plugin_header::TENANT), &input["data"]);
            let body = serde_json::to_vec(&reply).unwrap();
            client.publish(call.reply.clone().unwrap(), body.into()).await.unwrap();
        }
    })
}

/// The plugin ends under events that are paid `x` with the amount 666, and under all of them while it is told that it
/// is not well.
async fn answered(rig: &Rig, is_well: watch::Receiver<bool>) -> JoinHandle<()> {
    let reply = move |_: &str, data: &Value| {
        if *is_well.borrow() && data["amount"] != 666 {
            PluginReply::Output(to_raw_value(data).unwrap())
        } else {
            PluginReply::refused(PluginRefusal::Unknown, "it ended")
        }
    };
    answering(rig, reply).await
}

/// No call of the tenant evil is made for now.
async fn refusing(rig: &Rig) -> JoinHandle<()> {
    let reply = |tenant: &str, data: &Value| match tenant {
        "evil" => PluginReply::Failed {
            code: "ended_under_calls".to_owned(),
            message: "none is made for now".to_owned(),
            temporary: true,
            retry_after_ms: 9_000,
            details: None,
        },
        _ => PluginReply::Output(to_raw_value(data).unwrap()),
    };
    answering(rig, reply).await
}

/// Records that an account of this tenant was paid 1.
async fn pay_of(rig: &Rig, tenant: &str, id: &str) -> Position {
    let id = AggregateId::parse(id).unwrap();
    let key = AggregateKey::new(Tenant::parse(tenant).unwrap(), aggregate(), id);
    let commit = paid(&key, 1, "x", &json!(1));
    let appended = rig.store.append(&commit, Expected::default()).await.unwrap();
    Position { slot: key.slot(), sequence: appended.sequence }
}

async fn parked(rig: &Rig) -> u64 {
    let status = rig.read_models.status().await.unwrap();
    status.iter().filter(|status| status.read_model == name("sums")).map(|s| s.parked).sum()
}

/// It once held up the rows of all tenants, for ever, and ended the plugin again and again.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_under_which_the_plugin_always_ends_is_put_aside_and_no_other_is() {
    let rig = Rig::start().await;
    let (well, is_well) = watch::channel(true);
    let answering = answered(&rig, is_well).await;
    rig.catalog.send_replace(transformed("v1"));
    let (stop, worker) = rig.work().await;
    passes(&rig, "sums", rig.pay("a", "x", &ones(3)).await).await;
    // While it ends under all events it is not the fault of any.
    well.send_replace(false);
    let bad = rig.pay("b", "x", &[json!(1), json!(666), json!(1)]).await;
    let last = rig.pay("c", "x", &ones(40)).await;
    told(&rig, Some("plugin greeter (function locate, version v1)")).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(parked(&rig).await, 0);

    well.send_replace(true);
    let began = tokio::time::Instant::now();
    // Some tries, over a minute.
    let enough = began + 3 * PATIENCE;
    let short = Duration::from_millis(200);
    while rig.read_models.wait(&[name("sums")], &[last], short).await.is_err() {
        assert!(tokio::time::Instant::now() < enough, "it stands still");
    }
    passes(&rig, "sums", bad).await;
    assert!(began.elapsed() >= PATIENCE, "it is not put aside at once");
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 45, "total": 45}]));
    assert_eq!(parked(&rig).await, 1);
    told(&rig, None).await;
    stop.cancel();
    worker.await.unwrap();
    answering.abort();
    rig.servers.stop().await;
}

/// As long as one tenant's calls were refused, its first event held up the rows of all tenants, and so did each other
/// one that failed.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_fail_for_now_for_their_tenant_alone_are_put_aside_and_hold_up_others_once() {
    let rig = Rig::start().await;
    let answering = refusing(&rig).await;
    rig.catalog.send_replace(transformed("v1"));
    let (stop, worker) = rig.work().await;
    passes(&rig, "sums", rig.pay("a", "x", &ones(3)).await).await;
    let evils = pay_of(&rig, "evil", "b").await;
    let last = rig.pay("c", "x", &ones(40)).await;
    told(&rig, Some("ended_under_calls")).await;
    assert_eq!(parked(&rig).await, 0);

    let began = tokio::time::Instant::now();
    // Some tries, over two minutes.
    let enough = began + 4 * PATIENCE;
    let short = Duration::from_millis(200);
    while rig.read_models.wait(&[name("sums")], &[last], short).await.is_err() {
        assert!(tokio::time::Instant::now() < enough, "it stands still");
    }
    passes(&rig, "sums", evils).await;
    assert!(began.elapsed() >= PATIENCE, "it is not put aside at once");
    assert_eq!(parked(&rig).await, 1);

    let again = tokio::time::Instant::now();
    let more = [pay_of(&rig, "evil", "d").await, pay_of(&rig, "evil", "e").await];
    let last = rig.pay("f", "x", &ones(2)).await;
    for position in more.into_iter().chain([last]) {
        passes(&rig, "sums", position).await;
    }
    assert!(again.elapsed() < PATIENCE / 2, "{:?}", again.elapsed());
    assert_eq!(parked(&rig).await, 3);
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 45, "total": 45}]));
    told(&rig, None).await;
    stop.cancel();
    worker.await.unwrap();
    answering.abort();
    rig.servers.stop().await;
}
