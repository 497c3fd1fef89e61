//! Deciders of plugins. A worker with the role plugin is asked over NATS: all questions in one message are of one
//! tenant. What comes while a tenant's messages are under way goes together in the next one, without a timer. Plugins
//! wait for nothing of each other, and tenants only for places of which each has a share.

mod queues;
mod told;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Message, Request, connection};
use bytes::Bytes;
use flexcore_definition::Catalog;
use flexcore_domain::{
    AggregateName, CommandName, Name, Refusal, Tenant, plugin::decisions::subject,
};
use flexcore_plugin::contract::{Context, DecideRequest, Question};
use flexcore_resilience::Shares;
use futures::FutureExt as _;
use prost::Message as _;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    deciders::{LaterDecider, LaterDeciders, NoDecision, Proposals, ToDecide},
    outside::DECIDED_WITHIN,
};
use queues::{Queued, Queues, Taken};
use told::{Told, for_all, no_answer, told};

/// Time that the plugin has of a decision's time. A worker says by then that the plugin did not answer, so that
/// where nothing comes from a worker it is the worker that is gone.
const PLUGIN_WITHIN: Duration = Duration::from_millis(1_700);

/// Time for a worker's answer: so much before whoever asked gives up.
const ASKED_WITHIN: Duration = DECIDED_WITHIN.saturating_sub(Duration::from_millis(50));

/// Least time of the plugin for a question that is sent. 1 s: with less it may be late only since it has waited here
/// for others, which is nobody's fault.
const PLUGIN_LEFT_MIN: Duration = Duration::from_secs(1);

/// Pauses before a question is sent once more which a worker could not ask: another one may. They fit into the time
/// that a question may wait here, and a plugin that is started again on the one is ready on the other.
const AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];

/// Why a question was not sent.
const NOT_SENT: &str = "was not asked in time: it has too much to do, or this worker has";

/// Questions to one plugin that wait or are under way in this process. 4,096: more would only wait longer than their
/// time. One tenant has a half at most.
const QUESTIONS: usize = 4_096;

/// Messages to one plugin that are under way. 32: some for each of several tenants.
const MESSAGES: usize = 32;

/// A question as it waits.
struct Asked {
    to_decide: ToDecide,
    /// Until when the plugin may answer.
    plugin_until: Instant,
    /// Until when a worker's answer is waited for.
    until: Instant,
    /// There was no room for its decision beside others.
    was_alone: bool,
    /// Workers that could not ask it.
    in_vain: usize,
    /// It is in a message, on its way.
    is_sent: Arc<AtomicBool>,
    to: oneshot::Sender<Proposals>,
}

impl Asked {
    /// The time that the plugin has for it.
    fn left(&self, now: Instant) -> Duration {
        self.plugin_until.saturating_duration_since(now)
    }

    /// The pause before it is sent once more; `None`: it was often enough, or there is no time.
    fn again_after(&self, now: Instant) -> Option<Duration> {
        let pause = AGAIN_AFTER.get(self.in_vain).copied()?;
        (self.left(now) >= pause + PLUGIN_LEFT_MIN).then_some(pause)
    }
}

/// One plugin, as it is asked.
struct AskedPlugin {
    name: Name,
    client: Client,
    questions: Shares<Tenant>,
    messages: Shares<Tenant>,
    waiting: Mutex<Queues<Tenant, Asked>>,
}

/// These deciders, and those of the plugins that the catalog names.
pub(super) fn with_plugins(others: LaterDeciders, client: Client) -> LaterDeciders {
    // As many as definitions have ever named.
    let plugins: Mutex<HashMap<Name, LaterDecider>> = Mutex::default();
    Arc::new(move |catalog: &Catalog, aggregate: &AggregateName, command: &CommandName| {
        if let Some(decider) = others(catalog, aggregate, command) {
            return Some(decider);
        }
        let definition = catalog.aggregate(aggregate.as_str())?;
        let by = definition.commands.get(command)?.decide.plugin()?;
        let mut plugins = locked(&plugins);
        if let Some(known) = plugins.get(&by.plugin) {
            return Some(known.clone());
        }
        let decider = AskedPlugin::decider(by.plugin.clone(), client.clone());
        plugins.insert(by.plugin.clone(), decider.clone());
        Some(decider)
    })
}

impl AskedPlugin {
    fn decider(name: Name, client: Client) -> LaterDecider {
        let plugin = Arc::new(Self {
            name,
            client,
            questions: Shares::new(QUESTIONS, 1),
            messages: Shares::new(MESSAGES, 1),
            waiting: Mutex::default(),
        });
        Arc::new(move |to_decide: ToDecide| plugin.clone().ask(to_decide).boxed())
    }

    async fn ask(self: Arc<Self>, to_decide: ToDecide) -> Proposals {
        let tenant = to_decide.command.key.tenant().clone();
        let Some(_place) = self.questions.enter(&tenant) else {
            return Err(self.busy("has as many questions of the tenant as it may have"));
        };
        let (now, (to, answer)) = (Instant::now(), oneshot::channel());
        let (plugin_until, until) = (now + PLUGIN_WITHIN, now + ASKED_WITHIN);
        let is_sent = Arc::new(AtomicBool::new(false));
        let asked = Asked {
            to_decide,
            plugin_until,
            until,
            was_alone: false,
            in_vain: 0,
            is_sent: is_sent.clone(),
            to,
        };
        self.put(&tenant, asked);
        match timeout(ASKED_WITHIN, answer).await {
            Ok(Ok(proposals)) => proposals,
            Err(_) if is_sent.load(Ordering::Relaxed) => {
                Err(self.away("gave no answer in time: a worker is gone"))
            }
            // It was dropped, or waits yet.
            Ok(Err(_)) | Err(_) => Err(self.busy(NOT_SENT)),
        }
    }

    fn away(&self, why: &str) -> NoDecision {
        NoDecision::Away(self.told_later(why))
    }

    fn busy(&self, why: &str) -> NoDecision {
        NoDecision::Busy(self.told_later(why))
    }

    fn told_later(&self, why: &str) -> String {
        format!("plugin {} {why}; send the command again later", self.name)
    }

    /// Lines a question up, and begins to send where less is under way than may be.
    fn put(self: &Arc<Self>, tenant: &Tenant, asked: Asked) {
        asked.is_sent.store(false, Ordering::Relaxed);
        let (bytes, alone) = (about_bytes(&asked.to_decide), asked.was_alone);
        let question = Queued { item: asked, bytes, alone };
        let begins = locked(&self.waiting).put(tenant, question, Instant::now());
        if begins {
            tokio::spawn(self.clone().send(tenant.clone()));
        }
    }

    /// Sends what waits of a tenant, one message after another, until nothing does. What has waited for too long is
    /// dropped, which its command's lane is told.
    async fn send(self: Arc<Self>, tenant: Tenant) {
        loop {
            let place = self.messages.wait(&tenant).await;
            let now = Instant::now();
            let is_over = |asked: &Asked| asked.to.is_closed() || asked.left(now) < PLUGIN_LEFT_MIN;
            let taken = locked(&self.waiting).take(&tenant, is_over);
            let Some(taken) = taken else { return };
            self.exchange(&tenant, taken).await;
            // Others that wait for a place go first.
            drop(place);
        }
    }

    async fn exchange(self: &Arc<Self>, tenant: &Tenant, taken: Taken<Asked>) {
        let (Taken { questions: asked, is_alone }, sent) = (taken, Instant::now());
        for it in &asked {
            it.is_sent.store(true, Ordering::Relaxed);
        }
        let answered = self.answered(&asked).await;
        let told = match answered {
            Ok(message) => told(&self.name, &message, asked.len()),
            Err(none) => for_all(asked.len(), &none),
        };
        let is_late = told.iter().any(|told| matches!(told, Told::Late(_)));
        let times = (sent, Instant::now());
        // Before anybody hears of it, who may ask again at once.
        locked(&self.waiting).came_back(tenant, asked.len(), is_late, times);
        for (asked, told) in asked.into_iter().zip(told) {
            self.tell(tenant, asked, told, is_alone);
        }
    }

    /// Tells whoever asked, or asks once more.
    fn tell(self: &Arc<Self>, tenant: &Tenant, asked: Asked, told: Told, is_alone: bool) {
        let proposals = match told {
            Told::All(proposals) => proposals,
            Told::Alone if !asked.was_alone => {
                return self.put(tenant, Asked { was_alone: true, ..asked });
            }
            Told::Alone => {
                let why = format!("plugin {}: its decision is too large", self.name);
                Err(NoDecision::Refused(Refusal::Faulty(why)))
            }
            Told::Late(why) if is_alone => Err(NoDecision::Refused(Refusal::Exhausted(why))),
            // Another one may be why. Fewer go at once from now on, so that it soon goes alone.
            Told::Late(why) => Err(NoDecision::Busy(format!("{why}, beside other questions"))),
            Told::NotAsked(none) => match asked.again_after(Instant::now()) {
                Some(pause) => return self.put_after(pause, tenant.clone(), asked),
                None => Err(none),
            },
        };
        // Whoever asked may have given up.
        drop(asked.to.send(proposals));
    }

    fn put_after(self: &Arc<Self>, pause: Duration, tenant: Tenant, asked: Asked) {
        let (plugin, asked) = (self.clone(), Asked { in_vain: asked.in_vain + 1, ..asked });
        tokio::spawn(async move {
            sleep(pause).await;
            plugin.put(&tenant, asked);
        });
    }

    /// A worker's answer to these questions. Fails with what holds for all of them where there is none.
    async fn answered(&self, asked: &[Asked]) -> Result<Message, NoDecision> {
        if self.client.connection_state() != connection::State::Connected {
            return Err(self.away("cannot be asked: this worker is not connected to the broker"));
        }
        let now = Instant::now();
        let questions = asked.iter().map(|it| question(&it.to_decide, it.left(now)));
        let body = DecideRequest { number: 1, questions: questions.collect() }.encode_to_vec();
        let until = asked.iter().map(|it| it.until).max().unwrap_or(now);
        let within = until.saturating_duration_since(now);
        let request = Request::new().payload(body.into()).timeout(Some(within));
        let answered = self.client.send_request(subject(&self.name), request).await;
        answered.map_err(|error| no_answer(&self.name, &error))
    }
}

/// A question, for a plugin that has so long.
fn question(to_decide: &ToDecide, within: Duration) -> Question {
    let ToDecide { state, command, context } = to_decide;
    let traceparent = command.provenance.traceparent.as_ref();
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Question {
        context: Some(Context {
            tenant: context.tenant.to_string(),
            actor: context.actor.to_string(),
            idempotency_key: context.command_id.to_string(),
            timeout_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            traceparent: traceparent.map(|trace| trace.as_str().to_owned()).unwrap_or_default(),
            tracestate: String::new(),
        }),
        aggregate: command.key.aggregate().to_string(),
        id: context.id.to_string(),
        version: context.version,
        command: command.name.to_string(),
        command_id: context.command_id.to_string(),
        now_ms: context.now_ms,
        state: bytes(state.as_str()),
        payload: bytes(command.payload.as_str()),
    }
}

/// About the bytes that a question takes in a message: its JSON, and names around it.
fn about_bytes(to_decide: &ToDecide) -> usize {
    const AROUND_BYTES: usize = 2 * 1024;
    to_decide.state.as_str().len() + to_decide.command.payload.as_str().len() + AROUND_BYTES
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use flexcore_domain::{
        ActorName, AggregateId, AggregateKey, Command, CommandHash, CommandId, Payload, Provenance,
        State,
        limits::{PAYLOAD_BYTES_MAX, STATE_BYTES_MAX},
        plugin::decisions::QUESTION_BYTES_MAX,
    };

    use super::*;

    /// A question with a state and a payload of so many bytes each, under long names.
    fn to_decide(state_bytes: usize, payload_bytes: usize) -> ToDecide {
        let key = AggregateKey::new(
            Tenant::parse("acme").unwrap(),
            AggregateName::parse("account").unwrap(),
            AggregateId::parse(&"i".repeat(40)).unwrap(),
        );
        let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
        let name = CommandName::parse("open").unwrap();
        let payload = Payload::parse(text(payload_bytes).as_bytes()).unwrap();
        let id = CommandId::parse("c-1").unwrap();
        let actor = ActorName::parse("ann").unwrap();
        let context = flexcore_domain::Context {
            tenant: key.tenant().clone(),
            id: key.id().clone(),
            version: 3,
            command_id: id.clone(),
            actor: actor.clone(),
            now_ms: 7,
        };
        let hash = CommandHash::of(name.as_str(), payload.as_str());
        let provenance = Provenance::of(actor);
        let command = Command { key, name, id, payload, hash, provenance, expected_version: None };
        ToDecide { state: State::from_json(&text(state_bytes)), command, context }
    }

    #[test]
    fn a_question_says_all_that_a_function_is_told() {
        let asked = question(&to_decide(2, 3), Duration::from_millis(1_500));
        let context = asked.context.unwrap();
        assert_eq!((&*context.tenant, &*context.actor), ("acme", "ann"));
        assert_eq!((&*context.idempotency_key, context.timeout_ms), ("c-1", 1_500));
        assert_eq!((&*asked.aggregate, &*asked.command), ("account", "open"));
        assert_eq!((asked.version, &*asked.command_id, asked.now_ms), (3, "c-1", 7));
        assert_eq!((&*asked.state, &*asked.payload), (&b"\"\""[..], &b"\"x\""[..]));
    }

    #[test]
    fn the_largest_question_is_one_message() {
        let largest = to_decide(STATE_BYTES_MAX, PAYLOAD_BYTES_MAX);
        let question = question(&largest, ASKED_WITHIN);
        let bytes = DecideRequest { number: 1, questions: vec![question] }.encoded_len();
        assert!(bytes <= QUESTION_BYTES_MAX, "{bytes}");
        assert!(bytes <= about_bytes(&largest), "{bytes}");
    }

    #[test]
    fn a_worker_says_that_a_plugin_is_late_before_it_is_taken_to_be_gone() {
        assert!(PLUGIN_WITHIN < ASKED_WITHIN && ASKED_WITHIN < DECIDED_WITHIN);
    }

    #[test]
    fn a_question_that_a_worker_could_not_ask_is_sent_again_some_times_while_there_is_time() {
        let now = Instant::now();
        let after = |in_vain: usize, left: Duration| {
            let (to, _) = oneshot::channel();
            let asked = Asked {
                to_decide: to_decide(2, 3),
                plugin_until: now + left,
                until: now + ASKED_WITHIN,
                was_alone: false,
                in_vain,
                is_sent: Arc::default(),
                to,
            };
            asked.again_after(now)
        };
        let all: Vec<_> = (0..4).map(|in_vain| after(in_vain, PLUGIN_WITHIN)).collect();
        let [first, second, third] = AGAIN_AFTER.map(Some);
        assert_eq!(all, [first, second, third, None]);
        assert_eq!(after(0, PLUGIN_LEFT_MIN), None);
        // The last one has its time, too, where each is told at once.
        assert!(AGAIN_AFTER.iter().sum::<Duration>() + PLUGIN_LEFT_MIN < PLUGIN_WITHIN);
    }
}
