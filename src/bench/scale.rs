//! `bench scale`: asynchronous commands with 1, 2 and 4 worker processes on a broker of three
//! servers, and what it costs to hand slots over meanwhile.

use std::{
    collections::BTreeSet,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use async_nats::HeaderMap;
use flexcore_cluster::{self as cluster, Owners, View};
use flexcore_domain::{Command, Outcome, command::header};
use flexcore_eventstore::{Profile, topology};
use flexcore_installation::Endpoints;
use flexcore_out as out;
use flexcore_servers::Want;
use tokio::process::{self, Child};
use tokio_util::sync::CancellationToken;

use crate::{
    Figure, Run,
    counter::{self, address, command, payload},
    processing::{Processed, WINDOW, process as process_commands},
    raw_log::{Publish, RawLog},
    rig::{Latencies, Rig, median, otherwise, process_s},
    round,
};

/// Copies of each stream, each on a server of its own.
const REPLICAS: usize = 3;
/// Worker processes that are compared.
const WORKERS: [usize; 3] = [1, 2, 4];
/// And in turn, up and down again: with each measurement the log grows and the broker becomes a little
/// slower, which the way down makes good for.
const IN_TURN: [usize; 6] = [1, 2, 4, 4, 2, 1];
/// Commands of a measurement.
const COMMANDS: u64 = 40_000;
/// Longest time for slots to find their owners.
const BALANCED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two synchronous commands that are sent while slots are handed over.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// Longest wait for the answer to one.
const PROBE_MAX: Duration = Duration::from_secs(15);
/// Aggregates that they are for, over all slots.
const PROBED: u64 = 256;
/// The part of one worker's throughput that several must keep: less is more than the noise of a
/// shared machine.
const KEPT: f64 = 0.95;
/// The part of the raw limit that is to be reached.
const GOAL: f64 = 0.2;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start_replicated(run, Want::Both, REPLICAS).await?;
    let mut raw = RawLog::open(&rig).await?;
    let mut workers = Workers::new(run, rig.endpoints()?);
    workers.scale_to(&rig, 1).await?;
    counter::deploy(&rig.store).await?;
    let (count, size, mut first) = (run.scale(COMMANDS), payload(0).len(), 0);
    let how = match run.profile() {
        Profile::Relaxed => Publish::Plain,
        Profile::PowerLoss => Publish::Expecting,
    };
    raw.publish(how, size, WINDOW, run.measure() / 5).await?;
    let (mut rates, mut raw_per_s) = (vec![vec![]; WORKERS.len()], vec![]);
    let mut handed = Handed::default();
    let bar = out::progress((run.rounds() * (IN_TURN.len() + 1)) as u64, "scale");
    for _ in 0..run.rounds() {
        let mut seconds = [0.0; WORKERS.len()];
        for number in IN_TURN {
            workers.scale_to(&rig, number).await?;
            let per_s = workers.measure(&mut rig, &mut first, count).await?.per_s;
            let at =
                WORKERS.iter().position(|of| *of == number).expect("BUG: one that is compared");
            seconds[at] += count as f64 / per_s;
            bar.inc(1);
        }
        for (rates, seconds) in rates.iter_mut().zip(seconds) {
            rates.push(2.0 * count as f64 / seconds);
        }
        raw_per_s.push(raw.publish(how, size, WINDOW, run.measure()).await?);
        hand_over(&rig, &mut workers, &mut handed).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    workers.stop().await?;
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    let mut figure = Figure::new("scale", run);
    figure.replicas = REPLICAS;
    let lowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    figure.rates(lowest, median(raw_per_s));
    for (number, rate) in WORKERS.iter().zip(&rates) {
        figure.more(&format!("workers_{number}_per_s"), round(*rate));
    }
    let dead = rig.store.jetstream().get_stream(topology::DEAD).await?;
    figure.errors = dead.cached_info().state.messages + handed.errors;
    handed.report(&mut figure);
    let kept = lowest / rates[0];
    figure.more("kept_of_one_worker", round(kept));
    figure.goal(format!("several workers keep {KEPT} of one worker's throughput"), kept >= KEPT);
    let reached = figure.ratio.is_some_and(|ratio| ratio >= GOAL);
    figure.goal(format!("ratio at least {GOAL}"), reached);
    figure.measured = format!(
        "{count} asynchronous commands of {size} bytes, {WINDOW} in flight, decided in JavaScript \
         by 1, 2, 4, 4, 2 and 1 worker processes in turn, three servers on this machine; the \
         lowest of the three medians. While the workers go from 2 to 4 and back, a synchronous \
         command every {} ms",
        PROBE_EVERY.as_millis()
    );
    figure.raw = match how {
        Publish::Plain => format!("messages of {size} bytes published, {WINDOW} in flight"),
        Publish::Expecting => {
            format!("the same published with an expected sequence, {WINDOW} in flight")
        }
    };
    rig.meter.report(&mut figure, otherwise(run.profile()));
    rig.stop().await;
    Ok(figure)
}

/// Worker processes.
struct Workers {
    line: Vec<String>,
    running: Vec<Child>,
}

impl Workers {
    fn new(run: &Run<'_>, endpoints: Endpoints) -> Self {
        let Endpoints { nats, nats_monitors, replicas, postgres, .. } = endpoints;
        let line = [
            ("--nats", nats.to_string()),
            ("--nats-monitor", nats_monitors.join(",")),
            ("--replicas", replicas.to_string()),
            ("--postgres", postgres),
            ("--profile", run.profile().to_string()),
            ("--log", "error".to_owned()),
        ];
        let line = line.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        Self { line: line.collect(), running: Vec::new() }
    }

    /// Starts and ends workers. Returns when each has its share of the slots.
    async fn scale_to(&mut self, rig: &Rig, count: usize) -> anyhow::Result<()> {
        while self.running.len() < count {
            let mut line = process::Command::new(std::env::current_exe()?);
            line.args(["worker", "command"]).args(&self.line);
            line.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
            self.running.push(line.spawn().context("starting a worker")?);
        }
        while self.running.len() > count {
            let Some(worker) = self.running.pop() else { break };
            end(worker).await?;
        }
        let started = Instant::now();
        // Before the first of them has joined there is nothing to look at.
        while !cluster::look(rig.store.client()).await.is_ok_and(|view| is_balanced(&view, count)) {
            if started.elapsed() > BALANCED_WITHIN {
                bail!("{count} workers have not shared the slots out in time");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Has them process commands, and adds what they used of the processors. A quarter goes before
    /// and does not count: new workers have to compile the deciders and to fill their caches.
    async fn measure(
        &self,
        rig: &mut Rig,
        first: &mut u64,
        count: u64,
    ) -> anyhow::Result<Processed> {
        process_commands(&rig.store, first, count / 4).await?;
        let used = || self.running.iter().filter_map(Child::id).map(process_s).sum::<f64>();
        let (store, before) = (rig.store.clone(), used());
        let processed = rig.meter.during(process_commands(&store, first, count)).await?;
        rig.meter.add("workers", used() - before);
        Ok(processed)
    }

    async fn stop(self) -> anyhow::Result<()> {
        for worker in self.running {
            end(worker).await?;
        }
        Ok(())
    }
}

/// Has a worker hand over what it has, and end.
async fn end(mut worker: Child) -> anyhow::Result<()> {
    let pid = worker.id().context("a worker has ended by itself")?;
    process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
    let status = worker.wait().await?;
    if !status.success() {
        bail!("a worker ended with {status}");
    }
    Ok(())
}

/// True if so many members own all slots, in shares that differ by one at most.
fn is_balanced(view: &View, count: usize) -> bool {
    let owned = |seat: &cluster::Seat| seat.owns.get(flexcore_workers::COMMANDS.name).map(Vec::len);
    let shares: Vec<usize> = view.members.iter().filter_map(owned).collect();
    let all = usize::from(flexcore_workers::COMMANDS.places);
    let differ = shares.iter().max().zip(shares.iter().min()).is_some_and(|(a, b)| a - b <= 1);
    shares.len() == count && shares.iter().sum::<usize>() == all && differ
}

/// Observations while slots changed hands.
#[derive(Default)]
struct Handed {
    took_ms: Vec<f64>,
    answers: Latencies,
    errors: u64,
}

impl Handed {
    fn report(&mut self, figure: &mut Figure) {
        figure.more("handover_ms", round(median(self.took_ms.clone())));
        figure.p50_ms = self.answers.percentile_ms(50);
        figure.p99_ms = self.answers.percentile_ms(99);
        figure.more("handover_longest_answer_ms", self.answers.percentile_ms(100));
        figure.more("handover_answers", self.answers.len() as u64);
        figure.more("handover_errors", self.errors);
    }
}

/// Goes from 2 workers to 4 and back while synchronous commands go to every slot. A hand-over's time
/// is until every worker has its share: the start of a process and its first look are in it.
async fn hand_over(rig: &Rig, workers: &mut Workers, handed: &mut Handed) -> anyhow::Result<()> {
    workers.scale_to(rig, 2).await?;
    let stop = CancellationToken::new();
    let owners = Owners::attach(flexcore_workers::COMMANDS, rig.store.client()).await?;
    let probing = tokio::spawn(probe(owners, stop.clone(), handed.answers.len() as u64));
    for count in [4, 2] {
        let started = Instant::now();
        workers.scale_to(rig, count).await?;
        handed.took_ms.push(started.elapsed().as_secs_f64() * 1_000.0);
        tokio::time::sleep(PROBE_EVERY * 100).await;
    }
    stop.cancel();
    let (answers, errors) = probing.await??;
    handed.answers.append(answers);
    handed.errors += errors;
    Ok(())
}

/// Sends a command every few milliseconds, whether the ones before are answered or not.
async fn probe(
    owners: Owners,
    stop: CancellationToken,
    first: u64,
) -> anyhow::Result<(Latencies, u64)> {
    let mut asked = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    let mut number = first;
    while !stop.is_cancelled() {
        ticks.tick().await;
        asked.spawn(ask(owners.clone(), number));
        number += 1;
    }
    let (mut answers, mut errors, mut seen) = (Latencies::default(), 0, BTreeSet::new());
    while let Some(answered) = asked.join_next().await {
        match answered? {
            Ok(latency) => answers.add(latency),
            Err(error) => {
                errors += 1;
                if seen.insert(error.to_string()) {
                    tracing::warn!(%error, "a command sent during a hand-over has no answer");
                }
            }
        }
    }
    Ok((answers, errors))
}

async fn ask(owners: Owners, number: u64) -> anyhow::Result<Duration> {
    // Above those of the measurements.
    let (key, id) = address((1 << 40) + number % PROBED, number)?;
    let question = |epoch, _| {
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, id.as_str());
        headers.insert(header::ACTOR, "bench");
        (Command::request_subject(epoch, &key, &command()), headers)
    };
    let (slot, sent) = (key.slot().number(), Instant::now());
    let asked = owners.ask(slot, PROBE_MAX, payload(number).into(), question);
    let reply = asked.await.map_err(|error| anyhow::anyhow!("{error}"))?;
    match serde_json::from_slice(&reply.message.payload)? {
        Outcome::Accepted { .. } => Ok(sent.elapsed()),
        other => bail!("{other:?}"),
    }
}
