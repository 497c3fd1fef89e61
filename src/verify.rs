//! `flexcore verify`: walks the log and names the first break.

use std::io::Write;

use anyhow::{Context, bail};
use flexcore_domain::{AggregateId, AggregateKey, AggregateName};
use flexcore_eventstore::{LINKS_MAX, verify};
use flexcore_operations::rows::other_log;

use crate::{config::Config, out};

/// Walk the log and check that nothing is missing or changed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore verify
  flexcore verify --aggregate flight/UA1-20130101-EWR --tenant demo --json

Exit code 0: whole; 1: broken, or not readable. Every commit carries the hash of its aggregate's
previous hash and its own body, and sequences and versions must follow one another.")]
pub(crate) struct Verify {
    /// Only this aggregate: KIND/ID
    #[arg(long, value_name = "KIND/ID", value_parser = aggregate)]
    pub(crate) aggregate: Option<(AggregateName, AggregateId)>,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn aggregate(text: &str) -> Result<(AggregateName, AggregateId), String> {
    let (kind, id) =
        text.split_once('/').ok_or("write KIND/ID, such as flight/UA1-20130101-EWR")?;
    let kind = AggregateName::parse(kind).map_err(|error| error.to_string())?;
    Ok((kind, AggregateId::parse(id).map_err(|error| error.to_string())?))
}

pub(crate) async fn run(
    config: &Config,
    args: Verify,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let key = match args.aggregate {
        Some((aggregate, id)) => Some(AggregateKey::new(config.tenant()?, aggregate, id)),
        None => None,
    };
    let store = config.event_store().await?;
    let bar = out::progress(0, "verify");
    let report = verify::verify(&store, key.as_ref(), LINKS_MAX, |read, all| {
        bar.set_length(all);
        bar.set_position(read);
    })
    .await;
    bar.finish_and_clear();
    let report = report.context("the log could not be read to its end")?;
    if let (Some(key), 0, None) = (&key, report.commits, &report.broken) {
        bail!("the log has no commit of {key}");
    }
    let rows = match (&key, config.postgres()) {
        (None, Ok(url)) => other_log(&store, &url).await?,
        _ => None,
    };
    if args.json {
        let mut found = serde_json::to_value(&report)?;
        found["other_log"] = rows.clone().into();
        out::json(out, &found)?;
    } else {
        written(&report, out)?;
        if let Some(other) = &rows {
            writeln!(out, "ROWS OF ANOTHER LOG: {other}")?;
        }
    }
    Ok(report.is_whole() && rows.is_none())
}

fn written(report: &verify::Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let (commits, events, last) = (report.commits, report.events, report.last_sequence);
    writeln!(out, "{commits} commits with {events} events read, up to sequence {last}")?;
    writeln!(out, "{} aggregates checked from their first commit on", report.aggregates)?;
    if report.not_checked > 0 {
        writeln!(
            out,
            "NOT CHECKED: {} commits against their predecessors, for want of memory",
            report.not_checked
        )?;
    }
    match &report.broken {
        None if report.is_whole() => writeln!(out, "whole: nothing missing, nothing changed")?,
        None => writeln!(out, "nothing missing and nothing changed where it was checked")?,
        Some(broken) => writeln!(
            out,
            "BROKEN in {} places, first: {broken}\nKeep the store as it is, compare the replicas, \
             and restore from a copy that verifies.",
            report.breaks
        )?,
    }
    Ok(())
}
