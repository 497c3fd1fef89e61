//! Installed plugins, stored in the log and followed by every running process, as deployed applications
//! are. Each event of a plugin carries all that counts, so that its last one says what is in force.

use std::{
    collections::BTreeMap,
    future::ready,
    iter::once,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Name, Provenance, Tenant,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Aggregates, Error, EventStore, Expected, Recorded,
    folded::{Fold, States},
    unavailable,
};

/// The aggregate of the platform's tenant whose commits are installations: no application may have one
/// of this name, or its commands would write to the same subjects.
pub const AGGREGATE: &str = "plugin";
const INSTALLED: &str = "installed";
const RESTARTED: &str = "restarted";
const REMOVED: &str = "removed";
/// Most plugins that are listed as unreadable. Of more the log of the process tells.
const UNREADABLE_MAX: usize = 1_000;

/// An installed plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledPlugin {
    /// What is started, and who may call it.
    pub manifest: PluginManifest,
    /// Number of the event that says this, among all of this plugin's, from 1.
    pub number: u32,
    /// Number of the last event after which every process starts it anew, though its file and its manifest are as
    /// before: a restart, or an installation after a removal, which a process may not have heard of. 0: none.
    pub restarts: u32,
    /// The file's SHA-256: 64 digits in lower case, its name in the store of files.
    pub sha256: String,
    /// The file's length.
    pub bytes: u64,
}

/// The plugins that are in force.
#[derive(Clone, Debug, Default)]
pub struct InstalledPlugins {
    /// By name.
    pub installed: BTreeMap<Name, Arc<InstalledPlugin>>,
    /// Of each, the SHA-256 of the file before its own, which is kept until the next one comes: the new file may
    /// start nowhere, and what runs is then the former one.
    pub former: BTreeMap<Name, String>,
    /// Those whose last event this executable cannot read, and why. A process that could read the one
    /// before goes on with that.
    pub unreadable: BTreeMap<Name, String>,
}

/// A plugin as it is, and where its next event goes.
#[derive(Clone, Debug)]
pub struct PluginBefore {
    /// `None`: it was never installed, or is removed.
    pub installed: Option<InstalledPlugin>,
    /// The SHA-256 of the file before that one's, which is still stored.
    pub former_sha256: Option<String>,
    /// Number of its last event, also when that is its removal; 0: none.
    pub number: u32,
    /// What its subject ends with.
    pub expected: Expected,
    /// When the last event was recorded, in milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
}

/// Data of the events `plugin.installed` and `plugin.restarted`.
#[derive(Serialize, Deserialize)]
struct Installation {
    number: u32,
    restarts: u32,
    manifest: SourceFile,
    sha256: String,
    bytes: u64,
    /// The file before, which is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former_sha256: Option<String>,
}

/// Data of the event `plugin.removed`.
#[derive(Serialize, Deserialize)]
struct Removal {
    number: u32,
}

/// What the last event of a plugin says.
struct LastEvent {
    number: u32,
    installed: Option<InstalledPlugin>,
    former_sha256: Option<String>,
}

fn tenant() -> Tenant {
    Tenant::parse(Tenant::PLATFORM).expect("BUG: a valid tenant")
}

fn aggregate() -> AggregateName {
    AggregateName::parse(AGGREGATE).expect("BUG: a valid aggregate")
}

fn key(name: &Name) -> AggregateKey {
    let id = AggregateId::parse(name.as_str()).expect("BUG: every name is an id");
    AggregateKey::new(tenant(), aggregate(), id)
}

/// The plugin as it is now. Fails when the broker is away, and with [`Error::Corrupt`] when its last event
/// cannot be read here.
#[boxed::async_recursion]
pub async fn installed(store: &EventStore, name: &Name) -> Result<PluginBefore, Error> {
    let Some(recorded) = store.last_deployed(&key(name)).await? else {
        return Ok(PluginBefore {
            installed: None,
            former_sha256: None,
            number: 0,
            expected: Expected::default(),
            time_ms: i64::MIN,
        });
    };
    let LastEvent { number, installed, former_sha256 } = read(&recorded)?;
    let expected = Expected { sequence: recorded.sequence, hash: recorded.hash };
    let time_ms = recorded.commit.time_ms;
    Ok(PluginBefore { installed, former_sha256, number, expected, time_ms })
}

/// Records that a plugin is installed, in place of what was there before. The file has to be stored, and
/// should be stored once more when this has returned: whoever removed another plugin with the same file may
/// not have seen this one. The file of the installation before is kept until the next one; an earlier one
/// that no plugin needs any more is deleted. Returns the event's number.
/// Fails with [`Error::Conflict`] when another event of this plugin came first, and with
/// [`Error::TooLarge`] when its manifest takes more than one message.
#[boxed::async_recursion]
pub async fn install(
    store: &EventStore,
    manifest: &PluginManifest,
    sha256: &str,
    bytes: u64,
    before: &PluginBefore,
    actor: &ActorName,
    now_ms: i64,
) -> Result<u32, Error> {
    if before.installed.is_none() {
        // Its removal may have ended before they were deleted.
        forget_configurations(store, &manifest.name).await?;
    }
    let installation = Installation {
        number: before.next(),
        restarts: before.restarts_after(),
        manifest: manifest.source.clone(),
        sha256: sha256.to_owned(),
        bytes,
        former_sha256: before.former_after(sha256),
    };
    let event = (INSTALLED, &installation);
    append(store, &manifest.name, event, before, actor, now_ms).await?;
    let kept = installation.former_sha256.as_deref();
    if let Some(earlier) = before.former_sha256.as_deref().filter(|file| kept != Some(*file)) {
        forget(store, earlier).await;
    }
    Ok(installation.number)
}

/// Records that every process is to start the plugin anew. Returns the event's number. Fails with
/// [`Error::Conflict`] when another event of this plugin came first, and when it is not installed.
#[boxed::async_recursion]
pub async fn restart(
    store: &EventStore,
    name: &Name,
    before: &PluginBefore,
    actor: &ActorName,
    now_ms: i64,
) -> Result<u32, Error> {
    let installed = before.installed.as_ref().ok_or(Error::Conflict)?;
    let number = before.next();
    let installation = Installation {
        number,
        restarts: number,
        manifest: installed.manifest.source.clone(),
        sha256: installed.sha256.clone(),
        bytes: installed.bytes,
        former_sha256: before.former_sha256.clone(),
    };
    append(store, name, (RESTARTED, &installation), before, actor, now_ms).await?;
    Ok(number)
}

/// Records that a plugin is removed, and deletes its tenants' configurations, and its files unless another one needs
/// them. Returns the event's number. Fails with [`Error::Conflict`] when another event of this plugin came first, and
/// when it is not installed. Where it fails or ends behind the record, configurations may be left:
/// [`forget_configurations`] deletes them, and so does the next installation under this name, before its own record.
#[boxed::async_recursion]
pub async fn remove(
    store: &EventStore,
    name: &Name,
    before: &PluginBefore,
    actor: &ActorName,
    now_ms: i64,
) -> Result<u32, Error> {
    let installed = before.installed.as_ref().ok_or(Error::Conflict)?;
    let removal = Removal { number: before.next() };
    append(store, name, (REMOVED, &removal), before, actor, now_ms).await?;
    let forgotten = forget_configurations(store, name).await;
    for sha256 in once(&installed.sha256).chain(&before.former_sha256) {
        forget(store, sha256).await;
    }
    forgotten.map_err(|error| {
        unavailable(format!(
            "plugin {name} is removed, and configurations of its tenants may be left, which removing it \
             once more deletes: {error}"
        ))
    })?;
    Ok(removal.number)
}

/// Deletes the configurations of all tenants of a plugin that is not installed: a later one of this name may be
/// somebody else's, and must not be given them. Those of an installed one stay. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn forget_configurations(store: &EventStore, name: &Name) -> Result<(), Error> {
    // Before the look: what is stored after it may be of the next plugin of this name.
    let end = store.plugin_configurations_end().await?;
    if installed(store, name).await?.installed.is_some() {
        return Ok(());
    }
    store.purge_plugin_configurations(name, end).await
}

impl PluginBefore {
    /// The number of the event after it.
    fn next(&self) -> u32 {
        self.number.saturating_add(1)
    }

    /// The number of the last start anew, once something is installed. A process that has not heard of a removal
    /// still runs what was given configurations that are deleted by now.
    fn restarts_after(&self) -> u32 {
        match &self.installed {
            Some(former) => former.restarts,
            None if self.number == 0 => 0,
            None => self.next(),
        }
    }

    /// The file that is kept beside this one once it is installed.
    fn former_after(&self, sha256: &str) -> Option<String> {
        let now = self.installed.as_ref()?;
        if now.sha256 == sha256 { self.former_sha256.clone() } else { Some(now.sha256.clone()) }
    }
}

/// Appends an event, given by its name and data, to those of a plugin.
async fn append(
    store: &EventStore,
    name: &Name,
    (event, data): (&str, &impl Serialize),
    before: &PluginBefore,
    actor: &ActorName,
    now_ms: i64,
) -> Result<(), Error> {
    let data = serde_json::value::to_raw_value(data).map_err(unavailable)?;
    let number = before.next();
    let commit = Commit {
        key: key(name),
        command_id: CommandId::parse(&format!("{event}-{number}")).expect("BUG: a valid id"),
        command_hash: CommandHash::of(event, data.get()),
        provenance: Provenance::of(actor.clone()),
        // As with every aggregate, hosts' clocks differ.
        time_ms: now_ms.max(before.time_ms),
        events: vec![Event {
            event: EventName::parse(event).expect("BUG: a valid event name"),
            version: u64::from(number),
            schema_version: 1,
            data,
        }],
    };
    let (subject, expected) = (crate::subject(&commit.key), &before.expected);
    let appended = store.append_among(&commit, &subject, expected.sequence, &expected.hash).await;
    appended.map(drop).map_err(|error| match error {
        Error::TooLarge(why) => {
            Error::TooLarge(format!("a plugin's manifest is one message of the log: {why}"))
        }
        other => other,
    })
}

/// Deletes a file that no plugin needs any more. Where that fails the file takes room in vain, and the event
/// stands all the same.
async fn forget(store: &EventStore, sha256: &str) {
    if let Err(error) = delete_unneeded(store, sha256).await {
        tracing::warn!(%error, sha256, "a plugin's file is not deleted, though none needs it");
    }
}

async fn delete_unneeded(store: &EventStore, sha256: &str) -> Result<(), Error> {
    if is_needed(store, sha256).await? {
        return Ok(());
    }
    let Some(marked) = store.mark_plugin_file(sha256).await? else { return Ok(()) };
    // A plugin may have been installed with it between the look and the mark. Whoever installs one later
    // finds the mark, and stores the file once more.
    match is_needed(store, sha256).await {
        Ok(false) => {
            store.delete_plugin_file(&marked).await;
            Ok(())
        }
        Ok(true) => store.restore_plugin_file(&marked).await,
        Err(error) => {
            store.restore_plugin_file(&marked).await?;
            Err(error)
        }
    }
}

/// Whether a plugin in force has this file, had it before, or may have it.
async fn is_needed(store: &EventStore, sha256: &str) -> Result<bool, Error> {
    let plugins = watch(store).await?.borrow().clone();
    let has_it = |plugin: &Arc<InstalledPlugin>| plugin.sha256 == sha256;
    let is_former = plugins.former.values().any(|former| former == sha256);
    Ok(is_former || !plugins.unreadable.is_empty() || plugins.installed.values().any(has_it))
}

/// Reads a plugin's event. Fails when this executable cannot read it. The reader of manifests is kept from
/// ending the task that follows all of them.
fn read(recorded: &Recorded) -> Result<LastEvent, Error> {
    let caught = catch_unwind(AssertUnwindSafe(|| read_event(recorded)));
    let read = caught.unwrap_or_else(|_| Err("reading it panicked".to_owned()));
    read.map_err(|reason| Error::Corrupt {
        subject: crate::subject(&recorded.commit.key),
        sequence: recorded.sequence,
        reason,
    })
}

fn read_event(recorded: &Recorded) -> Result<LastEvent, String> {
    let event = recorded.commit.events.last().ok_or_else(|| "no event".to_owned())?;
    let data = event.data.get();
    match event.event.as_str() {
        REMOVED => {
            let removal: Removal = serde_json::from_str(data).map_err(|it| it.to_string())?;
            Ok(LastEvent { number: removal.number, installed: None, former_sha256: None })
        }
        INSTALLED | RESTARTED => {
            let stored: Installation = serde_json::from_str(data).map_err(|it| it.to_string())?;
            let manifest = PluginManifest::read(stored.manifest).map_err(|problems| {
                problems.first().map(ToString::to_string).unwrap_or_default()
            })?;
            if manifest.name.as_str() != recorded.commit.key.id().as_str() {
                return Err(format!("its manifest is that of plugin {}", manifest.name));
            }
            let Installation { number, restarts, sha256, bytes, former_sha256, .. } = stored;
            let installed = InstalledPlugin { manifest, number, restarts, sha256, bytes };
            Ok(LastEvent { number, installed: Some(installed), former_sha256 })
        }
        other => Err(format!("an event `{other}`, of a later version maybe")),
    }
}

/// The plugins as a state that a process follows: what is installed now, and every change after it. An
/// event that this executable cannot read is logged, and its plugin is listed as unreadable.
#[must_use]
pub fn fold() -> Fold<InstalledPlugins> {
    Fold {
        name: "the installed plugins",
        of: Aggregates { tenant: Some(tenant()), name: aggregate() },
        put,
        unreadable,
        complete: |_, _| Box::pin(ready(Ok(()))),
    }
}

/// Follows the plugins alone, for tools. Ends when every receiver is gone. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn watch(store: &EventStore) -> Result<watch::Receiver<Arc<InstalledPlugins>>, Error> {
    let mut states = States::default();
    let plugins = states.add(fold());
    Ok(plugins.whole(&states.follow(store).await?))
}

fn put(plugins: &mut InstalledPlugins, recorded: &Recorded) {
    // Any other id was not written by an installation.
    let Ok(name) = Name::parse(recorded.commit.key.id().as_str()) else { return };
    match read(recorded) {
        Ok(LastEvent { installed, former_sha256, .. }) => {
            plugins.unreadable.remove(&name);
            match former_sha256 {
                Some(former) => plugins.former.insert(name.clone(), former),
                None => plugins.former.remove(&name),
            };
            match installed {
                Some(installed) => plugins.installed.insert(name, Arc::new(installed)),
                None => plugins.installed.remove(&name),
            };
        }
        Err(error) => unreadable(plugins, &recorded.commit.key, error.to_string()),
    }
}

/// An event that cannot be read leaves the one before it in force.
fn unreadable(plugins: &mut InstalledPlugins, key: &AggregateKey, reason: String) {
    let Ok(name) = Name::parse(key.id().as_str()) else { return };
    tracing::error!(plugin = %name, reason, "a plugin's last event cannot be read here");
    if plugins.unreadable.len() < UNREADABLE_MAX || plugins.unreadable.contains_key(&name) {
        plugins.unreadable.insert(name, reason);
    }
}

#[cfg(test)]
mod tests;
