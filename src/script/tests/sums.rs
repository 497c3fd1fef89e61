//! Calls and checks that are short, and many: together they are bounded, too, since a lane does nothing else
//! meanwhile.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use std::time::Duration;

use flexcore_domain::{Decider as _, Event, State};
use flexcore_script::{clock::processor_time, limits::FOLD_MAX};
use support::{decider, event, faulty, run};

/// Events of one commit.
const EVENTS: usize = 256;

/// The limit, and what passes until it is noticed, without optimisation.
const BOUNDED: Duration = FOLD_MAX.saturating_add(Duration::from_millis(500));

fn commit(schema_version: u32) -> Vec<Event> {
    (1..=EVENTS as u64).map(|version| event("gone", version, schema_version, "{}")).collect()
}

/// The pattern goes through hundreds of states with each letter: milliseconds an event.
#[test]
fn the_checks_of_a_commits_events_share_a_time() {
    let mut decider = decider(&format!(
        "aggregate: thing
commands:
  go:
    payload: {{ type: object }}
    decide: |
      () => {{
        let seed = 1, text = '';
        for (let i = 0; i < 3000; i++) {{
          seed = seed * 1103515245 % 2147483647;
          text += seed % 2 ? 'a' : 'b';
        }}
        return Array.from({{ length: {EVENTS} }}, () => ({{ event: 'gone', data: {{ text }} }}));
      }}
events:
  gone:
    data:
      type: object
      properties: {{ text: {{ not: {{ pattern: '[ab]*a[ab]{{400}}c' }} }} }}
    evolve: |
      (state) => state
"
    ));
    let before = processor_time();
    let told = run(&mut decider, &State::none(), "go", "{}").map(drop);
    let used = processor_time() - before;
    assert!(used < BOUNDED, "{used:?}");
    let told = faulty(told);
    assert!(told.contains("checks of its events"), "{told}, {used:?}");
}

fn folded(evolve: &str, upcast: &str) -> String {
    let mut decider = decider(&format!(
        "aggregate: thing
commands:
  go: {{ decide: '() => []' }}
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
    ));
    let before = processor_time();
    let told = faulty(decider.evolve(&State::none(), &commit(1)).map(drop));
    assert!(processor_time() - before < BOUNDED, "{:?}", processor_time() - before);
    told
}

#[test]
fn the_folds_of_a_commits_events_share_a_time() {
    let told = folded("(state) => { while (true) {} }", "(data) => data");
    assert!(told.contains("ms of processor time"), "{told}");
}

#[test]
fn the_upcasts_of_a_commits_events_share_a_time() {
    let some =
        "(data) => { let dust = 0; for (let i = 0; i < 2e5; i++) dust += i % 7; return data; }";
    let told = folded("(state) => state", some);
    assert!(told.contains("a commit's events used more than 500 ms"), "{told}");
}
