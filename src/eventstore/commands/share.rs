//! A tenant's share of FLEX_COMMANDS. A process counts the bytes that it has stored there for each
//! tenant, and the part of them that was purged since. When the stream is half full, a tenant that
//! has more than a sixteenth stores no more: the rest is for the others. Messages that somebody
//! else publishes to the broker are not counted here, but count towards "half full".

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, stream};
use flexcore_domain::Tenant;

use crate::{Error, topology, unavailable};

/// The stream is full so far when shares begin to count: one part in so many.
const FULL: u64 = 2;
/// A tenant's share of the stream then: one part in so many. With one gateway there is something
/// left for seven others, and with several gateways for as many fewer.
const SHARES: u64 = 16;
/// Between two looks at the stream, or so many bytes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_BYTES: u64 = 16 << 20;
/// Commands are counted together up to so many bytes; purges in between are seen later.
const CHUNK_BYTES: u64 = 256 << 10;
/// Bytes that the broker keeps of a message beside subject, headers and body.
const RECORD_BYTES: usize = 40;

/// The bytes that this process has stored; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Share(Arc<Mutex<Counted>>);

#[derive(Default)]
struct Counted {
    of: HashMap<Tenant, Own>,
    /// The stream's bytes at the last look, and those that were sent since.
    bytes: u64,
    since: u64,
    /// Bytes that fit into it; 0: nobody has looked.
    max: u64,
    look_at: Option<Instant>,
    looking: bool,
}

/// A tenant's bytes there.
#[derive(Default)]
struct Own {
    bytes: u64,
    on_their_way: u64,
    chunks: VecDeque<Chunk>,
}

/// Some commands, up to this stream sequence.
struct Chunk {
    last: u64,
    bytes: u64,
}

impl Counted {
    /// Counts a command that is about to be sent. Fails when its tenant has its share.
    fn enter(&mut self, tenant: &Tenant, bytes: u64) -> Result<(), Error> {
        let own = self.of.entry(tenant.clone()).or_default();
        let has = own.bytes + own.on_their_way;
        let share = self.max / SHARES;
        if self.max > 0 && self.bytes + self.since > self.max / FULL && has + bytes > share {
            return Err(Error::TooMuch(format!(
                "{has} bytes of the tenant's commands wait to be done, and its share is {share} while \
                 the queue is half full"
            )));
        }
        own.on_their_way += bytes;
        self.since += bytes;
        Ok(())
    }

    /// It is not on its way any more: stored under this sequence, or not as far as anybody knows.
    fn arrived(&mut self, tenant: &Tenant, bytes: u64, sequence: Option<u64>) {
        let Some(own) = self.of.get_mut(tenant) else { return };
        own.on_their_way = own.on_their_way.saturating_sub(bytes);
        let Some(sequence) = sequence else { return };
        own.bytes += bytes;
        match own.chunks.back_mut().filter(|chunk| chunk.bytes < CHUNK_BYTES) {
            Some(chunk) => {
                chunk.last = chunk.last.max(sequence);
                chunk.bytes += bytes;
            }
            None => own.chunks.push_back(Chunk { last: sequence, bytes }),
        }
    }

    /// So many bytes are there of so many that fit, and this is the first sequence that is left.
    fn looked(&mut self, bytes: u64, max: u64, first: u64, now: Instant) {
        (self.bytes, self.since, self.max) = (bytes, 0, max);
        (self.look_at, self.looking) = (Some(now + LOOK_EVERY), false);
        self.of.retain(|_, own| {
            while let Some(gone) = own.chunks.pop_front_if(|chunk| chunk.last < first) {
                own.bytes -= gone.bytes;
            }
            own.bytes + own.on_their_way > 0
        });
    }

    /// True if it is time to look at the stream.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.since > LOOK_BYTES || self.look_at.is_none_or(|at| at <= now);
        let looks = due && !self.looking;
        self.looking |= looks;
        looks
    }
}

impl Share {
    /// Counts a command that is about to be sent. Fails with [`Error::TooMuch`] when its tenant has its
    /// share.
    pub(super) fn enter(
        &self,
        jetstream: &jetstream::Context,
        tenant: &Tenant,
        bytes: usize,
    ) -> Result<OnItsWay, Error> {
        let bytes = (bytes + RECORD_BYTES) as u64;
        let mut counted = self.lock();
        if counted.is_due(Instant::now()) {
            tokio::spawn(self.clone().look(jetstream.clone()));
        }
        counted.enter(tenant, bytes)?;
        Ok(OnItsWay { share: self.clone(), tenant: tenant.clone(), bytes, sequence: None })
    }

    async fn look(self, jetstream: jetstream::Context) {
        let seen = async {
            let stream = jetstream.get_stream(topology::COMMANDS).await.map_err(unavailable)?;
            Ok::<stream::Info, Error>(stream.cached_info().clone())
        };
        let seen = seen.await;
        let mut counted = self.lock();
        match seen {
            Ok(info) => {
                let max = u64::try_from(info.config.max_bytes).unwrap_or(0);
                counted.looked(info.state.bytes, max, info.state.first_sequence, Instant::now());
            }
            Err(error) => {
                tracing::debug!(%error, "the size of the queue is unknown");
                (counted.look_at, counted.looking) = (Some(Instant::now() + LOOK_EVERY), false);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command between its publisher and the broker.
pub(super) struct OnItsWay {
    share: Share,
    tenant: Tenant,
    bytes: u64,
    sequence: Option<u64>,
}

impl OnItsWay {
    pub(super) fn stored(mut self, sequence: u64) {
        self.sequence = Some(sequence);
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.share.lock().arrived(&self.tenant, self.bytes, self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    /// Stores as many commands of so many bytes as it may, from this sequence on. Returns how many.
    fn fill(counted: &mut Counted, name: &str, bytes: u64, from: u64, most: u64) -> u64 {
        let tenant = tenant(name);
        (0..most)
            .take_while(|number| {
                let may = counted.enter(&tenant, bytes).is_ok();
                if may {
                    counted.arrived(&tenant, bytes, Some(from + number));
                }
                may
            })
            .count() as u64
    }

    #[test]
    fn a_flood_stops_at_half_and_the_others_have_a_share_each() {
        const MAX: u64 = 64 << 20;
        let (mut counted, now) = (Counted::default(), Instant::now());
        counted.looked(0, MAX, 1, now);
        assert_eq!(fill(&mut counted, "flood", 1 << 10, 1, 1 << 20), (32 << 10) + 1);
        assert_eq!(fill(&mut counted, "calm", 1 << 10, 40_000, 1 << 20), 4 << 10);
        assert_eq!(fill(&mut counted, "other", 1 << 20, 50_000, 1 << 20), 4, "bytes count");
        // Half of the flood's is done.
        counted.looked(24 << 20, MAX, 16 << 10, now);
        assert!(fill(&mut counted, "flood", 1 << 10, 60_000, 1 << 20) > 0);
        counted.looked(0, MAX, 100_000, now);
        assert!(counted.of.is_empty(), "nothing is left of anybody");
    }

    #[test]
    fn what_is_on_its_way_counts_and_what_has_no_answer_does_not() {
        let (mut counted, now, flood) = (Counted::default(), Instant::now(), tenant("flood"));
        counted.looked(900, 1_600, 1, now);
        counted.enter(&flood, 60).unwrap();
        assert!(matches!(counted.enter(&flood, 60), Err(Error::TooMuch(_))));
        counted.arrived(&flood, 60, None);
        counted.enter(&flood, 60).unwrap();
        assert!(counted.enter(&tenant("calm"), 60).is_ok());
    }

    #[test]
    fn one_look_at_a_time_and_no_refusal_before_the_first() {
        let (mut counted, now, flood) = (Counted::default(), Instant::now(), tenant("flood"));
        for _ in 0..2 {
            assert!(counted.enter(&flood, u64::from(u32::MAX)).is_ok());
        }
        assert!(counted.is_due(now) && !counted.is_due(now));
        counted.looked(0, 1 << 30, 1, now);
        assert!(!counted.is_due(now));
        counted.enter(&flood, LOOK_BYTES + 1).unwrap();
        assert!(counted.is_due(now), "much has been sent");
        counted.looked(0, 1 << 30, 1, now);
        assert!(counted.is_due(now + LOOK_EVERY));
    }
}
