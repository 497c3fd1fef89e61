//! `flexcore bench`: what FlexCore does a second, beside the raw limit of its servers in the same
//! run. Every bench starts servers of its own on free loopback ports, and removes their data.

mod append;
mod client;
mod commands;
mod counter;
mod filled;
mod gateway;
mod growth;
mod http;
mod ids;
mod latency;
mod load;
mod overload;
mod plugin;
mod processing;
mod projecting;
mod projection;
mod raw_log;
mod raw_requests;
mod raw_rows;
mod rebuild;
mod rig;
mod scale;
mod shares;

use std::{io::Write, path::PathBuf, time::Duration};

use clap::ValueEnum;
use flexcore_eventstore::Profile;
use flexcore_installation::RenderMetrics;
use flexcore_out as out;
use serde::Serialize;
use serde_json::{Map, Value};

pub use client::{ClientArgs, run as client};
pub use plugin::entered as plugin_entered;

/// Measure what FlexCore does a second, beside the raw limit of its servers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore bench append commands --profile relaxed
  flexcore bench http --json
  flexcore bench growth --events 100000

With --json one object a bench: name, profile, ours_per_s, raw_per_s, ratio, p50_ms, p99_ms, errors,
and more; null where a field has no meaning. Exit code 1: there were errors. Figures of a machine
that does something else meanwhile say little: \"others\" under processors shows it.")]
pub struct Args {
    /// The benches to run
    #[arg(value_enum, required = true, value_name = "BENCH")]
    benches: Vec<Bench>,
    /// Print one JSON object a bench
    #[arg(long)]
    json: bool,
    /// Only see that each works, in a second or two: the figures say nothing
    #[arg(long)]
    quick: bool,
    /// Events in the log, where it matters: load, growth, projection, rebuild
    #[arg(long, value_name = "NUMBER")]
    events: Option<u64>,
}

/// Every bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Append commits of one event, 1,024 in flight
    Append,
    /// Asynchronous commands over NATS, decided in JavaScript
    Commands,
    /// Synchronous commands over HTTP, 256 connections, and 1
    Http,
    /// Ten times the connections that it can carry
    Overload,
    /// A tenant's commands without and with another tenant's flood
    Shares,
    /// A read model catching up with a filled log
    Projection,
    /// A read model built anew while queries go on
    Rebuild,
    /// From command acknowledged to row readable, at 500 commands a second
    Latency,
    /// Loading aggregates that are not cached, 32 in flight
    Load,
    /// Commands with 1, 2 and 4 worker processes and three brokers, and slots handed over
    Scale,
    /// Append, load and projection as the log grows tenfold, and again
    Growth,
    /// The hash of a payload's value, and an aggregate with a million command ids
    Ids,
    /// Calls and starts of a plugin, beside HashiCorp's own host in Go; batches; a plugin that decides
    Plugin,
}

/// The base of benches.
pub struct Settings {
    /// Folder in which downloaded servers are kept.
    pub cache: PathBuf,
    /// The promise of an acknowledgement.
    pub profile: Profile,
    /// Renders `/metrics`.
    pub metrics: RenderMetrics,
}

/// Settings of a bench run.
pub(crate) struct Run<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) quick: bool,
    events: Option<u64>,
}

impl Run<'_> {
    pub(crate) fn profile(&self) -> Profile {
        self.settings.profile
    }

    /// Rounds in which ours and raw take turns; the figures are medians.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// Duration of one measurement of a rate.
    pub(crate) fn measure(&self) -> Duration {
        Duration::from_millis(if self.quick { 200 } else { 2_500 })
    }

    /// A number of things: as the bench says, fewer for a smoke run.
    pub(crate) fn scale(&self, full: u64) -> u64 {
        if self.quick { (full / 100).max(500) } else { full }
    }

    /// Events in the log: as given, else as the bench says.
    pub(crate) fn events(&self, full: u64) -> u64 {
        self.events.unwrap_or_else(|| self.scale(full)).max(100)
    }
}

/// The result of a bench.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) profile: String,
    pub(crate) ours_per_s: Option<f64>,
    pub(crate) raw_per_s: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) errors: u64,
    pub(crate) replicas: usize,
    /// Measurements that the figures are medians of.
    pub(crate) rounds: usize,
    /// A smoke run: its figures say nothing.
    pub(crate) quick: bool,
    /// Our measurement, in words.
    pub(crate) measured: String,
    /// The raw measurement, in words.
    pub(crate) raw: String,
    pub(crate) goals: Vec<Goal>,
    /// The limit that held it back, as far as the use of processors shows it.
    pub(crate) limits: String,
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

/// The goal of a figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) goal: String,
    pub(crate) reached: bool,
}

impl Figure {
    pub(crate) fn new(name: &'static str, run: &Run<'_>) -> Self {
        let (profile, quick) = (run.profile().to_string(), run.quick);
        Self { name, profile, quick, replicas: 1, rounds: run.rounds(), ..Self::default() }
    }

    /// Sets both rates and their ratio.
    pub(crate) fn rates(&mut self, ours: f64, raw: f64) {
        self.ours_per_s = Some(round(ours));
        self.raw_per_s = Some(round(raw));
        self.ratio = (raw > 0.0).then(|| (ours / raw * 1_000.0).round() / 1_000.0);
    }

    pub(crate) fn goal(&mut self, goal: impl Into<String>, reached: bool) {
        self.goals.push(Goal { goal: goal.into(), reached });
    }

    pub(crate) fn more(&mut self, name: &str, value: impl Into<Value>) {
        self.more.insert(name.to_owned(), value.into());
    }
}

/// A figure without digits that mean nothing.
pub(crate) fn round(value: f64) -> f64 {
    if value.abs() < 100.0 { (value * 100.0).round() / 100.0 } else { value.round() }
}

/// Runs the benches and prints their figures. Returns whether there were no errors.
#[boxed::async_recursion(?Send)]
pub async fn run(settings: &Settings, args: &Args, out: &mut dyn Write) -> anyhow::Result<bool> {
    let run = Run { settings, quick: args.quick, events: args.events };
    let mut figures = Vec::with_capacity(args.benches.len());
    for bench in &args.benches {
        let figure = one(*bench, &run).await?;
        if args.json {
            out::json(out, &figure)?;
            out.flush()?;
        }
        figures.push(figure);
    }
    if !args.json {
        print(&figures, out)?;
    }
    Ok(figures.iter().all(|figure| figure.errors == 0))
}

async fn one(bench: Bench, run: &Run<'_>) -> anyhow::Result<Figure> {
    match bench {
        Bench::Append => append::run(run).await,
        Bench::Commands => commands::run(run).await,
        Bench::Http => http::run(run).await,
        Bench::Overload => overload::run(run).await,
        Bench::Shares => shares::run(run).await,
        Bench::Projection => projection::run(run).await,
        Bench::Rebuild => rebuild::run(run).await,
        Bench::Latency => latency::run(run).await,
        Bench::Load => load::run(run).await,
        Bench::Scale => scale::run(run).await,
        Bench::Growth => growth::run(run).await,
        Bench::Ids => ids::run(run).await,
        Bench::Plugin => plugin::run(run).await,
    }
}

fn print(figures: &[Figure], out: &mut dyn Write) -> anyhow::Result<()> {
    let head = ["bench", "profile", "ours/s", "raw/s", "ratio", "p50 ms", "p99 ms", "errors"];
    let mut table = out::table(head);
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| v.to_string());
    for figure in figures {
        table.add_row([
            figure.name.to_owned(),
            figure.profile.clone(),
            shown(figure.ours_per_s),
            shown(figure.raw_per_s),
            shown(figure.ratio),
            shown(figure.p50_ms),
            shown(figure.p99_ms),
            figure.errors.to_string(),
        ]);
    }
    writeln!(out, "{table}")?;
    for figure in figures {
        explain(figure, out)?;
    }
    Ok(())
}

/// The same in words.
fn explain(figure: &Figure, out: &mut dyn Write) -> anyhow::Result<()> {
    let Figure { name, profile, replicas, rounds, .. } = figure;
    writeln!(out, "\n{name}: profile {profile}, {replicas} replica, n = {rounds}")?;
    if figure.quick {
        writeln!(out, "  a smoke run: the figures say nothing")?;
    }
    writeln!(out, "  ours: {}", figure.measured)?;
    if !figure.raw.is_empty() {
        writeln!(out, "  raw: {}", figure.raw)?;
    }
    for Goal { goal, reached } in &figure.goals {
        writeln!(out, "  goal {goal}: {}", if *reached { "reached" } else { "not reached" })?;
    }
    for (name, value) in &figure.more {
        writeln!(out, "  {name}: {value}")?;
    }
    writeln!(out, "  limits: {}", figure.limits)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_every_field_and_null_where_there_is_no_meaning() {
        let mut figure = Figure { name: "append", ..Figure::default() };
        figure.more("window", 1_024);
        let json = serde_json::to_value(&figure).unwrap();
        for name in ["ours_per_s", "raw_per_s", "ratio", "p50_ms", "p99_ms"] {
            assert_eq!(json[name], Value::Null, "{name}");
            assert!(json.as_object().unwrap().contains_key(name), "{name}");
        }
        assert_eq!((&json["errors"], &json["window"]), (&Value::from(0), &Value::from(1_024)));
        figure.rates(700.4, 1_000.0);
        assert_eq!((figure.ours_per_s, figure.ratio), (Some(700.0), Some(0.7)));
    }
}
