//! Bringing older events to the newest schema. JavaScript runs on a thread of its own, which is
//! started with the first event that needs it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    thread,
};

use flexcore_domain::{AggregateName, Catalog, Event, Refusal};
use flexcore_eventstore::Recorded;
use flexcore_script::ScriptDecider;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};

/// Tries of an upcast that uses up its time or memory before its event is parked.
const TRIES_MAX: u32 = 4;

/// New data of events, by commit and event; or why there is none.
pub(super) type Upcasted = HashMap<(usize, usize), Result<Box<RawValue>, String>>;

/// An event with its place in the batch.
struct Old {
    place: (usize, usize),
    aggregate: AggregateName,
    event: Event,
}

type Request = (Vec<Old>, oneshot::Sender<Upcasted>);

/// The upcasts of what is deployed.
pub(super) struct Upcasts {
    deployed: watch::Receiver<Arc<Catalog>>,
    /// As it was with the last batch.
    catalog: Arc<Catalog>,
    thread: Option<mpsc::Sender<Request>>,
}

impl Upcasts {
    pub(super) fn new(deployed: watch::Receiver<Arc<Catalog>>) -> Self {
        let catalog = deployed.borrow().clone();
        Self { deployed, catalog, thread: None }
    }

    /// Upcasts the batch's events that need it.
    pub(super) async fn run(&mut self, commits: &[Recorded]) -> Upcasted {
        let now = self.deployed.borrow().clone();
        if !Arc::ptr_eq(&now, &self.catalog) {
            (self.catalog, self.thread) = (now, None);
        }
        let mut old = Vec::new();
        for (at, recorded) in commits.iter().enumerate() {
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                let aggregate = recorded.commit.key.aggregate();
                if self.is_old(aggregate, event) {
                    let (aggregate, event) = (aggregate.clone(), event.clone());
                    old.push(Old { place: (at, nth), aggregate, event });
                }
            }
        }
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

    fn is_old(&self, aggregate: &AggregateName, event: &Event) -> bool {
        let definition = self.catalog.aggregate(aggregate.as_str());
        let newest = definition.and_then(|definition| definition.events.get(&event.event));
        newest.is_some_and(|newest| event.schema_version < newest.version)
    }

    fn thread(&mut self) -> std::io::Result<&mpsc::Sender<Request>> {
        if self.thread.is_none() {
            let (sender, receiver) = mpsc::channel(1);
            let catalog = self.catalog.clone();
            thread::Builder::new()
                .name("upcast".to_owned())
                .spawn(move || serve(receiver, &catalog))?;
            self.thread = Some(sender);
        }
        Ok(self.thread.as_ref().expect("BUG: just made"))
    }
}

/// Upcasts until the reader is gone.
fn serve(mut requests: mpsc::Receiver<Request>, catalog: &Catalog) {
    let mut deciders: HashMap<AggregateName, ScriptDecider> = HashMap::new();
    while let Some((old, answer)) = requests.blocking_recv() {
        let upcasted = old
            .into_iter()
            .map(|old| {
                let decider = match deciders.entry(old.aggregate) {
                    Entry::Occupied(made) => Ok(made.into_mut()),
                    // One that can't be made is not kept: it was compiled when it was deployed.
                    Entry::Vacant(place) => {
                        make(catalog, place.key()).map(|made| place.insert(made))
                    }
                };
                let data = decider.and_then(|decider| upcast(decider, &old.event));
                (old.place, data)
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

fn make(catalog: &Catalog, aggregate: &AggregateName) -> Result<ScriptDecider, String> {
    let definition = catalog.aggregate(aggregate.as_str()).ok_or("its aggregate is gone")?;
    ScriptDecider::new(definition.clone()).map_err(|problems| {
        problems.first().map_or_else(|| "the definition fails".to_owned(), ToString::to_string)
    })
}
