//! Installed plugins: install one, start it anew, remove it, look at all, call one.
//!
//! What is installed stands in the log. The workers with the role `plugin` run it, and are asked over NATS.

mod call;
mod configuration;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Seek},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{StatusCode, connection};
use bytes::Bytes;
use flexcore_definition::PluginManifest;
use flexcore_domain::{
    ActorName, Hash, Name, PluginReport, PluginStatus, Tenant,
    limits::PLUGIN_FILE_BYTES_MAX,
    plugin::{REPORTS_SUBJECT, logs_subject},
};
use flexcore_eventstore::{
    self as eventstore, EventStore,
    plugins::{self, InstalledPlugin, InstalledPlugins, PluginBefore},
};
use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::AsyncSeekExt as _,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use crate::{Error, needed};

pub use call::{PluginCall, call};
pub use configuration::{Looked, configuration, configure, unconfigure};

/// Who is recorded as the sender of what is done here.
const ACTOR: &str = "plugin";
/// Bytes of a file that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// Longest wait for a worker to take an installation up.
const PICKED_UP_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for the answers of workers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Longest wait for one more answer, once one is there: workers answer at the same time.
const QUIET: Duration = Duration::from_millis(300);
/// Most answers that are taken: no installation has so many workers.
const WORKERS_MAX: usize = 1_000;
/// The state of a plugin that a worker tries no more.
const FAILED: &str = "failed";
/// Said where workers run, and none has taken the installation up in time.
const NOT_YET: &str = "no worker has taken it up yet";
/// Said where workers go on with the version before, as this one does not start.
const FORMER_RUNS: &str = "a worker that starts from now on does not run the version before";

/// The result of an installation.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// The plugin's name.
    pub name: String,
    /// The number of the installation in force now.
    pub number: u32,
    /// The version that was in force before; `None`: none was.
    pub former_version: Option<String>,
    /// False: the same was in force already.
    pub is_new: bool,
    /// The same was in force already, a worker said that it did not run, and a restart was recorded.
    pub is_restarted: bool,
    /// The SHA-256 of its file, in hexadecimal digits.
    pub sha256: String,
    /// The size of its file.
    pub bytes: u64,
    /// Milliseconds until a worker had taken it up; `None`: none is running, or none has in time.
    pub picked_up_ms: Option<u64>,
    /// Why no worker runs it, as far as one says; `None` with `picked_up_ms`: it runs, or is starting; without:
    /// there is no worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The read models that stand still now, since their definitions name the version that was in force before; and
    /// those whose rows may be none of this plugin's, since it is another one under the same version.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An installed plugin, as the log has it and as workers run it.
#[derive(Clone, Debug, Serialize)]
pub struct PluginView {
    /// The plugin's name.
    pub name: String,
    /// Its version, for people.
    pub version: String,
    /// One sentence about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The number of the installation or restart in force.
    pub number: u32,
    /// The SHA-256 of its file, in hexadecimal digits.
    pub sha256: String,
    /// The size of its file.
    pub bytes: u64,
    /// Each worker that has it, by the worker's name.
    pub workers: Vec<OfWorker>,
    /// Tenants that may call it; `None`: all.
    #[serde(skip)]
    pub tenants: Option<BTreeSet<Tenant>>,
}

/// A plugin on one worker.
#[derive(Clone, Debug, Serialize)]
pub struct OfWorker {
    /// The worker's id as a member of the cluster.
    pub member: String,
    /// What it has of the plugin.
    #[serde(flatten)]
    pub status: PluginStatus,
}

/// Installs a plugin with the executable in this file, unless the same is in force, and waits until a worker
/// has taken it up. Where the same is in force and does not run on some worker, every worker starts it anew.
/// Fails when the file cannot be read or is too large, when the broker is away or has no room, and when
/// somebody else changed the plugin meanwhile.
#[boxed::async_recursion]
pub async fn install(
    store: &EventStore,
    manifest: &PluginManifest,
    file: &Path,
) -> Result<Installed, Error> {
    let before = plugins::installed(store, &manifest.name).await?;
    put(store, manifest, file, before).await
}

/// As [`install`], but fails when no plugin of this name is installed.
#[boxed::async_recursion]
pub async fn upgrade(
    store: &EventStore,
    manifest: &PluginManifest,
    file: &Path,
) -> Result<Installed, Error> {
    let before = plugins::installed(store, &manifest.name).await?;
    if before.installed.is_none() {
        return Err(Error::NoPlugin(manifest.name.clone()));
    }
    put(store, manifest, file, before).await
}

/// Puts a plugin in place of what was there before.
async fn put(
    store: &EventStore,
    manifest: &PluginManifest,
    file: &Path,
    before: PluginBefore,
) -> Result<Installed, Error> {
    let path = file.to_owned();
    let measured = spawn_blocking(move || measured(&path)).await;
    // Only its own panic is an error here.
    let Measured { file, sha256, bytes } =
        measured.map_err(|error| Error::PluginFile(error.to_string()))??;
    let in_force = before.installed.as_ref();
    let former_version = in_force.map(|former| former.manifest.version.clone());
    let same = in_force.filter(|plugin| is_same(plugin, manifest, &sha256));
    let warnings = match in_force {
        Some(former) => {
            let is_other = is_other(former, manifest, &sha256);
            needed::left_behind(store, manifest, &former.manifest.version, is_other).await?
        }
        None => Vec::new(),
    };
    let mut file = File::from_std(file);
    store.put_plugin_file(&mut file, &sha256).await?;
    let (number, is_new, is_restarted) = if let Some(plugin) = same {
        let anew = restarted_if_troubled(store, plugin, &before).await?;
        (anew.unwrap_or(plugin.number), false, anew.is_some())
    } else {
        let (actor, now_ms) = (actor(), now_ms()?);
        let recorded =
            plugins::install(store, manifest, &sha256, bytes, &before, &actor, now_ms).await;
        let number = recorded.map_err(overtaken(&manifest.name))?;
        // A removal that looked before may have deleted the file just now.
        let source = |error: std::io::Error| Error::PluginFile(error.to_string());
        file.rewind().await.map_err(source)?;
        store.put_plugin_file(&mut file, &sha256).await?;
        (number, true, false)
    };
    let PickedUp { after_ms, trouble } = picked_up(store, &manifest.name, number).await;
    Ok(Installed {
        name: manifest.name.to_string(),
        number,
        former_version,
        is_new,
        is_restarted,
        sha256,
        bytes,
        picked_up_ms: after_ms,
        trouble,
        warnings,
    })
}

/// Has every worker start the plugin anew if one says that it does not run there: that worker may lack the
/// file that was just stored, and tries no more by itself. Returns the number of the restart.
async fn restarted_if_troubled(
    store: &EventStore,
    plugin: &InstalledPlugin,
    before: &PluginBefore,
) -> Result<Option<u32>, Error> {
    let name = &plugin.manifest.name;
    if !is_troubled(&reports(store).await?, name, plugin.number) {
        return Ok(None);
    }
    let restarted = plugins::restart(store, name, before, &actor(), now_ms()?).await;
    restarted.map(Some).map_err(overtaken(name))
}

/// Has every worker start the plugin anew. Returns the number of the restart. Fails when it is not installed,
/// when the broker is away, and when somebody else changed the plugin meanwhile.
#[boxed::async_recursion]
pub async fn restart(store: &EventStore, name: &Name) -> Result<u32, Error> {
    let before = plugins::installed(store, name).await?;
    if before.installed.is_none() {
        return Err(Error::NoPlugin(name.clone()));
    }
    let restarted = plugins::restart(store, name, &before, &actor(), now_ms()?).await;
    restarted.map_err(overtaken(name))
}

/// Has every worker end the plugin, takes it off the list, and deletes its tenants' configurations. Fails when it is
/// not installed, and deletes then what an interrupted removal has left of these. Fails when an application in force
/// needs it (unless `even_if_needed`): it decides commands, which are answered 503 then, or events go through it, whose
/// read models stand still. Fails when the broker is away, and when somebody else changed the plugin meanwhile.
#[boxed::async_recursion]
pub async fn remove(store: &EventStore, name: &Name, even_if_needed: bool) -> Result<(), Error> {
    let before = plugins::installed(store, name).await?;
    if before.installed.is_none() {
        plugins::forget_configurations(store, name).await?;
        return Err(Error::NoPlugin(name.clone()));
    }
    if !even_if_needed {
        let by = needed::by(store, name).await?;
        if !by.is_empty() {
            return Err(Error::PluginNeeded { plugin: name.clone(), by });
        }
    }
    let removed = plugins::remove(store, name, &before, &actor(), now_ms()?).await;
    removed.map(drop).map_err(overtaken(name))
}

/// All installed plugins, by name, each with what every worker reports of it. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn view(store: &EventStore) -> Result<Vec<PluginView>, Error> {
    let following = plugins::watch(store).await?;
    let installed = following.borrow().clone();
    on_workers(store, &installed).await
}

/// These plugins, by name, each with what every worker reports of it: for a process that follows what is
/// installed in any case. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn on_workers(
    store: &EventStore,
    installed: &InstalledPlugins,
) -> Result<Vec<PluginView>, Error> {
    Ok(merged(installed, &reports(store).await?))
}

/// What each worker that runs plugins reports, by its name. Those that do not answer within two seconds are not
/// in it. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn reports(store: &EventStore) -> Result<Vec<PluginReport>, Error> {
    let answers = gathered(store, REPORTS_SUBJECT.to_owned()).await?;
    let mut reports: Vec<PluginReport> = parsed(&answers);
    reports.sort_by(|one, other| one.member.cmp(&other.member));
    Ok(reports)
}

/// The last lines that the plugin has printed or logged, one worker's behind another's. Fails when it is not
/// installed, and when the broker is away.
#[boxed::async_recursion]
pub async fn logs(store: &EventStore, name: &Name) -> Result<Vec<String>, Error> {
    if plugins::installed(store, name).await?.installed.is_none() {
        return Err(Error::NoPlugin(name.clone()));
    }
    let answers = gathered(store, logs_subject(name)).await?;
    Ok(parsed::<Vec<String>>(&answers).concat())
}

/// Asks all workers, and returns their answers: those that come until it has been quiet for a while.
async fn gathered(store: &EventStore, subject: String) -> Result<Vec<Bytes>, Error> {
    let client = store.client();
    if client.connection_state() != connection::State::Connected {
        return Err(Error::WorkersUnasked("not connected to the broker".to_owned()));
    }
    let inbox = client.new_inbox();
    let replies = client.subscribe(inbox.clone()).await;
    let mut replies = replies.map_err(|error| Error::WorkersUnasked(error.to_string()))?;
    let asked = client.publish_with_reply(subject, inbox, Bytes::new()).await;
    asked.map_err(|error| Error::WorkersUnasked(error.to_string()))?;
    let end = Instant::now() + ANSWERS_WITHIN;
    let (mut until, mut answers) = (end, Vec::new());
    while let Ok(Some(message)) = timeout_at(until, replies.next()).await {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            break;
        }
        answers.push(message.payload);
        if answers.len() == WORKERS_MAX {
            break;
        }
        until = end.min(Instant::now() + QUIET);
    }
    Ok(answers)
}

/// The answers that parse: a worker of another version may say it otherwise.
fn parsed<T: DeserializeOwned>(answers: &[Bytes]) -> Vec<T> {
    answers.iter().filter_map(|answer| serde_json::from_slice(answer).ok()).collect()
}

fn merged(installed: &InstalledPlugins, reports: &[PluginReport]) -> Vec<PluginView> {
    let of = |name: &Name| {
        let on = |report: &PluginReport| {
            let status = report.plugins.iter().find(|status| status.name == *name)?.clone();
            Some(OfWorker { member: report.member.clone(), status })
        };
        reports.iter().filter_map(on).collect()
    };
    let view = |(name, plugin): (&Name, &Arc<InstalledPlugin>)| PluginView {
        name: name.to_string(),
        version: plugin.manifest.version.clone(),
        summary: plugin.manifest.summary.clone(),
        number: plugin.number,
        sha256: plugin.sha256.clone(),
        bytes: plugin.bytes,
        workers: of(name),
        tenants: plugin.manifest.tenants.clone(),
    };
    installed.installed.iter().map(view).collect()
}

/// True if installing this would change nothing.
fn is_same(plugin: &InstalledPlugin, manifest: &PluginManifest, sha256: &str) -> bool {
    plugin.sha256 == sha256 && plugin.manifest.source.text == manifest.source.text
}

/// True if it may return something else than the one before, whatever their versions are: another file runs, or
/// it is started otherwise.
fn is_other(plugin: &InstalledPlugin, manifest: &PluginManifest, sha256: &str) -> bool {
    let former = &plugin.manifest;
    plugin.sha256 != sha256
        || former.arguments != manifest.arguments
        || former.environment != manifest.environment
}

/// A plugin's file, open at its beginning.
#[derive(Debug)]
struct Measured {
    file: fs::File,
    sha256: String,
    bytes: u64,
}

/// Reads a file to its end. It blocks meanwhile.
fn measured(path: &Path) -> Result<Measured, Error> {
    let unread = |source| Error::File { path: path.display().to_string(), source };
    // Opening a pipe would wait for whoever writes to it.
    if !fs::metadata(path).map_err(unread)?.is_file() {
        return Err(Error::PluginFile(format!("{} is no file", path.display())));
    }
    let mut file = fs::File::open(path).map_err(unread)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0_u64, vec![0; READ_BYTES]);
    while let read @ 1.. = file.read(&mut buffer).map_err(unread)? {
        hash.update(buffer.get(..read).unwrap_or_default());
        bytes = bytes.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if bytes > PLUGIN_FILE_BYTES_MAX {
            let path = path.display();
            return Err(Error::PluginFile(format!(
                "{path} has more than {PLUGIN_FILE_BYTES_MAX} bytes, the most for a plugin; without \
                 its debug information it may be smaller"
            )));
        }
    }
    file.rewind().map_err(unread)?;
    let digest: [u8; 32] = hash.finalize().into();
    let sha256 = Hash::from_bytes(&digest).expect("BUG: SHA-256 has 32 bytes").to_string();
    Ok(Measured { file, sha256, bytes })
}

/// True if a worker says of this installation, or of a later one, that it does not run there, or not as it
/// should.
fn is_troubled(reports: &[PluginReport], name: &Name, number: u32) -> bool {
    let mut all = reports.iter().flat_map(|report| &report.plugins);
    all.any(|status| {
        let is_it = status.name == *name && status.number >= number;
        is_it && (status.state == FAILED || status.reason.is_some())
    })
}

/// What became of an installation.
#[derive(Debug, Default, PartialEq, Eq)]
struct PickedUp {
    after_ms: Option<u64>,
    trouble: Option<String>,
}

/// Asks the workers until one takes calls or all say why they do not, or a while has passed.
async fn picked_up(store: &EventStore, name: &Name, number: u32) -> PickedUp {
    let (since, mut picked_up) = (Instant::now(), PickedUp::default());
    while since.elapsed() < PICKED_UP_WITHIN {
        // Each look takes as long as it is to be quiet. Where no worker runs there is none to wait for.
        let Ok(reports) = reports(store).await else { break };
        if reports.is_empty() {
            break;
        }
        let Some(found) = found(&reports, name, number) else {
            picked_up.trouble = Some(NOT_YET.to_owned());
            continue;
        };
        let passed_ms = u64::try_from(since.elapsed().as_millis()).ok();
        picked_up.after_ms = picked_up.after_ms.or(passed_ms);
        picked_up.trouble = found.trouble;
        if found.is_final {
            break;
        }
    }
    picked_up
}

/// How an installation is on the workers that have taken it up.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// A worker takes calls, or all have given up.
    is_final: bool,
    trouble: Option<String>,
}

/// `None`: no worker has taken it up.
fn found(reports: &[PluginReport], name: &Name, number: u32) -> Option<Found> {
    let all = reports.iter().flat_map(|report| &report.plugins);
    let is_it = |status: &&PluginStatus| status.name == *name && status.number >= number;
    let taken: Vec<&PluginStatus> = all.filter(is_it).collect();
    let first = taken.first()?;
    if taken.iter().any(|status| status.ready > 0 && status.reason.is_none()) {
        return Some(Found { is_final: true, trouble: None });
    }
    let reason = taken.iter().find_map(|status| status.reason.clone());
    // One that is ready and has a reason is the version before: this one does not start.
    let is_final = taken.iter().all(|status| status.state == FAILED || status.ready > 0);
    let trouble = reason.or_else(|| is_final.then(|| first.state.clone()));
    let former_runs = taken.iter().any(|status| status.ready > 0);
    let told =
        |reason: String| if former_runs { format!("{reason}; {FORMER_RUNS}") } else { reason };
    Some(Found { is_final, trouble: trouble.map(told) })
}

fn actor() -> ActorName {
    ActorName::parse(ACTOR).expect("BUG: a valid name")
}

fn now_ms() -> Result<i64, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::Clock)?;
    Ok(i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

/// The error of a change that somebody else was first with.
fn overtaken(name: &Name) -> impl Fn(eventstore::Error) -> Error {
    move |error| match error {
        eventstore::Error::Conflict => Error::PluginOvertaken(name.clone()),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests;
