//! `flexcore plugin list` and the other verbs for plugins that the workers of an installation run.

use std::io::Write;

use anyhow::bail;
use flexcore_domain::{Name, PluginStatus, plugin::PluginReply};
use flexcore_operations::plugins::{self, PluginCall, PluginView};
use serde_json::{json, value::RawValue};

use crate::{config::Config, out, program::shown};

/// Characters of a reason in a list. 160: two lines of a terminal; `show` has more.
const REASON_CHARS_MAX: usize = 160;

/// List the installed plugins, and how they are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Restarts, calls, errors and memory are those of all workers together; p50 and p99 are those of the slowest one.")]
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
    listed(&all, out)?;
    Ok(true)
}

/// A row for each plugin, all its workers together. Below, what is wrong: reasons are as long as a plugin's
/// last words.
fn listed(all: &[PluginView], out: &mut dyn Write) -> anyhow::Result<()> {
    let head = ["plugin", "version", "state", "ready", "restarts", "calls", "errors"];
    let mut table = out::table(head.into_iter().chain(["p50", "p99", "memory"]));
    for view in all {
        let statuses = || view.workers.iter().map(|worker| &worker.status);
        let ready: usize = statuses().map(|status| status.ready).sum();
        let wanted: usize = statuses().map(|status| status.instances).sum();
        let sum = |of: fn(&PluginStatus) -> u64| statuses().map(of).sum::<u64>();
        // Those of several workers have no common percentile: the worst is told.
        let worst = |of: fn(&PluginStatus) -> f64| statuses().map(of).fold(0.0, f64::max);
        table.add_row([
            view.name.clone(),
            shown(&view.version),
            states(view),
            format!("{ready} of {wanted}"),
            sum(|status| status.restarts).to_string(),
            sum(|status| status.calls).to_string(),
            sum(|status| status.errors).to_string(),
            format!("{:.1} ms", worst(|status| status.p50_ms)),
            format!("{:.1} ms", worst(|status| status.p99_ms)),
            format!("{} MiB", sum(|status| status.memory_bytes) >> 20),
        ]);
    }
    writeln!(out, "{table}")?;
    for (view, reason) in all.iter().filter_map(|view| Some((view, trouble(view)?))) {
        writeln!(out, "{}: {reason}", view.name)?;
    }
    Ok(())
}

/// The states that its workers report, each once.
fn states(view: &PluginView) -> String {
    let states = view.workers.iter().map(|worker| worker.status.state.as_str());
    let mut states: Vec<_> = states.collect();
    states.sort_unstable();
    states.dedup();
    if states.is_empty() { "no worker runs it".to_owned() } else { states.join(", ") }
}

/// The first reason that a worker gives, in one line and not longer than its limit.
fn trouble(view: &PluginView) -> Option<String> {
    let reason = view.workers.iter().find_map(|worker| worker.status.reason.as_deref())?;
    let reason = shown(reason).split_whitespace().collect::<Vec<_>>().join(" ");
    if reason.chars().count() <= REASON_CHARS_MAX {
        return Some(reason);
    }
    let cut: String = reason.chars().take(REASON_CHARS_MAX).collect();
    Some(format!("{cut}… (`flexcore plugin show {}` has more)", view.name))
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

/// Calls a function of an installed plugin, at any worker that runs it. Returns its output, as it came. Fails
/// where it was not done, and where that is not known, and says which.
pub(crate) async fn call(config: &Config, call: PluginCall) -> anyhow::Result<Box<RawValue>> {
    match plugins::call(&config.event_store().await?, call).await? {
        PluginReply::Output(json) => Ok(json),
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
    use super::*;

    fn on_worker(calls: u64, p99_ms: f64, reason: Option<&str>) -> plugins::OfWorker {
        let status = PluginStatus {
            name: Name::parse("greeter").unwrap(),
            number: 3,
            version: "0.1.0".to_owned(),
            state: "ready".to_owned(),
            instances: 1,
            ready: 1,
            restarts: 2,
            calls,
            errors: 1,
            under_way: 0,
            p50_ms: 1.0,
            p99_ms,
            memory_bytes: 20 << 20,
            reason: reason.map(str::to_owned),
            description: None,
            sandbox: Vec::new(),
        };
        plugins::OfWorker { member: "w".to_owned(), status }
    }

    /// It lacked restarts, percentiles and memory, and was as wide as a plugin's last words.
    #[test]
    fn a_list_has_all_figures_and_fits_a_terminal() {
        let words = format!("it ended\n  {}\u{1b}[0m", "File \"x.py\", line 1 ".repeat(20));
        let view = PluginView {
            name: "greeter".to_owned(),
            version: "0.1.0".to_owned(),
            summary: None,
            number: 3,
            sha256: String::new(),
            bytes: 9,
            workers: vec![on_worker(40, 7.5, Some(&words)), on_worker(2, 3.0, None)],
            tenants: None,
        };
        let mut said = Vec::new();
        listed(&[view], &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        for part in ["restarts", "p50", "p99", "memory"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        for part in ["2 of 2", " 4 ", " 42 ", "1.0 ms", "7.5 ms", "40 MiB", ": it ended File"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let (table, below): (Vec<&str>, Vec<&str>) =
            said.lines().partition(|line| !line.starts_with("greeter: "));
        assert!(table.iter().all(|line| line.chars().count() <= 120), "{said}");
        assert!(below.len() == 1 && below[0].chars().count() < 250, "{said}");
        assert!(below[0].ends_with("has more)") && !said.contains('\u{1b}'), "{said}");
    }
}
