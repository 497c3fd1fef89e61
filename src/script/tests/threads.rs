//! Calls that the engine does not come back from in time: they are left behind, and their thread's
//! other work goes on.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use flexcore_definition::AggregateDefinition;
use flexcore_domain::{
    AggregateId, AggregateKey, AggregateName, Decider as _, Event, Refusal, State, Tenant,
};
use flexcore_script::{
    ScriptDecider,
    limits::{DECIDE_MAX, LEAVE_AFTER, RUNAWAYS_MAX},
    threads::{self, Of, Scripts},
};
use support::{application, decider, event, faulty, run};

/// Preparation of each, and a turn that does milliseconds of work in a few steps: the engine looks
/// at the time every 10,000.
const HOSTILE: &[(&str, &str)] = &[
    ("const u = '\\u0101'.repeat(4e4)", "u.normalize('NFD')"),
    ("const s = 'a'.repeat(1e3).repeat(4e3), m = new Map([[s, 1]])", "m.has(s + n)"),
    ("const u = '\\u0101'.repeat(1e3).repeat(400)", "u.toUpperCase()"),
    ("const s = 'a'.repeat(1e3).repeat(1e4), t = s.slice(1) + 'a'", "s < t"),
    ("const s = 'a'.repeat(1e3).repeat(1e4), t = s.slice(1) + 'a'", "s === t"),
    ("const s = 'a'.repeat(1e3).repeat(15e3)", "(s + n).charCodeAt(1)"),
    ("let b = 3n; while (b < 1n << 60000n) b *= b", "b * b"),
    ("const o = {}; for (let i = 0; i < 1e4; i++) o[`k${i}`] = i", "({ ...o })"),
    ("const a = Array.from({ length: 4e3 }, (_, i) => `${i * 7 % 4e3}`)", "a.slice().sort()"),
    ("const a = []; for (let i = 0; i < 2e4; i++) a.push('text')", "JSON.stringify(a)"),
    ("const s = 'a'.repeat(5e4)", "s.split('')"),
];

/// Duration of one such call, in processor time of an engine that nobody stops: long enough to be
/// left behind, and over soon.
const RUNS_ON: Duration = Duration::from_millis(2_000);

/// Longest time until a call is left behind: its own limit, the time beyond, and some looks of the
/// watch.
const HELD_MAX: Duration =
    DECIDE_MAX.saturating_add(LEAVE_AFTER).saturating_add(Duration::from_millis(500));

/// An aggregate whose functions turn as often as the payload, or the event's data, says.
fn yaml((prepared, turn): (&str, &str)) -> String {
    let function = |of: &str, answer: &str| {
        format!(
            "({of}) => {{ {prepared}; for (let n = 0; n < turns; n++) {{ {turn}; }} return {answer}; }}"
        )
    };
    let decide = function("state, { turns }", "[{ event: 'gone', data: { turns: 0 } }]");
    let evolve = function("state, { data: { turns } }", "turns");
    let upcast = function("{ turns }", "{ turns: 0 }");
    format!(
        "aggregate: thing
commands:
  go:
    payload: {{ type: object }}
    decide: |
      {decide}
events:
  gone:
    version: 2
    data: {{ type: object }}
    evolve: |
      {evolve}
    upcast:
      1: |
        {upcast}
"
    )
}

/// The function that is called.
#[derive(Clone, Copy, Debug)]
enum Called {
    Decide,
    Evolve,
    Upcast,
}

fn call(which: Called, decider: &mut ScriptDecider, turns: u64) -> Result<(), Refusal> {
    let data = format!("{{\"turns\":{turns}}}");
    let gone = |version| event("gone", 1, version, &data);
    match which {
        Called::Decide => run(decider, &State::none(), "go", &data).map(drop),
        Called::Evolve => decider.evolve(&State::none(), &[gone(2)]).map(drop),
        Called::Upcast => decider.upcast(&gone(1)).map(|_: Event| ()),
    }
}

fn of(id: &str, definition: &Arc<AggregateDefinition>) -> Of {
    let (tenant, aggregate) = (Tenant::parse("acme"), AggregateName::parse("thing"));
    let key =
        AggregateKey::new(tenant.unwrap(), aggregate.unwrap(), AggregateId::parse(id).unwrap());
    Of { key, definition: Some(definition.clone()) }
}

/// Processor time of the calling thread, or of another one of this process; `None`: it has ended.
fn used_by(thread: &str) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

fn this_thread() -> String {
    let path = std::fs::read_link("/proc/thread-self").unwrap();
    path.to_str().unwrap().to_owned()
}

type Made = Option<ScriptDecider>;

async fn made<T: Send + 'static>(
    scripts: &Scripts<Made>,
    of: Of,
    call: impl FnOnce(&mut ScriptDecider) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let definition = of.definition.clone().unwrap();
    let job =
        |own: &mut Made| call(own.get_or_insert_with(|| ScriptDecider::new(definition).unwrap()));
    scripts.call(of, job).await
}

/// Runs a task on a thread of its own, and returns its result.
fn on_thread<T, F>(task: impl FnOnce(Scripts<Made>) -> F) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (send, receive) = mpsc::channel();
    let sending = |scripts| {
        let task = task(scripts);
        async move { send.send(task.await).unwrap() }
    };
    threads::spawn("test", || None, sending).unwrap();
    receive.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// Number of turns that run for as long as a call is to run on.
fn turns(which: Called, text: &str) -> u64 {
    let mut decider = decider(text);
    let mut time = |turns: u64| {
        let (thread, mut least) = (this_thread(), Duration::MAX);
        for _ in 0..5 {
            let before = used_by(&thread).unwrap();
            let called = call(which, &mut decider, turns);
            let used = used_by(&thread).unwrap() - before;
            assert!(turns > 0 || called.is_ok(), "{called:?}: {used:?}");
            least = least.min(used);
        }
        least
    };
    let none = time(0);
    let some = time(2).saturating_sub(none).max(Duration::from_nanos(2));
    u64::try_from(RUNS_ON.as_nanos() * 2 / some.as_nanos()).unwrap()
}

/// Each level of a list is tried twice, and so are all below it.
const DOUBLING: &str = "aggregate: thing
commands:
  go:
    payload:
      $defs:
        n:
          anyOf:
            - { type: array, items: { $ref: '#/$defs/n' } }
            - { type: array, minItems: 1, items: { $ref: '#/$defs/n' } }
            - { type: integer }
      type: object
      properties: { a: { $ref: '#/$defs/n' } }
    decide: |
      () => []
events:
  gone:
    evolve: |
      (state) => state
";

/// The check of a payload runs before any function, and nothing stops it.
#[test]
fn a_check_that_takes_long_is_left_behind() {
    let definition = application(DOUBLING).aggregates.values().next().unwrap().clone();
    let told = on_thread(move |scripts| async move {
        let go = |id: &str, levels: usize| {
            let (left, right) = ("[".repeat(levels), "]".repeat(levels));
            let payload = format!("{{\"a\":{left}\"x\"{right}}}");
            made(&scripts, of(id, &definition), move |own| {
                run(own, &State::none(), "go", &payload).map(drop)
            })
        };
        let told = go("bad", 17).await;
        let next = go("good", 1).await.unwrap();
        assert!(matches!(next, Err(Refusal::InvalidPayload { .. })), "{next:?}");
        faulty(told)
    });
    assert!(told.starts_with("app.yaml:5: check against the schema"), "{told}");
}

/// Makes a hostile call on a thread of its own, which it must not hold for long. True if it was
/// left behind: some are stopped by the engine itself.
fn is_left(which: Called, hostile: (&str, &str)) -> bool {
    let text = yaml(hostile);
    let turns = turns(which, &text);
    let definition = application(&text).aggregates.values().next().unwrap().clone();
    let (told, held, moved, next, again) = on_thread(move |scripts| async move {
        let (bad, good) = (of("bad", &definition), of("good", &definition));
        // The engine is made before the measurement begins.
        made(&scripts, good.clone(), move |own| call(which, own, 0)).await.unwrap().unwrap();
        let thread = this_thread();
        let before = used_by(&thread).unwrap();
        let told = made(&scripts, bad.clone(), move |own| call(which, own, turns)).await;
        // On a busy machine it may have run to its end by now.
        let held = used_by(&thread).map_or(LEAVE_AFTER, |used| used - before);
        let moved = this_thread() != thread;
        let next = made(&scripts, good, move |own| call(which, own, 0)).await.unwrap();
        let again = made(&scripts, bad, move |own| call(which, own, 0)).await.map(|_| ());
        (faulty(told.and_then(|told| told)), held, moved, next, again)
    });
    let what = format!("{which:?} {hostile:?}, {turns} turns, held for {held:?}: {told}");
    assert!(held < HELD_MAX, "{what}");
    assert!(told.starts_with("app.yaml:"), "{what}");
    assert_eq!(next, Ok(()), "another aggregate is served: {what}");
    assert_eq!(told.contains("was left behind"), moved, "{what}");
    if moved {
        let again = faulty(again);
        assert!(again.contains("used far more time"), "{what}; {again}");
    }
    moved
}

#[test]
fn a_call_that_does_not_end_is_left_behind() {
    let mut calls: Vec<_> = HOSTILE.iter().map(|hostile| (Called::Decide, *hostile)).collect();
    for which in [Called::Evolve, Called::Upcast] {
        calls.extend([HOSTILE[0], HOSTILE[4]].map(|hostile| (which, hostile)));
    }
    // As many at once as there are processors, and fewer than may run on.
    let processors = thread::available_parallelism().unwrap().get().min(RUNAWAYS_MAX / 2);
    let mut left = 0;
    for some in calls.chunks(processors) {
        // Calls that were left behind run on with a low priority: on a busy machine there may be
        // too many.
        let since = Instant::now();
        while threads::left_behind() > RUNAWAYS_MAX / 2 {
            assert!(since.elapsed() < Duration::from_secs(120), "they do not end");
            thread::sleep(Duration::from_millis(20));
        }
        thread::scope(|scope| {
            let run = |(which, hostile): &(Called, _)| {
                let (which, hostile) = (*which, *hostile);
                scope.spawn(move || is_left(which, hostile))
            };
            let running: Vec<_> = some.iter().map(run).collect();
            left += running.into_iter().map(|it| it.join().unwrap()).filter(|left| *left).count();
        });
    }
    assert!(left >= 8, "only {left} of them do what this test is for");
}
