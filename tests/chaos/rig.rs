//! A cluster under load and under watch: what every experiment starts from and ends with.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    checker::{self, Story, Verdict, answers::Stop, resources},
    cluster::{Cluster, Shape},
    evidence::{self, Log, Snapshot},
    fake_postgres::FakePostgres,
    gather,
    history::{History, Wish},
    host::say,
    leadership::Leadership,
    listener::Listener,
    load::{Load, Pace},
    report::Section,
    talk,
};

/// Time for which every answer must come soon before a fault is over.
pub(crate) const CALM: Duration = Duration::from_millis(1_500);
/// Then it is given up waiting for that.
pub(crate) const RECOVERY_MOST: Duration = Duration::from_secs(90);
/// Between two looks at rows and checkpoints.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(500);
/// Time for which clients go on asking after the last fault before they give up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time without progress until the cluster is at rest, and longest time in all.
pub(crate) const REST_WAIT: Duration = Duration::from_secs(60);
const REST_MOST: Duration = Duration::from_secs(600);
/// Time for which the load runs before the first fault, so that everything has been used once.
const WARM_UP: Duration = Duration::from_secs(4);
/// Commands that a hot account gets at once in the beginning: what comes then is beyond every window.
const FILLING: usize = 2_100;
/// Longest time for them, and most stored commands that may be left.
const FILLING_MOST: Duration = Duration::from_secs(120);
const FILLED: u64 = 200;
/// Time for which healthy brokers may say that there is no log before that is believed.
const NO_LOG_WAIT: Duration = Duration::from_secs(15);

/// The kind of node that leads the log's stream.
pub(crate) const LOG_LEADER: &str = "the log's leader";

/// A broker that loses its disk as well.
pub(crate) const LOST_NATS: &str = "nats and its disk";

/// The tools of an experiment.
pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    pub(crate) history: History,
    pub(crate) random: StdRng,
    pub(crate) section: Section,
    pub(crate) leadership: Leadership,
    /// Processes that were asked to end.
    pub(crate) stops: Vec<Stop>,
    load: Option<Load>,
    /// True if a hot account has got more commands than anybody remembers.
    is_filled: bool,
    listener: Listener,
    watch: JoinHandle<()>,
    watching: CancellationToken,
    snapshots: Arc<Mutex<Vec<Snapshot>>>,
    pub(crate) held: resources::Held,
    pub(crate) seed: u64,
}

impl Rig {
    /// Builds the cluster and starts the load.
    pub(crate) async fn start(name: &str, seed: u64, shape: Shape, pace: Pace) -> Self {
        let mut rig = Self::quiet(name, seed, shape).await;
        rig.load(pace).await;
        // A power cut is about disks, and long enough without.
        if !rig.cluster.shape.disks {
            rig.fill(pace).await;
        }
        tokio::time::sleep(WARM_UP).await;
        rig.unload().await;
        // Pools are filled by now; resources that are held from here on are a leak.
        rig.held = rig.held().await.unwrap();
        rig.load(pace).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig
    }

    /// Builds the cluster, without load.
    pub(crate) async fn quiet(name: &str, seed: u64, shape: Shape) -> Self {
        let cluster = Cluster::start(shape).await;
        let history = History::new(&cluster.net.folder.join("history.jsonl"));
        let (snapshots, watching) = (Arc::default(), CancellationToken::new());
        let url = cluster.postgres();
        let watch = watch(url, history.clone(), Arc::clone(&snapshots), watching.clone());
        let client = talk::connect(&cluster.nats()).await;
        let mut rig = Self {
            leadership: Leadership::follow(client, history.clone()),
            stops: Vec::new(),
            history,
            random: StdRng::seed_from_u64(seed),
            section: Section::new(name),
            load: None,
            is_filled: false,
            listener: Listener::start(&cluster.place()),
            watch: tokio::spawn(watch),
            watching,
            snapshots,
            held: BTreeMap::new(),
            seed,
            cluster,
        };
        rig.held = rig.held().await.unwrap();
        rig
    }

    /// Some node of a kind: `worker`, `gateway`, `nats`, `postgres`, [`LOG_LEADER`] or [`LOST_NATS`].
    pub(crate) async fn member_of(&mut self, kind: &str) -> String {
        let count = match kind {
            "postgres" => return kind.to_owned(),
            LOG_LEADER => return self.log_leader().await,
            "nats" | LOST_NATS => 3,
            "gateway" => self.cluster.shape.gateways,
            _ => self.cluster.shape.workers,
        };
        let role = if kind == LOST_NATS { "nats" } else { kind };
        format!("{role}-{}", self.random.random_range(1..=count))
    }

    /// Starts the load.
    pub(crate) async fn load(&mut self, pace: Pace) {
        let number = self.history.now_ns();
        let place = self.cluster.place();
        let load = Load::start(&place, &self.history, self.seed ^ number, pace).await;
        self.load = Some(load);
    }

    /// Gives a hot account so many commands that what comes later is beyond every window.
    pub(crate) async fn fill(&mut self, pace: Pace) {
        let Some(load) = &self.load else { return };
        fill(load, FILLING, &self.cluster.nats(), pace).await;
        self.is_filled = true;
    }

    /// Has some requests under way to a gateway.
    pub(crate) async fn burst(&self, gateway: usize) {
        if let Some(load) = &self.load {
            load.burst(gateway).await;
        }
    }

    /// Ends the load; adds how many gave up to the notes.
    pub(crate) async fn unload(&mut self) {
        if let Some(load) = self.load.take() {
            let left = load.finish(PATIENCE).await;
            self.section.notes.extend(left.notes());
        }
    }

    /// The fake in front of Postgres.
    pub(crate) fn fake(&self) -> &FakePostgres {
        self.cluster.fake.as_ref().expect("BUG: the shape has a fake")
    }

    /// Prints a fault with its time, and notes it.
    pub(crate) fn fault(&mut self, what: &str) -> u64 {
        let now_ns = self.history.now_ns();
        say(&format!("{:8.3} s {what}", now_ns as f64 / 1e9));
        now_ns
    }

    /// Waits until commands are answered within a second again after the fault; adds how long that
    /// took from the fault: until the last command began that was answered later.
    pub(crate) async fn recovers(
        &mut self,
        kind: &str,
        fault_ns: u64,
        calm: Duration,
        most: Duration,
    ) {
        const SOON_NS: u64 = 1_000_000_000;
        let started = Instant::now();
        let calm_ns = u64::try_from(calm.as_nanos()).unwrap();
        let mut verdict = Verdict::new(0, "the cluster recovers by itself");
        let recovered_ns = loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now_ns = self.history.now_ns();
            // Those that were under way count from the fault on.
            let wishes = self.history.wishes(fault_ns.saturating_sub(SOON_NS));
            let late = |wish: &&Wish| wish.known_ns.unwrap_or(now_ns) > wish.start_ns + SOON_NS;
            let last = wishes.iter().filter(late).map(|wish| wish.start_ns.max(fault_ns)).max();
            let last = last.unwrap_or(fault_ns);
            let waiting = |wish: &Wish| wish.known_ns.is_none() && !wish.given_up;
            let waits = wishes.iter().any(|w| waiting(w) && now_ns > w.start_ns + SOON_NS);
            if !waits && now_ns > last + calm_ns {
                verdict.hold(true, String::new);
                break last;
            }
            if started.elapsed() > most {
                verdict.hold(false, || format!("{kind}: not within {most:?}"));
                break now_ns;
            }
        };
        self.section.verdicts.push(verdict);
        let ms = (recovered_ns - fault_ns) as f64 / 1e6;
        say(&format!("           {kind}: recovered after {ms:.0} ms"));
        self.section.time(format!("recovery from {kind}"), ms);
    }

    /// Heals nothing by itself: ends the load, waits for rest, collects and checks. Gives the
    /// section of the report.
    pub(crate) async fn finish(mut self) -> Section {
        self.unload().await;
        let mut violations = Vec::new();
        if let Err(error) = self.rest().await {
            violations.push(format!("no rest: {error}"));
        }
        self.watching.cancel();
        drop((&mut self.watch).await);
        match self.story().await {
            Ok(story) => {
                self.section.notes.push(story.told());
                self.section.verdicts.extend(checker::all(&story));
                if self.is_filled {
                    let verdict = checker::commands::late_repeats_are_known(&story);
                    self.section.verdicts.push(verdict);
                }
                if !self.stops.is_empty() {
                    let (stops, calls) = (&self.stops, &story.calls);
                    let verdicts = &mut self.section.verdicts;
                    verdicts.push(checker::answers::ends_in_order(stops));
                    verdicts.push(checker::answers::nothing_under_way_fails(stops, calls));
                }
            }
            Err(error) => violations.push(format!("no evidence: {error}")),
        }
        let effects = self.leadership.effects();
        self.section.verdicts.push(checker::epochs::effects_follow_epochs(&effects));
        let held = self.held_verdict().await;
        self.section.verdicts.push(held);
        let rest = Verdict { invariant: 6, what: checker::REST, n: 1, violations };
        self.section.verdicts.push(rest);
        self.keep();
        self.section
    }

    /// Ends the load and holds what clients were told to the log alone: after faults that may have
    /// torn everything else.
    pub(crate) async fn finish_with_the_log_alone(mut self) -> Section {
        if let Some(load) = self.load.take() {
            load.finish(Duration::from_secs(3)).await;
        }
        self.watching.cancel();
        drop((&mut self.watch).await);
        self.cluster.brokers_ready().await;
        let client = talk::connect(&self.cluster.nats()).await;
        let start = Instant::now();
        let log = loop {
            match evidence::log(&client).await {
                Ok(log) => break Some(log),
                Err(error) if start.elapsed() > NO_LOG_WAIT => {
                    // Brokers that say there is no log prove a loss. One that cannot be read proves
                    // nothing, and a control arm without a violation fails.
                    let none = error.contains("10059");
                    let what = if none { "taken as empty" } else { "no evidence" };
                    self.section.notes.push(format!("{what}: {error}"));
                    break none.then(Log::default);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        if let Some(log) = log {
            let (calls, begun_ms) = (self.history.calls(), self.history.begun_ms);
            let story = Story { calls, begun_ms, log, ..Story::default() };
            self.section.notes.push(story.told());
            self.section.verdicts.extend(checker::of_the_log(&story));
        }
        self.keep();
        self.section
    }

    /// Ends the load and holds all reads from Postgres meanwhile to one check.
    pub(crate) async fn finish_with_the_snapshots_alone(
        mut self,
        check: fn(&Story) -> Verdict,
    ) -> Section {
        if let Some(load) = self.load.take() {
            load.finish(Duration::from_secs(3)).await;
        }
        self.watching.cancel();
        drop((&mut self.watch).await);
        let snapshots = std::mem::take(&mut *self.snapshots.lock().unwrap());
        self.section.verdicts.push(check(&Story { snapshots, ..Story::default() }));
        self.keep();
        self.section
    }

    /// Keeps history and logs for people who have to understand a violation.
    fn keep(&self) {
        let name = self.section.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(name);
        self.history.flush();
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(&self.cluster.net.folder).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log" || extension == "jsonl")
            {
                fs::copy(&path, to.join(entry.file_name())).unwrap();
            }
        }
        say(&format!("history and logs are in {}", to.display()));
    }

    /// Waits until everybody is back, the queue is drained, and rows equal the fold.
    async fn rest(&mut self) -> Result<(), String> {
        self.cluster.brokers_ready().await;
        self.cluster.ready().await;
        let client = talk::connect(&self.cluster.nats()).await;
        let start = Instant::now();
        let mut last = (String::new(), start);
        loop {
            let waiting = match gather::waiting(&self.cluster.place(), &client).await {
                Ok(None) => return Ok(()),
                Ok(Some(waiting)) => waiting,
                Err(error) => error,
            };
            if waiting != last.0 {
                last = (waiting.clone(), Instant::now());
            }
            if last.1.elapsed() > REST_WAIT || start.elapsed() > REST_MOST {
                return Err(waiting);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn story(&mut self) -> Result<Story, String> {
        let place = self.cluster.place();
        let mut story = gather::story(&place, &self.history, &self.listener).await?;
        for read_model in ["balances", "branches"] {
            self.cluster.flexcore(&["rebuild", read_model, "--json"])?;
        }
        story.rebuilt = Some(gather::rows(&place).await?);
        story.snapshots = std::mem::take(&mut *self.snapshots.lock().unwrap());
        story.replicas = self.level_replicas().await?;
        Ok(story)
    }
}

/// Has a load store so many commands for a hot account, and waits until nearly all are done: an aggregate
/// that has more to do than it can leaves its clients without an answer.
pub(crate) async fn fill(load: &Load, count: usize, nats: &[String], pace: Pace) {
    load.fill(count, pace).await;
    let jetstream = async_nats::jetstream::new(talk::connect(nats).await);
    let start = Instant::now();
    while start.elapsed() < FILLING_MOST {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Settled commands are purged every few seconds; others store some meanwhile.
        let queue = jetstream.get_stream("FLEX_COMMANDS").await;
        if queue.is_ok_and(|queue| queue.cached_info().state.messages < FILLED) {
            break;
        }
    }
}

/// Looks at rows and checkpoints now and then, until told to stop.
pub(crate) async fn watch(
    url: String,
    history: History,
    snapshots: Arc<Mutex<Vec<Snapshot>>>,
    stop: CancellationToken,
) {
    let mut connection = None;
    while !stop.is_cancelled() {
        tokio::time::sleep(SNAPSHOT_EVERY).await;
        let mut open = match connection.take() {
            Some(open) => open,
            None => match evidence::postgres(&url).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        let generation = crate::load::generation(history.now_ns());
        let look = evidence::snapshot(&mut open, generation);
        if let Ok(Ok(snapshot)) = tokio::time::timeout(Duration::from_secs(5), look).await {
            snapshots.lock().unwrap().push(snapshot);
            connection = Some(open);
        }
    }
}
