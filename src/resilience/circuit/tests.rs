//! Given, when, then; and any sequence of what can happen.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const POLICY: BreakerPolicy = BreakerPolicy {
    failures_in_a_row: 5,
    window: 20,
    calls_min: 10,
    failures_percent: 50,
    window_age: Duration::from_secs(30),
    slow_call: Duration::from_secs(2),
    pause_min: Duration::from_millis(500),
    pause_max: Duration::from_secs(5),
    successes: 3,
};

/// A circuit and its clock.
struct Given {
    circuit: Circuit,
    now: Instant,
}

impl Given {
    fn closed() -> Self {
        Self { circuit: Circuit::new(POLICY), now: Instant::now() }
    }

    /// Opened just now, for 500 ms.
    fn open() -> Self {
        let mut given = Self::closed();
        (0..5).for_each(|_| given.call(Verdict::Failure));
        assert_eq!(given.circuit.state(), CircuitState::Open);
        given
    }

    /// A call that takes no time.
    fn call(&mut self, verdict: Verdict) {
        let ticket = self.circuit.decide(self.now).unwrap();
        self.circuit.on_result(ticket, verdict, self.now, 0.0);
    }

    fn result(&mut self, ticket: Ticket, verdict: Verdict) {
        self.circuit.on_result(ticket, verdict, self.now, 0.0);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn decide(&mut self) -> Result<Ticket, Duration> {
        self.circuit.decide(self.now)
    }
}

#[test]
fn failures_in_a_row_open() {
    let mut given = Given::closed();
    for _ in 0..3 {
        (0..4).for_each(|_| given.call(Verdict::Failure));
        given.call(Verdict::Success);
        given.pass(POLICY.window_age + MS);
    }
    assert_eq!(given.circuit.state(), CircuitState::Closed, "a success between them");
    // However long it takes.
    for _ in 0..5 {
        given.pass(POLICY.window_age * 2);
        given.call(Verdict::Failure);
    }
    assert_eq!(given.circuit.state(), CircuitState::Open);
}

#[test]
fn a_share_of_failures_opens_once_there_are_enough_calls() {
    let mut given = Given::closed();
    let mut calls = 0;
    while given.circuit.state() == CircuitState::Closed && calls < 100 {
        calls += 1;
        given.call(if calls % 2 == 0 { Verdict::Failure } else { Verdict::Success });
    }
    assert_eq!(calls, 10);
    let mut given = Given::closed();
    for calls in 0..300 {
        given.call(if [1, 3].contains(&(calls % 5)) { Verdict::Failure } else { Verdict::Success });
    }
    assert_eq!(given.circuit.state(), CircuitState::Closed, "40 % are not enough");
}

#[test]
fn old_failures_are_forgotten() {
    let mut given = Given::closed();
    for number in 0..100 {
        given.call(if number % 2 == 0 { Verdict::Success } else { Verdict::Failure });
        given.pass(Duration::from_secs(4));
    }
    assert_eq!(given.circuit.state(), CircuitState::Closed, "never ten within 30 s");
}

#[test]
fn slow_calls_are_failures_whatever_becomes_of_them() {
    for verdict in [Verdict::Success, Verdict::Neutral] {
        let mut given = Given::closed();
        let tickets: Vec<_> = (0..5).map(|_| given.decide().unwrap()).collect();
        given.pass(POLICY.slow_call - MS);
        tickets.into_iter().for_each(|ticket| given.result(ticket, verdict));
        assert_eq!(given.circuit.state(), CircuitState::Closed);
        let tickets: Vec<_> = (0..5).map(|_| given.decide().unwrap()).collect();
        given.pass(POLICY.slow_call);
        tickets.into_iter().for_each(|ticket| given.result(ticket, verdict));
        assert_eq!(given.circuit.state(), CircuitState::Open, "{verdict:?}");
    }
}

#[test]
fn calls_that_say_nothing_change_nothing() {
    let mut given = Given::closed();
    for _ in 0..100 {
        (0..100).for_each(|_| given.call(Verdict::Neutral));
        given.call(Verdict::Success);
    }
    assert_eq!(given.circuit.state(), CircuitState::Closed);
    (0..4).for_each(|_| given.call(Verdict::Failure));
    given.call(Verdict::Neutral);
    given.call(Verdict::Failure);
    assert_eq!(given.circuit.state(), CircuitState::Open, "nor do they interrupt a row");
}

#[test]
fn an_open_circuit_says_when_to_come_again() {
    let mut given = Given::open();
    assert_eq!(given.decide().unwrap_err(), 500 * MS);
    given.pass(499 * MS);
    assert_eq!(given.decide().unwrap_err(), MS);
    given.pass(MS);
    let _probe = given.decide().unwrap();
    assert_eq!(given.circuit.state(), CircuitState::HalfOpen);
}

#[test]
fn one_probe_at_a_time_and_three_that_succeed_close() {
    let mut given = Given::open();
    given.pass(500 * MS);
    for _ in 0..3 {
        assert_ne!(given.circuit.state(), CircuitState::Closed);
        let probe = given.decide().unwrap();
        assert_eq!(given.decide().unwrap_err(), POLICY.pause_min);
        assert!(given.circuit.insist(given.now).is_none());
        given.result(probe, Verdict::Success);
    }
    assert_eq!(given.circuit.state(), CircuitState::Closed);
}

#[test]
fn a_probe_that_fails_doubles_the_pause_up_to_its_cap() {
    let mut given = Given::open();
    for pause_ms in [500, 1_000, 2_000, 4_000, 5_000, 5_000] {
        assert_eq!(given.decide().unwrap_err(), pause_ms * MS);
        given.pass(pause_ms * MS);
        given.call(Verdict::Failure);
    }
}

#[test]
fn chance_shortens_a_pause_by_half_at_most() {
    let pause_ms = |random| pause(&POLICY, 1, random).as_millis();
    assert_eq!([pause_ms(0.0), pause_ms(0.5), pause_ms(1.0)], [1_000, 750, 500]);
    assert_eq!(pause(&POLICY, u32::MAX, 0.0), POLICY.pause_max);
}

#[test]
fn pauses_start_short_again_only_after_it_worked_for_a_while() {
    let close_and_open = |works_for: Duration| {
        let mut given = Given::open();
        given.pass(500 * MS);
        (0..3).for_each(|_| given.call(Verdict::Success));
        given.pass(works_for);
        (0..5).for_each(|_| given.call(Verdict::Failure));
        given.decide().unwrap_err()
    };
    assert_eq!(close_and_open(POLICY.pause_max), 1_000 * MS);
    assert_eq!(close_and_open(POLICY.pause_max + MS), 500 * MS);
}

#[test]
fn a_probe_that_goes_away_frees_its_place() {
    let mut given = Given::open();
    given.pass(500 * MS);
    let probe = given.decide().unwrap();
    given.result(probe, Verdict::Neutral);
    assert_eq!(given.circuit.state(), CircuitState::HalfOpen);
    let probe = given.decide().expect("its place is free");
    given.pass(POLICY.slow_call);
    given.result(probe, Verdict::Neutral);
    assert_eq!(given.circuit.state(), CircuitState::Open, "one that waited long enough has failed");
}

#[test]
fn results_from_before_the_last_change_say_nothing() {
    let mut given = Given::closed();
    let old: Vec<_> = (0..20).map(|_| given.decide().unwrap()).collect();
    (0..5).for_each(|_| given.call(Verdict::Failure));
    given.pass(500 * MS);
    let mut old = old.into_iter();
    given.result(old.next().unwrap(), Verdict::Failure);
    assert_eq!(given.decide().map(|probe| given.result(probe, Verdict::Success)), Ok(()));
    old.by_ref().take(3).for_each(|ticket| given.result(ticket, Verdict::Success));
    assert_eq!(given.circuit.state(), CircuitState::HalfOpen, "not closed by calls from before");
    (0..2).for_each(|_| given.call(Verdict::Success));
    old.for_each(|ticket| given.result(ticket, Verdict::Failure));
    assert_eq!(given.circuit.state(), CircuitState::Closed, "not opened by calls from before");
}

#[test]
fn failures_from_before_an_opening_do_not_count_again() {
    let mut given = Given::closed();
    for number in 0..10 {
        given.call(if number % 2 == 0 { Verdict::Success } else { Verdict::Failure });
    }
    assert_eq!(given.circuit.state(), CircuitState::Open);
    given.pass(500 * MS);
    (0..3).for_each(|_| given.call(Verdict::Success));
    (0..4).for_each(|_| given.call(Verdict::Failure));
    assert_eq!(given.circuit.state(), CircuitState::Closed);
}

#[test]
fn a_pause_can_be_ended_early() {
    let mut given = Given::open();
    let ticket = given.circuit.insist(given.now).unwrap();
    assert_eq!(given.circuit.state(), CircuitState::HalfOpen);
    given.result(ticket, Verdict::Failure);
    assert_eq!(given.circuit.state(), CircuitState::Open);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Decide,
    Insist,
    /// Of the call under way with this number, modulo how many there are.
    Result(usize, Verdict),
    Pass(u64),
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Success), Just(Verdict::Failure), Just(Verdict::Neutral)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let result =
        (0_usize..100, verdict()).prop_map(|(which, verdict)| Step::Result(which, verdict));
    let pass = (0_u64..6_000).prop_map(Step::Pass);
    let step =
        prop_oneof![4 => Just(Step::Decide), 1 => Just(Step::Insist), 4 => result, 2 => pass];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #![proptest_config(crate::cases())]

    #[test]
    fn there_are_never_two_probes_and_no_state_is_a_dead_end(steps in steps(), random in 0.0..1.0) {
        let Given { mut circuit, mut now } = Given::closed();
        // Calls under way, and whether each is a probe.
        let mut under_way: Vec<(Ticket, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Decide | Step::Insist => {
                    let closed = circuit.state() == CircuitState::Closed;
                    let ticket = match step {
                        Step::Decide => circuit.decide(now).ok(),
                        _ => circuit.insist(now),
                    };
                    prop_assert!(!closed || ticket.is_some(), "a closed circuit lets all through");
                    under_way.extend(ticket.map(|ticket| (ticket, !closed)));
                }
                Step::Result(which, verdict) if !under_way.is_empty() => {
                    let (ticket, _) = under_way.swap_remove(which % under_way.len());
                    circuit.on_result(ticket, verdict, now, random);
                }
                Step::Result(..) => {}
                Step::Pass(ms) => now += Duration::from_millis(ms),
            }
            prop_assert!(under_way.iter().filter(|(_, probe)| *probe).count() <= 1);
        }
        // In every history: once the target is back, time and successes close the circuit.
        for (ticket, _) in under_way {
            circuit.on_result(ticket, Verdict::Failure, now, random);
        }
        now += POLICY.pause_max;
        for _ in 0..POLICY.successes {
            let ticket = circuit.decide(now);
            prop_assert!(ticket.is_ok());
            circuit.on_result(ticket.unwrap(), Verdict::Success, now, random);
        }
        prop_assert_eq!(circuit.state(), CircuitState::Closed);
    }

    #[test]
    fn twenty_failures_in_a_row_always_open(
        before in proptest::collection::vec((verdict(), 0_u64..40_000), 0..100),
        gaps_ms in proptest::collection::vec(0_u64..100_000, 20),
    ) {
        let mut given = Given::closed();
        for (verdict, gap_ms) in before {
            given.pass(Duration::from_millis(gap_ms));
            if let Ok(ticket) = given.decide() {
                given.result(ticket, verdict);
            }
        }
        // From every state: after at most 20 calls that fail, it is open.
        let mut opened = given.circuit.state() == CircuitState::Open;
        for gap_ms in gaps_ms {
            if opened {
                break;
            }
            given.pass(Duration::from_millis(gap_ms));
            given.call(Verdict::Failure);
            opened = given.circuit.state() == CircuitState::Open;
        }
        prop_assert!(opened);
    }

    #[test]
    fn pauses_lie_between_half_and_cap(openings in 0_u32..100, random in 0.0..1.0) {
        let pause = pause(&POLICY, openings, random);
        prop_assert!(pause >= POLICY.pause_min / 2 && pause <= POLICY.pause_max);
    }
}
