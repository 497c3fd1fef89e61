//! Calls that did not come back in time: how many there may be, and who is refused meanwhile.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use flexcore_domain::Refusal;

use super::{Of, locked};
use crate::limits::{RUNAWAY_REFUSED, RUNAWAYS_MAX, RUNAWAYS_OF_ONE_MAX};

/// A call that ran on, or runs on yet.
struct Runaway {
    number: u64,
    of: Of,
    since: Instant,
    /// It did not come back by itself.
    left: bool,
    running: bool,
}

struct Runaways {
    known: Vec<Runaway>,
    next: u64,
}

static RUNAWAYS: Mutex<Runaways> = Mutex::new(Runaways { known: Vec::new(), next: 0 });
/// Number of known ones: one look at it is the whole cost of a call while there are none.
static KNOWN: AtomicUsize = AtomicUsize::new(0);

/// Fails while functions are not called for this aggregate.
pub(super) fn admit(of: &Of) -> Result<(), Refusal> {
    if KNOWN.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let refused = with(|runaways| runaways.refusal(of, Instant::now()));
    if refused.is_some() {
        metrics::counter!("flexcore_script_calls_refused_total").increment(1);
    }
    refused.map_or(Ok(()), |why| Err(Refusal::Faulty(why)))
}

/// A call is to be left behind. Returns its number; `None` when there are too many already.
pub(super) fn begin(of: &Of) -> Option<u64> {
    with(|runaways| runaways.begin(of, Instant::now()))
}

/// A call came back by itself, but late.
pub(super) fn note(of: &Of) {
    with(|runaways| runaways.add(of, Instant::now(), false));
}

/// The thread of a call that was left behind has ended.
pub(super) fn ended(number: u64) {
    with(|runaways| runaways.ended(number));
}

/// Number of calls that run on.
pub(super) fn running() -> usize {
    with(|runaways| runaways.running())
}

fn with<T>(change: impl FnOnce(&mut Runaways) -> T) -> T {
    let mut runaways = locked(&RUNAWAYS);
    let (changed, before) = (change(&mut runaways), KNOWN.load(Ordering::Relaxed));
    if runaways.known.len() > before {
        metrics::counter!("flexcore_script_runaways_total").increment(1);
    }
    KNOWN.store(runaways.known.len(), Ordering::Release);
    metrics::gauge!("flexcore_script_runaways").set(runaways.running() as f64);
    changed
}

impl Of {
    /// True if both are of one tenant, and have the same functions.
    fn is_like(&self, other: &Self) -> bool {
        self.key.tenant() == other.key.tenant() && self.has_functions_of(other)
    }

    /// A deployment that changes the functions makes others of them, to which nothing has happened.
    fn has_functions_of(&self, other: &Self) -> bool {
        match (&self.definition, &other.definition) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Runaways {
    fn running(&self) -> usize {
        self.known.iter().filter(|runaway| runaway.running).count()
    }

    fn refusal(&mut self, of: &Of, now: Instant) -> Option<String> {
        self.known.retain(|it| it.running || now.duration_since(it.since) < RUNAWAY_REFUSED);
        let alike = || self.known.iter().filter(|runaway| runaway.of.is_like(of));
        // One that came back late may have met a processor that was taken from it meanwhile: a second
        // one is needed.
        let of_this = |runaway: &&Runaway| runaway.left && runaway.of.key == of.key;
        let full = self.running() >= RUNAWAYS_MAX;
        let same_functions =
            |runaway: &&Runaway| full && runaway.running && runaway.of.has_functions_of(of);
        let about = if let Some(runaway) = alike().find(of_this) {
            (runaway, format!("of {}", of.key))
        } else if alike().count() >= RUNAWAYS_OF_ONE_MAX {
            let (tenant, aggregate) = (of.key.tenant(), of.key.aggregate());
            (alike().next()?, format!("of several {aggregate} of the tenant {tenant}"))
        } else {
            let runaway = self.known.iter().find(same_functions)?;
            (runaway, format!("of {}, as of many others,", runaway.of.key))
        };
        let (runaway, whose) = about;
        let ago = now.duration_since(runaway.since).as_secs();
        let yet = if runaway.running { "and runs on" } else { "until it ended" };
        let least = RUNAWAY_REFUSED.as_secs();
        Some(format!(
            "a function {whose} or a schema's check used far more time than it may {ago} s ago, {yet}: \
             nothing is called before that is over, and {least} s at least; deploy it mended"
        ))
    }

    fn begin(&mut self, of: &Of, now: Instant) -> Option<u64> {
        (self.running() < RUNAWAYS_MAX).then(|| self.add(of, now, true))
    }

    fn add(&mut self, of: &Of, now: Instant, running: bool) -> u64 {
        self.next += 1;
        let number = self.next;
        self.known.push(Runaway { number, of: of.clone(), since: now, left: running, running });
        number
    }

    fn ended(&mut self, number: u64) {
        if let Some(runaway) = self.known.iter_mut().find(|runaway| runaway.number == number) {
            runaway.running = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flexcore_definition::{AggregateDefinition, Application, SourceFile};
    use flexcore_domain::{AggregateId, AggregateKey, Name, Tenant};

    use super::*;

    const NONE: Runaways = Runaways { known: Vec::new(), next: 0 };

    fn definition() -> Arc<AggregateDefinition> {
        let text = "aggregate: thing\ncommands:\n  go:\n    decide: |\n      () => []\n\
                    events:\n  gone:\n    evolve: |\n      (state) => state\n";
        let file = SourceFile { path: "app.yaml".to_owned(), text: text.to_owned() };
        let application = Application::read(Name::parse("app").unwrap(), vec![file]).unwrap();
        application.aggregates.values().next().unwrap().clone()
    }

    fn of(tenant: &str, id: &str, definition: &Arc<AggregateDefinition>) -> Of {
        let name = definition.name.clone();
        let (tenant, id) = (Tenant::parse(tenant).unwrap(), AggregateId::parse(id).unwrap());
        Of { key: AggregateKey::new(tenant, name, id), definition: Some(definition.clone()) }
    }

    #[test]
    fn one_aggregate_is_refused_and_then_its_tenants_others() {
        let (mut runaways, now, functions) = (NONE, Instant::now(), definition());
        let refused = |runaways: &mut Runaways, tenant: &str, id: &str| {
            runaways.refusal(&of(tenant, id, &functions), now).is_some()
        };
        runaways.begin(&of("a", "1", &functions), now).unwrap();
        assert!(refused(&mut runaways, "a", "1"));
        assert!(!refused(&mut runaways, "a", "2"), "another aggregate");
        assert!(!refused(&mut runaways, "b", "1"), "another tenant's");
        runaways.add(&of("a", "2", &functions), now, false);
        assert!(refused(&mut runaways, "a", "3"), "two are enough");
        assert!(!refused(&mut runaways, "b", "3"), "for one tenant");
        let mended = of("a", "1", &definition());
        assert_eq!(runaways.refusal(&mended, now), None, "a deployment makes it good");
    }

    /// It was final at once for a stored command: its next try was refused.
    #[test]
    fn a_first_call_that_comes_back_late_refuses_nothing() {
        let (mut runaways, now, functions) = (NONE, Instant::now(), definition());
        let one = of("a", "1", &functions);
        runaways.add(&one, now, false);
        assert_eq!(runaways.refusal(&one, now), None);
        runaways.add(&one, now, false);
        assert!(runaways.refusal(&one, now).is_some());
    }

    #[test]
    fn a_refusal_ends_with_its_time_and_its_thread() {
        let (mut runaways, now, functions) = (NONE, Instant::now(), definition());
        let one = of("a", "1", &functions);
        let number = runaways.begin(&one, now).unwrap();
        let later = now + RUNAWAY_REFUSED;
        assert!(runaways.refusal(&one, later).unwrap().contains("60 s ago, and runs on"));
        runaways.ended(number);
        let before = later - Duration::from_millis(1);
        assert!(runaways.refusal(&one, before).unwrap().contains("until it ended"));
        assert_eq!(runaways.refusal(&one, later), None);
    }

    #[test]
    fn no_more_run_on_than_may() {
        let (mut runaways, now, functions) = (NONE, Instant::now(), definition());
        let tenants: Vec<String> = (0..=RUNAWAYS_MAX).map(|n| format!("t{n}")).collect();
        let (last, first) = tenants.split_last().unwrap();
        let numbers: Vec<u64> = first
            .iter()
            .map(|tenant| runaways.begin(&of(tenant, "1", &functions), now).unwrap())
            .collect();
        let more = of(last, "1", &definition());
        assert_eq!(runaways.begin(&more, now), None);
        assert_eq!(runaways.refusal(&more, now), None, "other functions are not suspected");
        let suspected = of(last, "1", &functions);
        assert!(runaways.refusal(&suspected, now).unwrap().contains("as of many others"));
        runaways.ended(numbers[0]);
        assert_eq!(runaways.refusal(&suspected, now), None);
        assert!(runaways.begin(&more, now).is_some());
    }
}
