//! `flexcore rebuild`: builds a read model anew beside the one that serves, and waits until it has
//! taken over.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use flexcore_readmodel::{ReadModels, Rebuild, Settings};
use serde_json::json;

use crate::{cli, config::Config, out};

/// Between two looks at how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// After this time without a worker that takes the rebuild up, the person is told to start one.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(15);

/// Asks for the rebuild and follows it; with `as_json` one line in the end.
pub(crate) async fn run(
    config: &Config,
    args: cli::Rebuild,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let read_models = ReadModels::connect(&config.postgres()?, Settings::default()).await?;
    let (name, as_json) = match &args {
        cli::Rebuild { name: Some(name), json, .. } => (name.as_str(), *json),
        cli::Rebuild { json, .. } => return adopt(config, &read_models, *json, out).await,
    };
    let started = Instant::now();
    let request = read_models.request_rebuild(name).await.context("cannot ask for the rebuild")?;
    let (version, events) = follow(&read_models, request, started).await?;
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        let done = json!({"read_model": name, "version": version, "position": events,
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
    let log = config.event_store().await?.log().await.context("no log at --nats")?.identity;
    let dropped = read_models.adopt_log(&log).await.context("the old rows cannot be dropped")?;
    if as_json {
        out::json(out, &json!({"log": log, "dropped": dropped}))?;
    } else {
        let count = dropped.len();
        writeln!(out, "{count} read models dropped; the workers build them from the log {log}")?;
    }
    Ok(true)
}

/// Shows how far it is until it is done; returns the version and its place in the log.
async fn follow(
    read_models: &ReadModels,
    request: i64,
    started: Instant,
) -> anyhow::Result<(i32, u64)> {
    let bar = out::progress(0, "rebuild");
    let mut reached = 0;
    loop {
        match read_models.rebuild(request).await {
            Ok(Rebuild::Waiting) if started.elapsed() > TAKEN_UP_WITHIN => bail!(
                "no projection worker has taken the rebuild up: start one (`flexcore worker \
                 projection`); the request stays, and will be done then"
            ),
            Ok(Rebuild::Waiting) => {}
            Ok(Rebuild::Building { position, target, .. }) => {
                reached = position;
                bar.set_length(target.max(position));
                bar.set_position(position);
            }
            Ok(Rebuild::Done { version }) => {
                bar.finish_and_clear();
                return Ok((version, reached));
            }
            Ok(Rebuild::Superseded) => bail!(
                "the read model was declared anew or removed meanwhile; ask again if it is still \
                 needed"
            ),
            // The worker goes on without us; so does the bar, once Postgres is back.
            Err(error) if error.is_passing() => bar.set_message("waiting"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
