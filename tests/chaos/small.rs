//! One process that is a whole installation, `flexcore dev`, for the control arms: it is there in
//! seconds, and a few hundred calls are enough to find a defect in every so many of them.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    checker::{
        self, Verdict,
        answers::{self, Stop},
        commands::{self, LATE},
        resources,
    },
    cluster::{LIFETIME_S, TENANTS, cache},
    gather,
    history::History,
    host::{self, say, signal},
    http::{Ask, Client},
    listener::Listener,
    load::{Load, Pace},
    report::Section,
    rig,
    talk::{self, Place},
};

/// Longest time until it serves.
const READY_WAIT: Duration = Duration::from_secs(120);
/// Longest time until it ends.
const END_WAIT: Duration = Duration::from_secs(30);
/// Duration of the load.
const LOAD_FOR: Duration = Duration::from_secs(5);
/// Duration of the load before held resources are counted: pools are filled by then.
const WARM_UP: Duration = Duration::from_secs(1);
/// Commands that a hot account gets where late repetitions are looked for: the first of them are older than
/// those that an aggregate remembers whole, and some of these are sent again.
const FILLING: usize = 1_500;
const OLD_ONES: usize = 60;
/// Duration of the load after them: somebody has to be told how far the account is.
const TOLD_FOR: Duration = Duration::from_secs(2);
/// Longest time for clients to learn the outcomes of their commands.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time for it to come to rest. With a defect it may never.
const REST_WAIT: Duration = Duration::from_secs(20);
const REST_WAIT_WITH_DEFECT: Duration = Duration::from_secs(8);

/// The process. Dropping it ends it.
struct Small {
    child: Child,
    folder: TempDir,
    place: Place,
}

/// Runs a small installation under load with a defect of this name, or without, and compares the
/// clients' answers with the log and the rows. The checks in `control` have to find the defect.
pub(crate) async fn run(
    name: &str,
    defect: Option<&str>,
    control: &'static [&'static str],
    seed: u64,
) -> Section {
    let started = Instant::now();
    let mut small = Small::start(defect).await;
    let history = History::new(&small.folder.path().join("history.jsonl"));
    let listener = Listener::start(&small.place);
    let (snapshots, watching) = (Arc::<Mutex<_>>::default(), CancellationToken::new());
    let url = small.place.postgres.clone();
    let watch = rig::watch(url, history.clone(), Arc::clone(&snapshots), watching.clone());
    let watch = tokio::spawn(watch);
    // Much goes through the queue, since most that can go wrong there does so to few.
    let pace = Pace { queued: 45, reads: 30, hot: 24, ..Pace::steady(150) };
    small.load(&history, seed, pace, WARM_UP).await;
    let looks_for_late_ones = control.contains(&LATE);
    if looks_for_late_ones {
        small.go_beyond_windows(&history, seed ^ 3).await;
    }
    let before = small.held();
    small.load(&history, seed ^ 1, pace, LOAD_FOR).await;
    let mut section = Section { control, ..Section::new(name) };
    let most = if defect.is_some() { REST_WAIT_WITH_DEFECT } else { REST_WAIT };
    let rest = rest(&small.place, most).await;
    section.verdicts.push(resources::returns_to_the_base_line(&before, &small.held()));
    watching.cancel();
    drop(watch.await);
    let mut story = gather::story(&small.place, &history, &listener).await.unwrap();
    story.snapshots = std::mem::take(&mut *snapshots.lock().unwrap());
    section.notes.push(story.told());
    section.verdicts.extend(checker::all(&story));
    section.verdicts.push(answers::everything_is_answered(&story.calls, &story.reads));
    if looks_for_late_ones {
        section.verdicts.push(commands::late_repeats_are_known(&story));
    }
    let mut verdict = Verdict::new(6, checker::REST);
    verdict.hold(rest.is_ok(), || format!("{rest:?}"));
    section.verdicts.push(verdict);
    let stops = [small.end_under_load(&history, seed ^ 2, pace).await];
    section.verdicts.push(answers::ends_in_order(&stops));
    section.verdicts.push(answers::nothing_under_way_fails(&stops, &history.calls()));
    say(&format!("{name}: {:.1} s", started.elapsed().as_secs_f64()));
    section
}

/// Waits until the queue is drained and the rows are the fold of the log.
async fn rest(place: &Place, most: Duration) -> Result<(), String> {
    let client = talk::connect(&place.nats).await;
    let start = Instant::now();
    loop {
        let waiting = match gather::waiting(place, &client).await {
            Ok(None) => return Ok(()),
            Ok(Some(waiting)) => waiting,
            Err(error) => error,
        };
        if start.elapsed() > most {
            return Err(waiting);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// A program's line with nothing of this environment's own settings.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FLEXCORE_") {
            command.env_remove(name);
        }
    }
    command.env("FLEXCORE_CACHE", cache()).current_dir("/").stdin(Stdio::null());
    command
}

impl Small {
    /// Starts it with the ledger, and waits until it serves.
    async fn start(defect: Option<&str>) -> Self {
        let folder = tempfile::Builder::new().prefix("flexcore-chaos-").tempdir().unwrap();
        // Postgres's account has to pass.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
        let (data, ready) = (folder.path().join("data"), folder.path().join("ready.json"));
        let log = File::create(folder.path().join("dev.log")).unwrap();
        // It ends with this thread, however that ends.
        let mut dev = command("setpriv");
        dev.args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_flexcore"), "dev"]);
        dev.arg("--data").arg(&data).arg("--ready-file").arg(&ready);
        dev.envs(defect.map(|defect| ("FLEXCORE_DEFECT", defect)));
        dev.stdout(log.try_clone().unwrap()).stderr(log);
        let child = dev.spawn().unwrap();
        let place = Place {
            client: Client::default(),
            gateways: Vec::new(),
            tokens: Vec::new(),
            nats: Vec::new(),
            postgres: String::new(),
        };
        let mut small = Self { child, folder, place };
        let ready = small.ready(&ready).await;
        let text = |field: &str| ready[field].as_str().unwrap().to_owned();
        let authority = text("http").trim_start_matches("http://").to_owned();
        small.place.gateways = vec![authority];
        (small.place.nats, small.place.postgres) = (vec![text("nats")], text("postgres"));
        let lifetime = LIFETIME_S.to_string();
        let token = |tenant: &&str| {
            let token = flexcore(&data, &["token", "--tenant", tenant, "--lifetime", &lifetime]);
            token.trim().to_owned()
        };
        small.place.tokens = TENANTS.iter().map(token).collect();
        let ledger = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/ledger");
        flexcore(&data, &["apply", ledger]);
        small.serves().await;
        small
    }

    async fn ready(&mut self, file: &Path) -> Value {
        let start = Instant::now();
        loop {
            if let Ok(text) = fs::read(file) {
                return serde_json::from_slice(&text).unwrap();
            }
            let ended = self.child.try_wait().unwrap();
            let waits = ended.is_none() && start.elapsed() < READY_WAIT;
            assert!(waits, "dev does not get ready: {ended:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn serves(&self) {
        let start = Instant::now();
        for read_model in ["balances", "branches"] {
            let ask = Ask::get(format!("/v1/query/{read_model}"), &self.place.tokens[0]);
            loop {
                let gateway = &self.place.gateways[0];
                let answer = self.place.client.send(gateway, &ask, READY_WAIT).await;
                if matches!(&answer, Ok(answer) if answer.status == 200) {
                    break;
                }
                assert!(start.elapsed() < READY_WAIT, "{answer:?}\n{}", self.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Lets clients ask for a while, and waits until they know the outcomes.
    async fn load(&self, history: &History, seed: u64, pace: Pace, length: Duration) {
        let load = Load::start(&self.place, history, seed, pace).await;
        tokio::time::sleep(length).await;
        load.finish(PATIENCE).await;
    }

    /// Gives a hot account more commands than anybody remembers whole, and sends some of the first again.
    async fn go_beyond_windows(&self, history: &History, seed: u64) {
        let pace = Pace { hot: 24, ..Pace::steady(60) };
        let load = Load::start(&self.place, history, seed, pace).await;
        rig::fill(&load, FILLING, &self.place.nats, pace).await;
        tokio::time::sleep(TOLD_FOR).await;
        load.repeat_old(OLD_ONES, pace).await;
        load.finish(PATIENCE).await;
    }

    /// Resources that the process holds; its servers' descriptors are theirs.
    fn held(&self) -> resources::Held {
        let (descriptors, _) = host::held(self.child.id()).unwrap();
        [("dev descriptors".to_owned(), descriptors.try_into().unwrap())].into()
    }

    /// Asks it to end while requests are under way.
    async fn end_under_load(&mut self, history: &History, seed: u64, pace: Pace) -> Stop {
        let load = Load::start(&self.place, history, seed, pace).await;
        load.burst(1).await;
        let (from_ns, start) = (history.now_ns(), Instant::now());
        signal("TERM", self.child.id());
        let mut ended = None;
        while ended.is_none() && start.elapsed() < END_WAIT {
            ended = self.child.try_wait().unwrap().map(|status| (status.code(), start.elapsed()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        load.finish(Duration::ZERO).await;
        Stop { node: "dev".to_owned(), gateway: Some(1), from_ns, ended }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("dev.log")).unwrap_or_default()
    }
}

/// Runs a tool of the executable for the process with this data, to its end.
fn flexcore(data: &Path, arguments: &[&str]) -> String {
    let mut tool = command(env!("CARGO_BIN_EXE_flexcore"));
    let output = tool.arg("--data").arg(data).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

impl Drop for Small {
    fn drop(&mut self) {
        signal("TERM", self.child.id());
        let start = Instant::now();
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if start.elapsed() > END_WAIT {
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
