//! Waiting for one's own writes: one poller asks Postgres for everybody who waits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flexcore_domain::{Name, Position, Slot};
use sqlx::{PgPool, Row as _};
use tokio::sync::oneshot;

use crate::{Error, ReadModels};

/// Between two looks at the checkpoints, while somebody waits.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Least time for one look, which is no part of the wait: Postgres may be a network away, and busy.
const LOOK_LEAST: Duration = Duration::from_millis(500);

/// Most requests that wait at once: beyond it something is stuck, and waiting longer cures nothing.
pub const WAITERS_MAX: usize = 10_000;

/// Where the checkpoint of a read model's slot has to be.
type Wants = BTreeMap<(Name, u16), u64>;

/// Those who wait. The poller runs while there are any.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    polling: bool,
    waiters: Vec<Waiter>,
}

struct Waiter {
    wants: Wants,
    done: oneshot::Sender<()>,
}

/// Positions that serving versions have passed, by read model and slot.
type Passed = HashMap<(String, i16), i64>;

/// Positions that read models had not passed when they were looked at.
pub struct Unreached {
    models: ReadModels,
    wants: Wants,
}

impl ReadModels {
    /// Waits until the serving version of each read model has passed each position. Fails with
    /// [`Error::NotYet`] after the timeout, with [`Error::NotBuilt`] when none serves.
    #[boxed::async_recursion]
    pub async fn wait(
        &self,
        read_models: &[Name],
        positions: &[Position],
        timeout: Duration,
    ) -> Result<(), Error> {
        let longest = look_timeout(timeout);
        let look = tokio::time::timeout(longest, self.look(read_models, positions));
        let Some(unreached) = look.await.map_err(|_| Error::Timeout(longest))?? else {
            return Ok(());
        };
        if unreached.reached(timeout).await? {
            return Ok(());
        }
        Err(unreached.missing().await)
    }

    /// Looks once whether the serving version of each read model has passed each position; `None`:
    /// all have. Fails with [`Error::NotBuilt`] when none serves.
    #[boxed::async_recursion]
    pub async fn look(
        &self,
        read_models: &[Name],
        positions: &[Position],
    ) -> Result<Option<Unreached>, Error> {
        let mut wants = Wants::new();
        for name in read_models {
            for position in positions {
                let wanted = wants.entry((name.clone(), position.slot.number())).or_default();
                *wanted = (*wanted).max(position.sequence);
            }
        }
        let passed_now = passed(&self.pool, wants.keys().cloned().collect()).await?;
        wants.retain(|want, wanted| !is_past(&passed_now, want, *wanted));
        if let Some(((name, _), _)) =
            wants.iter().find(|(want, _)| !passed_now.contains_key(&key(want)))
        {
            return Err(Error::NotBuilt(name.to_string()));
        }
        Ok((!wants.is_empty()).then(|| Unreached { models: self.clone(), wants }))
    }
}

/// Longest time for one look for a caller that waits this long: a wait of 0 ms, or one that is used up,
/// asks once, too, and what is there is found.
#[must_use]
pub fn look_timeout(wait: Duration) -> Duration {
    wait.max(LOOK_LEAST)
}

impl Unreached {
    /// Waits until all are passed; `false`: not in time. Asks Postgres nothing itself, one poller
    /// does for all. Fails with [`Error::TooManyWaiters`], and when the poller ends.
    #[boxed::async_recursion]
    pub async fn reached(&self, timeout: Duration) -> Result<bool, Error> {
        let waiters = Arc::clone(&self.models.waiters);
        let done = waiters.join(self.models.pool.clone(), self.wants.clone())?;
        match tokio::time::timeout(timeout, done).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(_)) => Err(Error::Unavailable("the poller of checkpoints ended".to_owned())),
            Err(_) => Ok(false),
        }
    }

    /// Looks again, and names the missing slots: [`Error::NotYet`], or why Postgres cannot tell.
    #[boxed::async_recursion]
    pub async fn missing(&self) -> Error {
        let wants = &self.wants;
        let found = match passed(&self.models.pool, wants.keys().cloned().collect()).await {
            Ok(found) => found,
            Err(error) => return error,
        };
        let missing = wants.iter().find(|(want, wanted)| !is_past(&found, want, **wanted));
        // All have passed since: the first one then, truthfully late.
        let ((name, slot), wanted) =
            missing.or_else(|| wants.iter().next()).expect("BUG: somebody waited for nothing");
        let at = found.get(&key(&(name.clone(), *slot))).copied().unwrap_or(0);
        Error::NotYet {
            read_model: name.clone(),
            slot: Slot::new(*slot).expect("BUG: it was a slot's number"),
            wanted: *wanted,
            passed: at.unsigned_abs(),
        }
    }
}

fn key((name, slot): &(Name, u16)) -> (String, i16) {
    (name.to_string(), *slot as i16)
}

fn is_past(passed: &Passed, want: &(Name, u16), wanted: u64) -> bool {
    passed.get(&key(want)).is_some_and(|at| at.unsigned_abs() >= wanted)
}

async fn passed(pool: &PgPool, wants: Vec<(Name, u16)>) -> Result<Passed, Error> {
    let (models, slots): (Vec<String>, Vec<i16>) = wants.iter().map(key).unzip();
    let rows = sqlx::query(
        "select p.read_model, r.slot, r.place \
         from flexcore.projections p cross join lateral flexcore.reached(p.id) r \
         join unnest($1::text[], $2::smallint[]) as w(read_model, slot) \
             on w.read_model = p.read_model and w.slot = r.slot \
         where p.state = 'serving' and p.read_model = any($1)",
    )
    .bind(models)
    .bind(slots)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?)))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(Error::from)
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // A panic elsewhere leaves a list that is still a list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: Arc<Self>, pool: PgPool, wants: Wants) -> Result<oneshot::Receiver<()>, Error> {
        let (done, receiver) = oneshot::channel();
        let start = {
            let mut waiting = self.lock();
            if waiting.waiters.len() >= WAITERS_MAX {
                return Err(Error::TooManyWaiters);
            }
            waiting.waiters.push(Waiter { wants, done });
            !std::mem::replace(&mut waiting.polling, true)
        };
        if start {
            tokio::spawn(self.poll(pool));
        }
        Ok(receiver)
    }

    /// Looks at the checkpoints until nobody waits any more.
    async fn poll(self: Arc<Self>, pool: PgPool) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let mut wants: Vec<(Name, u16)> = {
                let mut waiting = self.lock();
                waiting.waiters.retain(|waiter| !waiter.done.is_closed());
                if waiting.waiters.is_empty() {
                    waiting.polling = false;
                    return;
                }
                waiting.waiters.iter().flat_map(|waiter| waiter.wants.keys().cloned()).collect()
            };
            wants.sort_unstable();
            wants.dedup();
            match passed(&pool, wants).await {
                Ok(found) => self.wake(&found),
                // The waiters' own timeouts tell them; the next look comes after a pause.
                Err(error) => {
                    tracing::warn!(%error, "cannot look at the checkpoints");
                    tokio::time::sleep(POLL_INTERVAL * 100).await;
                }
            }
        }
    }

    fn wake(&self, found: &Passed) {
        let mut waiting = self.lock();
        for waiter in std::mem::take(&mut waiting.waiters) {
            if waiter.wants.iter().all(|(want, wanted)| is_past(found, want, *wanted)) {
                // A caller that gave up meanwhile needs no answer.
                let _ = waiter.done.send(());
            } else {
                waiting.waiters.push(waiter);
            }
        }
    }
}
