//! The room that the broker has left. At `max_file_store` it refuses every write, that of a lease
//! and of a slot's progress too: within seconds nothing would have an owner, and nobody could say
//! why. So the log takes no more while the last of the room is left for what keeps everything
//! going.
//!
//! A disk that is full before that is worse: the server stops to write its streams, and answers nothing
//! that would have to be written, until it is started again. Its health says so.
//!
//! Who looks at the room sees the servers' memory, too (`memory.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error,
    memory::{Alarm, Memory},
    monitoring,
};

/// Between two looks. Writes in between take far less than is left free.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes that are left free: all that stored commands, outcomes and dead letters may take, 1.5 GiB,
/// and as much again as leases, progress and snapshots need.
const RESERVE_BYTES: u64 = 2 << 30;
/// A smaller store leaves this part of it free.
const RESERVE_PART: u64 = 10;
/// The text of a server's health check when its disk is full: of a stream that it could not write,
/// and in a cluster, where it has switched JetStream off.
const WRITES_NO_MORE: [&str; 2] = ["no space left on device", "JetStream not enabled"];
const STUCK: &str = "a nats-server writes nothing more, most likely since its disk is full: make room there, \
                     and start that server again";
/// Looks in a row that no server answers before the last result does not count any more: there may
/// be room by now, and commands would be refused for as long as nobody can be asked.
const MISSED_MAX: u32 = 5;

/// The broker's room as it was seen last; cheap to clone. Without monitoring addresses nobody sees
/// it, and only the broker's own answers say that there is no room.
#[derive(Clone, Default)]
pub struct Room {
    seen: Arc<Seen>,
    looking: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Default)]
struct Seen {
    used: AtomicU64,
    /// 0: nothing was seen.
    most: AtomicU64,
    /// Looks in a row without an answer.
    missed: AtomicU32,
    /// Too few servers are left that can write.
    stuck: AtomicBool,
    memory: Alarm,
}

/// The last look at the servers.
#[derive(Clone, Debug, Default)]
struct Look {
    /// Bytes used and the most of the fullest one, which refuses first; `None`: none answers.
    fullest: Option<(u64, u64)>,
    /// Servers that write nothing more.
    stuck: usize,
    servers: usize,
    /// The memory of each that answers.
    memory: Vec<Memory>,
}

impl Look {
    /// Without those whose disk is full there are not enough to agree.
    fn is_stuck(&self) -> bool {
        self.stuck > 0 && 2 * (self.servers - self.stuck) <= self.servers
    }
}

impl Seen {
    /// Keeps what a look found. Returns whether it is full; `None`: as it was.
    fn keep(&self, look: &Look) -> Option<bool> {
        let answered = look.fullest.is_some() || look.stuck > 0;
        let missed = if answered { 0 } else { self.missed.load(Ordering::Relaxed) + 1 };
        self.missed.store(missed.min(MISSED_MAX), Ordering::Relaxed);
        if !look.memory.is_empty() || missed >= MISSED_MAX {
            self.memory.keep(&look.memory);
        }
        let (used, most) = match look.fullest {
            Some(room) => room,
            None if answered || missed >= MISSED_MAX => (0, 0),
            None => return None,
        };
        self.used.store(used, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
        self.stuck.store(look.is_stuck(), Ordering::Relaxed);
        Some(look.is_stuck() || is_full(used, most))
    }
}

impl Room {
    /// Looks at these monitoring addresses until the last clone is dropped.
    pub fn watch(monitor_urls: &[String]) -> Self {
        let seen = Arc::<Seen>::default();
        let looking = tokio::spawn(watch(monitor_urls.to_vec(), seen.clone()));
        Self { seen, looking: Some(Arc::new(AbortOnDropHandle::new(looking))) }
    }

    /// Looks once where nobody watches: for tools, which are soon gone.
    #[boxed::async_recursion]
    pub async fn look(&self, monitor_urls: &[String]) {
        if self.looking.is_none() {
            self.seen.keep(&look(monitor_urls).await);
        }
    }

    /// Fails with [`Error::NoRoom`] when only the reserve is left, or a disk is full.
    pub fn check(&self) -> Result<(), Error> {
        if self.seen.stuck.load(Ordering::Relaxed) {
            return Err(Error::NoRoom(STUCK.to_owned()));
        }
        let used = self.seen.used.load(Ordering::Relaxed);
        let most = self.seen.most.load(Ordering::Relaxed);
        if is_full(used, most) {
            return Err(Error::NoRoom(format!(
                "{used} of {most} bytes are taken, and the rest is left for leases and what is stored \
                 already"
            )));
        }
        Ok(())
    }

    /// Whether one of the servers nears the limit of its memory.
    #[must_use]
    pub fn memory_is_near(&self) -> bool {
        self.seen.memory.is_on()
    }
}

/// True if no more than the reserve is left.
fn is_full(used: u64, most: u64) -> bool {
    most > 0 && most.saturating_sub(used) <= RESERVE_BYTES.min(most / RESERVE_PART)
}

async fn watch(monitor_urls: Vec<String>, seen: Arc<Seen>) {
    let (mut was_full, mut were_stuck) = (false, 0);
    loop {
        let look = look(&monitor_urls).await;
        if look.stuck > were_stuck {
            tracing::error!(servers = look.stuck, "{STUCK}");
        }
        were_stuck = look.stuck;
        if let Some(full) = seen.keep(&look) {
            metrics::gauge!("flexcore_broker_full").set(u8::from(full));
            if full != was_full {
                tell(full, &look);
            }
            was_full = full;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn tell(full: bool, look: &Look) {
    if full {
        tracing::error!(
            ?look,
            "the broker's storage is full: commands are refused, and stored ones wait"
        );
    } else {
        tracing::info!(?look, "the broker has room again, or may have");
    }
}

async fn look(monitor_urls: &[String]) -> Look {
    let asked = monitor_urls.iter().map(async |url| {
        futures::future::join(monitoring::varz(url), monitoring::healthz(url)).await
    });
    let answers = futures::future::join_all(asked).await;
    let rooms = answers.iter().filter_map(|(varz, _)| room(varz.as_ref().ok()?));
    let fullest = rooms.min_by_key(|(used, most)| most.saturating_sub(*used));
    let stuck = answers.iter().filter(|(_, health)| health.as_ref().is_ok_and(is_stuck));
    let memory = answers.iter().filter_map(|(varz, _)| Memory::of(varz.as_ref().ok()?)).collect();
    Look { fullest, stuck: stuck.count(), servers: monitor_urls.len(), memory }
}

fn is_stuck(health: &Value) -> bool {
    let error = health["error"].as_str();
    error.is_some_and(|error| WRITES_NO_MORE.iter().any(|what| error.contains(what)))
}

/// Bytes that a server's streams take on its disk, and may take. `None`: it says nothing of it.
fn room(varz: &Value) -> Option<(u64, u64)> {
    let jetstream = &varz["jetstream"];
    let most = jetstream["config"]["max_storage"].as_u64().filter(|most| *most > 0)?;
    Some((jetstream["stats"]["storage"].as_u64()?, most))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reserve_is_left_free_and_not_a_byte_less() {
        let (tb, gib) = (1_u64 << 40, 1_u64 << 30);
        for (used, most, full) in [
            (0, 0, false),
            (tb - 2 * gib - 1, tb, false),
            (tb - 2 * gib, tb, true),
            (tb + 1, tb, true),
            (899, 1_000, false),
            (900, 1_000, true),
            (u64::MAX, 1_000, true),
        ] {
            assert_eq!(is_full(used, most), full, "{used} of {most}");
        }
    }

    /// It was full, room was made, and its monitoring does not answer any more.
    #[test]
    fn what_was_seen_last_counts_for_some_looks_and_not_for_ever() {
        let (room, none) = (Room::default(), Look { servers: 1, ..Look::default() });
        for full in [
            Look { fullest: Some((1_000, 1_000)), ..none.clone() },
            Look { fullest: Some((0, 1_000)), stuck: 1, ..none.clone() },
            Look { stuck: 1, ..none.clone() },
        ] {
            assert_eq!(room.seen.keep(&full), Some(true));
            for _ in 1..MISSED_MAX {
                assert_eq!(room.seen.keep(&none), None);
                assert!(matches!(room.check(), Err(Error::NoRoom(_))));
            }
            assert_eq!(room.seen.keep(&none), Some(false));
            assert!(room.check().is_ok());
            assert_eq!(room.seen.keep(&none), Some(false));
        }
    }

    #[test]
    fn memory_that_was_seen_last_counts_for_as_many_looks() {
        let (room, none) = (Room::default(), Look { servers: 1, ..Look::default() });
        let of = |bytes| vec![Memory { bytes, bytes_max: 1_000 }];
        let near = Look { fullest: Some((0, 1_000)), memory: of(900), ..none.clone() };
        room.seen.keep(&near);
        for _ in 1..MISSED_MAX {
            assert!(room.memory_is_near());
            room.seen.keep(&none);
        }
        assert!(room.memory_is_near() && room.check().is_ok());
        room.seen.keep(&none);
        assert!(!room.memory_is_near());
    }

    #[test]
    fn servers_with_a_full_disk_count_when_the_others_are_too_few() {
        for (stuck, servers, full) in
            [(0, 1, false), (1, 1, true), (1, 3, false), (2, 3, true), (2, 5, false), (3, 5, true)]
        {
            let look = Look { fullest: Some((0, 1_000)), stuck, servers, memory: vec![] };
            assert_eq!(look.is_stuck(), full, "{stuck} of {servers}");
        }
        let said =
            "JetStream stream '$G > FLEX_EVENTS' write error: write 1.blk: no space left on device";
        for said in [said, "JetStream not enabled (10076)"] {
            assert!(is_stuck(&json!({"status": "unavailable", "error": said})));
        }
        assert!(!is_stuck(&json!({"status": "ok"})));
        assert!(!is_stuck(&json!({"status": "unavailable", "error": "not current"})));
    }

    #[test]
    fn a_server_without_a_limit_is_not_looked_at() {
        let varz = |most: i64| json!({"jetstream": {"config": {"max_storage": most}, "stats": {"storage": 7}}});
        assert_eq!(room(&varz(9)), Some((7, 9)));
        assert_eq!((room(&varz(0)), room(&varz(-1)), room(&json!({}))), (None, None, None));
    }
}
