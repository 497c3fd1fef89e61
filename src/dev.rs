//! `flexcore dev`: everything in one process, with its own nats-server and Postgres.

use std::{io::Write, path::PathBuf};

use anyhow::ensure;
use flexcore_installation::{self as installation, Ready, RenderMetrics, stop_at_signals};
use tokio_util::sync::CancellationToken;

use crate::{config::Config, out, plugin_folders};

/// Serve everything from one process, with its own nats-server and Postgres
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore dev
  flexcore dev --data /var/tmp/flexcore --http 127.0.0.1:8080 --ready-file ready.json
  flexcore dev --plugins plugins     each folder in it with a plugin.yaml is installed

What is in --plugins is installed, and again when it changes. A plugin whose folder is taken out of it stays
installed: `flexcore plugin remove` ends it.
The ready file is JSON, written once it serves: http, nats, nats_monitor, postgres (URLs), tenant,
token, signing_key (a path). SIGTERM drains and exits 0.")]
pub(crate) struct Dev {
    /// Write where everything is to this file once it serves, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Install the plugins whose folders are in this one, or the one whose folder this is, and again what changes there
    #[arg(long, value_name = "DIR")]
    pub(crate) plugins: Option<PathBuf>,
}

pub(crate) async fn run(
    config: &Config,
    args: &Dev,
    metrics: RenderMetrics,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    if let Some(folder) = &args.plugins {
        ensure!(folder.is_dir(), "--plugins: {} is no folder", folder.display());
    }
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let dev =
        installation::Dev::start(config.dev(metrics, args.ready_file.as_deref())?, stop).await?;
    if args.ready_file.is_none() || out::on_terminal() {
        let Ready { http, nats, postgres, tenant, token, .. } = &dev.ready;
        let mut table = out::table(["flexcore dev", "profile", &config.profile.to_string()]);
        table.add_row(["HTTP", http, "openapi.json, asyncapi.json, metrics"]);
        table.add_row(["NATS", nats, "publish to cmd.<tenant>.<aggregate>.<id>.<command>"]);
        table.add_row(["Postgres", postgres, "read models are views in schema rm"]);
        writeln!(out, "{table}\n\nTenant {tenant}, token:\n{token}\n")?;
        writeln!(out, "Next, in another terminal:\n  flexcore apply schemas/flights\n")?;
    }
    let Some(folder) = &args.plugins else { return dev.serve().await };
    let store = dev.installation.store.clone();
    tokio::select! {
        served = dev.serve() => served,
        never = plugin_folders::follow(&store, folder) => match never {},
    }
}
