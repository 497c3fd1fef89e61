//! Bringing older events to the schema that each read model was declared for: what serves while its
//! successor is built goes on as its own deployment says. JavaScript runs on a thread of its own,
//! which is started with the first event that needs it.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use flexcore_definition::Followed;
use flexcore_domain::{AggregateKey, Event, Hash, Refusal};
use flexcore_eventstore::Recorded;
use flexcore_readmodel::Reads;
use flexcore_script::{
    ScriptDecider,
    threads::{self, Of, Scripts},
};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::batch::{EventAt, Model, Upcasted};

/// Tries of an upcast that uses up its time or memory before its event is parked.
const TRIES_MAX: u32 = 4;

/// An event with its place in the batch.
struct Old {
    at: EventAt,
    key: AggregateKey,
    event: Event,
    followed: Followed,
}

type Request = (Vec<Old>, oneshot::Sender<Upcasted>);

/// The deciders that a thread has made, by what they bring events to.
type Made = HashMap<Hash, ScriptDecider>;

/// The upcasts of what a reader feeds.
#[derive(Default)]
pub(super) struct Upcasts {
    thread: Option<mpsc::Sender<Request>>,
}

impl Upcasts {
    /// Upcasts the batch's events that some model needs in a later version, once for all models that
    /// agree on how.
    pub(super) async fn run(&mut self, models: &[Model], commits: &[Recorded]) -> Upcasted {
        let old = old(models, commits);
        if old.is_empty() {
            return Upcasted::new();
        }
        let all: Vec<_> = old.iter().map(|old| old.at).collect();
        let (answer, answered) = oneshot::channel();
        let sent = match self.thread() {
            Ok(thread) => thread.send((old, answer)).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "no thread for upcasts");
                false
            }
        };
        let upcasted = if sent { answered.await.ok() } else { None };
        upcasted.unwrap_or_else(|| {
            self.thread = None;
            let failed = || Err("upcast: the script's thread ended".to_owned());
            all.into_iter().map(|at| (at, failed())).collect()
        })
    }

    fn thread(&mut self) -> std::io::Result<&mpsc::Sender<Request>> {
        if self.thread.is_none() {
            let (sender, receiver) = mpsc::channel(1);
            threads::spawn("upcast", Made::new, |scripts| serve(scripts, receiver))?;
            self.thread = Some(sender);
        }
        Ok(self.thread.as_ref().expect("BUG: just made"))
    }
}

/// The events that some model needs in a later version, each once for each way there.
fn old(models: &[Model], commits: &[Recorded]) -> Vec<Old> {
    let (mut old, mut seen) = (Vec::new(), HashSet::new());
    for model in models {
        let plan = &model.version.plan;
        for (nth_commit, recorded) in commits.iter().enumerate() {
            if !model.takes(recorded) {
                continue;
            }
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                if !plan.may_differ(event).1 {
                    continue;
                }
                let Reads::Upcast(followed) = plan.reads(&recorded.commit, event) else { continue };
                let at = (nth_commit, nth, followed.fingerprint);
                if seen.insert(at) {
                    old.push(Old {
                        at,
                        key: recorded.commit.key.clone(),
                        event: event.clone(),
                        followed: followed.clone(),
                    });
                }
            }
        }
    }
    old
}

/// Upcasts until the reader is gone. A call that does not end is left behind, and the event parked.
async fn serve(scripts: Scripts<Made>, mut requests: mpsc::Receiver<Request>) {
    while let Some((old, answer)) = requests.recv().await {
        let mut upcasted = Upcasted::with_capacity(old.len());
        for old in old {
            let (at, data) = (old.at, upcast(&scripts, old).await);
            upcasted.insert(at, data);
        }
        // The reader may have ended meanwhile.
        let _ = answer.send(upcasted);
    }
}

/// Fails with the reason for which the event is parked. An upcast that used up its time or memory
/// is tried again first, since the machine may have had a part in it.
async fn upcast(scripts: &Scripts<Made>, old: Old) -> Result<Box<RawValue>, String> {
    let Old { key, event, followed, .. } = old;
    let mut tries = 1;
    loop {
        let of = Of { key: key.clone(), definition: Some(followed.declared.clone()) };
        let (event, followed) = (event.clone(), followed.clone());
        let job = move |made: &mut Made| {
            let decider = match made.entry(followed.fingerprint) {
                Entry::Occupied(made) => made.into_mut(),
                // One that can't be made is not kept: it was compiled when it was deployed.
                Entry::Vacant(place) => place.insert(make(&followed)?),
            };
            Ok::<_, String>(decider.upcast(&event))
        };
        match scripts.call(of, job).await.unwrap_or_else(|refusal| Ok(Err(refusal)))? {
            Ok(newest) => return Ok(newest.data),
            Err(Refusal::Exhausted(_)) if tries < TRIES_MAX => tries += 1,
            Err(error) => return Err(format!("upcast: {error}")),
        }
    }
}

fn make(followed: &Followed) -> Result<ScriptDecider, String> {
    ScriptDecider::new(followed.declared.clone()).map_err(|problems| {
        problems.first().map_or_else(|| "the definition fails".to_owned(), ToString::to_string)
    })
}
