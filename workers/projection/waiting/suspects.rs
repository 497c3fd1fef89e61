//! Events under which a plugin gave no answer, since it ended or was late. From then on each is asked for alone, and it
//! is put aside when the fault is its own. Decided without a clock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_domain::Hash;
use tokio::time::Instant;

use crate::projection::batch::EventAt;

/// Least number of times that an event is asked for alone, each right after the plugin answered another one, before it
/// is put aside. 4: of two workers with the plugin one may end under everything that it is asked.
const TRIES_MIN: u32 = 4;
/// Least time between the first and the last of these. 60 s: longer than the longest pause before a plugin is started
/// again, and its start.
const TRIED_FOR: Duration = Duration::from_secs(60);
/// Time between two of these: each may end the plugin.
const TRY_EVERY: Duration = Duration::from_secs(20);
/// Time for which an event is remembered after that, at least. An hour: one that was put aside, and whose batch was not
/// committed, is put aside again at once.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);
/// Most events that are remembered: those that were under way together, for many readers.
const SUSPECTS_MAX: usize = 1_024;
/// Largest input of a call that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// Most calls that are kept, of one transformation each.
const KEPT_MAX: usize = 64;

/// A call, ready to be sent.
#[derive(Clone)]
pub(in crate::projection) struct Call {
    pub(in crate::projection) subject: String,
    pub(in crate::projection) headers: HeaderMap,
    pub(in crate::projection) input: Bytes,
}

/// What is to be done with an event.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::projection) enum Suspicion {
    /// There is none: it may be asked for together with others.
    Nothing,
    /// It is to be asked for alone.
    Ask,
    /// The same, but not yet. This came of it last.
    Rests(String),
    /// The fault is its own: it is to be put aside. This came of it last.
    Fault(String),
}

/// The events that are suspected. Readers share them, as a reader ends when it has no answer. Cheap to clone.
#[derive(Clone, Default)]
pub(in crate::projection) struct Suspects(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    events: HashMap<EventAt, Suspect>,
    /// Of each transformation a call that had an answer: it shows that the plugin is well.
    kept: HashMap<Hash, Call>,
}

struct Suspect {
    /// How often it was asked for alone in vain, right after another event had an answer; and since when.
    tries: u32,
    since: Option<Instant>,
    /// When it may be asked for again.
    again: Instant,
    is_at_fault: bool,
    reason: String,
}

impl Suspects {
    /// The event was asked for together with others, and there was no answer for this reason.
    pub(in crate::projection) fn note(&self, at: EventAt, reason: &str, now: Instant) {
        let mut known = self.lock();
        known.events.retain(|_, it| now.saturating_duration_since(it.again) < KNOWN_FOR);
        if known.events.len() >= SUSPECTS_MAX {
            return;
        }
        known.events.entry(at).or_insert_with(|| Suspect {
            tries: 0,
            since: None,
            again: now,
            is_at_fault: false,
            reason: reason.to_owned(),
        });
    }

    /// True if the event must not be asked for together with others.
    pub(in crate::projection) fn has(&self, at: &EventAt) -> bool {
        self.lock().events.contains_key(at)
    }

    /// What is to be done with the event now.
    pub(in crate::projection) fn of(&self, at: &EventAt, now: Instant) -> Suspicion {
        let known = self.lock();
        let Some(it) = known.events.get(at) else { return Suspicion::Nothing };
        if it.is_at_fault {
            Suspicion::Fault(it.reason.clone())
        } else if now < it.again {
            Suspicion::Rests(it.reason.clone())
        } else {
            Suspicion::Ask
        }
    }

    /// The event was asked for alone, and there was no answer. That counts if the plugin answered another one right
    /// before: else it may be the plugin that is not well.
    pub(in crate::projection) fn failed(
        &self,
        at: &EventAt,
        reason: &str,
        is_proven: bool,
        now: Instant,
    ) {
        let mut known = self.lock();
        let Some(it) = known.events.get_mut(at) else { return };
        (it.again, it.reason) = (now + TRY_EVERY, reason.to_owned());
        if !is_proven {
            return;
        }
        let since = *it.since.get_or_insert(now);
        it.tries = it.tries.saturating_add(1);
        it.is_at_fault = it.tries >= TRIES_MIN && now.saturating_duration_since(since) >= TRIED_FOR;
    }

    /// The plugin has answered for the event.
    pub(in crate::projection) fn cleared(&self, at: &EventAt) {
        self.lock().events.remove(at);
    }

    /// A call of this transformation that had an answer; none is known where the worker has just begun.
    pub(in crate::projection) fn kept(&self, fingerprint: &Hash) -> Option<Call> {
        self.lock().kept.get(fingerprint).cloned()
    }

    /// True if such a call is known.
    pub(in crate::projection) fn keeps(&self, fingerprint: &Hash) -> bool {
        self.lock().kept.contains_key(fingerprint)
    }

    /// This call had an answer.
    pub(in crate::projection) fn keep(&self, fingerprint: Hash, call: Call) {
        if call.input.len() > KEPT_BYTES_MAX {
            return;
        }
        let mut known = self.lock();
        if known.kept.len() >= KEPT_MAX {
            known.kept.clear();
        }
        known.kept.insert(fingerprint, call);
    }

    /// A call of this transformation that once had an answer has none now: the plugin is not well, and was not,
    /// perhaps, when events failed.
    pub(in crate::projection) fn unwell(&self, fingerprint: &Hash) {
        let mut known = self.lock();
        known.kept.remove(fingerprint);
        for (_, it) in known.events.iter_mut().filter(|((_, _, of), _)| of == fingerprint) {
            (it.tries, it.since) = (0, None);
        }
    }

    /// Forgets all.
    pub(in crate::projection) fn forget(&self) {
        *self.lock() = Known::default();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: EventAt = (7, 0, Hash::ZERO);

    fn call(bytes: usize) -> Call {
        let (subject, input) = (String::new(), Bytes::from(vec![b' '; bytes]));
        Call { subject, headers: HeaderMap::new(), input }
    }

    fn rests(reason: &str) -> Suspicion {
        Suspicion::Rests(reason.to_owned())
    }

    /// One event under which a plugin always ended held up all tenants' rows, for ever.
    #[test]
    fn an_event_is_at_fault_when_a_plugin_that_is_well_fails_under_it_again_and_again() {
        let (suspects, start) = (Suspects::default(), Instant::now());
        assert_eq!(suspects.of(&AT, start), Suspicion::Nothing);
        suspects.note(AT, "together", start);
        assert_eq!(suspects.of(&AT, start), Suspicion::Ask);
        for (nth, seconds) in [0, 20, 40].into_iter().enumerate() {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(suspects.of(&AT, now), Suspicion::Ask, "{nth}");
            suspects.failed(&AT, "alone", true, now);
            assert_eq!(suspects.of(&AT, now), rests("alone"), "{nth}");
        }
        let last = start + TRIED_FOR;
        suspects.failed(&AT, "alone", true, last);
        assert_eq!(suspects.of(&AT, last), Suspicion::Fault("alone".to_owned()));
        // Its batch may have to be made again.
        suspects.note(AT, "together", last);
        assert!(matches!(suspects.of(&AT, last), Suspicion::Fault(_)));
        suspects.forget();
        assert_eq!(suspects.of(&AT, last), Suspicion::Nothing);
    }

    #[test]
    fn an_event_is_not_at_fault_in_a_moment_or_where_nothing_else_has_an_answer() {
        let (suspects, mut now) = (Suspects::default(), Instant::now());
        suspects.note(AT, "why", now);
        // A machine that pauses, and a worker that ends under all that it is asked.
        for _ in 0..100 {
            suspects.failed(&AT, "why", true, now);
        }
        assert_eq!(suspects.of(&AT, now), rests("why"));
        suspects.unwell(&Hash::ZERO);
        for _ in 0..100 {
            now += TRY_EVERY;
            assert_eq!(suspects.of(&AT, now), Suspicion::Ask);
            suspects.failed(&AT, "why", false, now);
        }
        assert_eq!(suspects.of(&AT, now), rests("why"), "the plugin may be away");
        for _ in 1..TRIES_MIN {
            now += TRIED_FOR;
            suspects.failed(&AT, "why", true, now);
        }
        suspects.unwell(&Hash::ZERO);
        suspects.failed(&AT, "why", true, now);
        assert_eq!(suspects.of(&AT, now), rests("why"), "the plugin is not well");
        suspects.cleared(&AT);
        assert_eq!(suspects.of(&AT, now), Suspicion::Nothing);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (suspects, now) = (Suspects::default(), Instant::now());
        for sequence in 0..5_000 {
            suspects.note((sequence, 0, Hash::ZERO), "why", now);
        }
        assert_eq!(suspects.lock().events.len(), SUSPECTS_MAX);
        suspects.note((9_000, 0, Hash::ZERO), "why", now + KNOWN_FOR);
        assert_eq!(suspects.lock().events.len(), 1);
        for number in 0..1_000_u32 {
            suspects.keep(Hash::chain(&Hash::ZERO, &number.to_be_bytes()), call(1));
        }
        assert!(suspects.lock().kept.len() <= KEPT_MAX);
        suspects.keep(Hash::ZERO, call(KEPT_BYTES_MAX + 1));
        assert!(!suspects.keeps(&Hash::ZERO));
        suspects.keep(Hash::ZERO, call(KEPT_BYTES_MAX));
        assert!(suspects.keeps(&Hash::ZERO) && suspects.kept(&Hash::ZERO).is_some());
        suspects.unwell(&Hash::ZERO);
        assert!(!suspects.keeps(&Hash::ZERO));
    }
}
