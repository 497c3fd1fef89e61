//! An open-loop load through the one address: a command every so often, also when earlier ones have
//! no answer, and each sent again under its key until its fate is known.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Http, PATIENCE, eventually,
    load::{ACCOUNTS, Fate, Sent, Target, account},
    say,
};

/// Between two commands. An aggregate remembers 1,024 commands: at this rate it takes longer to
/// forget one than an unknown one is repeated.
const EVERY: Duration = Duration::from_millis(30);
/// Between two tries of one command.
const AGAIN: Duration = Duration::from_millis(200);
/// No fault may keep a command's fate unknown for longer.
const UNKNOWN_MAX: Duration = Duration::from_secs(90);
/// One in so many goes to the queue.
const ONE_QUEUED_IN: u32 = 8;
/// Kept connections that commands take turns on.
const CONNECTIONS: usize = 16;

/// Clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: JoinHandle<Vec<Sent>>,
}

#[derive(Default)]
struct Shared {
    /// Commands whose fate is known.
    known: AtomicUsize,
    /// When the others were sent first.
    open: Mutex<BTreeMap<usize, Instant>>,
    /// The longest of those that became known.
    slowest: Mutex<Duration>,
}

impl Load {
    pub(crate) fn start(seed: u64, target: Target) -> Self {
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let random = StdRng::seed_from_u64(seed);
        let task = tokio::spawn(send_all(random, target, stop.clone(), shared.clone()));
        Self { shared, stop, task }
    }

    /// Waits until so many more commands are known to be done or queued.
    pub(crate) async fn goes_on(&self, more: usize) {
        let before = self.shared.known.load(Ordering::Relaxed);
        eventually("commands to be answered", async || {
            let now = self.shared.known.load(Ordering::Relaxed) - before;
            if now >= more { Ok(()) } else { Err(format!("{now} of {more}")) }
        })
        .await;
    }

    /// Does something to the cluster, sees that commands go on, and tells the cost.
    pub(crate) async fn during(&self, what: &str, action: impl FnOnce() + Send) {
        *self.shared.slowest.lock().unwrap() = Duration::ZERO;
        let start = Instant::now();
        tokio::task::block_in_place(action);
        let took = start.elapsed().as_secs_f64();
        self.goes_on(50).await;
        // A delayed request has begun before now.
        let now = Instant::now();
        eventually("what was delayed to be known", async || {
            let oldest = self.shared.open.lock().unwrap().values().min().copied();
            if oldest.is_none_or(|start| start > now) { Ok(()) } else { Err(format!("{oldest:?}")) }
        })
        .await;
        let slowest = self.shared.slowest.lock().unwrap().as_secs_f64();
        say(&format!("{what}: {took:.1} s; the slowest command meanwhile took {slowest:.1} s"));
    }

    /// Ends it once every command's fate is known.
    pub(crate) async fn finish(self) -> Vec<Sent> {
        self.stop.cancel();
        let all = tokio::time::timeout(UNKNOWN_MAX + PATIENCE, self.task).await;
        all.expect("unknown commands are settled in time").unwrap()
    }
}

async fn send_all(
    mut random: StdRng,
    target: Target,
    stop: CancellationToken,
    shared: Arc<Shared>,
) -> Vec<Sent> {
    let first = Http::new(&target.http, &target.token);
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| Arc::new(first.another())).collect();
    let mut ticks = tokio::time::interval(EVERY);
    let mut open = JoinSet::new();
    let mut number = 0;
    while !stop.is_cancelled() {
        ticks.tick().await;
        let http = clients[number % CONNECTIONS].clone();
        let (sent, queued) = (next(number, &mut random), random.random_ratio(1, ONE_QUEUED_IN));
        let (shared, this) = (shared.clone(), number);
        number += 1;
        let start = Instant::now();
        shared.open.lock().unwrap().insert(this, start);
        open.spawn(async move {
            let sent = until_known(&http, sent, queued).await;
            shared.open.lock().unwrap().remove(&this);
            let mut slowest = shared.slowest.lock().unwrap();
            *slowest = start.elapsed().max(*slowest);
            shared.known.fetch_add(1, Ordering::Relaxed);
            sent
        });
    }
    open.join_all().await
}

fn next(number: usize, random: &mut StdRng) -> Sent {
    let amount = random.random_range(1..=50);
    let (command, payload) = match random.random_range(0..10) {
        0..=5 => ("deposit", json!({"amount": amount, "note": "x".repeat(amount)})),
        6..=7 => ("withdraw", json!({"amount": amount * 4})),
        _ => ("split", json!({"parts": random.random_range(1..=5)})),
    };
    Sent {
        key: format!("c-{number}"),
        account: account(random.random_range(0..ACCOUNTS)),
        command,
        payload: payload.to_string(),
        if_match: None,
        fate: Fate::Unknown,
        unknown: 0,
    }
}

/// Sends it under its key until it is answered; 429 and 5xx are asked again like silence.
async fn until_known(http: &Http, mut sent: Sent, queued: bool) -> Sent {
    let path = format!("/v1/commands/account/{}/{}", sent.account, sent.command);
    let mut headers =
        vec![("content-type", "application/json"), ("idempotency-key", sent.key.as_str())];
    if queued {
        headers.push(("prefer", "respond-async"));
    }
    let start = Instant::now();
    loop {
        let answer = http.try_send("POST", &path, &headers, sent.payload.clone()).await;
        let last = match answer {
            Ok(answer) => match answer.status {
                200 => {
                    sent.fate = Fate::Accepted(answer.json()["version"].as_u64().unwrap());
                    return sent;
                }
                202 => {
                    sent.fate = Fate::Queued;
                    return sent;
                }
                status if (400..500).contains(&status) && status != 429 => {
                    sent.fate = Fate::Refused(status);
                    return sent;
                }
                500 => panic!("{answer:?}"),
                _ => format!("{answer:?}"),
            },
            Err(error) => error,
        };
        sent.unknown += 1;
        assert!(start.elapsed() < UNKNOWN_MAX, "{sent:?} stays unknown: {last}");
        tokio::time::sleep(AGAIN).await;
    }
}
