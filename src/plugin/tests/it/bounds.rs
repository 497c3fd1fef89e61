//! Plugins that take all that they can get.

use flexcore_plugin::{guard::Bounds, limits};
use tonic::Code;

use crate::{
    PATIENCE,
    base::{MIB, run},
    contract::Transform,
    fixtures,
    harness::{How, start, within},
    stopping::signal,
};

/// What the kernel sends a process that has used its processor time.
const SIGXCPU: i32 = 24;
/// What a process sends itself that has no memory.
const SIGABRT: i32 = 6;

fn bound(bounds: Bounds) -> How {
    How { bounds, ..How::default() }
}

#[test]
fn a_plugin_that_takes_all_memory_ends_alone() {
    run(async {
        let memory_bytes = Some(1_024 * MIB as u64);
        let how = bound(Bounds { memory_bytes, ..Bounds::default() });
        let started = start(&fixtures::rust(), how).await.unwrap();
        let transform = Transform::of(&started.plugin);
        within(PATIENCE, transform.apply("memory:16", "x")).await.unwrap();
        let hog = within(PATIENCE, transform.apply("memory:1024", "x")).await;
        hog.expect_err("there is no such memory");
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert_eq!(signal(&ended), Some(SIGABRT), "{ended}");
    });
}

#[test]
fn a_plugin_that_takes_all_processor_time_is_ended() {
    run(async {
        let how = bound(Bounds { cpu_s: Some(1), ..Bounds::default() });
        let started = start(&fixtures::rust(), how).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let endless = within(PATIENCE, transform.apply("loop", "x")).await;
        endless.expect_err("it never answers");
        let ended = within(PATIENCE, started.plugin.ended()).await;
        assert_eq!(signal(&ended), Some(SIGXCPU), "{ended}");
    });
}

/// More loops than the plugin has threads: it hears neither `Shutdown` nor a signal.
#[test]
fn a_plugin_that_hears_nothing_any_more_is_killed_by_a_stop() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let threads = std::thread::available_parallelism().unwrap().get();
        let loops: Vec<_> = (0..2 * threads)
            .map(|_| {
                let transform = Transform::of(&started.plugin);
                tokio::spawn(async move { transform.apply("loop", "x").await })
            })
            .collect();
        // The last call that it takes is perhaps one of these.
        within(PATIENCE, async { while started.plugin.check().await.is_ok() {} }).await;
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert_eq!(signal(&ended), Some(9), "{ended}");
        for endless in loops {
            within(PATIENCE, endless).await.unwrap().expect_err("nobody is there to answer");
        }
    });
}

/// Nor is any of it kept: `base` has the limit of what a host may take.
#[test]
fn an_answer_over_the_limit_is_refused_and_ends_nothing() {
    run(async {
        let started = start(&fixtures::rust(), How::default()).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let large = format!("large:{}", limits::ANSWER_BYTES_MAX);
        for _ in 0..4 {
            let status = within(PATIENCE, transform.apply(&large, "x")).await.unwrap_err();
            let fits = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted);
            assert!(fits, "{status}");
        }
        let other = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
        assert_eq!(other.payload, "X");
        within(PATIENCE, started.plugin.stop()).await;
    });
}
