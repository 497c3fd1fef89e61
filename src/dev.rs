//! `flexcore dev`: everything in one process, with its own nats-server and Postgres.

use std::io::Write;

use flexcore_installation::{Dev, Ready, RenderMetrics, stop_at_signals};
use tokio_util::sync::CancellationToken;

use crate::{cli, config::Config, out};

pub(crate) async fn run(
    config: &Config,
    args: &cli::Dev,
    metrics: RenderMetrics,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let dev = Dev::start(config.dev(metrics, args.ready_file.as_deref())?, stop).await?;
    if args.ready_file.is_none() || out::on_terminal() {
        let Ready { http, nats, postgres, tenant, token, .. } = &dev.ready;
        let mut table = out::table(["flexcore dev", "profile", &config.profile.to_string()]);
        table.add_row(["HTTP", http, "openapi.json, asyncapi.json, metrics"]);
        table.add_row(["NATS", nats, "publish to cmd.<tenant>.<aggregate>.<id>.<command>"]);
        table.add_row(["Postgres", postgres, "read models are views in schema rm"]);
        writeln!(out, "{table}\n\nTenant {tenant}, token:\n{token}\n")?;
        writeln!(out, "Next, in another terminal:\n  flexcore apply schemas/flights\n")?;
    }
    dev.serve().await
}
