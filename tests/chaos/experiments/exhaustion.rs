//! More than there is room for: requests, file descriptors, memory, connections to Postgres. Every
//! request is answered, the excess with 429 or 503 and `Retry-After`; nothing accepted is lost; and
//! soon after the overload everything is as it was before.

use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpStream;

use super::Extent;
use crate::{
    checker::{Verdict, answers, commands},
    history::{Call, Told},
    limits::MemoryLimit,
    load::{Load, Pace},
    report::quantile,
    rig::Rig,
};

/// A request that has no answer by then has none.
const DEADLINE: Duration = Duration::from_secs(20);
/// The load beside which an overload is seen, in requests a second.
const BASE_RATE: u64 = 60;
/// Capacity is looked for in these steps.
const RATES: [u64; 7] = [100, 200, 400, 800, 1_600, 3_200, 6_400];
/// The harness's own limit, in requests a second: it shares the machine.
const HARNESS_MOST: u64 = if cfg!(debug_assertions) { 1_500 } else { 12_000 };
/// Longest time after an overload until everything is as before.
const NORMAL_AFTER: Duration = Duration::from_secs(10);
/// Memory of a process, in bytes.
const MEMORY: u64 = 256 << 20;
/// File descriptors of a process.
const DESCRIPTORS: &str = "--nofile=64:64";
/// Clients that connect and say nothing.
const SILENT: usize = 80;
/// Connections that Postgres has, one of them the harness's own.
const POSTGRES_CONNECTIONS: usize = 6;

/// The clients' view of a stretch of load.
#[derive(Debug)]
struct Phase {
    from_ns: u64,
    to_ns: u64,
    sent: usize,
    served: usize,
    turned_away: usize,
    /// Requests that were not sent, because every client was waiting.
    not_sent: u64,
    p99_ms: f64,
    turned_away_p99_ms: f64,
}

impl Phase {
    /// The part that was served: accepted, queued, or refused by the rules.
    fn success(&self) -> f64 {
        self.served as f64 / self.sent.max(1) as f64
    }

    fn told(&self) -> String {
        let seconds = (self.to_ns - self.from_ns) as f64 / 1e9;
        let mut told = format!(
            "{:.0} commands/s sent, {:.1} % served, p99 {:.0} ms, {:.1} % turned away",
            self.sent as f64 / seconds,
            self.success() * 100.0,
            self.p99_ms,
            self.turned_away as f64 * 100.0 / self.sent.max(1) as f64,
        );
        if self.turned_away > 0 {
            told += &format!(", p99 {:.0} ms", self.turned_away_p99_ms);
        }
        if self.not_sent > 0 {
            told += &format!("; {} arrivals not sent: every client waited", self.not_sent);
        }
        told
    }
}

pub(crate) async fn run(mut rig: Rig, extent: Extent) -> crate::report::Section {
    let length = Duration::from_secs(extent.of(4, 15));
    rig.section.without = &[(commands::UNKNOWN, "every server goes on")];
    rig.load(Pace::steady(BASE_RATE)).await;
    rig.fill(Pace::steady(BASE_RATE)).await;
    rig.unload().await;
    // Every slot has its reader and every pool is filled before anything is held to what there was.
    phase(&mut rig, BASE_RATE, length).await;
    rig.held = rig.held().await.unwrap();
    let capacity = capacity(&mut rig).await;
    rig.section.notes.push(format!("capacity: {capacity}/s on this machine, harness included"));
    for times in [1, 2, 5, 10] {
        let wanted = capacity * times;
        let rate = wanted.min(HARNESS_MOST.max(capacity));
        let name = format!("{times} × capacity ({rate}/s of {wanted}/s)");
        overload(&mut rig, &name, rate, length).await;
    }
    descriptors(&mut rig, length).await;
    memory(&mut rig, (capacity * 5).min(HARNESS_MOST), length).await;
    few_connections(&mut rig, length).await;
    rig.finish().await
}

/// Sends so much for so long, and sees the effects once everything is answered.
async fn phase(rig: &mut Rig, rate: u64, length: Duration) -> Phase {
    let pace = Pace { within: DEADLINE, again: false, hot: 0, ..Pace::steady(rate) };
    let from_ns = rig.history.now_ns();
    let seed = rig.seed ^ from_ns;
    let load = Load::start(&rig.cluster.place(), &rig.history, seed, pace).await;
    tokio::time::sleep(length).await;
    let to_ns = rig.history.now_ns();
    let left = load.finish(DEADLINE * 2).await;
    seen(&rig.history.calls(), from_ns, to_ns, left.not_sent)
}

fn seen(calls: &[Call], from_ns: u64, to_ns: u64, not_sent: u64) -> Phase {
    let calls: Vec<&Call> = calls
        .iter()
        .filter(|call| call.gateway > 0 && (from_ns..to_ns).contains(&call.start_ns))
        .collect();
    let times = |of: fn(&Told) -> bool| -> Vec<f64> {
        let of = calls.iter().filter(|call| of(&call.told));
        of.map(|call| (call.end_ns - call.start_ns) as f64 / 1e6).collect()
    };
    let served = times(Told::is_known);
    let turned_away = times(|told| matches!(told, Told::TurnedAway { .. }));
    Phase {
        from_ns,
        to_ns,
        sent: calls.len(),
        served: served.len(),
        turned_away: turned_away.len(),
        not_sent,
        p99_ms: quantile(&served, 0.99),
        turned_away_p99_ms: quantile(&turned_away, 0.99),
    }
}

/// The highest of the rates at which nearly everything is served within a second.
async fn capacity(rig: &mut Rig) -> u64 {
    let mut found = BASE_RATE;
    for rate in RATES.into_iter().take_while(|rate| *rate <= HARNESS_MOST) {
        let phase = phase(rig, rate, Duration::from_secs(3)).await;
        rig.fault(&format!("asked for {rate}/s: {}", phase.told()));
        if phase.success() < 0.99 || phase.p99_ms > 1_000.0 {
            break;
        }
        found = rate;
    }
    found
}

/// A while before, the overload, and a while after it.
async fn overload(rig: &mut Rig, name: &str, rate: u64, length: Duration) {
    let before = phase(rig, BASE_RATE, length).await;
    rig.fault(name);
    let during = phase(rig, rate, length).await;
    judge(rig, name, &during);
    normal_again(rig, name, &before, length).await;
}

/// 13: everything that was sent in this while was answered properly.
fn judge(rig: &mut Rig, name: &str, during: &Phase) {
    let told = format!("{name}: {}", during.told());
    rig.fault(&told);
    rig.section.notes.push(told);
    let within = |start_ns: u64| (during.from_ns..during.to_ns).contains(&start_ns);
    let mut calls = rig.history.calls();
    calls.retain(|call| within(call.start_ns));
    let mut reads = rig.history.reads();
    reads.retain(|read| within(read.start_ns));
    rig.section.verdicts.push(answers::everything_is_answered(&calls, &reads));
}

/// 13: some seconds after the end everything is as before.
async fn normal_again(rig: &mut Rig, name: &str, before: &Phase, length: Duration) {
    tokio::time::sleep(NORMAL_AFTER).await;
    let after = phase(rig, BASE_RATE, length).await;
    let mut verdict = Verdict::new(13, "10 s after an overload everything is as before");
    // Twice the time and some is noise on a machine that does everything at once.
    let most_ms = before.p99_ms * 2.0 + 100.0;
    verdict.hold(after.success() >= before.success() - 0.01 && after.p99_ms <= most_ms, || {
        format!("{name}: before {}; after {}", before.told(), after.told())
    });
    rig.section.verdicts.push(verdict);
}

/// A gateway, then a worker, with few file descriptors, and more clients than fit.
async fn descriptors(rig: &mut Rig, length: Duration) {
    for node in ["gateway-1", "worker-1"] {
        let before = phase(rig, BASE_RATE, length).await;
        let name = format!("{node} with 64 file descriptors");
        rig.fault(&name);
        rig.cluster.stop(node).await;
        rig.cluster.client.close();
        rig.cluster.start_flexcore(node, &["prlimit", DESCRIPTORS]);
        rig.cluster.ready().await;
        // More clients that say nothing than there are descriptors: they go by their time limit.
        let silent = silent_clients(&rig.cluster.gateway(1)).await;
        let during = phase(rig, BASE_RATE * 5, length).await;
        drop(silent);
        judge(rig, &name, &during);
        rig.cluster.stop(node).await;
        rig.cluster.client.close();
        rig.cluster.start_flexcore(node, &[]);
        rig.cluster.ready().await;
        normal_again(rig, &name, &before, length).await;
    }
}

async fn silent_clients(authority: &str) -> Vec<TcpStream> {
    let connect = || tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(authority));
    let connected = join_all((0..SILENT).map(|_| connect())).await;
    connected.into_iter().flatten().flatten().collect()
}

/// A gateway and a worker with little memory, under overload.
async fn memory(rig: &mut Rig, rate: u64, length: Duration) {
    let before = phase(rig, BASE_RATE, length).await;
    let mut limits = Vec::new();
    for node in ["gateway-1", "worker-1"] {
        let pid = rig.cluster.node(node).pid().unwrap();
        limits.extend(MemoryLimit::put(node, pid, MEMORY));
    }
    if limits.len() < 2 {
        rig.section.notes.push("256 MB of memory: no memory control group here".to_owned());
        return;
    }
    let name = format!("gateway-1 and worker-1 with 256 MB (control groups), {rate}/s");
    rig.fault(&name);
    let during = phase(rig, rate, length).await;
    judge(rig, &name, &during);
    let mut verdict = Verdict::new(13, "memory stays under its cap: nothing is killed");
    for (limit, node) in limits.iter().zip(["gateway-1", "worker-1"]) {
        let pid = rig.cluster.node(node).pid().unwrap_or(0);
        let peak = crate::host::peak_kib(pid).unwrap_or(0) / 1_024;
        rig.section.notes.push(format!("{node}: {peak} MiB resident at most"));
        let kills = limit.kills();
        let alive = rig.cluster.node(node).is_alive();
        verdict.hold(alive && kills == 0, || format!("{node}: alive {alive}, {kills} kills"));
    }
    rig.section.verdicts.push(verdict);
    normal_again(rig, &name, &before, length).await;
}

/// Postgres with a handful of connections for everybody.
async fn few_connections(rig: &mut Rig, length: Duration) {
    let before = phase(rig, BASE_RATE, length).await;
    let name = "Postgres with 5 connections";
    rig.fault(name);
    let settings = ["superuser_reserved_connections=0".to_owned(), {
        format!("max_connections={POSTGRES_CONNECTIONS}")
    }];
    let usual = rig.cluster.node("postgres").plan.line.clone();
    rig.cluster.kill("postgres");
    let line = &mut rig.cluster.node("postgres").plan.line;
    settings.iter().for_each(|setting| line.extend(["-c".to_owned(), setting.clone()]));
    rig.cluster.run("postgres");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let during = phase(rig, BASE_RATE, length).await;
    judge(rig, name, &during);
    rig.cluster.kill("postgres");
    rig.cluster.node("postgres").plan.line = usual;
    rig.cluster.run("postgres");
    rig.cluster.ready().await;
    normal_again(rig, name, &before, length).await;
}
