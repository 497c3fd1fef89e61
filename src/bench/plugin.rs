//! `bench plugin`: our host beside HashiCorp's own with the same plugin in Go, calls in batches, and a
//! plugin that decides.

mod deciding;
mod go_host;
mod our_host;
mod own;
mod sampled;
mod streams;

use std::time::Instant;

use flexcore_out as out;
use serde_json::{Value, json};

use crate::{
    Figure, Run,
    rig::{Meter, median},
};
use go_host::{GoHost, Programs};
use our_host::OurHost;
pub use own::entered;
use sampled::{Rounds, thousandths};

/// Bytes of a call, and of its answer.
const BYTES: usize = 1_024;
/// Calls at once, each with the ratio that is the goal.
const IN_FLIGHT: [(usize, f64); 2] = [(1, 1.0), (MANY, 1.2)];
/// The larger one.
const MANY: usize = 32;
/// Starts of each host in each way.
const STARTS: usize = 20;

/// The ways to talk to a plugin, with or without TLS.
const WAYS: [(&str, bool); 2] = [("plain", false), ("tls", true)];

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut figure = Figure::new("plugin", run);
    let programs = Programs::get(&run.settings.cache).await?;
    let bar = out::progress(if programs.is_ok() { 4 } else { 2 }, "plugin");
    streams::run(run, &mut figure, BYTES, MANY).await?;
    bar.inc(1);
    deciding::run(run, &mut figure).await?;
    bar.inc(1);
    figure.measured = format!(
        "calls of {BYTES} bytes of a plugin in Go by our host, {MANY} in flight, with TLS (calls: all of \
         it); start to first answer (starts); calls of a plugin in Rust one by one and in batches \
         (streams); stored commands that a plugin decides, beside the same in JavaScript (decider)"
    );
    match programs {
        Ok(programs) => {
            called(run, &mut figure, &programs).await?;
            bar.inc(1);
            starts(run, &mut figure, &programs).await?;
            figure.raw =
                "HashiCorp's go-plugin as the host, in Go, of the same plugin; the version \
                          that this machine's packages have"
                    .to_owned();
        }
        Err(lacks) => {
            figure.raw = format!("left out, with calls and starts: no host in Go: {lacks}");
        }
    }
    bar.finish_and_clear();
    Ok(figure)
}

/// Calls of the plugin in Go by both hosts, in turns.
async fn called(run: &Run<'_>, figure: &mut Figure, programs: &Programs) -> anyhow::Result<()> {
    let mut told = serde_json::Map::new();
    for (way, tls) in WAYS {
        let mut go = GoHost::start(programs, tls).await?;
        let ours = OurHost::start(programs, tls).await?;
        for (in_flight, goal) in IN_FLIGHT {
            let is_headline = tls && in_flight == MANY;
            let mut meter = meter(&ours);
            let [rounds, raw] = both(run, &ours, &mut go, in_flight, &mut meter).await?;
            let ratio = rounds.per_s() / raw.per_s().max(f64::EPSILON);
            if is_headline {
                figure.rates(rounds.per_s(), raw.per_s());
                (figure.p50_ms, figure.p99_ms) = (Some(rounds.p50_ms()), Some(rounds.p99_ms()));
                meter.report(figure, "the way between two processes and back");
            }
            let name = format!("{way}_{in_flight}");
            figure.goal(format!("calls {name}: at least {goal} of the host in Go"), ratio >= goal);
            let ratio = thousandths(ratio);
            let both = json!({ "ratio": ratio, "ours": rounds.told(), "raw": raw.told() });
            told.insert(name, both);
        }
        ours.stop().await;
        go.stop().await?;
    }
    figure.more("calls", told);
    Ok(())
}

/// Who uses the processors while our host calls.
fn meter(ours: &OurHost) -> Meter {
    let [host, plugin] = ours.processes();
    Meter::new([("flexcore", Some(host)), ("plugin", Some(plugin))])
}

/// Rounds in which both hosts take turns: ours, and the one in Go.
async fn both(
    run: &Run<'_>,
    ours: &OurHost,
    go: &mut GoHost,
    in_flight: usize,
    meter: &mut Meter,
) -> anyhow::Result<[Rounds; 2]> {
    let warm_up = run.measure() / 5;
    ours.calls(in_flight, warm_up, BYTES).await?;
    go.calls(in_flight, warm_up, BYTES).await?;
    let (mut rounds, mut raw) = (Rounds::default(), Rounds::default());
    for _ in 0..run.rounds() {
        let calls = ours.calls(in_flight, run.measure(), BYTES);
        meter.during(rounds.measure(ours.processes(), calls)).await?;
        let processes = go.processes();
        raw.measure(processes, go.calls(in_flight, run.measure(), BYTES)).await?;
    }
    Ok([rounds, raw])
}

/// From the start of a plugin to its first answer, by both hosts, in turns.
async fn starts(run: &Run<'_>, figure: &mut Figure, programs: &Programs) -> anyhow::Result<()> {
    let starts = if run.quick { 2 } else { STARTS };
    let mut told = serde_json::Map::new();
    for (way, tls) in WAYS {
        let mut go = GoHost::start(programs, tls).await?;
        let file = our_host::opened(programs)?;
        let (mut ours_us, mut raw_us) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while ours_us.len() < starts && began.elapsed() < go_host::PATIENCE {
            ours_us.push(our_host::started(file.clone(), tls, BYTES).await?);
            raw_us.push(go.starts(BYTES).await?);
        }
        go.stop().await?;
        let measured = ours_us.len();
        let (ours_us, raw_us) = (median(ours_us), median(raw_us));
        let ratio = ours_us / raw_us.max(f64::EPSILON);
        figure.goal(format!("start {way}: at most the time of the host in Go"), ratio <= 1.0);
        let both: Value = json!({
            "ms": thousandths(ours_us / 1e3),
            "raw_ms": thousandths(raw_us / 1e3),
            "ratio": thousandths(ratio),
            "starts": measured,
        });
        told.insert(way.to_owned(), both);
    }
    figure.more("starts", told);
    Ok(())
}
