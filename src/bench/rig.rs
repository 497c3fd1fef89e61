//! The base of the benches: servers of their own, the use of processors, and latencies.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::Context;
use flexcore_cluster::{self as cluster, Member};
use flexcore_eventstore::{EventStore, Profile, Settings};
use flexcore_installation::{self as installation, Broker, Endpoints, Installation};
use flexcore_servers::{Options, Servers, Sync, Want};
use flexcore_workers::ALL_WORK;

use crate::{Figure, Run};

/// Longest time for servers to find each other and elect leaders.
const CLUSTER_WITHIN: Duration = Duration::from_secs(30);

/// Servers with temporary data; the log is open.
pub(crate) struct Rig {
    pub(crate) store: EventStore,
    pub(crate) meter: Meter,
    profile: Profile,
    replicas: usize,
    servers: Servers,
}

impl Rig {
    /// A broker alone, or with Postgres, writing as the profile says.
    pub(crate) async fn start(run: &Run<'_>, want: Want) -> anyhow::Result<Self> {
        Self::start_replicated(run, want, 1).await
    }

    /// The same with a broker of so many servers, each of which has a copy of every stream.
    pub(crate) async fn start_replicated(
        run: &Run<'_>,
        want: Want,
        replicas: usize,
    ) -> anyhow::Result<Self> {
        let sync = match run.profile() {
            Profile::PowerLoss => Sync::Always,
            Profile::Relaxed => Sync::Lazy,
        };
        let options =
            Options { sync, want, nats_servers: replicas, ..Options::new(&run.settings.cache) };
        let servers = Servers::start(&options).await?;
        let (broker, monitor_urls) = addresses(&servers)?;
        let settings = Settings { profile: run.profile(), replicas, monitor_urls };
        let client = installation::connect(&broker).await?;
        let store = open(client, &settings).await?;
        let brokers = servers.nats_all().map(|nats| ("nats_server", nats.pid()));
        let others = [("flexcore", Some(std::process::id())), ("postgres", servers.postgres_pid())];
        let meter = Meter::new(brokers.chain(others));
        Ok(Self { store, meter, profile: run.profile(), replicas, servers })
    }

    /// A connection of its own, so that it does not wait behind ours.
    pub(crate) async fn connect(&self) -> anyhow::Result<async_nats::Client> {
        installation::connect(&addresses(&self.servers)?.0).await
    }

    /// URL of the database.
    pub(crate) fn postgres(&self) -> anyhow::Result<String> {
        self.servers.postgres_url().context("BUG: both servers were asked for")
    }

    /// Everything that roles work with.
    pub(crate) async fn installation(&self) -> anyhow::Result<Installation> {
        Installation::open(&self.endpoints()?, self.profile, &membership()).await
    }

    /// Where the servers are.
    pub(crate) fn endpoints(&self) -> anyhow::Result<Endpoints> {
        let (nats, nats_monitors) = addresses(&self.servers)?;
        let (replicas, postgres) = (self.replicas, self.postgres()?);
        Ok(Endpoints { nats, nats_monitors, replicas, postgres, postgres_query: None })
    }

    /// A member that serves everything.
    pub(crate) async fn member(&self) -> anyhow::Result<Member> {
        Ok(Member::join(self.store.client(), membership()).await?)
    }

    /// Ends the servers and removes their data.
    pub(crate) async fn stop(self) {
        let Self { store, servers, .. } = self;
        drop(store);
        servers.stop().await;
    }
}

/// The broker's servers, and the URLs of their monitoring.
fn addresses(servers: &Servers) -> anyhow::Result<(Broker, Vec<String>)> {
    let (urls, monitors): (Vec<_>, Vec<_>) =
        servers.nats_all().map(|nats| (nats.url(), nats.monitor_url())).unzip();
    Ok((Broker::new(&urls, None)?, monitors))
}

/// Opens the log as soon as the servers have found each other.
async fn open(client: async_nats::Client, settings: &Settings) -> anyhow::Result<EventStore> {
    let started = Instant::now();
    loop {
        match EventStore::open(client.clone(), settings.clone()).await {
            Ok(store) => return Ok(store),
            Err(error) if !error.is_passing() => return Err(error.into()),
            Err(error) if started.elapsed() > CLUSTER_WITHIN => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn membership() -> cluster::Settings {
    cluster::Settings::new("bench", "bench", ALL_WORK)
}

/// Adds up the processor time of processes while something of interest runs.
pub(crate) struct Meter {
    processes: Vec<(&'static str, u32)>,
    used_s: BTreeMap<&'static str, f64>,
    machine_s: f64,
    elapsed: Duration,
}

/// `/proc` counts processor time in hundredths of a second, on every Linux.
const TICKS_PER_S: f64 = 100.0;

impl Meter {
    pub(crate) fn new(processes: impl IntoIterator<Item = (&'static str, Option<u32>)>) -> Self {
        let running = |(name, pid): (_, Option<u32>)| pid.map(|pid| (name, pid));
        Self {
            processes: processes.into_iter().filter_map(running).collect(),
            used_s: BTreeMap::new(),
            machine_s: 0.0,
            elapsed: Duration::ZERO,
        }
    }

    /// Runs something, and adds what was used meanwhile.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let processes = self.processes.clone();
        let before: Vec<f64> = processes.iter().map(|(_, pid)| tree_s(*pid)).collect();
        let (machine, started) = (machine_s(), Instant::now());
        let result = work.await;
        self.elapsed += started.elapsed();
        self.machine_s += machine_s() - machine;
        for ((name, pid), before) in processes.into_iter().zip(before) {
            *self.used_s.entry(name).or_default() += (tree_s(pid) - before).max(0.0);
        }
        result
    }

    /// Adds what a process used that is gone by now.
    pub(crate) fn add(&mut self, name: &'static str, used_s: f64) {
        *self.used_s.entry(name).or_default() += used_s;
    }

    /// Writes into the figure who used the processors, and what follows from it.
    pub(crate) fn report(&self, figure: &mut Figure, otherwise: &str) {
        let seconds = self.elapsed.as_secs_f64().max(f64::EPSILON);
        let there = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let mut used: Vec<(String, f64)> =
            self.used_s.iter().map(|(name, used)| ((*name).to_owned(), used / seconds)).collect();
        let ours: f64 = used.iter().map(|(_, cores)| cores).sum();
        let others = (self.machine_s / seconds - ours).max(0.0);
        used.push(("others".to_owned(), others));
        let listed: Vec<String> =
            used.iter().map(|(name, cores)| format!("{name} {cores:.2}")).collect();
        let listed = listed.join(", ");
        // A tenth is left for what ticks cannot see.
        figure.limits = if ours + others > there * 0.9 {
            format!("the {there} processors, all in use: {listed}")
        } else {
            format!("{otherwise}; of {there} processors in use: {listed}")
        };
        let rounded = used.into_iter().map(|(name, cores)| (name, (cores * 100.0).round() / 100.0));
        let cores: serde_json::Map<_, _> = rounded.map(|(n, cores)| (n, cores.into())).collect();
        figure.more("processors", cores);
    }
}

/// Processor time of a process, of those it has waited for, and of its children; 0 when it is gone.
fn tree_s(pid: u32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    // Our own children are the servers, which are counted by themselves.
    let children = children.split_whitespace().filter(|_| pid != std::process::id());
    let of_children: f64 = children.filter_map(|pid| pid.parse().ok()).map(process_s).sum();
    process_s(pid) + of_children
}

/// Processor time of a process; of another one with those that it has waited for.
pub(crate) fn process_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the parenthesis may hold anything; after it come numbers: user and system
    // time as the 12th and 13th, then those of children that it has waited for.
    let numbers = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let waited = if pid == std::process::id() { 2 } else { 4 };
    let ticks: f64 = numbers.skip(11).take(waited).filter_map(|n| n.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_S
}

/// Processor time of the whole machine, idle time left out.
fn machine_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let numbers: Vec<f64> =
        line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let idle: f64 = numbers.iter().skip(3).take(2).sum();
    (numbers.iter().sum::<f64>() - idle) / TICKS_PER_S
}

/// The bottleneck of a bench of the log when the processors have time to spare.
pub(crate) fn otherwise(profile: Profile) -> &'static str {
    match profile {
        Profile::PowerLoss => "the broker's syncs to disk, one a batch",
        Profile::Relaxed => "round trips to the broker",
    }
}

/// Latencies, in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<u32>);

impl Latencies {
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Milliseconds below which so many per cent are; `None` when there are none.
    pub(crate) fn percentile_ms(&mut self, percent: usize) -> Option<f64> {
        Some((self.percentile_us(percent)? / 10.0).round() / 100.0)
    }

    /// The same in microseconds.
    pub(crate) fn percentile_us(&mut self, percent: usize) -> Option<f64> {
        self.0.sort_unstable();
        let at = (self.0.len() * percent / 100).min(self.0.len().checked_sub(1)?);
        self.0.get(at).copied().map(f64::from)
    }
}

/// The middle one of some rates; the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < f64::EPSILON);
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile_ms(50), None);
        for ms in (1..=100).rev() {
            latencies.add(Duration::from_millis(ms));
        }
        assert_eq!(latencies.percentile_ms(50), Some(51.0));
        assert_eq!(latencies.percentile_ms(99), Some(100.0));
    }

    #[test]
    fn a_busy_process_is_seen() {
        let before = process_s(std::process::id());
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            std::hint::black_box(median(vec![1.0; 100]));
        }
        let used = process_s(std::process::id()) - before;
        assert!(used >= 0.05, "{used} s");
        assert!(machine_s() > 0.0);
    }
}
