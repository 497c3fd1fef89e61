//! A machine that has too much to do is not held against a script.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use flexcore_domain::{Decider as _, State};
use flexcore_script::limits::DECIDE_MAX;
use support::{decider, event, faulty, run};

/// An aggregate whose every function does so many steps.
fn laborious(steps: u64) -> String {
    format!(
        "aggregate: mill
commands:
  grind:
    decide: |
      () => {{
        let dust = 0;
        for (let i = 0; i < {steps}; i++) dust += i % 7;
        return [{{ event: 'ground', data: {{ dust }} }}];
      }}
events:
  ground:
    version: 2
    data: {{ type: object }}
    evolve: |
      (state, event) => event.data
    upcast:
      1: |
        () => {{
          let dust = 0;
          for (let i = 0; i < {steps}; i++) dust += i % 7;
          return {{ dust }};
        }}
"
    )
}

/// Steps that take a third of what a function may have, on a machine that is otherwise idle or not:
/// the quickest of several tries says it.
fn steps() -> u64 {
    const TRIED: u64 = 100_000;
    let mut mill = decider(&laborious(TRIED));
    let quickest = (0..8).map(|_| {
        let began = Instant::now();
        run(&mut mill, &State::none(), "grind", "{}").unwrap();
        began.elapsed()
    });
    let one = quickest.min().unwrap().as_nanos() as u64 / TRIED;
    DECIDE_MAX.as_nanos() as u64 / 3 / one.max(1)
}

#[test]
fn a_script_that_waits_for_a_processor_is_not_late() {
    let (steps, processors) = (steps(), thread::available_parallelism().unwrap().get());
    let work = move || {
        let mut mill = decider(&laborious(steps));
        (0..2)
            .map(|_| {
                let began = Instant::now();
                run(&mut mill, &State::none(), "grind", "{}").unwrap();
                mill.upcast(&event("ground", 1, 1, "{}")).unwrap();
                mill.evolve(&State::none(), &[event("ground", 1, 1, "{}")]).unwrap();
                began.elapsed()
            })
            .max()
            .unwrap()
    };
    // Eight times as many as there are processors for.
    let threads: Vec<_> = (0..processors * 8).map(|_| thread::spawn(work)).collect();
    let longest = threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap();
    assert!(longest > 3 * DECIDE_MAX, "they did wait: {longest:?}");
    assert!(longest < Duration::from_secs(60), "{longest:?}");
    let endless = run(&mut decider(&laborious(steps * 100)), &State::none(), "grind", "{}");
    assert!(faulty(endless).contains("processor time"), "too much work is too much all the same");
}
