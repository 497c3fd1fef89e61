//! Events under which a plugin gave no answer, since it ended, was late, or failed for now. From then on each is asked
//! for alone, and it is put aside when the fault is its own, or its tenant's. Decided without a clock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_domain::{Hash, Name, Tenant};
use tokio::time::Instant;

use crate::projection::batch::EventAt;

/// Least number of times that an event is asked for alone, each right after the plugin answered another one, before it
/// is put aside. 4: of two workers with the plugin one may end under everything that it is asked.
const TRIES_MIN: u32 = 4;
/// Least time between the first and the last of these. 60 s: longer than the longest pause before a plugin is started
/// again, and its start.
const TRIED_FOR: Duration = Duration::from_secs(60);
/// The same where one of these was a failure for now. 120 s: what the plugin needs for this tenant may be back by then.
const PASSING_FOR: Duration = Duration::from_secs(120);
/// Time between two of these: each may end the plugin.
const TRY_EVERY: Duration = Duration::from_secs(20);
/// Time for which a tenant of which an event was put aside is remembered for the read model, from the last one on.
/// 600 s: the other tenants' rows would wait for each of its events anew.
const GUILTY_FOR: Duration = Duration::from_secs(600);
/// Most such tenants, each counted with its read model. Of those beyond it each event is tried as the first one.
const GUILTY_MAX: usize = 1_024;
/// Time for which an event is remembered after that, at least. An hour: one that was put aside, and whose batch was not
/// committed, is put aside again at once.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);
/// Most events that are remembered: those that were under way together, for many readers.
const SUSPECTS_MAX: usize = 1_024;
/// Largest input of a call that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// Most transformations of which calls are kept.
const KEPT_MAX: usize = 64;
/// Most calls that are kept of one of these, each of another tenant. 3: calls of one or two may be refused.
const KEPT_OF_ONE_MAX: usize = 3;

/// The read model that an event is for, and its tenant.
pub(in crate::projection) type Whose = (Name, Tenant);

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
    /// It failed first when another event of its tenant had been put aside lately: it is to be put aside, too, if the
    /// plugin answers another one. Where that cannot be told it is to be asked for alone, unless it rests.
    Likely { reason: String, rests: bool },
    /// The fault is its own: it is to be put aside. This came of it last.
    Fault(String),
}

/// An event that was asked for alone, in vain.
pub(in crate::projection) struct Failed {
    pub(in crate::projection) reason: String,
    /// The plugin ended under it, or was late; else it failed for now.
    pub(in crate::projection) ends: bool,
    /// The plugin answered another event right before: else it may be the plugin that is not well.
    pub(in crate::projection) is_proven: bool,
}

/// The events that are suspected. Readers share them, as a reader ends when it has no answer. Cheap to clone.
#[derive(Clone, Default)]
pub(in crate::projection) struct Suspects(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    events: HashMap<EventAt, Suspect>,
    /// Of each transformation some calls that had an answer, the last one last: they show that the plugin is well.
    kept: HashMap<Hash, Vec<(Tenant, Call)>>,
    /// Those of whom an event was put aside.
    guilty: HashMap<Whose, Guilt>,
}

/// The time for which it counts that an event was put aside.
struct Guilt {
    since: Instant,
    until: Instant,
}

struct Suspect {
    /// When it failed first, perhaps by the fault of another one.
    noted: Instant,
    /// How often it was asked for alone in vain, right after another event had an answer; and since when.
    tries: u32,
    since: Option<Instant>,
    /// The last of these, and the least time that they take.
    last: Option<Instant>,
    tried_for: Duration,
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
            // They were put aside.
            known.events.retain(|_, it| !it.is_at_fault);
        }
        if known.events.len() >= SUSPECTS_MAX {
            return;
        }
        known.events.entry(at).or_insert_with(|| Suspect {
            noted: now,
            tries: 0,
            since: None,
            last: None,
            tried_for: TRIED_FOR,
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
    pub(in crate::projection) fn of(&self, at: &EventAt, whose: &Whose, now: Instant) -> Suspicion {
        let known = self.lock();
        let Some(it) = known.events.get(at) else { return Suspicion::Nothing };
        let (reason, rests) = (it.reason.clone(), now < it.again);
        if it.is_at_fault {
            Suspicion::Fault(reason)
        } else if known.guilt(whose, now).is_some_and(|guilt| it.noted >= guilt.since) {
            Suspicion::Likely { reason, rests }
        } else if rests {
            Suspicion::Rests(reason)
        } else {
            Suspicion::Ask
        }
    }

    /// The event was asked for alone, and there was no answer. That counts if the plugin answered another one right
    /// before, once in so long. Returns true if it is at fault now: at once, where another event of its tenant was.
    pub(in crate::projection) fn failed(
        &self,
        at: &EventAt,
        whose: &Whose,
        failed: Failed,
        now: Instant,
    ) -> bool {
        let mut known = self.lock();
        let is_known = known.guilt(whose, now).is_some();
        let Some(it) = known.events.get_mut(at) else { return false };
        let Failed { reason, ends, is_proven } = failed;
        // A failure for now harms nobody, and may be over soon.
        let pause = if ends { TRY_EVERY } else { Duration::ZERO };
        (it.again, it.reason) = (now + pause, reason);
        let is_early = |last| now.saturating_duration_since(last) < TRY_EVERY;
        if !is_proven || it.last.is_some_and(is_early) {
            return false;
        }
        let since = *it.since.get_or_insert(now);
        (it.tries, it.last) = (it.tries.saturating_add(1), Some(now));
        if !ends {
            it.tried_for = PASSING_FOR;
        }
        let took = now.saturating_duration_since(since);
        let is_at_fault = is_known || it.tries >= TRIES_MIN && took >= it.tried_for;
        it.is_at_fault = is_at_fault;
        if is_at_fault {
            known.remember(whose.clone(), now);
        }
        is_at_fault
    }

    /// The event is put aside, as others of its tenant were.
    pub(in crate::projection) fn put_aside(&self, at: &EventAt, whose: Whose, now: Instant) {
        let mut known = self.lock();
        // Many are: one whose batch was not committed is asked for again, and put aside again.
        known.events.remove(at);
        known.remember(whose, now);
    }

    /// The plugin has answered for the event.
    pub(in crate::projection) fn cleared(&self, at: &EventAt) {
        self.lock().events.remove(at);
    }

    /// Calls of this transformation that had an answer, those of other tenants first; there are none where the worker
    /// has just begun.
    pub(in crate::projection) fn kept(&self, fingerprint: &Hash, tenant: &Tenant) -> Vec<Call> {
        let known = self.lock();
        let last_first = known.kept.get(fingerprint).into_iter().flatten().rev();
        let (own, others): (Vec<_>, Vec<_>) = last_first.partition(|(of, _)| of == tenant);
        others.into_iter().chain(own).map(|(_, call)| call.clone()).collect()
    }

    /// True if enough such calls are known, or one of the tenant is.
    pub(in crate::projection) fn keeps(&self, fingerprint: &Hash, tenant: &Tenant) -> bool {
        let known = self.lock();
        let all = known.kept.get(fingerprint);
        all.is_some_and(|all| {
            all.len() >= KEPT_OF_ONE_MAX || all.iter().any(|(of, _)| of == tenant)
        })
    }

    /// This call of the tenant had an answer.
    pub(in crate::projection) fn keep(&self, fingerprint: Hash, tenant: Tenant, call: Call) {
        if call.input.len() > KEPT_BYTES_MAX {
            return;
        }
        let mut known = self.lock();
        if known.kept.len() >= KEPT_MAX && !known.kept.contains_key(&fingerprint) {
            known.kept.clear();
        }
        let all = known.kept.entry(fingerprint).or_default();
        all.retain(|(of, _)| *of != tenant);
        if all.len() >= KEPT_OF_ONE_MAX {
            all.remove(0);
        }
        all.push((tenant, call));
    }

    /// A call of this transformation that once had an answer has none now: the plugin is not well, and was not,
    /// perhaps, when events failed.
    pub(in crate::projection) fn unwell(&self, fingerprint: &Hash) {
        let mut known = self.lock();
        known.kept.remove(fingerprint);
        for (_, it) in known.events.iter_mut().filter(|((_, _, of), _)| of == fingerprint) {
            (it.tries, it.since, it.last, it.tried_for) = (0, None, None, TRIED_FOR);
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

impl Known {
    fn guilt(&self, whose: &Whose, now: Instant) -> Option<&Guilt> {
        self.guilty.get(whose).filter(|guilt| now < guilt.until)
    }

    /// Whose event was put aside just now.
    fn remember(&mut self, whose: Whose, now: Instant) {
        let until = now + GUILTY_FOR;
        self.guilty.retain(|_, guilt| now < guilt.until);
        if let Some(guilt) = self.guilty.get_mut(&whose) {
            guilt.until = until;
        } else if self.guilty.len() < GUILTY_MAX {
            self.guilty.insert(whose, Guilt { since: now, until });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: EventAt = (7, 0, Hash::ZERO);
    const SECOND: Duration = Duration::from_secs(1);

    fn call(bytes: usize) -> Call {
        let (subject, input) = (String::new(), Bytes::from(vec![b' '; bytes]));
        Call { subject, headers: HeaderMap::new(), input }
    }

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    fn of(name: &str) -> Whose {
        (Name::parse("flights").unwrap(), tenant(name))
    }

    fn evil() -> Whose {
        of("evil")
    }

    fn rests(reason: &str) -> Suspicion {
        Suspicion::Rests(reason.to_owned())
    }

    /// The plugin ended under it.
    fn ended(is_proven: bool) -> Failed {
        Failed { reason: "alone".to_owned(), ends: true, is_proven }
    }

    fn failing(is_proven: bool) -> Failed {
        Failed { ends: false, ..ended(is_proven) }
    }

    /// One event under which a plugin always ended held up all tenants' rows, for ever.
    #[test]
    fn an_event_is_at_fault_when_a_plugin_that_is_well_fails_under_it_again_and_again() {
        let (suspects, start) = (Suspects::default(), Instant::now());
        let said = |now| suspects.of(&AT, &evil(), now);
        assert_eq!(said(start), Suspicion::Nothing);
        suspects.note(AT, "together", start);
        assert_eq!(said(start), Suspicion::Ask);
        for (nth, seconds) in [0, 20, 40].into_iter().enumerate() {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(said(now), Suspicion::Ask, "{nth}");
            assert!(!suspects.failed(&AT, &evil(), ended(true), now));
            assert_eq!(said(now), rests("alone"), "{nth}");
        }
        let last = start + TRIED_FOR;
        assert!(suspects.failed(&AT, &evil(), ended(true), last));
        assert_eq!(said(last), Suspicion::Fault("alone".to_owned()));
        // Its batch may have to be made again.
        suspects.note(AT, "together", last);
        assert!(matches!(said(last), Suspicion::Fault(_)));
        suspects.forget();
        assert_eq!(said(last), Suspicion::Nothing);
    }

    /// Of a tenant whose calls were refused, one event held up all tenants' rows for as long as that went on.
    #[test]
    fn an_event_is_at_fault_when_it_fails_for_now_and_others_do_not_for_two_minutes() {
        let (suspects, start) = (Suspects::default(), Instant::now());
        suspects.note(AT, "together", start);
        for second in 0..120 {
            let now = start + SECOND * second;
            assert_eq!(suspects.of(&AT, &evil(), now), Suspicion::Ask, "it may be over: {second}");
            assert!(!suspects.failed(&AT, &evil(), failing(true), now), "{second}");
        }
        assert!(suspects.failed(&AT, &evil(), failing(true), start + PASSING_FOR));

        // Where the plugin ended first, and calls of the tenant are refused for that.
        let (suspects, mut now) = (Suspects::default(), start);
        suspects.note(AT, "together", now);
        for failed in [ended(true), ended(true), ended(true), failing(true), failing(true)] {
            assert!(!suspects.failed(&AT, &evil(), failed, now));
            now += TRY_EVERY;
        }
        assert!(!suspects.failed(&AT, &evil(), failing(false), now), "nothing was proven");
        now += TRY_EVERY;
        assert!(suspects.failed(&AT, &evil(), ended(true), now));
    }

    /// A tenant with many such events once held up all tenants' rows for a minute with each.
    #[test]
    fn further_events_of_such_a_tenant_are_tried_once_for_a_while() {
        let (suspects, start) = (Suspects::default(), Instant::now());
        let at = |sequence: u64| (sequence, 0, Hash::ZERO);
        suspects.note(AT, "together", start);
        suspects.note(at(6), "together", start);
        let mut now = start;
        while !suspects.failed(&AT, &evil(), ended(true), now) {
            now += TRY_EVERY;
        }
        // That one failed together with the first, perhaps by its fault.
        assert_eq!(suspects.of(&at(6), &evil(), now), Suspicion::Ask);
        assert!(!suspects.failed(&at(6), &evil(), ended(false), now), "nothing was proven");
        assert!(suspects.failed(&at(6), &evil(), ended(true), now + TRY_EVERY));
        assert_eq!(suspects.of(&at(8), &evil(), now), Suspicion::Nothing, "it has not failed");
        suspects.note(at(8), "why", now);
        let likely = |rests| Suspicion::Likely { reason: "why".to_owned(), rests };
        assert_eq!(suspects.of(&at(8), &evil(), now), likely(false));
        let other = (Name::parse("routes").unwrap(), tenant("evil"));
        for whose in [other, of("acme")] {
            assert_eq!(suspects.of(&at(8), &whose, now), Suspicion::Ask, "{whose:?}");
        }
        // It counts from the last one.
        now += GUILTY_FOR - SECOND;
        suspects.put_aside(&at(8), evil(), now);
        assert_eq!(suspects.of(&at(8), &evil(), now), Suspicion::Nothing);
        suspects.note(at(9), "why", now);
        now += GUILTY_FOR - SECOND;
        assert_eq!(suspects.of(&at(9), &evil(), now), likely(false));
        suspects.failed(&at(9), &evil(), Failed { reason: "why".to_owned(), ..ended(false) }, now);
        assert_eq!(suspects.of(&at(9), &evil(), now), likely(true));
        assert_eq!(suspects.of(&at(9), &evil(), now + SECOND), rests("why"), "it is over");
    }

    #[test]
    fn an_event_is_not_at_fault_in_a_moment_or_where_nothing_else_has_an_answer() {
        let (suspects, mut now) = (Suspects::default(), Instant::now());
        suspects.note(AT, "why", now);
        let fails = |is_proven, now| {
            assert!(!suspects.failed(&AT, &evil(), ended(is_proven), now));
        };
        // A machine that pauses, and a worker that ends under all that it is asked.
        for _ in 0..100 {
            fails(true, now);
        }
        assert_eq!(suspects.of(&AT, &evil(), now), rests("alone"));
        suspects.unwell(&Hash::ZERO);
        for _ in 0..100 {
            now += TRY_EVERY;
            assert_eq!(suspects.of(&AT, &evil(), now), Suspicion::Ask);
            fails(false, now);
        }
        assert_eq!(suspects.of(&AT, &evil(), now), rests("alone"), "the plugin may be away");
        for _ in 1..TRIES_MIN {
            now += TRIED_FOR;
            fails(true, now);
        }
        suspects.unwell(&Hash::ZERO);
        fails(true, now);
        assert_eq!(suspects.of(&AT, &evil(), now), rests("alone"), "the plugin is not well");
        suspects.cleared(&AT);
        assert_eq!(suspects.of(&AT, &evil(), now), Suspicion::Nothing);
    }

    /// Calls of a tenant whose own call was kept may be refused.
    #[test]
    fn another_tenants_call_shows_first_that_a_plugin_is_well() {
        let (suspects, zero) = (Suspects::default(), Hash::ZERO);
        let keep = |name, bytes| suspects.keep(zero, tenant(name), call(bytes));
        let kept = |name| {
            let calls = suspects.kept(&zero, &tenant(name)).into_iter();
            calls.map(|call| call.input.len()).collect::<Vec<_>>()
        };
        keep("evil", 1);
        assert_eq!(kept("evil"), [1], "better than none");
        assert!(suspects.keeps(&zero, &tenant("evil")) && !suspects.keeps(&zero, &tenant("acme")));
        keep("acme", 2);
        keep("demo", 3);
        keep("evil", 4);
        assert_eq!((kept("evil"), kept("acme")), (vec![3, 2, 4], vec![4, 3, 2]));
        assert!(suspects.keeps(&zero, &tenant("globex")), "they are enough");
        keep("globex", 5);
        assert_eq!(kept("acme"), [5, 4, 3], "the last ones stay");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (suspects, now) = (Suspects::default(), Instant::now());
        for sequence in 0..5_000 {
            suspects.note((sequence, 0, Hash::ZERO), "why", now);
            suspects.put_aside(&AT, of(&format!("t{sequence}")), now);
        }
        assert_eq!(suspects.lock().events.len(), SUSPECTS_MAX);
        // Room is made by those that were put aside.
        let before = suspects.lock().events.keys().copied().next().unwrap();
        assert!(suspects.failed(&before, &of("t1"), ended(true), now));
        suspects.note((5_000, 0, Hash::ZERO), "why", now);
        assert!(suspects.has(&(5_000, 0, Hash::ZERO)) && !suspects.has(&before));
        assert_eq!(suspects.lock().guilty.len(), GUILTY_MAX);
        suspects.put_aside(&AT, evil(), now + GUILTY_FOR);
        assert_eq!(suspects.lock().guilty.len(), 1);
        suspects.note((9_000, 0, Hash::ZERO), "why", now + KNOWN_FOR);
        assert_eq!(suspects.lock().events.len(), 1);
        for number in 0..1_000_u32 {
            let fingerprint = Hash::chain(&Hash::ZERO, &number.to_be_bytes());
            suspects.keep(fingerprint, tenant("acme"), call(1));
        }
        assert!(suspects.lock().kept.len() <= KEPT_MAX);
        let (zero, acme) = (Hash::ZERO, tenant("acme"));
        suspects.keep(zero, acme.clone(), call(KEPT_BYTES_MAX + 1));
        assert!(!suspects.keeps(&zero, &acme));
        suspects.keep(zero, acme.clone(), call(KEPT_BYTES_MAX));
        assert!(suspects.keeps(&zero, &acme) && !suspects.kept(&zero, &acme).is_empty());
        suspects.unwell(&zero);
        assert!(!suspects.keeps(&zero, &acme));
    }
}
