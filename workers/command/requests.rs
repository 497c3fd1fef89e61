//! Requests over NATS: commands whose sender waits, and questions for states and outcomes.

use std::{pin::pin, sync::Arc, time::Duration};

use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use flexcore_definition::Catalog;
use flexcore_domain::{
    AggregateKey, CommandId, Decider as _, Event, Outcome, Slot, State, StateReply, Tenant,
    command::header,
};
use flexcore_eventstore::{Error, EventStore, headers::QUEUE_SEQUENCE, snapshot::Snapshot};
use flexcore_resilience::{Beside, Deadline, Shares};
use flexcore_script::{
    ScriptDecider,
    threads::{self, Of, Scripts},
};
use futures::StreamExt;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Lanes, deciders::Fingerprint, messages::StoredCommand, perform::ANSWER_WITHIN,
    reading::read_command,
};

/// Time for which a slot that is to be left is still listened to. Senders learn from the map at
/// about the same time as we do; a question on its way when we stop listening would be lost, and
/// its sender in doubt.
const LISTENS_ON: Duration = Duration::from_millis(100);

/// States at a version that are folded at once, each on a thread of its own and in an interpreter of its
/// own. A tenant takes at most as many as are left for others, and waits for more.
const FOLDS_MAX: usize = 8;

/// Places for those.
pub(super) fn folds() -> Shares<Tenant> {
    Shares::new(FOLDS_MAX, 1).beside(Beside::new(FOLDS_MAX, 1))
}

/// Answers who asks for the version of an application that this worker has in force. Fails when the
/// broker refuses the subscription.
pub(super) async fn serve_catalog(
    answerer: &Answerer,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let subscription = subscribe(&answerer.store, "ctl.catalog.*".to_owned()).await?;
    tasks.spawn(answerer.clone().answer(subscription, stop.clone()));
    Ok(())
}

/// Answers the requests of a slot, as its owner of this epoch, until the token is cancelled and what
/// was asked before, or just after, is answered. The subjects have the epoch in them, so that nothing
/// new comes to an owner that was replaced. Fails when the broker refuses a subscription.
pub(super) async fn serve(
    answerer: &Answerer,
    slot: Slot,
    epoch: u64,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut answering = Vec::new();
    for kind in ["req", "get", "out"] {
        let subscription = subscribe(&answerer.store, format!("{kind}.{epoch}.{slot}.>")).await?;
        answering.push(answerer.clone().answer(subscription, stop.clone()));
    }
    futures::future::join_all(answering).await;
    Ok(())
}

async fn subscribe(store: &EventStore, subject: String) -> Result<Subscriber, Error> {
    let subscribed = store.client().subscribe(subject).await;
    subscribed.map_err(|error| Error::Unavailable(error.to_string()))
}

/// What questions are answered from.
#[derive(Clone)]
pub(super) struct Answerer {
    pub(super) store: EventStore,
    pub(super) lanes: Lanes,
    pub(super) catalog: watch::Receiver<Arc<Catalog>>,
    /// For states at a version.
    pub(super) folds: Shares<Tenant>,
}

impl Answerer {
    /// Answers what comes until a moment after the token is cancelled, and then what had come.
    async fn answer(self, mut subscription: Subscriber, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let mut over = pin!(async {
            stop.cancelled().await;
            tokio::time::sleep(LISTENS_ON).await;
        });
        loop {
            let message = tokio::select! {
                () = &mut over => None,
                message = subscription.next() => message,
            };
            let Some(message) = message else { break };
            self.receive(message, &tasks);
        }
        let _ = subscription.drain().await;
        while let Some(message) = subscription.next().await {
            self.receive(message, &tasks);
        }
        tasks.close();
        tasks.wait().await;
    }

    fn receive(&self, message: Message, tasks: &TaskTracker) {
        let Some(reply) = crate::inbox(&message) else { return };
        let answerer = self.clone();
        tasks.spawn(async move {
            let subject = message.subject.as_str();
            let mut parts = subject.splitn(3, '.');
            // The epoch is the subscription's own.
            let (kind, rest) = (parts.next(), parts.nth(1));
            let body = match kind.zip(rest) {
                Some(("req", rest)) => {
                    let outcome = answerer.command(rest, &message).await;
                    count(&outcome);
                    to_bytes(&outcome.shortened())
                }
                Some(("get", rest)) => to_bytes(&answerer.state(rest, &message).await.shortened()),
                Some(("out", rest)) => {
                    to_bytes(&answerer.outcome(rest, &message).await.shortened())
                }
                _ => answerer.catalog_version(subject),
            };
            // The sender learns from its own timeout when the connection is gone.
            let _ = answerer.store.client().publish(reply, body).await;
        });
    }

    async fn command(&self, rest: &str, message: &Message) -> Outcome {
        let headers = message.headers.as_ref();
        let command = match read_command(&self.store, rest, headers, &message.payload).await {
            Ok(command) => command,
            Err(outcome) => return outcome,
        };
        let Some(place) = self.lanes.enter(&command.key) else {
            return Outcome::Overloaded { retry_after_s: 1 };
        };
        let span = tracing::info_span!("command", otel.kind = "consumer");
        if let Some(parent) = &command.provenance.traceparent {
            flexcore_telemetry::link(&span, parent.as_str());
        }
        let until = deadline(message.headers.as_ref());
        let answer = self.lanes.command(command, until, place);
        let answer = tracing::Instrument::instrument(answer, span);
        let outcome = until.timeout("lane", answer).await;
        self.or_full(outcome.unwrap_or_else(|_| Outcome::Unavailable {
            message: "the log did not answer in time".to_owned(),
        }))
    }

    /// A command that was not begun in time may stand behind stored ones of its aggregate. Where these wait
    /// for room, its sender is told so.
    fn or_full(&self, outcome: Outcome) -> Outcome {
        if matches!(outcome, Outcome::Overloaded { .. })
            && let Err(Error::NoRoom(message)) = self.store.check_room()
        {
            return Outcome::NoRoom { message };
        }
        outcome
    }

    async fn state(&self, rest: &str, message: &Message) -> StateReply {
        let unavailable = |message: &str| StateReply::Unavailable { message: message.to_owned() };
        let Some(key) = AggregateKey::from_subject_part(rest) else {
            return unavailable("not an aggregate's subject");
        };
        let at = message.headers.as_ref().and_then(|headers| headers.get(header::AT_VERSION));
        let answer = async {
            match at.map(|text| text.as_str().parse()) {
                None => self.lanes.state(key).await,
                Some(Ok(version)) => self.state_at(&key, version).await,
                Some(Err(_)) => unavailable("the version is not a number"),
            }
        };
        let answered = deadline(message.headers.as_ref()).timeout("lane", answer).await;
        answered.unwrap_or_else(|_| unavailable("the log did not answer in time"))
    }

    /// Folds the log up to a version. Rare, so it neither uses nor fills a lane's cache.
    async fn state_at(&self, key: &AggregateKey, version: u64) -> StateReply {
        let unavailable = |message: String| StateReply::Unavailable { message };
        let catalog = self.catalog.borrow().clone();
        let Some(definition) = catalog.aggregate(key.aggregate().as_str()).cloned() else {
            return StateReply::NotFound;
        };
        let place = self.folds.wait(key.tenant()).await;
        let base = self.snapshot(key, version, &Fingerprint::of(&definition)).await;
        let (state, from) = match &base {
            Some(base) => (State::from_json(base.state.get()), (base.sequence, base.version)),
            None => (State::none(), (0, 0)),
        };
        // The log is read as fast as it is folded, a page ahead.
        let (pages, mut events) = mpsc::channel::<Vec<Vec<Event>>>(1);
        let (answer, folded) = oneshot::channel();
        let of = Of { key: key.clone(), definition: Some(definition) };
        let fold = |scripts| async move {
            // Taken as long as it is folded, also when whoever asked has given up.
            let _place = place;
            let state = fold(scripts, of, state, &mut events).await;
            // The reader of pages learns from this that there is no more to do.
            drop(events);
            let _ = answer.send(state);
        };
        if let Err(error) = threads::spawn("fold", || None, fold) {
            return unavailable(error.to_string());
        }
        let last = match self.read_to(key, from, version, pages).await {
            Ok(0) => return StateReply::NotFound,
            Ok(last) => last,
            Err(error) if error.is_passing() => return unavailable(error.to_string()),
            Err(error) => return StateReply::Faulty { message: error.to_string() },
        };
        match folded.await {
            Ok(Ok(state)) => StateReply::Found {
                version: last,
                state: serde_json::value::RawValue::from_string(state.as_str().to_owned())
                    .expect("BUG: a decider's state is JSON text"),
            },
            Ok(Err(message)) => StateReply::Faulty { message },
            Err(error) => unavailable(error.to_string()),
        }
    }

    /// The aggregate's snapshot, when it is of these functions and not of a later version. Without one
    /// everything is folded.
    async fn snapshot(
        &self,
        key: &AggregateKey,
        version: u64,
        fingerprint: &Fingerprint,
    ) -> Option<Snapshot> {
        let snapshot = self.store.snapshot(key).await.unwrap_or_default();
        snapshot.filter(|kept| kept.version <= version && kept.fingerprint == fingerprint.as_str())
    }

    /// Reads an aggregate's events after a stream sequence and a version up to another version, and no
    /// further, page by page. Returns the last one's version.
    async fn read_to(
        &self,
        key: &AggregateKey,
        from: (u64, u64),
        version: u64,
        pages: mpsc::Sender<Vec<Vec<Event>>>,
    ) -> Result<u64, Error> {
        let (mut sequence, mut last) = from;
        while last < version {
            // Each commit has an event at least.
            let left = usize::try_from(version - last).unwrap_or(usize::MAX);
            let page = self.store.read_page(key, sequence, left).await?;
            let mut commits = Vec::new();
            for recorded in page.commits {
                sequence = recorded.sequence;
                let mut events = Vec::new();
                for event in recorded.commit.events {
                    if event.version != last + 1 {
                        return Err(Error::Gap {
                            subject: flexcore_eventstore::subject(key),
                            expected: last + 1,
                            found: event.version,
                        });
                    }
                    if event.version > version {
                        break;
                    }
                    last = event.version;
                    events.push(event);
                }
                commits.push(events);
                if last == version {
                    break;
                }
            }
            // Who folds has given up when it takes no more, and says why.
            if pages.send(commits).await.is_err() || !page.more {
                break;
            }
        }
        Ok(last)
    }

    async fn outcome(&self, rest: &str, message: &Message) -> Outcome {
        let header = |name: &str| Some(message.headers.as_ref()?.get(name)?.as_str());
        let id = header(header::COMMAND_ID).map(CommandId::parse);
        let (Some(key), Some(Ok(id))) = (AggregateKey::from_subject_part(rest), id) else {
            return Outcome::Unavailable { message: "not a question for a command".to_owned() };
        };
        let sequence = header(QUEUE_SEQUENCE).and_then(|text| text.parse().ok());
        let known = async {
            match sequence {
                Some(sequence) => self.known_stored(&key, &id, sequence).await,
                None => self.known(&key, &id).await,
            }
        };
        let known = deadline(message.headers.as_ref()).timeout("lane", known).await;
        let message = match known {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the log did not answer in time".to_owned(),
        };
        Outcome::Unavailable { message }
    }

    /// What came of the last command of this id. While a later one of it waits, an earlier one's refusal is no
    /// answer: it is decided again.
    async fn known(&self, key: &AggregateKey, id: &CommandId) -> Result<Outcome, Error> {
        match self.lanes.outcome(key.clone(), id.clone(), None).await {
            Some(Outcome::Accepted { version, position, .. }) => {
                return Ok(Outcome::Accepted { version, position, replayed: false });
            }
            Some(other) => return Ok(other),
            None => {}
        }
        // It left nothing in the log: the aggregate knows of all its commits.
        let kept = self.store.kept_outcome(key, id).await?;
        if self.store.waits(key, id, kept.as_ref()).await? {
            return Ok(Outcome::Pending);
        }
        // Looked for again: what does not wait any more has left its outcome by now.
        Ok(self.store.outcome(key, id).await?.unwrap_or(Outcome::Unknown))
    }

    /// What came of the command that has this sequence in the queue, whatever came of others of its id.
    async fn known_stored(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequence: u64,
    ) -> Result<Outcome, Error> {
        // Looked for first: what is gone from the queue has been answered by its lane before.
        let there = self.store.stored_command(key, id, sequence).await?;
        let stored = StoredCommand::new(sequence, there.as_ref());
        let accepted = match self.lanes.outcome(key.clone(), id.clone(), Some(stored)).await {
            // Another command had this id: this one is put aside, and its outcome says so.
            None | Some(Outcome::IdMismatch) => None,
            // Without its payload nobody knows whether it was this one.
            Some(accepted @ Outcome::Accepted { .. }) if there.is_none() => Some(accepted),
            Some(known) => return Ok(known),
        };
        let kept = self.store.kept_outcome(key, id).await?;
        let kept = kept.filter(|kept| match &there {
            Some(there) => kept.covers(there.stamp()),
            None => kept.covers_sequence(sequence),
        });
        let not_kept = if there.is_some() { Outcome::Pending } else { Outcome::Unknown };
        Ok(kept.map(|kept| kept.outcome).or(accepted).unwrap_or(not_kept))
    }

    /// The version of an application that this worker has in force: `apply` waits for it.
    fn catalog_version(&self, subject: &str) -> Bytes {
        let name = subject.rsplit('.').next().unwrap_or_default();
        let catalog = self.catalog.borrow();
        let version = catalog.applications.get(name).map_or(0, |application| application.version);
        Bytes::from(version.to_string())
    }
}

/// Folds pages of commits onto a state as they come: one commit in a call, as the limits are those of one.
/// Fails with why they have no state.
async fn fold(
    scripts: Scripts<Option<ScriptDecider>>,
    of: Of,
    mut state: State,
    pages: &mut mpsc::Receiver<Vec<Vec<Event>>>,
) -> Result<State, String> {
    while let Some(commits) = pages.recv().await {
        let (mut after, definition) = (state, of.definition.clone());
        let job = move |made: &mut Option<ScriptDecider>| {
            if made.is_none()
                && let Some(definition) = definition
            {
                let decider = ScriptDecider::new(definition).map_err(|problems| {
                    problems.first().map(ToString::to_string).unwrap_or_default()
                })?;
                *made = Some(decider);
            }
            let decider = made.as_mut().ok_or("no such aggregate")?;
            for events in &commits {
                after = decider.evolve(&after, events).map_err(|refusal| refusal.to_string())?;
            }
            Ok::<_, String>(after)
        };
        let folded = scripts.call(of.clone(), job).await;
        state = folded.map_err(|refusal| refusal.to_string())??;
    }
    Ok(state)
}

/// Counts what came of a command.
pub(super) fn count(outcome: &Outcome) {
    let word = match outcome {
        Outcome::Accepted { replayed: false, .. } => "accepted",
        Outcome::Accepted { replayed: true, .. } => "replayed",
        Outcome::Rejected { .. } => "rejected",
        Outcome::InvalidPayload { .. } => "invalid_payload",
        Outcome::UnknownAggregate { .. } | Outcome::UnknownCommand { .. } => "unknown",
        Outcome::Conflict { .. } => "conflict",
        Outcome::IdMismatch => "id_mismatch",
        Outcome::Faulty { .. } => "faulty",
        Outcome::Overloaded { .. } => "overloaded",
        Outcome::NoRoom { .. } => "no_room",
        Outcome::Away { .. } | Outcome::Unavailable { .. } => "unavailable",
        Outcome::Pending | Outcome::Unknown | Outcome::Dead { .. } => "other",
    };
    metrics::counter!("flexcore_commands_total", "outcome" => word).increment(1);
}

/// Until when the sender waits, and not longer than a waiting client's command is worked on. One that
/// says nothing, or nonsense, waits that long.
fn deadline(headers: Option<&HeaderMap>) -> Deadline {
    let now = Instant::now();
    let longest = Deadline::at(now, ANSWER_WITHIN);
    let asked = headers.and_then(|headers| headers.get(flexcore_resilience::HEADER));
    let asked = asked.and_then(|text| Deadline::parse(text.as_str(), now).ok());
    asked.map_or(longest, |asked| asked.min(longest))
}

fn to_bytes(answer: &impl Serialize) -> Bytes {
    serde_json::to_vec(answer).expect("BUG: answers serialise").into()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_flood_of_states_at_a_version_leaves_places_for_others() {
        let folds = folds();
        let [flood, calm] = ["flood", "calm"].map(|name| Tenant::parse(name).unwrap());
        let mut asked: Vec<_> = (0..40).map(|_| Box::pin(folds.wait(&flood))).collect();
        let mut places =
            || asked.iter_mut().filter_map(FutureExt::now_or_never).collect::<Vec<_>>();
        let held = places();
        assert_eq!(held.len(), 4);
        assert!(folds.wait(&calm).now_or_never().is_some());
        drop(held);
        assert_eq!(folds.taken(), 1, "few beside somebody else");
    }
}
