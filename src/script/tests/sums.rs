//! Calls and checks that are short, and many: together they are bounded, too, since a lane does nothing else
//! meanwhile.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use std::time::Duration;

use flexcore_definition::SourceFile;
use flexcore_domain::{Decider as _, Event, Refusal, State};
use flexcore_script::{clock::processor_time, limits::FOLD_MAX, scenario};
use support::{application, decider, event, faulty, run};

/// Events of one commit.
const EVENTS: usize = 256;

/// The limit, and what passes until it is noticed, without optimisation: nothing stops one check.
const BOUNDED: Duration = FOLD_MAX.saturating_add(Duration::from_secs(2));

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

/// Its upcasts share the time of a commit, and its fold has its own: an old event of many versions has what each
/// of its steps may take.
#[test]
fn an_old_event_has_time_for_each_of_its_upcasts() {
    // About so many rounds of a loop take 40 ms here.
    let loops = |rounds: u64| {
        format!(
            "(data) => {{ let dust = 0; for (let i = 0; i < {rounds}; i++) dust += i % 7; return data; }}"
        )
    };
    let steps = |rounds: u64, steps: u32| {
        let upcasts =
            (1..=steps).map(|step| format!("      {step}: |\n        {}\n", loops(rounds)));
        decider(&format!(
            "aggregate: thing
commands:
  go: {{ decide: '() => []' }}
events:
  gone:
    version: {}
    data: {{ type: object }}
    evolve: |
      (state) => state ?? 1
    upcast:
{}",
            steps + 1,
            upcasts.collect::<String>()
        ))
    };
    let before = processor_time();
    steps(100_000, 1).upcast(&event("gone", 1, 1, "{}")).unwrap();
    let each = (processor_time() - before).as_nanos() as u64 / 100_000;
    let rounds = 40_000_000 / each.max(1);
    let folded = steps(rounds, 5).evolve(&State::none(), &[event("gone", 1, 1, "{}")]).unwrap();
    assert_eq!(folded.as_str(), "1");
}

/// What a test of an application has given may be many commits.
#[test]
fn what_is_given_has_the_time_of_a_commit_each() {
    let application = application(
        "aggregate: thing
commands:
  go: { decide: '() => []' }
events:
  gone:
    data: { type: object }
    evolve: |
      (state) => { let dust = 0; for (let i = 0; i < 30000; i++) dust += i % 7; return (state ?? 0) + 1; }
",
    );
    let given = "  - { gone: {} }\n".repeat(500);
    let text = format!("test: many\ngiven:\n{given}when: {{ go: {{}} }}\nthen: []\nstate: 500\n");
    let file = SourceFile { path: "t.yaml".to_owned(), text };
    let scenarios = scenario::read(&application, &file).unwrap();
    assert_eq!(
        scenario::run(&scenarios[0], &mut |_| Err(Refusal::Faulty("no plugin".to_owned()))),
        Ok(())
    );
}
