//! Commands that a plugin decides, beside the same commands decided in JavaScript: asynchronous ones,
//! through a command worker and a plugin worker of one installation.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, ensure};
use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_eventstore::{EventStore, topology};
use flexcore_installation::Roles;
use flexcore_operations::{Error, deploy, plugins};
use flexcore_servers::Want;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{own::program, sampled::thousandths};
use crate::{
    Figure, Run,
    counter::{COUNTER, PER_AGGREGATE, TALLY, payload, read_with},
    processing::{WINDOW, process_of},
    rig::{Rig, median, otherwise},
};

/// Commands of a round.
const COMMANDS: u64 = 20_000;

/// The file that is installed.
const FILE: &str = "bench";

/// Measures both, in turns, and writes them into the figure.
pub(crate) async fn run(run: &Run<'_>, figure: &mut Figure) -> anyhow::Result<()> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let installation = rig.installation().await?;
    let stop = CancellationToken::new();
    let mut roles = Roles::new(stop.clone());
    // The worker cleans its own.
    let own = tempfile::tempdir().context("no folder for the plugin")?;
    let files = tempfile::tempdir().context("no folder for plugins")?;
    roles.commands(&installation, flexcore_workers::command::Settings::default());
    roles.plugins(&installation, files.path().to_owned());
    let measured = measured(run, &mut rig, own.path()).await;
    stop.cancel();
    roles.ended().await?;
    installation.read_models.close().await;
    drop(installation);
    let (plugin, script) = measured?;
    let (plugin, script) = (median(plugin), median(script));
    let ratio = plugin / script.max(f64::EPSILON);
    let dead = rig.store.jetstream().get_stream(topology::DEAD).await?;
    figure.errors += dead.cached_info().state.messages;
    figure.more(
        "decider",
        json!({
            "per_s": crate::round(plugin),
            "javascript_per_s": crate::round(script),
            "ratio": thousandths(ratio),
            "commands": run.scale(COMMANDS),
            "command_bytes": payload(0).len(),
            "commands_per_aggregate": PER_AGGREGATE,
            "in_flight": WINDOW,
        }),
    );
    figure.goal("a decider plugin at least 0.5 of the JavaScript decider", ratio >= 0.5);
    rig.meter.report(figure, otherwise(run.profile()));
    rig.stop().await;
    Ok(())
}

/// Commands a second of each round: those of the plugin, and those in JavaScript.
async fn measured(
    run: &Run<'_>,
    rig: &mut Rig,
    folder: &Path,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let store = rig.store.clone();
    let manifest = install(&store, folder).await?;
    deploy::deploy(&store, &read_with(&manifest.name)?).await?;
    let count = run.scale(COMMANDS);
    let (mut tallies, mut counters) = (0, 0);
    process_of(&store, TALLY, &mut tallies, count / 10).await?;
    process_of(&store, COUNTER, &mut counters, count / 10).await?;
    let (mut plugin, mut script) = (Vec::new(), Vec::new());
    for _ in 0..run.rounds() {
        let decided = process_of(&store, TALLY, &mut tallies, count);
        plugin.push(rig.meter.during(decided).await?.per_s);
        let decided = process_of(&store, COUNTER, &mut counters, count);
        script.push(rig.meter.during(decided).await?.per_s);
    }
    Ok((plugin, script))
}

/// Installs the benches' own plugin, and waits until the worker runs it.
async fn install(store: &EventStore, folder: &Path) -> anyhow::Result<PluginManifest> {
    let (program, argument) = program()?;
    let program = program.to_str().context("the executable's path is not in UTF-8")?;
    // The executable is large, and the log would keep a copy.
    let script = format!("#!/bin/sh\nexec {} {argument}\n", quoted(program));
    let file = folder.join(FILE);
    fs::write(&file, script)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    let text = format!("name: bench\nversion: {}\nfile: {FILE}\n", env!("CARGO_PKG_VERSION"));
    let source = SourceFile { path: "plugin.yaml".to_owned(), text };
    let manifest = PluginManifest::read(source).map_err(Error::Refused)?;
    let installed = plugins::install(store, &manifest, &file).await?;
    let trouble = installed.trouble.as_deref().unwrap_or("there is no worker");
    ensure!(installed.picked_up_ms.is_some(), "the benches' plugin does not run: {trouble}");
    Ok(manifest)
}

/// As a shell reads it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_quoted() {
        for path in ["/bin/a b", "/it's/here", "/$HOME/`x`"] {
            let line = format!("printf %s {}", quoted(path));
            let said = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), path);
        }
    }
}
