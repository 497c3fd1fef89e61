//! Bringing older events to the schema that each read model was declared for: what serves while its
//! successor is built goes on as its own deployment says. JavaScript runs on a thread of its own,
//! which is started with the first event that needs it.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    thread,
};

use flexcore_domain::{Event, Hash, Refusal, definition::Followed};
use flexcore_eventstore::Recorded;
use flexcore_readmodel::Reads;
use flexcore_script::ScriptDecider;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::batch::Model;

/// Tries of an upcast that uses up its time or memory before its event is parked.
const TRIES_MAX: u32 = 4;

/// An event, by commit and event, and what it is brought to.
type Place = (usize, usize, Hash);

/// New data of events; or why there is none.
pub(super) type Upcasted = HashMap<Place, Result<Box<RawValue>, String>>;

/// An event with its place in the batch.
struct Old {
    place: Place,
    event: Event,
    followed: Followed,
}

type Request = (Vec<Old>, oneshot::Sender<Upcasted>);

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
        let places: Vec<_> = old.iter().map(|old| old.place).collect();
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
            places.into_iter().map(|place| (place, failed())).collect()
        })
    }

    fn thread(&mut self) -> std::io::Result<&mpsc::Sender<Request>> {
        if self.thread.is_none() {
            let (sender, receiver) = mpsc::channel(1);
            thread::Builder::new().name("upcast".to_owned()).spawn(move || serve(receiver))?;
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
        for (at, recorded) in commits.iter().enumerate() {
            if !model.takes(recorded) {
                continue;
            }
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                if !plan.may_differ(event).1 {
                    continue;
                }
                let Reads::Upcast(followed) = plan.reads(&recorded.commit, event) else { continue };
                let place = (at, nth, followed.fingerprint);
                if seen.insert(place) {
                    old.push(Old { place, event: event.clone(), followed: followed.clone() });
                }
            }
        }
    }
    old
}

/// Upcasts until the reader is gone.
fn serve(mut requests: mpsc::Receiver<Request>) {
    let mut deciders: HashMap<Hash, ScriptDecider> = HashMap::new();
    while let Some((old, answer)) = requests.blocking_recv() {
        let upcasted = old
            .into_iter()
            .map(|Old { place, event, followed }| {
                let decider = match deciders.entry(followed.fingerprint) {
                    Entry::Occupied(made) => Ok(made.into_mut()),
                    // One that can't be made is not kept: it was compiled when it was deployed.
                    Entry::Vacant(place) => make(&followed).map(|made| place.insert(made)),
                };
                let data = decider.and_then(|decider| upcast(decider, &event));
                (place, data)
            })
            .collect();
        // The reader may have ended meanwhile.
        let _ = answer.send(upcasted);
    }
}

/// Fails with the reason for which the event is parked. What used up its time or memory is tried again
/// first, since the machine may have had a part in it.
fn upcast(decider: &mut ScriptDecider, event: &Event) -> Result<Box<RawValue>, String> {
    let mut tries = 1;
    loop {
        match decider.upcast(event) {
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
