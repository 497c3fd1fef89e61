//! Calls that go wrong, and large ones, in every language.

use std::time::Duration;

use flexcore_plugin::{Error, Level, limits};
use futures::future::{join, join_all};
use tonic::Code;

use crate::{
    PATIENCE,
    base::{MIB, run},
    contract::Transform,
    fixtures,
    harness::{How, start, within},
};

/// An answer over the limit. So many at once are more than a host may ever take: `base` has that.
const TOO_LARGE_BYTES: usize = 24 * MIB;
const TOO_LARGE_CALLS: usize = 12;
const _: () = assert!(TOO_LARGE_BYTES > limits::ANSWER_BYTES_MAX);

/// A number that nobody serves.
const NOBODY: u32 = 4242;

#[test]
fn a_crash_in_a_call_is_an_answer_with_the_exit_status_behind_it() {
    run(async {
        for (language, program) in fixtures::all() {
            let started = start(&program, How::default()).await.unwrap();
            let transform = Transform::of(&started.plugin);
            let crash = within(PATIENCE, transform.apply("crash", "x")).await;
            crash.expect_err("it has crashed");
            let ended = within(PATIENCE, started.plugin.ended()).await;
            assert_eq!(ended.status.unwrap().code(), Some(7), "{language}: {ended}");
            let later = within(PATIENCE, transform.apply("a", "x")).await;
            later.expect_err("nobody is there");
            within(PATIENCE, started.plugin.check()).await.expect_err("nobody is there");
        }
    });
}

#[test]
fn calls_under_way_end_with_the_plugin() {
    run(async {
        for (_, program) in fixtures::all() {
            let started = start(&program, How::default()).await.unwrap();
            let transform = Transform::of(&started.plugin);
            let hang = || {
                tokio::spawn({
                    let transform = transform.clone();
                    async move { transform.apply("hang", "x").await }
                })
            };
            let hanging: Vec<_> = (0..8).map(|_| hang()).collect();
            within(PATIENCE, transform.apply("a", "x")).await.unwrap();
            let crash = within(PATIENCE, transform.apply("crash", "x")).await;
            crash.expect_err("it has crashed");
            for call in hanging {
                let answer = within(PATIENCE, call).await.unwrap();
                answer.expect_err("nobody is there to answer");
            }
        }
    });
}

#[test]
fn a_call_that_hangs_holds_up_no_other_and_no_stop() {
    run(async {
        for (language, program) in fixtures::all() {
            let started = start(&program, How::default()).await.unwrap();
            let transform = Transform::of(&started.plugin);
            let soon = Duration::from_millis(300);
            let given_up = tokio::time::timeout(soon, transform.apply("hang", "x")).await;
            assert!(given_up.is_err(), "{language}: {given_up:?}");
            within(PATIENCE, started.plugin.check()).await.unwrap();
            let other = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
            assert_eq!(other.payload, "X", "{language}");
            let hanging = tokio::spawn(async move { transform.apply("hang", "x").await });
            let ended = within(PATIENCE, started.plugin.stop()).await;
            assert!(ended.status.is_some(), "{language}: {ended}");
            let answer = within(PATIENCE, hanging).await.unwrap();
            answer.expect_err("its plugin is gone");
        }
    });
}

#[test]
fn an_answer_of_16_mib_is_taken_with_and_without_tls() {
    run(async {
        for (language, program) in fixtures::all() {
            for how in [How::default(), How::tls()] {
                let started = start(&program, how).await.unwrap();
                let transform = Transform::of(&started.plugin);
                let big = within(PATIENCE, transform.apply("big", "x")).await.unwrap();
                assert_eq!(big.payload.len(), 16 * MIB, "{language}");
                assert!(big.payload.iter().all(|byte| *byte == b'x'), "{language}");
                started.plugin.stop().await;
            }
        }
    });
}

#[test]
fn answers_over_the_limit_take_no_memory_however_many_there_are() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let large = format!("large:{TOO_LARGE_BYTES}");
        let calls = (0..TOO_LARGE_CALLS).map(|_| transform.apply(&large, "x"));
        for answer in within(PATIENCE, join_all(calls)).await {
            let refused = answer.map(|answer| answer.payload.len()).unwrap_err();
            assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        }
        let other = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
        assert_eq!(other.payload, "X");
        started.plugin.stop().await;
    });
}

#[test]
fn a_host_may_take_larger_answers() {
    run(async {
        let how = How { answer_bytes_max: 2 * TOO_LARGE_BYTES, ..How::default() };
        let started = start(&fixtures::rust(), how).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let id = format!("large:{TOO_LARGE_BYTES}");
        let large = transform.apply(&id, "x");
        let large = within(PATIENCE, large).await.unwrap();
        assert_eq!(large.payload.len(), TOO_LARGE_BYTES);
        started.plugin.stop().await;
    });
}

#[test]
fn an_answer_of_16_mib_is_taken_from_a_multiplexed_plugin() {
    run(async {
        for tls in [false, true] {
            let started = start(&fixtures::rust(), How::multiplexed(tls)).await.unwrap();
            let transform = Transform::of(&started.plugin);
            let big = within(PATIENCE, transform.apply("big", "x")).await.unwrap();
            assert_eq!(big.payload.len(), 16 * MIB);
            started.plugin.stop().await;
        }
    });
}

#[test]
fn a_service_that_nobody_serves_is_a_clear_answer_on_both_sides() {
    run(async {
        let both = [How::default(), How::multiplexed(false)].map(|how| async move {
            let started = start(&fixtures::rust(), how).await.unwrap();
            let transform = Transform::of(&started.plugin);
            let from_plugin = within(PATIENCE, transform.call_back(NOBODY));
            let from_host = within(PATIENCE, started.plugin.broker().dial(NOBODY));
            let (from_plugin, from_host) = join(from_plugin, from_host).await;
            from_plugin.expect_err("the host serves nothing there");
            let error = from_host.expect_err("the plugin serves nothing there");
            assert!(matches!(error, Error::Broker(_) | Error::Late { .. }), "{error}");
            let other = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
            assert_eq!(other.payload, "X");
            started.plugin.stop().await;
        });
        join_all(both).await;
    });
}

/// What Go writes when it panics are lines without any level.
#[test]
fn the_lines_of_a_panic_are_errors() {
    run(async {
        for program in [Some(fixtures::rust()), fixtures::go()].into_iter().flatten() {
            let started = start(&program, How::default()).await.unwrap();
            let panic = within(PATIENCE, Transform::of(&started.plugin).apply("panic", "x")).await;
            panic.expect_err("it has panicked");
            let ended = within(PATIENCE, started.plugin.ended()).await;
            assert_eq!(ended.status.unwrap().code(), Some(2), "{ended}");
            started.until("the panic", |all| all.has_line("panic: boom from plugin")).await;
            let prints = started.prints();
            let mut lines = prints.lines.iter();
            let told = lines.find(|line| line.message.contains("boom from plugin")).unwrap();
            assert!(matches!(told.level, Level::Error), "{prints:?}");
            assert!(lines.all(|line| matches!(line.level, Level::Error)), "{prints:?}");
        }
    });
}
