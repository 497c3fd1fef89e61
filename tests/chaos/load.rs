//! The load: arrivals by the clock, whoever answers; few accounts that everybody wants; repeated,
//! racing and queued commands; and queries that must see what was written.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::{Cluster, TENANTS},
    history::{Call, History, Read, Told, Way},
    talk::Talk,
};

/// Accounts of a tenant at a time.
pub(crate) const ACCOUNTS: u64 = 6;
/// An aggregate remembers 1,024 commands: after this time the load goes to new accounts, so that a
/// command which is repeated late is still known.
const GENERATION: Duration = Duration::from_secs(40);
/// New accounts are opened this long before the load goes to them.
const OPENED_BEFORE: Duration = Duration::from_secs(6);
/// Pause before a command whose outcome is not known is sent again.
const AGAIN_AFTER_MS: std::ops::Range<u64> = 50..250;
/// Arrivals that are under way at once, each a client with a connection of its own: fewer than the
/// gateways have room for, and as many as two cores can be clients beside a cluster. What arrives beyond
/// it is counted and not sent. With three times as many no more was sent, but connections failed.
const CLIENTS_MAX: usize = 2_000;
/// Own writes that queries look for.
const RECENT_MAX: usize = 64;
/// Longest wait of a query for its position.
const READ_WAIT_MS: u64 = 3_000;

/// How the load is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Arrivals a second.
    pub(crate) rate: u64,
    /// Longest time for one call.
    pub(crate) within: Duration,
    /// Whether what is not known is asked again.
    pub(crate) again: bool,
    /// In hundredths: queries. The rest are commands.
    pub(crate) reads: u32,
}

impl Pace {
    /// So many arrivals a second by clients that do not give up.
    pub(crate) fn steady(rate: u64) -> Self {
        Self { rate, within: Duration::from_secs(8), again: true, reads: 20 }
    }
}

/// Clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a load did not do.
pub(crate) struct Left {
    /// Clients that gave up.
    pub(crate) gave_up: usize,
    /// Arrivals for which there was no client that did not wait: nothing was sent of them.
    pub(crate) not_sent: u64,
}

struct Shared {
    talk: Talk,
    history: History,
    seed: u64,
    numbers: AtomicU64,
    clients: Arc<Semaphore>,
    not_sent: AtomicU64,
    /// Tenant, account, version and position of own writes.
    recent: Mutex<VecDeque<(usize, String, u64, String)>>,
    give_up: CancellationToken,
}

/// A command to send, once or more often.
#[derive(Clone)]
struct Order {
    tenant: usize,
    account: String,
    command: &'static str,
    key: String,
    tag: String,
    payload: String,
    parts: u64,
    if_match: Option<u64>,
    way: Way,
}

impl Load {
    /// Opens the first accounts and begins.
    pub(crate) async fn start(cluster: &Cluster, history: &History, seed: u64, pace: Pace) -> Self {
        let shared = Arc::new(Shared {
            talk: Talk::new(cluster).await,
            history: history.clone(),
            seed,
            numbers: AtomicU64::new(0),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            not_sent: AtomicU64::new(0),
            recent: Mutex::default(),
            give_up: CancellationToken::new(),
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let openings = shared.openings(shared.generation(Duration::ZERO));
        let opened = openings.map(|order| shared.clone().command(order, 1, pace));
        futures::future::join_all(opened).await;
        tasks.spawn(arrive(shared.clone(), tasks.clone(), stop.clone(), pace));
        Self { shared, tasks, stop }
    }

    /// Ends the arrivals and waits until everybody knows what came of what they sent; after the
    /// time they give up.
    pub(crate) async fn finish(self, patience: Duration) -> Left {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            self.shared.give_up.cancel();
            self.tasks.wait().await;
        }
        let wishes = self.shared.history.wishes(0);
        let gave_up = wishes.iter().filter(|wish| wish.known_ns.is_none()).count();
        Left { gave_up, not_sent: self.shared.not_sent.load(Ordering::Relaxed) }
    }
}

impl Left {
    /// For the report.
    pub(crate) fn notes(&self) -> Vec<String> {
        let told = [
            (self.gave_up > 0).then(|| {
                format!("{} clients did not learn what came of their commands", self.gave_up)
            }),
            (self.not_sent > 0)
                .then(|| format!("{} arrivals not sent: every client waited", self.not_sent)),
        ];
        told.into_iter().flatten().collect()
    }
}

/// Which accounts are in use at a moment of the history.
pub(crate) fn generation(at_ns: u64) -> u64 {
    Duration::from_nanos(at_ns).as_secs() / GENERATION.as_secs()
}

async fn arrive(shared: Arc<Shared>, tasks: TaskTracker, stop: CancellationToken, pace: Pace) {
    let mut random = StdRng::seed_from_u64(shared.seed ^ shared.history.now_ns());
    let every = Duration::from_secs(1) / u32::try_from(pace.rate.max(1)).unwrap();
    let mut clock = tokio::time::interval(every);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut opened = shared.generation(Duration::ZERO);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = clock.tick() => {}
        }
        let next = shared.generation(OPENED_BEFORE);
        if next != opened {
            opened = next;
            for order in shared.openings(next) {
                tasks.spawn(shared.clone().command(order, 1, pace));
            }
        }
        let Ok(client) = shared.clients.clone().try_acquire_owned() else {
            shared.not_sent.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let gateway = 1 + random.random_range(0..shared.talk.gateways());
        if random.random_range(0..100) < pace.reads {
            let query = shared.clone().query(gateway, random.random_range(0..RECENT_MAX), pace);
            tasks.spawn(query.map(|()| drop(client)));
            continue;
        }
        let order = shared.order(&mut random);
        let own = match random.random_range(0..100) {
            // The same again: at once at the other gateway, or some time later.
            0..10 => {
                let later = random.random_bool(0.5).then(|| random.random_range(5..4_000));
                tasks.spawn(shared.clone().repeat(order.clone(), gateway, later, pace));
                shared.clone().command(order, gateway, pace).boxed()
            }
            10..18 => shared.clone().race(order, pace).boxed(),
            // Another payload under a key that is in use: at most one of the two takes effect.
            18..19 => {
                let tag = format!("{}-other", order.tag);
                let payload = order.payload.replace(&order.tag, &tag);
                let other = Order { tag, payload, ..order.clone() };
                tasks.spawn(shared.clone().command(other, gateway % 2 + 1, pace));
                shared.clone().command(order, gateway, pace).boxed()
            }
            _ => shared.clone().command(order, gateway, pace).boxed(),
        };
        tasks.spawn(own.map(|()| drop(client)));
    }
}

impl Shared {
    /// Which accounts are in use, or will be after this time.
    fn generation(&self, ahead: Duration) -> u64 {
        generation(self.history.now_ns() + u64::try_from(ahead.as_nanos()).unwrap())
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn openings(&self, generation: u64) -> impl Iterator<Item = Order> {
        let accounts =
            (0..TENANTS.len()).flat_map(|tenant| (0..ACCOUNTS).map(move |n| (tenant, n)));
        accounts.map(move |(tenant, n)| {
            let account = format!("a{n}-g{generation}");
            // Each load its own: an aggregate may have forgotten by now what an earlier one sent.
            let key = format!("open-{}-{account}-{}", TENANTS[tenant], self.seed % 100_000);
            let payload = json!({"branch": format!("b{}", n % 3), "tag": key}).to_string();
            let (tag, command, way) = (key.clone(), "open", Way::Wait);
            Order { tenant, account, command, key, tag, payload, parts: 1, if_match: None, way }
        })
    }

    fn order(&self, random: &mut StdRng) -> Order {
        let key = format!("k{}-{}", self.number(), self.seed % 100_000);
        let tenant = random.random_range(0..TENANTS.len());
        // Some accounts are wanted more than others.
        let n = random.random_range(0..ACCOUNTS).min(random.random_range(0..ACCOUNTS));
        let account = format!("a{n}-g{}", self.generation(Duration::ZERO));
        let amount = random.random_range(1..100);
        let parts = if random.random_bool(0.1) { random.random_range(2..=8) } else { 1 };
        let (command, payload, parts) = if random.random_bool(0.25) {
            ("withdraw", json!({"amount": amount * 3, "tag": key}), 1)
        } else {
            ("deposit", json!({"amount": amount, "parts": parts, "tag": key}), parts)
        };
        let way = match random.random_range(0..100) {
            0..10 => Way::Queue,
            10..18 => Way::Publish,
            _ => Way::Wait,
        };
        let (tag, payload) = (key.clone(), payload.to_string());
        Order { tenant, account, command, key, tag, payload, parts, if_match: None, way }
    }

    /// Sends a command until it is known what came of it.
    async fn command(self: Arc<Self>, order: Order, gateway: usize, pace: Pace) {
        let mut random = StdRng::seed_from_u64(self.seed ^ self.number());
        let (wish, mut gateway) = (self.history.wish(), gateway);
        let known = loop {
            let told = self.call(&order, gateway, pace).await;
            if told.is_known() {
                break true;
            }
            if !pace.again {
                break false;
            }
            gateway = gateway % self.talk.gateways() + 1;
            let pause = Duration::from_millis(random.random_range(AGAIN_AFTER_MS));
            tokio::select! {
                () = self.give_up.cancelled() => break false,
                () = tokio::time::sleep(pause) => {}
            }
        };
        self.history.settle(wish, known);
    }

    async fn call(&self, order: &Order, gateway: usize, pace: Pace) -> Told {
        let start_ns = self.history.now_ns();
        let Order { tenant, account, command, key, payload, .. } = order;
        let target = (TENANTS[*tenant], account.as_str(), *command);
        let (told, position) = match order.way {
            Way::Publish => (self.talk.publish(target, key, payload).await, None),
            way => {
                let queue = way == Way::Queue;
                let sent = (key.as_str(), payload.as_str(), order.if_match, queue);
                self.talk.command(gateway, *tenant, target, sent, pace.within).await
            }
        };
        if let (Told::Accepted { version, .. }, Some(position)) = (&told, position) {
            let mut recent = self.recent.lock().unwrap();
            recent.push_back((*tenant, account.clone(), *version, position));
            if recent.len() > RECENT_MAX {
                recent.pop_front();
            }
        }
        self.history.call(Call {
            tenant: TENANTS[*tenant],
            account: account.clone(),
            command,
            key: key.clone(),
            tag: order.tag.clone(),
            parts: order.parts,
            if_match: order.if_match,
            way: order.way,
            gateway: if order.way == Way::Publish { 0 } else { gateway },
            start_ns,
            end_ns: self.history.now_ns(),
            told: told.clone(),
        });
        told
    }

    async fn repeat(
        self: Arc<Self>,
        order: Order,
        gateway: usize,
        later_ms: Option<u64>,
        pace: Pace,
    ) {
        tokio::time::sleep(Duration::from_millis(later_ms.unwrap_or(0))).await;
        let gateway = gateway % self.talk.gateways() + 1;
        // A repetition is waited for, so that its answer can be compared.
        self.command(Order { way: Way::Wait, ..order }, gateway, pace).await;
    }

    /// Two commands that expect the same version, at once at two gateways.
    async fn race(self: Arc<Self>, order: Order, pace: Pace) {
        let found = self.talk.version(1, order.tenant, &order.account, pace.within).await;
        let Some(version) = found else { return };
        let key = format!("{}-rival", order.key);
        let payload = order.payload.replace(&order.key, &key);
        let (if_match, way) = (Some(version), Way::Wait);
        let rival = Order { tag: key.clone(), key, payload, if_match, way, ..order.clone() };
        let order = Order { if_match, way, ..order };
        tokio::join!(
            self.clone().command(order, 1, pace),
            self.clone().command(rival, self.talk.gateways(), pace)
        );
    }

    /// Asks for the row of an own write, with its position.
    async fn query(self: Arc<Self>, gateway: usize, choice: usize, pace: Pace) {
        let own = {
            let recent = self.recent.lock().unwrap();
            if recent.is_empty() { None } else { Some(recent[choice % recent.len()].clone()) }
        };
        let Some((tenant, account, least, position)) = own else { return };
        let start_ns = self.history.now_ns();
        let path = format!(
            "/v1/query/balances?account={account}&fields=version&min_position={position}&wait_ms={READ_WAIT_MS}"
        );
        let seen = self.talk.row(gateway, tenant, &path, pace.within).await;
        let (tenant, end_ns) = (TENANTS[tenant], self.history.now_ns());
        self.history.read(Read { tenant, account, least, gateway, start_ns, end_ns, seen });
    }
}
