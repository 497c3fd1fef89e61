//! `flexcore plugin list` and the other verbs for plugins that the workers of an installation run.

use std::io::Write;

use anyhow::{Context, bail};
use flexcore_domain::{Name, plugin::PluginReply};
use flexcore_operations::plugins::{self, PluginCall, PluginView};
use serde_json::{Value, json};

use crate::{config::Config, out, program::shown};

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

/// End a plugin on every worker, and take it out of the installation, with its tenants' configurations
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A later plugin of this name gets none of these configurations. Where the removal was interrupted, the same command
deletes what is left of them, and so does the next installation of a plugin of this name.")]
pub(crate) struct Remove {
    /// Its name
    name: Name,
    /// Also while applications in force need it: commands are answered 503 then, and read models stand still
    #[arg(long)]
    force: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
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
    plugins::remove(&config.event_store().await?, &args.name, args.force).await?;
    if args.json {
        out::json(out, &json!({"name": args.name, "removed": true}))?;
    } else {
        writeln!(out, "{} is removed, and its tenants' configurations are deleted", args.name)?;
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
