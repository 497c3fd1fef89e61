//! `flexcore rebuild`: builds a read model anew beside the one that serves, and waits until it has
//! taken over.

use std::{io::Write, time::Instant};

use flexcore_operations::rows::{self, Built, Progress};
use flexcore_readmodel::{ReadModels, Settings};
use serde_json::json;

use crate::{config::Config, out};

/// Build a read model anew from the log, beside the one that serves, and let it take over
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore rebuild carriers
  flexcore rebuild --from-this-log

Queries go on meanwhile; they see the new rows all at once, when it has caught up. With --from-this-log \
rows of another log are dropped first, and queries wait until each read model is built.")]
pub(crate) struct Rebuild {
    /// The read model
    #[arg(required_unless_present = "from_this_log")]
    pub(crate) name: Option<flexcore_domain::Name>,
    /// Drop all read models, which are of another log, and have them built from the one at --nats
    #[arg(long, conflicts_with = "name")]
    pub(crate) from_this_log: bool,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Asks for the rebuild and follows it; with `as_json` one line in the end.
pub(crate) async fn run(
    config: &Config,
    args: Rebuild,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let read_models = ReadModels::connect(&config.postgres()?, Settings::default()).await?;
    let (name, as_json) = match &args {
        Rebuild { name: Some(name), json, .. } => (name.as_str(), *json),
        Rebuild { json, .. } => return adopt(config, &read_models, *json, out).await,
    };
    let started = Instant::now();
    let bar = out::progress(0, "rebuild");
    let shown = |progress| match progress {
        Progress::Read(commits, all) => {
            bar.set_length(all);
            bar.set_position(commits);
        }
        Progress::Waiting => bar.set_message("waiting"),
    };
    let Built { version, position } = rows::rebuild(&read_models, name, shown).await?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        let done = json!({"read_model": name, "version": version, "position": position,
                          "seconds": seconds});
        out::json(out, &done)?;
    } else {
        writeln!(out, "{name} serves version {version}, built in {seconds:.1} s")?;
    }
    Ok(true)
}

/// Drops rows of another log; the workers build them anew from this one.
async fn adopt(
    config: &Config,
    read_models: &ReadModels,
    as_json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (log, dropped) = rows::adopt(&config.event_store().await?, read_models).await?;
    if as_json {
        out::json(out, &json!({"log": log, "dropped": dropped}))?;
    } else {
        let count = dropped.len();
        writeln!(out, "{count} read models dropped; the workers build them from the log {log}")?;
    }
    Ok(true)
}
