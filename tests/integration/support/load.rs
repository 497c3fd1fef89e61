//! Load on overlapping accounts, over HTTP and NATS, with a history of what each client was told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Answer, Http};

/// Accounts that all clients use; an aggregate remembers 1,024 commands, and unknown ones are sent
/// again within far fewer.
pub(crate) const ACCOUNTS: usize = 24;
/// Teams that they belong to.
pub(crate) const TEAMS: usize = 4;
/// A PubAck that has not come after this time is not waited for.
const PUBACK_WAIT: Duration = Duration::from_secs(5);
/// A client that got no answer pauses: its server is away.
const AWAY_PAUSE: Duration = Duration::from_millis(50);

/// Where the load goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) http: String,
    pub(crate) token: String,
    pub(crate) nats: String,
    pub(crate) tenant: String,
}

/// A client's knowledge about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// 2xx, with the version.
    Accepted(u64),
    /// 4xx.
    Refused(u16),
    /// Stored by the broker, so it will be processed.
    Queued,
    /// No answer, or 5xx.
    Unknown,
}

/// A command that a client sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) key: String,
    pub(crate) account: String,
    pub(crate) command: &'static str,
    pub(crate) payload: String,
    pub(crate) if_match: Option<u64>,
    pub(crate) fate: Fate,
    /// 5xx, timeouts and broken connections before the fate was known.
    pub(crate) unknown: u32,
}

pub(crate) fn account(number: usize) -> String {
    format!("acc-{number}")
}

/// Opens every account.
pub(crate) async fn open(target: &Target) {
    let http = Http::new(&target.http, &target.token);
    for number in 0..ACCOUNTS {
        let body = json!({"owner": "Ann", "team": format!("t{}", number % TEAMS)}).to_string();
        http.command(&account(number), "open", &[], body).await.ok();
    }
}

/// Clients at work.
pub(crate) struct Load {
    accepted: Arc<AtomicUsize>,
    targets: watch::Sender<Option<Target>>,
    clients: JoinSet<Vec<Sent>>,
    stop: CancellationToken,
}

impl Load {
    /// Starts so many clients over HTTP and over NATS.
    pub(crate) fn start(seed: u64, over_http: u64, over_nats: u64, target: Target) -> Self {
        let (targets, target) = watch::channel(Some(target));
        let stop = CancellationToken::new();
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for number in 0..over_http + over_nats {
            let client = Client {
                number,
                random: StdRng::seed_from_u64(seed.wrapping_add(number)),
                target: target.clone(),
                stop: stop.clone(),
                history: Vec::new(),
                accepted: accepted.clone(),
            };
            if number < over_http {
                clients.spawn(client.over_http());
            } else {
                clients.spawn(client.over_nats());
            }
        }
        Self { accepted, targets, clients, stop }
    }

    /// Waits until so many more commands have been accepted over HTTP.
    pub(crate) async fn goes_on(&self, more: usize) {
        let before = self.accepted.load(Ordering::Relaxed);
        super::eventually("commands to be accepted", async || {
            let now = self.accepted.load(Ordering::Relaxed) - before;
            if now >= more { Ok(()) } else { Err(format!("{now} of {more}")) }
        })
        .await;
    }

    /// Another place, or nowhere for now.
    pub(crate) fn point(&self, target: Option<Target>) {
        self.targets.send_replace(target);
    }

    /// Ends it once every client knows the outcomes of its commands; returns their knowledge.
    pub(crate) async fn finish(self) -> Vec<Sent> {
        self.stop.cancel();
        let histories = self.clients.join_all();
        let histories = tokio::time::timeout(super::PATIENCE, histories).await;
        histories.expect("unknown commands are settled in time").concat()
    }
}

struct Client {
    number: u64,
    random: StdRng,
    target: watch::Receiver<Option<Target>>,
    stop: CancellationToken,
    history: Vec<Sent>,
    accepted: Arc<AtomicUsize>,
}

impl Client {
    fn next(&mut self) -> Sent {
        let account = account(self.random.random_range(0..ACCOUNTS));
        let amount = self.random.random_range(1..=50);
        let (command, payload) = match self.random.random_range(0..10) {
            0..=5 => ("deposit", json!({"amount": amount, "note": "x".repeat(amount)})),
            6..=7 => ("withdraw", json!({"amount": amount * 4})),
            _ => ("split", json!({"parts": self.random.random_range(1..=5)})),
        };
        Sent {
            key: format!("c{}-{}", self.number, self.history.len()),
            account,
            command,
            payload: payload.to_string(),
            if_match: None,
            fate: Fate::Unknown,
            unknown: 0,
        }
    }

    /// The target there is, waited for.
    async fn target(&mut self) -> Target {
        let found = self.target.wait_for(Option::is_some).await.unwrap();
        found.clone().unwrap()
    }

    async fn over_http(mut self) -> Vec<Sent> {
        loop {
            let target = self.target().await;
            self.target.mark_unchanged();
            let http = Http::new(&target.http, &target.token);
            while !self.target.has_changed().unwrap() {
                // Unknown commands are sent again, under their own keys, until they are known.
                let unknown = |sent: &Sent| sent.fate == Fate::Unknown;
                let index = match self.history.iter().rposition(unknown) {
                    Some(index) => index,
                    None if self.stop.is_cancelled() => return self.history,
                    None => {
                        let mut sent = self.next();
                        if self.random.random_ratio(1, 5) {
                            sent.if_match = version(&http, &sent.account).await;
                        }
                        self.history.push(sent);
                        self.history.len() - 1
                    }
                };
                let fate = send(&http, &self.history[index]).await;
                let sent = &mut self.history[index];
                sent.fate = fate;
                if matches!(fate, Fate::Accepted(_)) {
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                }
                if fate == Fate::Unknown {
                    sent.unknown += 1;
                    tokio::time::sleep(AWAY_PAUSE).await;
                }
            }
        }
    }

    /// A PubAck is all that there is to know here, so nothing is sent twice.
    async fn over_nats(mut self) -> Vec<Sent> {
        while !self.stop.is_cancelled() {
            let target = self.target().await;
            self.target.mark_unchanged();
            let Ok(client) = async_nats::connect(&target.nats).await else {
                tokio::time::sleep(AWAY_PAUSE).await;
                continue;
            };
            let jetstream = jetstream::new(client);
            while !self.target.has_changed().unwrap() && !self.stop.is_cancelled() {
                let mut sent = self.next();
                let subject =
                    format!("cmd.{}.account.{}.{}", target.tenant, sent.account, sent.command);
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", sent.key.as_str());
                let publish = async {
                    let payload = sent.payload.clone().into();
                    jetstream.publish_with_headers(subject, headers, payload).await.ok()?.await.ok()
                };
                let acknowledged = tokio::time::timeout(PUBACK_WAIT, publish).await.ok().flatten();
                sent.fate = if acknowledged.is_some() { Fate::Queued } else { Fate::Unknown };
                sent.unknown = u32::from(acknowledged.is_none());
                self.history.push(sent);
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        }
        self.history
    }
}

/// The version that an account has now, if anybody answers.
async fn version(http: &Http, account: &str) -> Option<u64> {
    let path = format!("/v1/aggregates/account/{account}");
    let answer = http.try_send("GET", &path, &[], "").await.ok()?;
    (answer.status == 200).then(|| answer.header("etag").trim_matches('"').parse().unwrap())
}

async fn send(http: &Http, sent: &Sent) -> Fate {
    let tag = sent.if_match.map(|version| format!("\"{version}\""));
    let mut headers =
        vec![("content-type", "application/json"), ("idempotency-key", sent.key.as_str())];
    headers.extend(tag.as_deref().map(|tag| ("if-match", tag)));
    let path = format!("/v1/commands/account/{}/{}", sent.account, sent.command);
    match http.try_send("POST", &path, &headers, sent.payload.clone()).await {
        Ok(answer) => fate(&answer),
        Err(_) => Fate::Unknown,
    }
}

fn fate(answer: &Answer) -> Fate {
    match answer.status {
        200 => Fate::Accepted(answer.json()["version"].as_u64().unwrap()),
        status @ 400..500 => Fate::Refused(status),
        500 => panic!("{answer:?}"),
        _ => Fate::Unknown,
    }
}
