//! Plugins that decide commands in the tests of an application: found in a folder, and asked where they run.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use flexcore_definition::{FileLine, PluginContract};
use flexcore_domain::{Name, Refusal};
use flexcore_plugin::contract::{self, Client, Decider, DecisionResult, Failure, Question};
use flexcore_script::scenario::{PluginDecided, PluginQuestion};
use tokio::{runtime::Handle, task::block_in_place};

use crate::{
    install_plugin::program_of,
    plugin_files::{self, MANIFEST, PluginFiles},
    program::{Program, Running, shown, told},
};

/// Most folders that are looked at: more is another folder, named by mistake.
const FOLDERS_MAX: usize = 200;

/// Time of a decision. A worker gives no more.
const DECIDED_WITHIN: Duration = Duration::from_secs(2);

/// Finds the plugins in the folders of this one. Fails with the first that is not there, and says why other folders
/// could not be read; and without a folder.
pub(crate) fn find(
    folder: Option<&Path>,
    wanted: &BTreeMap<Name, FileLine>,
) -> anyhow::Result<Vec<PluginFiles>> {
    let (mut found, mut unread) = (BTreeMap::new(), Vec::new());
    for place in folder.map_or(Ok(Vec::new()), folders)? {
        match plugin_files::read(&place) {
            // The first of a name counts, as in `flexcore dev`.
            Ok(files) => {
                found.entry(files.manifest.name.clone()).or_insert(files);
            }
            Err(error) => unread.push(format!("\n{}: {error:#}", place.display())),
        }
    }
    let mut files = Vec::new();
    for (name, place) in wanted {
        let decides = format!("{place}: plugin {name} decides");
        let Some(folder) = folder else {
            bail!(
                "{decides}; give --plugins DIR, a folder with the folders of plugins, to run it here"
            );
        };
        let Some(one) = found.remove(name) else {
            let folder = folder.display();
            bail!("{decides}, and no folder in {folder} has plugin {name}{}", unread.concat());
        };
        let is_ours = matches!(one.manifest.contract, PluginContract::Flexcore);
        ensure!(is_ours, "{decides}, and cannot: its manifest says `contract: none`");
        files.push(one);
    }
    Ok(files)
}

/// The folders with a manifest: those in this one, and this one itself.
fn folders(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let mut places = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).with_context(reading)? {
        places.push(entry.with_context(reading)?.path());
        let shown = folder.display();
        ensure!(places.len() <= FOLDERS_MAX, "{shown} has more than {FOLDERS_MAX} entries");
    }
    places.retain(|place| place.join(MANIFEST).is_file());
    places.sort();
    Ok(places)
}

/// How they are started.
pub(crate) async fn programs(files: Vec<PluginFiles>) -> anyhow::Result<Vec<Program>> {
    let mut programs = Vec::new();
    for PluginFiles { manifest, file } in files {
        programs.push(program_of(&manifest, file).await?);
    }
    Ok(programs)
}

/// Plugins that run and decide.
pub(crate) struct Deciding {
    by_name: BTreeMap<Name, Decider>,
    /// One of them has not answered, or has broken its contract: it may have ended.
    is_broken: Cell<bool>,
}

impl Deciding {
    /// Of plugins with these names. Fails where one says that it does not decide.
    pub(crate) async fn of(
        names: impl Iterator<Item = Name>,
        running: &[Running],
    ) -> anyhow::Result<Self> {
        let mut deciders = BTreeMap::new();
        for (name, running) in names.zip(running) {
            let client = Client::new(running.plugin.connection());
            let described = client.describe().await.map_err(told);
            let described = described.with_context(|| format!("plugin {name}"))?;
            ensure!(
                described.decides,
                "plugin {name} says of itself that it does not decide commands"
            );
            deciders.insert(name, client.decider());
        }
        Ok(Self { by_name: deciders, is_broken: Cell::new(false) })
    }

    /// True if one of them is not to be asked any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.get()
    }

    /// Has a plugin decide, and waits for it on this thread.
    pub(crate) fn ask(&self, question: PluginQuestion) -> PluginDecided {
        let Some(decider) = self.by_name.get(&question.by.plugin) else { return nobody(question) };
        let by = question.by.clone();
        let said =
            |why: &str| Refusal::Faulty(format!("{}: plugin {}: {why}", by.place, by.plugin));
        let asked = decider.ask(as_sent(question), DECIDED_WITHIN);
        match block_in_place(|| Handle::current().block_on(asked)) {
            Ok(DecisionResult::Events(events)) => {
                Ok(events.events.into_iter().map(|it| (it.event, it.data.to_vec())).collect())
            }
            Ok(DecisionResult::Rejected(Failure { code, message, .. })) => {
                Err(Refusal::Rejected { code, message: shown(&message) })
            }
            Ok(DecisionResult::Failure(Failure { code, message, .. })) => {
                Err(said(&format!("{code}: {}", shown(&message))))
            }
            Err(error) => {
                self.is_broken.set(true);
                Err(said(&shown(&error.to_string())))
            }
        }
    }
}

/// Asks nobody, where no plugin runs.
pub(crate) fn nobody(question: PluginQuestion) -> PluginDecided {
    let by = question.by;
    Err(Refusal::Faulty(format!("{}: plugin {} does not run here", by.place, by.plugin)))
}

fn as_sent(question: PluginQuestion) -> Question {
    let PluginQuestion { aggregate, state, command, payload, context, .. } = question;
    Question {
        context: Some(contract::Context {
            tenant: context.tenant.to_string(),
            actor: context.actor.to_string(),
            idempotency_key: context.command_id.to_string(),
            ..contract::Context::default()
        }),
        aggregate: aggregate.to_string(),
        id: context.id.to_string(),
        version: context.version,
        command: command.to_string(),
        command_id: context.command_id.to_string(),
        now_ms: context.now_ms,
        state: state.as_str().to_owned().into(),
        payload: payload.as_str().to_owned().into(),
    }
}
