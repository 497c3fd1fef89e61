//! The load: arrivals by the clock; few accounts, two of them hot throughout; repeated, racing, queued
//! and impossible commands, also minutes later; and questions that must see the earlier writes.

mod fill;

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
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::TENANTS,
    history::{Asked, Call, HOT, History, Read, Seen, Told, Wanted, Way, is_hot},
    talk::{Place, Talk},
};

/// Accounts of a tenant at a time.
pub(crate) const ACCOUNTS: u64 = 6;
/// After this time the load goes to new accounts, but for the hot ones: faults meet openings, too.
const GENERATION: Duration = Duration::from_secs(40);
/// New accounts are opened this long before the load goes to them.
const OPENED_BEFORE: Duration = Duration::from_secs(6);
/// Pause before a command whose outcome is not known is sent again.
const AGAIN_AFTER_MS: std::ops::Range<u64> = 50..250;
/// So many times as long when no gateway took the connection.
const NOBODY_THERE: u32 = 4;
/// So many times as long after a `Retry-After`: a second, more or less; sooner they keep each other out.
const TOLD_LATER: u32 = 7;
/// Arrivals under way at once, each a client with a connection of its own: as many as two cores can
/// be beside a cluster. More are counted, not sent. With three times as many connections failed.
const CLIENTS_MAX: usize = 2_000;
/// Tenants with a hot account. The first one's is wanted twice as often as the second one's.
const HOT_TENANTS: usize = 2;
/// Commands of a burst, and how long they are under way when something happens to who has them.
const BURST: usize = 24;
const BURST_BEFORE: Duration = Duration::from_millis(3);
/// Events that a question asks for at most: what an aggregate wrote since this many versions ago.
const EVENTS_BACK: u64 = 40;
/// Own writes that queries look for.
const RECENT_MAX: usize = 64;
/// Longest wait of a query for its position.
const READ_WAIT_MS: u64 = 3_000;

/// The shape of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Arrivals a second.
    pub(crate) rate: u64,
    /// Longest time for one call.
    pub(crate) within: Duration,
    /// True if unknown outcomes are asked for again.
    pub(crate) again: bool,
    /// In hundredths: questions. The rest are commands.
    pub(crate) reads: u32,
    /// In hundredths of the commands: those on hot accounts, fewer than one aggregate takes.
    pub(crate) hot: u32,
    /// In hundredths of the commands: those that go through the queue.
    pub(crate) queued: u32,
}

impl Pace {
    /// So many arrivals a second by clients that do not give up.
    pub(crate) fn steady(rate: u64) -> Self {
        Self { rate, within: Duration::from_secs(8), again: true, reads: 20, hot: 6, queued: 18 }
    }
}

/// Clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    pace: Pace,
}

/// Work that a load did not do.
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
    wanted: Wanted,
    key: String,
    tag: String,
    if_match: Option<u64>,
    way: Way,
    /// True if its payload is written as another program would write it.
    otherwise: bool,
}

impl Load {
    /// Opens the first accounts and begins.
    pub(crate) async fn start(place: &Place, history: &History, seed: u64, pace: Pace) -> Self {
        let shared = Arc::new(Shared {
            talk: Talk::new(place).await,
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
        let hot = (0..HOT_TENANTS).map(|tenant| shared.opening(tenant, HOT.to_owned(), 0));
        let hot = hot.map(|order| shared.clone().command(order, 1, pace));
        futures::future::join_all(opened.chain(hot)).await;
        tasks.spawn(arrive(shared.clone(), tasks.clone(), stop.clone(), pace));
        Self { shared, tasks, stop, pace }
    }

    /// Sends some commands to a gateway, and returns while they are under way.
    pub(crate) async fn burst(&self, gateway: usize) {
        let shared = &self.shared;
        let pace = self.pace;
        let mut random = StdRng::seed_from_u64(shared.seed ^ shared.number());
        for _ in 0..BURST {
            let order = Order { way: Way::Wait, ..shared.order(&mut random, pace) };
            self.tasks.spawn(shared.clone().command(order, gateway, pace));
        }
        tokio::time::sleep(BURST_BEFORE).await;
    }

    /// Ends the arrivals and waits until clients know their commands' outcomes; then they give up.
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

/// The accounts that are in use at a moment of the history.
pub(crate) fn generation(at_ns: u64) -> u64 {
    Duration::from_nanos(at_ns).as_secs() / GENERATION.as_secs()
}

/// The same JSON object in another order, with room, and with an escape that need not be.
fn otherwise(payload: &Value) -> String {
    let Value::Object(fields) = payload else { return payload.to_string() };
    let field = |(name, value): (&String, &Value)| {
        let value = value.to_string().replacen("\"k", "\"\\u006b", 1);
        format!("\n  \"{name}\" : {value}")
    };
    let fields: Vec<String> = fields.iter().rev().map(field).collect();
    format!("{{{}\n}}", fields.join(" ,"))
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
            let (kind, choice) = (random.random_range(0..100), random.random_range(0..RECENT_MAX));
            let question = shared.clone().question(gateway, kind, choice, pace);
            tasks.spawn(question.map(|()| drop(client)));
            continue;
        }
        let order = shared.order(&mut random, pace);
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
                let other = Order { tag, ..order.clone() };
                tasks.spawn(shared.clone().command(
                    other,
                    gateway % shared.talk.gateways() + 1,
                    pace,
                ));
                shared.clone().command(order, gateway, pace).boxed()
            }
            // One from any time before, on an account that has long gone on.
            19..22 => match shared.old_order(&mut random) {
                Some(old) => shared.clone().command(old, gateway, pace).boxed(),
                None => shared.clone().command(order, gateway, pace).boxed(),
            },
            _ => shared.clone().command(order, gateway, pace).boxed(),
        };
        tasks.spawn(own.map(|()| drop(client)));
    }
}

impl Shared {
    /// The accounts that are in use, or will be after this time.
    fn generation(&self, ahead: Duration) -> u64 {
        generation(self.history.now_ns() + u64::try_from(ahead.as_nanos()).unwrap())
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn openings(&self, generation: u64) -> impl Iterator<Item = Order> {
        let accounts =
            (0..TENANTS.len()).flat_map(|tenant| (0..ACCOUNTS).map(move |n| (tenant, n)));
        accounts.map(move |(tenant, n)| self.opening(tenant, format!("a{n}-g{generation}"), n))
    }

    fn opening(&self, tenant: usize, account: String, n: u64) -> Order {
        // Each load its own: whether an account is open is for the rules to say.
        let key = format!("open-{}-{account}-{}", TENANTS[tenant], self.seed % 100_000);
        let wanted = Wanted::Open { branch: format!("b{}", n % 3) };
        let (tag, way) = (key.clone(), Way::Wait);
        Order { tenant, account, wanted, key, tag, if_match: None, way, otherwise: false }
    }

    fn order(&self, random: &mut StdRng, pace: Pace) -> Order {
        let (tenant, account) = if random.random_range(0..100) < pace.hot {
            // The first is wanted twice as often.
            let tenant = random.random_range(0..=HOT_TENANTS).saturating_sub(1);
            (tenant, HOT.to_owned())
        } else {
            let tenant = random.random_range(0..TENANTS.len());
            // Some accounts are wanted more than others.
            let n = random.random_range(0..ACCOUNTS).min(random.random_range(0..ACCOUNTS));
            (tenant, format!("a{n}-g{}", self.generation(Duration::ZERO)))
        };
        let amount = random.random_range(1..100);
        let wanted = match random.random_range(0..100) {
            0..25 => Wanted::Withdraw { amount: amount * 3 },
            // No rule is asked about these.
            25..26 => Wanted::Deposit { amount: 0, parts: 1 },
            26..34 => Wanted::Deposit { amount, parts: random.random_range(2..=8) },
            _ => Wanted::Deposit { amount, parts: 1 },
        };
        let way = if random.random_range(0..100) >= pace.queued {
            Way::Wait
        } else if random.random_bool(0.5) {
            Way::Queue
        } else {
            Way::Publish
        };
        self.order_of(tenant, account, wanted, way)
    }

    fn order_of(&self, tenant: usize, account: String, wanted: Wanted, way: Way) -> Order {
        let key = format!("k{}-{}", self.number(), self.seed % 100_000);
        let (tag, if_match) = (key.clone(), None);
        Order { tenant, account, wanted, key, tag, if_match, way, otherwise: false }
    }

    /// A command on a hot account that was sent at any time before.
    fn old_order(&self, random: &mut StdRng) -> Option<Order> {
        let Call { tenant, account, wanted, key, tag, if_match, way, .. } =
            self.history.old_call(random)?;
        let tenant = TENANTS.iter().position(|name| *name == tenant)?;
        // Mostly waited for, so that its answer can be compared.
        let way = if random.random_bool(0.7) { Way::Wait } else { way };
        let otherwise = random.random_bool(0.5);
        Some(Order { tenant, account, wanted, key, tag, if_match, way, otherwise })
    }

    /// Sends a command until its outcome is known.
    async fn command(self: Arc<Self>, order: Order, gateway: usize, pace: Pace) {
        let mut random = StdRng::seed_from_u64(self.seed ^ self.number());
        let (wish, mut gateway, mut absent) = (self.history.wish(), gateway, 0);
        let known = loop {
            let told = self.call(&order, gateway, pace).await;
            if told.is_known() {
                break true;
            }
            if !pace.again {
                break false;
            }
            gateway = gateway % self.talk.gateways() + 1;
            let mut pause = Duration::from_millis(random.random_range(AGAIN_AFTER_MS));
            absent = if told == Told::NotSent { absent + 1 } else { 0 };
            if absent >= self.talk.gateways() {
                pause *= NOBODY_THERE;
            }
            if matches!(told, Told::TurnedAway { retry_after: true, .. }) {
                pause *= TOLD_LATER;
            }
            tokio::select! {
                () = self.give_up.cancelled() => break false,
                () = tokio::time::sleep(pause) => {}
            }
        };
        self.history.settle(wish, known);
    }

    async fn call(&self, order: &Order, gateway: usize, pace: Pace) -> Told {
        let start_ns = self.history.now_ns();
        let Order { tenant, account, key, .. } = order;
        let target = (TENANTS[*tenant], account.as_str(), order.wanted.command());
        let payload = order.wanted.payload(&order.tag);
        let payload = if order.otherwise { otherwise(&payload) } else { payload.to_string() };
        let (told, position) = match order.way {
            Way::Publish => (self.talk.publish(target, key, &payload).await, None),
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
            wanted: order.wanted.clone(),
            key: key.clone(),
            tag: order.tag.clone(),
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
        self.command(Order { way: Way::Wait, otherwise: true, ..order }, gateway, pace).await;
    }

    /// Two commands that expect the same version, at once at two gateways.
    async fn race(self: Arc<Self>, order: Order, pace: Pace) {
        let seen = self.state(1, order.tenant, &order.account, pace).await;
        let Seen::State { version, .. } = seen else { return };
        let key = format!("{}-rival", order.key);
        let (if_match, way) = (Some(version), Way::Wait);
        let rival = Order { tag: key.clone(), key, if_match, way, ..order.clone() };
        let order = Order { if_match, way, ..order };
        tokio::join!(
            self.clone().command(order, 1, pace),
            self.clone().command(rival, self.talk.gateways(), pace)
        );
    }

    /// Asks about an own write: for its row with its position, the state now, or the events around it.
    async fn question(self: Arc<Self>, gateway: usize, kind: u32, choice: usize, pace: Pace) {
        let own = {
            let recent = self.recent.lock().unwrap();
            if recent.is_empty() { None } else { Some(recent[choice % recent.len()].clone()) }
        };
        let Some((tenant, account, version, position)) = own else { return };
        match kind {
            0..60 => self.row(gateway, (tenant, account, version, position), pace).await,
            // A page of an account with thousands of commits is dear: of those a few are enough.
            60..85 => drop(self.state(gateway, tenant, &account, pace).await),
            85..98 if is_hot(&account) => drop(self.state(gateway, tenant, &account, pace).await),
            _ => {
                let after = version.saturating_sub(EVENTS_BACK);
                let start_ns = self.history.now_ns();
                let asked = (account.as_str(), after);
                let seen = self.talk.events(gateway, tenant, asked, pace.within).await;
                self.read(gateway, tenant, account, start_ns, Asked::Events { after }, seen);
            }
        }
    }

    async fn row(&self, gateway: usize, own: (usize, String, u64, String), pace: Pace) {
        let (tenant, account, least, position) = own;
        let start_ns = self.history.now_ns();
        let path = format!(
            "/v1/query/balances?account={account}&min_position={position}&wait_ms={READ_WAIT_MS}"
        );
        let seen = self.talk.rows(gateway, tenant, &path, pace.within).await;
        self.read(gateway, tenant, account, start_ns, Asked::Row { least }, seen);
    }

    async fn state(&self, gateway: usize, tenant: usize, account: &str, pace: Pace) -> Seen {
        let start_ns = self.history.now_ns();
        let seen = self.talk.state(gateway, tenant, account, pace.within).await;
        self.read(gateway, tenant, account.to_owned(), start_ns, Asked::State, seen.clone());
        seen
    }

    fn read(
        &self,
        gateway: usize,
        tenant: usize,
        account: String,
        start_ns: u64,
        asked: Asked,
        seen: Seen,
    ) {
        let (tenant, end_ns) = (TENANTS[tenant], self.history.now_ns());
        self.history.read(Read { tenant, account, asked, gateway, start_ns, end_ns, seen });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_is_written_otherwise_is_the_same() {
        let payload = Wanted::Deposit { amount: 5, parts: 2 }.payload("k7-1");
        let text = otherwise(&payload);
        assert_ne!(text, payload.to_string());
        assert!(text.starts_with("{\n  \"tag\" : \"\\u006b7-1\" ,"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), payload);
    }
}
