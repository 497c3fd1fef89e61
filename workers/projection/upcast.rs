//! Bringing older events to the schema that each read model was declared for: what serves while its
//! successor is built goes on as its own deployment says. JavaScript runs on a thread of its own,
//! which is started with the first event that needs it.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    time::{Duration, Instant},
};

use flexcore_definition::Followed;
use flexcore_domain::{AggregateKey, Event, Hash, Refusal, limits::COMMIT_BYTES_MAX};
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
/// Bytes of upcast events after which no further commit's are upcast for a batch: a few bytes in the log may
/// become many.
const UPCASTED_BYTES_MAX: usize = 32 << 20;
/// Largest data that an upcast makes of one event, in bytes: as the largest event that a commit has.
const EVENT_BYTES_MAX: usize = COMMIT_BYTES_MAX;
/// After which no more commits are begun with at once: what is there is written first, so that rows move on.
const UPCAST_FOR: Duration = Duration::from_secs(5);

/// An event with its place in the batch.
struct Old {
    at: EventAt,
    key: AggregateKey,
    event: Event,
    followed: Followed,
}

/// Events, in how many bytes they are to fit, and where to.
type Request = (Vec<Old>, usize, oneshot::Sender<Upcasted>);

/// The deciders that a thread has made, by what they bring events to.
type Made = HashMap<Hash, ScriptDecider>;

/// The upcasts of what a reader feeds.
#[derive(Default)]
pub(super) struct Upcasts {
    thread: Option<mpsc::Sender<Request>>,
}

impl Upcasts {
    /// Upcasts the commits' events that some model needs in a later version, once for all models that
    /// agree on how, until they have so many bytes. Those that were upcast before are not again. Returns
    /// how many of the commits have what they need.
    pub(super) async fn run(
        &mut self,
        models: &[Model],
        commits: &[Recorded],
        upcasted: &mut Upcasted,
    ) -> usize {
        let old = old(models, commits, upcasted);
        let all: Vec<_> = old.iter().map(|old| old.at).collect();
        let room = UPCASTED_BYTES_MAX.saturating_sub(upcasted.values().map(bytes_of).sum());
        if room > 0 && !old.is_empty() {
            upcasted.extend(self.ask(old, room, &all).await);
        }
        match all.iter().find(|at| !upcasted.contains_key(*at)) {
            Some((sequence, ..)) => commits.partition_point(|it| it.sequence < *sequence),
            None => commits.len(),
        }
    }

    async fn ask(&mut self, old: Vec<Old>, room: usize, all: &[EventAt]) -> Upcasted {
        let (answer, answered) = oneshot::channel();
        let sent = match self.thread() {
            Ok(thread) => thread.send((old, room, answer)).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "no thread for upcasts");
                false
            }
        };
        let upcasted = if sent { answered.await.ok() } else { None };
        upcasted.unwrap_or_else(|| {
            self.thread = None;
            let failed = || Err("upcast: the script's thread ended".to_owned());
            all.iter().map(|at| (*at, failed())).collect()
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

/// The events that some model needs in a later version, each once for each way there, in the order of the
/// log; less those that were upcast before.
fn old(models: &[Model], commits: &[Recorded], upcasted: &Upcasted) -> Vec<Old> {
    let (mut old, mut seen) = (Vec::new(), HashSet::new());
    for model in models {
        let plan = &model.version.plan;
        for recorded in commits {
            if !model.takes(recorded) {
                continue;
            }
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                if !plan.may_differ(event).1 {
                    continue;
                }
                let Reads::Upcast(followed) = plan.reads(&recorded.commit, event) else { continue };
                let at = (recorded.sequence, nth, followed.fingerprint);
                if !upcasted.contains_key(&at) && seen.insert(at) {
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
    old.sort_by_key(|old| old.at.0);
    old
}

/// Bytes of an event's new data, or of the reason for which there are none.
pub(super) fn bytes_of(upcasted: &Result<Box<RawValue>, String>) -> usize {
    match upcasted {
        Ok(data) => data.get().len(),
        Err(reason) => reason.len(),
    }
}

/// Upcasts until the reader is gone. A call that does not end is left behind, and the event parked. Each
/// answer has the events of whole commits, and of one at least.
async fn serve(scripts: Scripts<Made>, mut requests: mpsc::Receiver<Request>) {
    while let Some((old, room, answer)) = requests.recv().await {
        let (mut upcasted, mut bytes, mut last) = (Upcasted::new(), 0, None);
        let began = Instant::now();
        for old in old {
            let is_enough = bytes >= room || began.elapsed() >= UPCAST_FOR;
            if is_enough && last.is_some() && last != Some(old.at.0) {
                break;
            }
            last = Some(old.at.0);
            let (at, data) = (old.at, upcast(&scripts, old).await);
            bytes += bytes_of(&data);
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
            Ok(newest) if newest.data.get().len() > EVENT_BYTES_MAX => {
                let bytes = newest.data.get().len();
                return Err(format!("upcast: {bytes} bytes came of it; at most {EVENT_BYTES_MAX}"));
            }
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
