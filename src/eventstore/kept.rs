//! Tenants' shares of FLEX_DEAD and FLEX_OUTCOMES. When one of them is nearly full, the tenant that
//! has most in it loses its own oldest, before the broker would drop the oldest of all.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::jetstream::stream::{self, Stream};
use bytes::Bytes;
use flexcore_domain::Tenant;
use futures::{TryStreamExt, future::try_join_all};

use crate::{
    Error, EventStore, direct, subjects,
    topology::{self, OUTCOMES_SUBJECTS},
    unavailable,
};

/// Of a stream's bytes so many parts are full before somebody loses something. The rest is for what
/// comes meanwhile.
const FULL: (u64, u64) = (3, 4);
/// The part that nobody takes from a tenant: this part of all bytes, or the average of the tenants
/// when there are more tenants than that.
const SHARES: u64 = 16;
/// Bytes that a process writes between two looks at a stream's size. A look costs a question, and a
/// hundred processes write less meanwhile than is left free.
const LOOK_BYTES: usize = 1 << 20;
const LOOK_MESSAGES: usize = 256;
/// Most purges of one look: each takes a quarter of what the tenant has.
const PURGES_MAX: usize = 16;
/// Places of FLEX_OUTCOMES at which a process looks whose they are, when it is nearly full: it may have
/// written none of them itself. A tenant that has a share is missed by one look in sixty.
const SAMPLES: u64 = 64;

/// Bytes that a process has written there.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<HashMap<&'static str, Written>>>);

#[derive(Default)]
struct Written {
    bytes: usize,
    messages: usize,
    /// A look is under way.
    looking: bool,
    tenants: HashSet<Tenant>,
}

impl Kept {
    /// Counts a message. Returns whether it is time to look.
    fn count(&self, stream: &'static str, tenant: Option<Tenant>, bytes: usize) -> bool {
        let mut streams = self.lock();
        let written = streams.entry(stream).or_default();
        written.bytes += bytes;
        written.messages += 1;
        written.tenants.extend(tenant);
        let due = written.bytes >= LOOK_BYTES || written.messages >= LOOK_MESSAGES;
        if !due || written.looking {
            return false;
        }
        (written.bytes, written.messages, written.looking) = (0, 0, true);
        true
    }

    fn looked(&self, stream: &'static str) {
        if let Some(written) = self.lock().get_mut(stream) {
            written.looking = false;
        }
    }

    fn meet(&self, stream: &'static str, tenants: impl Iterator<Item = Tenant>) {
        self.lock().entry(stream).or_default().tenants.extend(tenants);
    }

    fn tenants(&self, stream: &'static str) -> Vec<Tenant> {
        self.lock().get(stream).map_or_else(Vec::new, |w| w.tenants.iter().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, Written>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a subject: of no tenant, since what was sent says none that there can be. All of that is one share.
const NOBODY: &str = "_";

/// A tenant's bytes in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Has {
    messages: u64,
    /// The unit in which the stream is shared: bytes or messages.
    size: u64,
}

/// The tenant that is to lose something, when this much is there in all: the one that has most, and
/// more than its share.
fn most(all: u64, of: HashMap<String, Has>) -> Option<(String, Has)> {
    let shares = SHARES.max(of.len() as u64);
    let most = of.into_iter().max_by(|a, b| (a.1.size, &a.0).cmp(&(b.1.size, &b.0)))?;
    (most.1.size > 0 && most.1.size >= all / shares).then_some(most)
}

fn is_nearly_full(info: &stream::Info) -> bool {
    let (full, of) = FULL;
    let max = u64::try_from(info.config.max_bytes).unwrap_or(0);
    max > 0 && info.state.bytes > max / of * full
}

/// The subject of a dead message: its kind, its tenant, and its size. The last two are there so
/// that the broker can tell how much of the stream is whose.
pub(crate) fn dead_subject(kind: &str, was: &str, bytes: usize) -> String {
    let tenant = subjects::tenant(was);
    let tenant = tenant.as_ref().map_or(NOBODY, Tenant::as_str);
    let (kind, rest) = kind.split_once('.').unwrap_or((kind, ""));
    let dot = if rest.is_empty() { "" } else { "." };
    format!("dead.{kind}.{tenant}.k{}{dot}{rest}", bytes.div_ceil(1024).max(1).next_power_of_two())
}

/// The tenant of an outcome, by its subject.
fn of_outcome(subject: &str) -> Option<Tenant> {
    Tenant::parse(subject.split('.').nth(2)?).ok()
}

/// The tenant of a dead message, and its size in bytes at most, by its subject.
fn owner(dead: &str) -> Option<(String, u64)> {
    let mut parts = dead.split('.').skip(2);
    let tenant = parts.next().filter(|part| *part == NOBODY || Tenant::parse(part).is_ok())?;
    let kib: u64 = parts.next()?.strip_prefix('k')?.parse().ok()?;
    Some((tenant.to_owned(), kib.saturating_mul(1024)))
}

impl EventStore {
    /// Counts the bytes that were written to the stream for a tenant. Now and then it looks whether
    /// the stream is nearly full, and makes room.
    pub(crate) fn wrote(&self, stream: &'static str, tenant: Option<Tenant>, bytes: usize) {
        if !self.kept.count(stream, tenant, bytes) {
            return;
        }
        let store = self.clone();
        tokio::spawn(async move {
            if let Err(error) = store.make_room(stream).await {
                tracing::debug!(%error, stream, "it is unknown if it is nearly full");
            }
            store.kept.looked(stream);
        });
    }

    async fn make_room(&self, name: &'static str) -> Result<(), Error> {
        for _ in 0..PURGES_MAX {
            let stream = self.jetstream.get_stream(name).await.map_err(unavailable)?;
            let info = stream.cached_info();
            if !is_nearly_full(info) {
                return Ok(());
            }
            let state = &info.state;
            let (all, of, kinds) = match name {
                topology::DEAD => (state.bytes, dead_by_tenant(&stream).await?, "dead.*"),
                _ => (state.messages, self.outcomes_by_tenant(state).await?, "outcome.*"),
            };
            let Some((tenant, has)) = most(all, of) else {
                tracing::warn!(stream = name, "nearly full, and nobody has more than a share");
                return Ok(());
            };
            let keep = has.messages / 4 * 3;
            let subjects = format!("{kinds}.{tenant}.>");
            let purged = stream.purge().filter(subjects).keep(keep).await.map_err(unavailable)?;
            let gone = purged.purged;
            tracing::warn!(stream = name, %tenant, gone, "nearly full: the tenant's oldest are gone");
            metrics::counter!("flexcore_kept_trimmed_total", "stream" => name).increment(gone);
        }
        Ok(())
    }

    /// Outcomes of those tenants for which this process has written some, or that it has met there.
    async fn outcomes_by_tenant(
        &self,
        state: &stream::State,
    ) -> Result<HashMap<String, Has>, Error> {
        let (first, last) = (state.first_sequence, state.last_sequence);
        let step = (last.saturating_sub(first) / SAMPLES).max(1);
        let places = (0..SAMPLES).map(|number| first + number * step);
        let met = try_join_all(places.map(|place| self.outcome_after(place))).await?;
        self.kept.meet(topology::OUTCOMES, met.into_iter().flatten());
        let mut of = HashMap::new();
        for tenant in self.kept.tenants(topology::OUTCOMES) {
            let messages = self.outcomes_of(&tenant).await?;
            of.insert(tenant.to_string(), Has { messages, size: messages });
        }
        Ok(of)
    }

    /// The tenant of the first outcome from this sequence on.
    async fn outcome_after(&self, sequence: u64) -> Result<Option<Tenant>, Error> {
        let body = format!(r#"{{"seq":{sequence},"next_by_subj":"{OUTCOMES_SUBJECTS}"}}"#);
        let to = direct::get(topology::OUTCOMES);
        let mut replies = self.inbox.request(to, None, Bytes::from(body)).await?;
        let found = replies.next().await?;
        let subject = found.headers.as_ref().and_then(|headers| headers.get(direct::SUBJECT));
        Ok(subject.and_then(|subject| of_outcome(subject.as_str())))
    }

    /// Number of a tenant's outcomes: the first one comes with the number of those that follow.
    async fn outcomes_of(&self, tenant: &Tenant) -> Result<u64, Error> {
        let body = format!(r#"{{"seq":1,"next_by_subj":"outcome.*.{tenant}.>","batch":1}}"#);
        let to = direct::get(topology::OUTCOMES);
        let mut replies = self.inbox.request(to, None, Bytes::from(body)).await?;
        let first = replies.next().await?;
        if first.status.is_some() {
            return Ok(0);
        }
        let pending = first.headers.as_ref().and_then(|headers| headers.get(direct::PENDING));
        Ok(pending.and_then(|text| text.as_str().parse().ok()).map_or(1, |more: u64| more + 1))
    }
}

async fn dead_by_tenant<I>(stream: &Stream<I>) -> Result<HashMap<String, Has>, Error> {
    let of_all = stream.info_with_subjects(topology::DEAD_SUBJECTS).await;
    let mut subjects = of_all.map_err(unavailable)?;
    let mut of: HashMap<String, Has> = HashMap::new();
    while let Some((subject, messages)) = subjects.try_next().await.map_err(unavailable)? {
        if let Some((tenant, bytes)) = owner(&subject) {
            let has = of.entry(tenant).or_default();
            has.messages += messages as u64;
            has.size += bytes * messages as u64;
        }
    }
    Ok(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_messages_subject_says_whose_it_is_and_how_large() {
        let command = dead_subject("command", "cmd.acme.flight.UA1.depart", 1_500);
        assert_eq!(command, "dead.command.acme.k2");
        let event = dead_subject("projection.flights.7", "evt.7.acme.flight.UA1", 0);
        assert_eq!(event, "dead.projection.acme.k1.flights.7");
        let large = dead_subject("command", "cmdq.7.acme.flight.UA1.depart", 1 << 20);
        assert_eq!(large, "dead.command.acme.k1024");
        assert_eq!(dead_subject("command", "cmd.Not A Name.x", 1), "dead.command._.k1");
        let of = |dead: &str| owner(dead).map(|(tenant, bytes)| format!("{tenant} {bytes}"));
        assert_eq!(of(&command).as_deref(), Some("acme 2048"));
        assert_eq!(of(&event).as_deref(), Some("acme 1024"));
        assert_eq!(of("dead.command._.k1").as_deref(), Some("_ 1024"));
        assert_eq!(owner("dead.projection.flights.7"), None, "as they once were");
        let outcome = of_outcome("outcome.7.acme.flight.UA1.c-1");
        assert_eq!(outcome.as_ref().map(Tenant::as_str), Some("acme"));
    }

    #[test]
    fn whoever_has_most_loses_it_and_nobody_its_share() {
        let of = |sizes: &[(&str, u64)]| {
            let has = |&(name, size): &(&str, u64)| (name.to_owned(), Has { messages: 1, size });
            most(sizes.iter().map(|(_, size)| size).sum(), sizes.iter().map(has).collect())
                .map(|(tenant, _)| tenant)
        };
        assert_eq!(of(&[("calm", 10), ("flood", 90)]).as_deref(), Some("flood"));
        assert_eq!(of(&[]), None);
        let names: Vec<String> = (0..20).map(|n| format!("t{n:02}")).collect();
        let mut all: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 5)).collect();
        all.push(("calm", 1));
        assert_eq!(of(&all).as_deref(), Some("t19"), "one of those that have most");
        let others: u64 = 1_000;
        let own = Has { messages: 1, size: 5 };
        let few = HashMap::from([("calm".to_owned(), own)]);
        assert_eq!(most(others, few), None, "what others have, whom it does not know");
    }
}
