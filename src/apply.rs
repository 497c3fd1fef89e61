//! `flexcore apply`: checks an application, shows what changes, and deploys it.

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use flexcore_definition::Application;
use flexcore_operations::{
    QUERIES_UNCHECKED, application,
    deploy::{self, Deployed},
};
use flexcore_script as script;

use crate::{config::Config, out};

/// Check an application, show what changes, and deploy it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore apply schemas/flights
  flexcore apply schemas/flights --dry-run

Queries are prepared by Postgres: an application that has some needs --postgres. Every message
points at a file and a line. Running workers pick the version up with no restart.")]
pub(crate) struct Apply {
    /// The application's folder
    pub(crate) folder: PathBuf,
    /// Only check, and show what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn run(
    config: &Config,
    args: &Apply,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let application = application::read(&args.folder, script::check)?;
    if !application.queries.is_empty() {
        let postgres = config.postgres().context(QUERIES_UNCHECKED)?;
        deploy::check_queries(&postgres, &application).await?;
    }
    let store = config.event_store().await?;
    let deployed = if args.dry_run {
        deploy::dry_run(&store, &application).await?
    } else {
        deploy::deploy(&store, &application).await?
    };
    report(args, &application, &deployed, out)?;
    Ok(true)
}

fn report(
    args: &Apply,
    application: &Application,
    deployed: &Deployed,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if args.json {
        return out::json(out, deployed);
    }
    told(args, application, deployed, out)?;
    for warning in &deployed.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

fn told(
    args: &Apply,
    application: &Application,
    deployed: &Deployed,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let name = &application.name;
    if deployed.changes.is_empty() {
        writeln!(out, "{name}: nothing changed; version {} is in force", deployed.version)?;
        return Ok(());
    }
    for change in &deployed.changes {
        writeln!(out, "  {change}")?;
    }
    if args.dry_run {
        writeln!(out, "{name}: not deployed (--dry-run)")?;
        return Ok(());
    }
    match deployed.picked_up_ms {
        Some(ms) => writeln!(
            out,
            "{name}: version {} deployed, in force at a worker after {ms} ms",
            deployed.version
        )?,
        None => writeln!(
            out,
            "{name}: version {} deployed; no worker runs that could pick it up",
            deployed.version
        )?,
    }
    Ok(())
}
