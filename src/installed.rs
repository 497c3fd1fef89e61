//! `flexcore plugin install` and the other verbs for plugins that the workers of an installation run.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, bail};
use flexcore_definition::{PluginContract, PluginManifest};
use flexcore_domain::{Name, plugin::PluginReply};
use flexcore_installation::stop_at_signals;
use flexcore_operations::plugins::{self, Installed, PluginCall, PluginView};
use flexcore_plugin::{Checked, Cookie, Reflection, contract::Client};
use flexcore_workers::plugin as workers;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    out,
    plugin_files::{self, PluginFiles},
    program::{Program, Running, shown, told, with_plugin},
};

/// Have the workers run a plugin, or its new version
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin install .
  flexcore plugin install plugins/greeter/plugin.yaml --json

It is started once here as workers start it, within its limits and its sandbox, to see that it starts. Where
this machine does not have what its sandbox demands, --unchecked installs it all the same. Every worker with the
role `plugin` gets the file and starts it, with no restart of FlexCore. Where a version runs already, it goes on
until the new one is ready, and when that does not start. What is installed already is started anew where a worker
does not run it. Exit code 0: it is installed; 1: it is not, or no worker can run it.")]
pub(crate) struct Install {
    /// The plugin's folder with its plugin.yaml, or such a file
    place: PathBuf,
    /// Do not start it here first
    #[arg(long)]
    unchecked: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// List the installed plugins, and how they are
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// In JSON
    #[arg(long)]
    json: bool,
}

/// Show an installed plugin: its functions, and how it is on each worker
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0: an instance of it is ready; 1: none is.")]
pub(crate) struct Show {
    /// Its name
    name: Name,
    /// In JSON
    #[arg(long)]
    json: bool,
}

/// Print the last lines that an installed plugin has printed or logged, of every worker
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// Its name
    name: Name,
    /// As a list in JSON
    #[arg(long)]
    json: bool,
}

/// Start an installed plugin anew on every worker; calls go on meanwhile
#[derive(Debug, clap::Args)]
pub(crate) struct Restart {
    /// Its name
    name: Name,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// End a plugin on every worker, and take it out of the installation
#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    /// Its name
    name: Name,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn install(
    config: &Config,
    args: Install,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let place = args.place;
    let PluginFiles { manifest, file } =
        spawn_blocking(move || plugin_files::read(&place)).await??;
    if !args.unchecked {
        let advice = "it was tried here and is not installed; --unchecked installs it untried";
        tried(&manifest, file.clone()).await.context(advice)?;
    }
    let store = config.event_store().await?;
    // After a try signals are ours.
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let installing = stop.run_until_cancelled(plugins::install(&store, &manifest, &file));
    let Some(installed) = installing.await.transpose()? else {
        bail!("interrupted; `flexcore plugin list` shows whether it is installed");
    };
    let runs = installed.trouble.is_none();
    if args.json {
        out::json(out, &installed)?;
        return Ok(runs);
    }
    let Installed { name, number, is_new, is_restarted, picked_up_ms, trouble, .. } = &installed;
    let version = &manifest.version;
    let done = match (*is_new, *is_restarted) {
        (true, _) => "installed as number",
        (false, true) => "it was in force and did not run everywhere; started anew as number",
        (false, false) => "nothing changed; in force is number",
    };
    let came_of_it = match (trouble, picked_up_ms) {
        (Some(trouble), _) => format!("; it does not run: {}", shown(trouble)),
        (None, Some(ms)) => format!(", at a worker after {ms} ms"),
        (None, None) => "; no worker has picked it up: `flexcore worker plugin`".to_owned(),
    };
    writeln!(out, "{name} {version}: {done} {number}{came_of_it}")?;
    Ok(runs)
}

/// Starts the plugin as its manifest says, asks what it can do, and ends it. Fails where it would not
/// serve.
async fn tried(manifest: &PluginManifest, file: PathBuf) -> anyhow::Result<()> {
    let path = file.clone();
    let checked = spawn_blocking(move || Checked::open(&path, None)).await?.map_err(told)?;
    let program = started_by(manifest, file, checked.sha256());
    drop(checked);
    let is_ours = matches!(manifest.contract, PluginContract::Flexcore);
    with_plugin(&program, async move |running: &Running| asked(running, is_ours).await).await
}

/// Asks a running plugin whether it is well, and what it offers.
async fn asked(running: &Running, is_ours: bool) -> anyhow::Result<()> {
    running.plugin.check().await.map_err(told)?;
    let connection = running.plugin.connection();
    if is_ours {
        let advice = "it does not speak FlexCore's contract; a plugin of another host has \
                      `contract: none`";
        Client::new(connection).describe().await.map_err(told).context(advice)?;
    } else {
        let advice = "its methods are not known, and could not be called";
        Reflection::load(connection).await.map_err(told).context(advice)?;
    }
    Ok(())
}

/// The start of a plugin as its manifest says it, and as workers do it (`workers/plugin/start.rs`). With a hash a
/// copy of the file runs there, too, which finds nothing beside itself, and which a user of its own may read.
fn started_by(manifest: &PluginManifest, file: PathBuf, sha256: [u8; 32]) -> Program {
    let cookie = manifest.cookie.clone().map(|(key, value)| Cookie { key, value });
    let env = manifest.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    Program {
        file,
        cookie,
        protocol_version: manifest.protocol_versions.clone(),
        no_tls: !manifest.tls,
        multiplex: manifest.multiplex,
        env: env.collect(),
        arg: manifest.arguments.iter().map(Into::into).collect(),
        sha256: Some(sha256),
        timeout: manifest.start.as_secs().max(1),
        bounds: workers::bounds(manifest),
        sandbox: workers::sandbox(manifest, workers::TRIAL_USER),
    }
}

pub(crate) async fn list(
    config: &Config,
    args: &List,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let all = plugins::view(&config.event_store().await?).await?;
    if args.json {
        out::json(out, &json!({ "plugins": all }))?;
        return Ok(true);
    }
    if all.is_empty() {
        writeln!(out, "no plugins are installed: flexcore plugin install FOLDER")?;
        return Ok(true);
    }
    let mut table =
        out::table(["plugin", "version", "number", "ready", "state", "calls", "errors", "trouble"]);
    for view in &all {
        let statuses = || view.workers.iter().map(|worker| &worker.status);
        let ready: usize = statuses().map(|status| status.ready).sum();
        let wanted: usize = statuses().map(|status| status.instances).sum();
        let calls: u64 = statuses().map(|status| status.calls).sum();
        let errors: u64 = statuses().map(|status| status.errors).sum();
        table.add_row([
            view.name.clone(),
            shown(&view.version),
            view.number.to_string(),
            format!("{ready} of {wanted}"),
            states(view),
            calls.to_string(),
            errors.to_string(),
            trouble(view),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(true)
}

/// The states that its workers report, each once.
fn states(view: &PluginView) -> String {
    let states = view.workers.iter().map(|worker| worker.status.state.as_str());
    let mut states: Vec<_> = states.collect();
    states.sort_unstable();
    states.dedup();
    if states.is_empty() { "no worker runs it".to_owned() } else { states.join(", ") }
}

/// The first reason that a worker gives.
fn trouble(view: &PluginView) -> String {
    let reason = view.workers.iter().find_map(|worker| worker.status.reason.as_deref());
    shown(reason.unwrap_or_default())
}

pub(crate) async fn show(
    config: &Config,
    args: &Show,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let all = plugins::view(&config.event_store().await?).await?;
    let Some(view) = all.into_iter().find(|view| view.name == args.name.as_str()) else {
        bail!("no plugin {} is installed: `flexcore plugin list` shows those that are", args.name);
    };
    let is_ready = view.workers.iter().any(|worker| worker.status.ready > 0);
    if args.json {
        out::json(out, &view)?;
    } else {
        written(&view, out)?;
    }
    Ok(is_ready)
}

fn written(view: &PluginView, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut table = out::table(["plugin", &view.name]);
    table
        .add_row(["version", &shown(&view.version)])
        .add_row(["summary", &shown(view.summary.as_deref().unwrap_or_default())])
        .add_row(["number", &view.number.to_string()])
        .add_row(["SHA-256", &view.sha256])
        .add_row(["bytes", &view.bytes.to_string()]);
    writeln!(out, "{table}")?;
    let head = ["worker", "state", "ready", "restarts", "calls", "errors", "p50", "p99", "memory"];
    let mut table = out::table(head);
    for worker in &view.workers {
        let status = &worker.status;
        table.add_row([
            worker.member.clone(),
            status.state.clone(),
            format!("{} of {}", status.ready, status.instances),
            status.restarts.to_string(),
            status.calls.to_string(),
            status.errors.to_string(),
            format!("{:.1} ms", status.p50_ms),
            format!("{:.1} ms", status.p99_ms),
            format!("{} MiB", status.memory_bytes >> 20),
        ]);
    }
    writeln!(out, "\n{table}")?;
    for worker in &view.workers {
        if let Some(reason) = &worker.status.reason {
            writeln!(out, "{}: {}", worker.member, shown(reason))?;
        }
        for (measure, holds) in &worker.status.sandbox {
            writeln!(out, "{}: {}: {}", worker.member, shown(measure), shown(holds))?;
        }
    }
    let described = view.workers.iter().find_map(|worker| worker.status.description.as_ref());
    let Some(described) = described else { return Ok(()) };
    let mut table = out::table(["function", "what it does", "may be repeated"]);
    for function in &described.functions {
        let again = if function.idempotent { "yes" } else { "" };
        table.add_row([shown(&function.name), shown(&function.summary), again.to_owned()]);
    }
    writeln!(out, "\n{table}")?;
    Ok(())
}

pub(crate) async fn logs(
    config: &Config,
    args: &Logs,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let lines = plugins::logs(&config.event_store().await?, &args.name).await?;
    if args.json {
        out::json(out, &lines)?;
        return Ok(true);
    }
    for line in lines {
        writeln!(out, "{}", shown(&line))?;
    }
    Ok(true)
}

pub(crate) async fn restart(
    config: &Config,
    args: &Restart,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let number = plugins::restart(&config.event_store().await?, &args.name).await?;
    if args.json {
        out::json(out, &json!({"name": args.name, "number": number}))?;
    } else {
        writeln!(out, "{} is started anew", args.name)?;
    }
    Ok(true)
}

pub(crate) async fn remove(
    config: &Config,
    args: &Remove,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    plugins::remove(&config.event_store().await?, &args.name).await?;
    if args.json {
        out::json(out, &json!({"name": args.name, "removed": true}))?;
    } else {
        writeln!(out, "{} is removed", args.name)?;
    }
    Ok(true)
}

/// Calls a function of an installed plugin, at any worker that runs it. Returns its output. Fails where it
/// was not done, and where that is not known, and says which.
pub(crate) async fn call(config: &Config, call: PluginCall) -> anyhow::Result<Value> {
    match plugins::call(&config.event_store().await?, call).await? {
        PluginReply::Output(json) => {
            serde_json::from_str(json.get()).context("reading the plugin's output")
        }
        PluginReply::Failed { code, message, temporary, retry_after_ms, details } => {
            let again = match (temporary, retry_after_ms) {
                (false, _) => String::new(),
                (true, 0) => "; it may succeed later".to_owned(),
                (true, pause) => format!("; it may succeed after {pause} ms"),
            };
            let details = details.map_or_else(String::new, |details| format!("\n{details}"));
            bail!("{}", shown(&format!("{code}: {message}{again}{details}")))
        }
        PluginReply::Refused { message, .. } => bail!("{}", shown(&message)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flexcore_definition::SourceFile;
    use flexcore_plugin::guard::{Bounds, Files, Measure, Sandbox};

    use super::*;

    fn program(text: &str) -> Program {
        let text = format!("name: greeter\nversion: 0.1.0\nfile: greeter\n{text}");
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        started_by(&PluginManifest::read(source).unwrap(), "greeter".into(), [7; 32])
    }

    #[test]
    fn a_plugin_is_tried_with_the_limits_and_the_sandbox_of_its_manifest() {
        let plain = program("");
        assert_eq!((plain.bounds, plain.sandbox), (Bounds::default(), Sandbox::default()));
        assert_eq!(plain.sha256, Some([7; 32]), "a copy runs, as on a worker");
        let bound = program(
            "limits: {memory: 1GiB, processor: 60s, files: 256, processes: 64}\n\
             sandbox: {own_user: ask, network: demand, files: ask, processes: demand}\n",
        );
        let bounds = Bounds {
            memory_bytes: Some(1 << 30),
            cpu_s: Some(60),
            files: Some(256),
            processes: Some(64),
        };
        let sandbox = Sandbox {
            user: Some(workers::TRIAL_USER),
            no_network: true,
            files: Some(Files::default()),
            own_processes: true,
            demanded: BTreeSet::from([Measure::Network, Measure::Processes]),
            ..Sandbox::default()
        };
        assert_eq!((bound.bounds, bound.sandbox), (bounds, sandbox));
    }
}
